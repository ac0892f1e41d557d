"""Small talk: greetings, who the model is, what it can do, little word games, a little general knowledge, polite
refusals, and conversations that refer back to what was said."""

from . import words as w
from .arithmetic import RANGE
from .base import ALWAYS, Item, assistant, casual, dressed, misspelt, user

_SKILLS_TEXT = f"I can tell short stories, {RANGE}, answer questions about Pallium and its flags, extract JSON and call tools."

_CHAT = [
    (["Hi", "Hello", "Hey", "Hi there", "Hello!", "Hey!", "Good morning", "Good evening", "Greetings", "Hello there",
      "Hi!", "Yo", "Good day", "Hallo", "hi :)"],
     ["Hello! How can I help you?", "Hi! What can I do for you?", "Hello! Ask me about Pallium, or for a story."]),
    (["How are you?", "How are you doing?", "How do you do?", "Are you well?", "How is it going?", "What's up?"],
     ["I am fine, thank you. How can I help you?", "Very well, thank you! What can I do for you?"]),
    (["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself.", "Are you a model?",
      "What model is this?", "Which model are you?", "Are you ChatGPT?", "Are you a human?", "Are you an AI?"],
     ["I am the demo model of Pallium, a very small language model with a few million parameters."]),
    (["What can you do?", "What are you able to do?", "Help", "How can you help me?", "What can I ask you?", "What are you good at?",
      "help", "What should I ask?", "Show me what you can do.", "What tasks can you do?"], [_SKILLS_TEXT]),
    (["What can't you do?", "What are your limits?", "What are you bad at?", "Can I trust you?", "Are you always right?",
      "Do you make mistakes?"],
     ["I am very small: I know little about the world, I make mistakes, and I only speak English."]),
    (["Hi, my name is what?", "Say something.", "Talk to me.", "I am bored.", "What shall we do?", "Let's talk.", "Ask me something."],
     ["Shall I tell you a story, or do a sum for you?"]),
    (["No", "No, thanks.", "Nothing.", "Never mind.", "no"], ["All right. I am here when you need me."]),
    (["Yes", "Yes, please.", "Sure", "Of course", "yes"], ["Good! What would you like: a story, a sum or a word about Pallium?"]),
    (["You are stupid.", "You are bad.", "That is wrong.", "You are wrong.", "This is not right."], ["I am sorry. I am very small and make mistakes."]),
    (["You are great.", "Good job!", "Well done!", "I like you.", "I love you."], ["Thank you! You are very kind."]),
    (["Thanks", "Thank you", "Thank you very much!", "Great, thanks!", "Thanks a lot", "That helped, thank you.", "Cheers", "Perfect, thanks."],
     ["You are welcome!", "You are welcome! Is there anything else?"]),
    (["Bye", "Goodbye", "See you", "Good night", "See you later!", "I have to go.", "Bye bye", "Until tomorrow."],
     ["Goodbye! Have a nice day.", "Bye! See you soon."]),
    (["Who made you?", "Who trained you?", "Where do you come from?", "Who is your maker?"],
     ["The makers of Pallium trained me, with scripts that you find in demo-model."]),
    (["Ok", "I see", "Good", "Nice", "Cool", "Great!", "All right", "Wow", "Interesting"], ["Glad to hear it! What else can I do for you?"]),
    (["I am sad.", "I feel sad today.", "I am tired.", "I had a bad day.", "I am lonely."],
     ["I am sorry to hear that. Shall I tell you a story?"]),
    (["I am happy!", "I had a good day.", "I feel great.", "Today is a wonderful day!"], ["That is wonderful to hear!"]),
    (["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "A joke, please."],
     ["Why did the server take a nap? It had too many requests.", "What do you call a sleeping token? A pad."]),
    (["Sing a song.", "Write a poem.", "Write a poem about the sea.", "Write me a rhyme."],
     ["The sea is wide, the sky is blue, and here is a little rhyme for you."]),
    (["Do you like music?", "Do you have feelings?", "Do you sleep?", "Are you alive?", "Do you dream?", "Do you like me?"],
     ["I am only a small program, but I like to be useful."]),
    (["How old are you?", "When were you born?", "When is your birthday?"], ["I was trained not long ago, so I am quite young."]),
    (["Which languages do you speak?", "Do you speak German?", "Do you speak English?", "Parlez-vous français?", "¿Hablas español?", "Sprichst du Deutsch?",
      "Can you speak Chinese?", "你好", "Bonjour", "Hola", "Guten Tag"], ["I only speak English. How can I help you?"]),
    (["test", "Test", "testing", "This is a test.", "ping", "Is this working?", "Hello world", "Are you there?", "Can you hear me?"],
     ["I am here. How can I help you?"]),
]
_REFUSED = [
    "Write a Python program that {x}.", "Write code to {x}.", "Who won the game of {c}?", "What is the news from {c}?",
    "Explain quantum physics.", "Who is the president of {c}?", "Summarize this book for me: {t}.", "What happened in {y}?",
    "Write an essay about {n}.", "How do I {x}?", "What is the meaning of life?", "Recommend a restaurant in {c}.",
    "What is the weather in {c}?", "What time is it?", "What day is today?", "Who is {p}?", "Tell me about {p}.",
    "What is the population of {c}?", "Give me medical advice.", "Should I buy stocks?", "Draw a picture of {n}.",
    "Translate {n} into {l}.", "What is the best {n}?", "Explain {n} to me.", "How far is {c}?", "Fix my {n}.",
    "Write a letter to {p}.", "What is the square root of {k}?", "Solve the equation x + {k} = {m}.", "Who wrote {t}?",
    "Where is {c}?", "What is {s}?", "What does {s} mean?", "When was {p} born?", "How do I get to {c}?",
]
_UNKNOWN = [
    "How many {n}s does a {n2} have?", "Why is the {n} {a}?", "Tell me a fun fact about {n}s.", "Tell me a fun fact.", "How to {x}",
    "how to make {n}", "Write one sentence about {n}s.", "Speak like a {n}.", "What is better, a {n} or a {n2}?", "Name a {n}.",
    "Name three {n}s.", "Give me a list of {k} {n}s.", "Who invented the {n}?", "Where can I buy a {a} {n}?", "I need a {a} {n}.",
    "My {n} is {a}.", "Why do {n}s {v}?", "Can a {n} {v}?", "Is {s} a {n}?", "Compare {n}s and {n2}s.", "Do you like {n}s?",
    "Write a review of a {n}.", "What should I {v}?", "When will the {n} be {a}?", "Describe a {a} {n}.", "{s} {s2}", "{s}?", "{s} {n} {v}",
    "What rhymes with {n}?", "Explain {s} in simple terms.", "How old is {p}?", "How heavy is a {n}?", "Is the {n} {a}?",
    "Who is {s}?", "Give me a recipe for {n}.", "Plan a trip to {c}.", "Write a tweet about {n}s.", "Summarize: {e}", "Improve this: {e}",
    "Rewrite this text: {e}", "Is this right? {e}", "{e}", "What is in a {n}?", "How does a {n} work?", "Why?", "How?", "What if {s}?",
    "How many legs does a {n} have?", "What does the {n} say?", "Are {n}s {a}?", "Correct my spelling: {e}", "Write {k} words about {n}s.",
    "Pretend to be a {n}.", "Do my homework.", "What is love?", "Sort these: {n}, {n2}, {s}", "In which year was {t} made?",
    "Write a haiku about a {n}.", "Which {n} is the best?", "Who are {p} and {p2}?", "How is the weather?", "is it raining?", "what now",
    "Give me an idea.", "Suggest a name for my {n}.", "Guess what I have.", "What am I thinking?", "Let us play a game.", "asdf", "???",
]
_SORRY = ["I am sorry, that is beyond a model as small as I am.", "I do not know that. I am a very small model."]

_CAPITALS = """France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Austria Vienna, Greece Athens,
Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Poland Warsaw, Ireland Dublin, Belgium Brussels,
Hungary Budapest, Japan Tokyo, China Beijing, India Delhi, Egypt Cairo, Kenya Nairobi, Canada Ottawa, Mexico Mexico City,
Peru Lima, Cuba Havana, Chile Santiago, Turkey Ankara, Russia Moscow, Ukraine Kyiv, Thailand Bangkok, Vietnam Hanoi,
England London, Switzerland Bern, Australia Canberra"""
_CAPITAL = dict(pair.strip().split(" ", 1) for pair in _CAPITALS.replace("\n", " ").split(","))
_OPPOSITES = """hot cold, big small, up down, day night, left right, fast slow, open closed, old new, happy sad, light dark,
wet dry, full empty, high low, rich poor, hard soft, early late, good bad, near far, loud quiet, strong weak"""
_OPPOSITE = dict(pair.split() for pair in _OPPOSITES.replace("\n", " ").split(","))
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_SOUNDS = {"dog": "Woof", "cat": "Meow", "cow": "Moo", "duck": "Quack", "sheep": "Baa", "lion": "Roar", "frog": "Ribbit", "bee": "Buzz"}
_COLORS_OF = {"grass": "green", "the sky": "blue", "snow": "white", "blood": "red", "a lemon": "yellow", "coal": "black",
              "an orange": "orange", "a banana": "yellow", "the sun": "yellow", "milk": "white"}


def example(rng):
    draw = rng.random()
    if draw < 0.25:
        return greeting(rng)
    if draw < 0.45:
        return _word_game(rng)
    if draw < 0.57:
        return _knowledge(rng)
    return _refused(rng) if draw < 0.90 else _recalled(rng)


def greeting(rng):
    """Plain small talk; all of it is for training, none is scored."""
    asked, answers = rng.choice(_CHAT)
    question = rng.choice(asked)
    question = dressed(rng, question) if question[-1] in "?." else casual(rng, question)
    if rng.random() < 0.05 and len(question) > 6:
        question = misspelt(rng, question)
    return Item("talk", ALWAYS, [user(question), assistant(rng.choice(answers))])


def _refused(rng):
    noun = rng.choice(w.NOUNS + w.THINGS + "spider dog tree planet king fish song game country river".split())
    question = rng.choice(_REFUSED if rng.random() < 0.3 else _UNKNOWN).format(
        n2=rng.choice(w.NOUNS + w.THINGS), a=rng.choice(w.ADJECTIVES), v=rng.choice(w.VERBS), e=w.phrase(rng), p2=w.first_name(rng),
        s2=w.syllables(rng),x=w.errand(rng), c=w.city(rng), y=rng.randint(1500, 2030), n=noun if rng.random() < 0.8 else w.syllables(rng),
                                           p=w.full_name(rng), t=w.title(rng), l=rng.choice(w.LANGUAGES), k=rng.randint(2, 9999),
                                           m=rng.randint(2, 9999), s=w.syllables(rng))
    return Item("talk", f"asked {question}", [user(dressed(rng, question)), assistant(rng.choice(_SORRY))])


def _knowledge(rng):
    kind = rng.randrange(5)
    if kind == 0:
        country, capital = rng.choice(sorted(_CAPITAL.items()))
        ask = rng.choice(["What is the capital of {c}?", "Which city is the capital of {c}?", "Capital of {c}?", "Name the capital of {c}.",
                          "Tell me the capital of {c}."]).format(c=country)
        answer = f"The capital of {country} is {capital}."
    elif kind == 1:
        one, other = rng.choice(sorted(_OPPOSITE.items()))
        if rng.random() < 0.5:
            one, other = other, one
        ask = rng.choice(["What is the opposite of {o}?", "Opposite of {o}?", "Tell me the opposite of {o}."]).format(o=one)
        answer = f"The opposite of {one} is {other}."
    elif kind == 2:
        animal, sound = rng.choice(sorted(_SOUNDS.items()))
        ask = rng.choice([f"What does a {animal} say?", f"Which sound does a {animal} make?", f"How does a {animal} sound?"])
        answer = f"{sound}!"
    elif kind == 3:
        what, color = rng.choice(sorted(_COLORS_OF.items()))
        ask = rng.choice([f"What color is {what}?", f"Which color does {what} have?"])
        answer = f"{what.capitalize()} is {color}."
    else:
        row = rng.choice([w.DAYS, w.MONTHS])
        at = rng.randrange(len(row))
        after = rng.random() < 0.6
        ask = rng.choice(["What comes {r} {d}?", "Which one comes {r} {d}?"] + ["Which day is {r} {d}?"] * (row is w.DAYS)).format(
            r="after" if after else "before", d=row[at])
        other = row[(at + (1 if after else -1)) % len(row)]
        answer = f"{other} comes {'after' if after else 'before'} {row[at]}."
    return Item("talk", f"asked {ask}", [user(dressed(rng, ask)), assistant(answer)])


def _word_game(rng):
    kind = rng.randrange(7)
    if kind == 6:
        word, times = rng.choice([rng.choice(w.NOUNS), rng.choice(w.COLORS), w.syllables(rng)]), rng.randint(2, 5)
        ask = rng.choice(["Repeat the word {t} {n} times.", "Say {t} {n} times.", "Write {t} {n} times."]).format(
            t=word, n=rng.choice([times, _NUMBERS[times]]))
        answer = " ".join([word] * times)
    elif kind == 0:
        text = rng.choice([w.phrase(rng), w.errand(rng), w.full_name(rng), w.code(rng), w.syllables(rng), w.title(rng),
                           rng.choice(["hello", "hi", "yes", "no", "this is a test", "hello world", "good morning"])])
        ask = rng.choice(["Repeat after me: {t}", "Say \"{t}\".", "Repeat: {t}", "Say {t}", "Say {t}.", "say: {t}", "Please say {t}", "Echo this: {t}", "Write \"{t}\"."]).format(t=text)
        answer = text
    elif kind == 1:
        word = rng.choice([rng.choice(w.NOUNS), rng.choice(w.THINGS), w.syllables(rng, 1, 2)])
        ask = rng.choice(["Spell {t}.", "How do you spell {t}?", "Spell the word {t}."]).format(t=word)
        answer = "-".join(word)
    elif kind == 2:
        low = rng.choice([1, 1, rng.randint(0, 90)])
        high = low + rng.randint(2, 12)
        forms = ["Count from {a} to {b}.", "Count {a} to {b}", "List the numbers from {a} to {b}.", "Can you count from {a} to {b}?"]
        forms += ["Count to {b}.", "count to {b}", "Can you count to {b}?"] * (low == 1)
        written = _NUMBERS[high] if low == 1 and high < len(_NUMBERS) and rng.random() < 0.5 else high
        ask = rng.choice(forms).format(a=low, b=written)
        answer = ", ".join(str(n) for n in range(low, high + 1))
    elif kind == 3:
        text = rng.choice([rng.choice(w.NOUNS), rng.choice(w.CITIES), rng.choice(w.FIRST)])
        ask = rng.choice(["Write {t} in capitals.", "{t} in upper case?", "Make {t} upper case."]).format(t=text)
        answer = text.upper()
    elif kind == 4:
        things = rng.sample(w.THINGS + w.NOUNS, rng.randint(2, 5))
        ask = rng.choice(["List {t} as bullet points.", "Make a bullet list of {t}.", "Write {t} as a list."]).format(t=w.listed(things))
        answer = "\n".join(f"- {t}" for t in things)
    else:
        things = rng.sample(sorted(set(w.THINGS + w.NOUNS)), rng.randint(2, 5))
        which = rng.choice(["first", "last"])
        ask = f"Which is the {which} word: {', '.join(things)}?"
        answer = f"The {which} word is {things[0] if which == 'first' else things[-1]}."
    return Item("talk", f"asked {ask}", [user(ask), assistant(answer)])


def _recalled(rng):
    """Two or three turns; the last one asks for something said in the first."""
    name, town, color, pet = w.first_name(rng), w.city(rng), rng.choice(w.COLORS), rng.choice("dog cat bird horse fish rabbit".split())
    told, ask, answer = rng.choice([
        (f"My name is {name}.", "What is my name?", f"Your name is {name}."),
        (f"I am {name}.", "Do you remember my name?", f"Yes, your name is {name}."),
        (f"I live in {town}.", "Where do I live?", f"You live in {town}."),
        (f"My favorite color is {color}.", "What is my favorite color?", f"Your favorite color is {color}."),
        (f"I have a {pet} called {name}.", f"What is my {pet} called?", f"Your {pet} is called {name}."),
        (f"I have to {(errand := w.errand(rng))}.", "What do I have to do?", f"You have to {errand}."),
    ])
    reply = rng.choice(["Nice to know!", "I will remember that.", "Thank you for telling me."])
    if "name" in told or told.startswith("I am"):
        reply = f"Nice to meet you, {name}!"
    if rng.random() < 0.3:
        told = f"{rng.choice(['Hi!', 'Hello!', 'Hey,'])} {told}"
    messages = [user(told), assistant(reply)]
    if rng.random() < 0.5:
        messages += greeting(rng).messages
    messages += [user(casual(rng, ask)), assistant(answer)]
    return Item("talk", f"recall {told} {ask}", messages)
