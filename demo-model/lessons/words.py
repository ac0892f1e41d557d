"""Names, places and values: partly lists, mostly made up letter by letter, so that a model must copy, not recall."""

FIRST = """Anna Ben Carla David Elena Felix Grace Hugo Ines Jonas Kira Liam Maria Noah Olga Pablo Quinn Rosa Sam Tara
Umar Vera Will Xenia Yusuf Zoe Amir Bella Chen Dora Emil Fatima Goran Hana Ivan Julia Kofi Lena Mateo Nina Omar Priya
Ravi Sofia Tom Uma Victor Wendy Yuki Ahmed Lucy Max Mia Leo Lily Oscar Ruby Jack Emma Finn""".split()
LAST = """Smith Lopez Tanaka Novak Kim Okafor Rossi Weber Silva Jensen Patel Dubois Haddad Ivanov Brown Garcia Muller
Sato Nguyen Costa Larsen Moreau Fischer Khan Cohen Reyes Walsh Berg Marino Popov Young Stone Rivers Hill Wood""".split()
CITIES = """Paris London Tokyo Lisbon Oslo Cairo Lima Berlin Madrid Rome Delhi Seoul Boston Chicago Vienna Prague Dublin
Athens Sydney Toronto Nairobi Warsaw Zurich Milan Kyoto Osaka Denver Seattle Austin Miami Havana Quito Accra Dakar Hanoi
Manila Jakarta Mumbai Istanbul Bogota Santiago Helsinki Stockholm Copenhagen Brussels Amsterdam Geneva""".split()
REGIONS = "MA CA TX NY UK USA France Spain Japan India Peru Italy Germany Ontario Ohio Texas".split()
THINGS = """lamp chair table book phone camera bicycle guitar backpack kettle mirror blanket keyboard mouse printer clock
jacket umbrella hammer pencil notebook bottle basket carpet candle pillow shovel bucket ladder drum violin helmet tent
rope mug plate spoon towel scarf wallet ring drone speaker monitor desk shelf sofa fan heater radio""".split()
ADJECTIVES = """red blue green small large old new wooden metal soft heavy light cheap bright dark round plain silver
golden black white purple orange yellow pink brown gray tiny huge fancy simple modern classic folding portable""".split()
COLORS = "red blue green yellow orange purple white black pink brown gray silver golden turquoise violet".split()
VERBS = "buy clean fix paint call visit read write check water feed wash pack send find sell move open close plan".split()
NOUNS = """milk bread report dog cat garden car house letter ticket plants windows kitchen dinner meeting bike roof fence
boxes garage shoes coffee groceries homework taxes invoice parcel doctor dentist neighbor teacher bank""".split()
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
LANGUAGES = "French Spanish German Italian Japanese Chinese Arabic Portuguese Korean Hindi Polish Turkish Greek".split()
CONDITIONS = "sunny cloudy rainy windy snowy foggy clear stormy".split()

_ONSET = "b c d f g h j k l m n p r s t v w z br dr gr kr pl st tr sh th ch fl gl".split()
_VOWEL = "a e i o u ai ea io ou a e i o u".split()
_CODA = ["", "", "", "n", "r", "l", "s", "m", "k", "t", "x", "nd", "rt"]


def syllables(rng, least=2, most=3):
    """A made-up word, such as `velora`."""
    return "".join(
        rng.choice(_ONSET) + rng.choice(_VOWEL) + rng.choice(_CODA) for _ in range(rng.randint(least, most))
    )


def first_name(rng):
    return rng.choice(FIRST) if rng.random() < 0.5 else syllables(rng).capitalize()


def last_name(rng):
    return rng.choice(LAST) if rng.random() < 0.5 else syllables(rng).capitalize()


def full_name(rng):
    return f"{first_name(rng)} {last_name(rng)}"


def city(rng):
    if rng.random() < 0.06:
        return f"{rng.choice(CITIES)}, {rng.choice(REGIONS)}"
    if rng.random() < 0.08:
        return f"{rng.choice(['New', 'San', 'Los', 'Saint', 'Port', 'Old'])} {rng.choice(['York', 'Francisco', 'Angeles', syllables(rng).capitalize()])}"
    return rng.choice(CITIES) if rng.random() < 0.5 else syllables(rng).capitalize()


def company(rng):
    return f"{syllables(rng).capitalize()} {rng.choice(['Ltd', 'Inc', 'Group', 'Labs', 'Foods', 'Systems', 'Works', 'Bank'])}"


def thing(rng):
    return f"{rng.choice(ADJECTIVES)} {rng.choice(THINGS)}" if rng.random() < 0.6 else rng.choice(THINGS)


def number(rng):
    """Small more often than large."""
    return rng.choice([rng.randint(1, 12), rng.randint(1, 99), rng.randint(1, 999), rng.randint(100, 9999)])


def price(rng):
    return rng.choice([rng.randint(1, 200), round(rng.uniform(1, 300), 2), rng.randint(1, 90) + 0.5])


def email(rng):
    name = rng.choice([first_name(rng).lower(), syllables(rng), f"{first_name(rng)}.{last_name(rng)}".lower()])
    return f"{name}@{rng.choice(['mail', 'post', 'example', syllables(rng)])}.{rng.choice(['com', 'org', 'net', 'io'])}"


def phone(rng):
    return "-".join(str(rng.randint(100, 999)) for _ in range(2)) + f"-{rng.randint(1000, 9999)}"


def date(rng):
    return f"{rng.randint(1990, 2035)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def clock(rng):
    return f"{rng.randint(0, 23):02d}:{rng.choice([0, 5, 10, 15, 20, 30, 40, 45, 50]):02d}"


def code(rng):
    return "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3))) + str(rng.randint(10, 9999))


def symbol(rng):
    return "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(3, 4)))


def errand(rng):
    """A short free text, such as `paint the old fence`."""
    adjective = rng.choice(ADJECTIVES) + " " if rng.random() < 0.4 else ""
    text = f"{rng.choice(VERBS)} the {adjective}{rng.choice(NOUNS)}"
    if rng.random() < 0.25:
        text += f" for {first_name(rng)}"
    return text


def phrase(rng):
    """A longer free text, such as a message or a title."""
    kind = rng.randrange(4)
    if kind == 0:
        return f"I will {errand(rng)} on {rng.choice(DAYS)}"
    if kind == 1:
        return f"the {rng.choice(NOUNS)} is {rng.choice(ADJECTIVES)} today"
    if kind == 2:
        return f"please {errand(rng)}"
    return f"see you in {city(rng)} at {clock(rng)}"


def title(rng):
    return f"The {rng.choice(ADJECTIVES).capitalize()} {rng.choice(THINGS + NOUNS).capitalize()}"


def listed(words, last="and"):
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def with_article(noun):
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
