"""Short stories. A plot is a row of beats, a beat a choice of sentences; names, places and things run through them.

Each story is checked when it is made: no sentence comes twice.
"""

import re

from .base import ALWAYS, Item, assistant, dressed, user
from .words import FIRST, THINGS, syllables, with_article

_ANIMALS = """fox rabbit bear mouse owl hedgehog turtle frog squirrel duck cat dog lion sparrow otter badger pony goat
beaver penguin kitten puppy donkey crow deer whale snail lamb monkey dragon""".split()
_PEOPLE = """girl boy baker farmer sailor gardener painter king princess robot giant wizard shepherd pirate knight witch
queen prince teacher doctor astronaut cook child woman man ghost fairy clown""".split()
_OTHERS = "tree star cloud teapot train boat snowman teddy stone river moon computer server program number letter".split()
# Nobody but friends has these names, so that a friend is never called like the hero.
_FRIENDS = """Alba Bruno Coco Dario Elsie Fritz Gina Hans Isla Jasper Kaya Louis Mabel Nico Otto Pearl Remy Stella Theo
Ursula Viola Wanda Yara Ziggy Basil Clara Dexter Flora Gus Hazel""".split()
_NATURE = """small brave shy clever curious gentle lonely cheerful stubborn kind young old quiet tiny proud lazy hungry
patient playful careful""".split()
_PLACES = ["a green valley", "a quiet forest", "a village by the sea", "an old mill", "a house on a hill", "a little town",
           "a garden full of roses", "a cave near the river", "a farm at the edge of the woods", "a hut on an island", "a tall tree",
           "a cottage under the mountain", "a wide meadow", "a castle with seven towers", "a boat on the lake"]
_TREASURES = ["silver key", "red kite", "wooden flute", "blue marble", "golden bell", "warm scarf", "tiny lantern",
              "old map", "glass bead", "music box", "brass compass", "paper boat", "green umbrella", "round mirror",
              "little drum", "picture book", "shiny button", "straw hat"]
_SPOTS = ["under a stone", "behind the barn", "in a hollow tree", "at the bottom of the well", "between two roots",
          "in the tall grass", "on the roof", "beside the old bridge", "near the waterfall", "in a bird's nest",
          "below the stairs", "inside an empty boot"]
_SKILLS = ["swim", "fly", "sing", "dance", "climb", "read", "paint", "whistle", "bake bread", "ride a bicycle", "skate",
           "juggle", "play the drum", "tell jokes", "sew", "cook soup"]
_FOODS = ["apple pie", "carrot soup", "honey cake", "warm bread", "berry jam", "pancakes", "mushroom stew", "nut cookies",
          "pumpkin soup", "cherry tart"]
_WEATHER = ["The sun was shining", "It was raining softly", "A cold wind was blowing", "Snow was falling", "The sky was blue",
            "Mist lay over the fields", "The air smelled of flowers", "Leaves were dancing in the wind"]
_DAYTIME = ["One morning", "One day", "One evening", "On a warm afternoon", "Early one day", "One winter day", "One spring morning",
            "On the first day of summer", "One night"]

_START = [
    "Once upon a time, there was {a_nature} {kind} named {hero} who lived in {place}.",
    "{hero} was {a_nature} {kind} who lived in {place}.",
    "In {place} there lived {a_nature} {kind} called {hero}.",
    "Long ago, {a_nature} {kind} named {hero} made a home in {place}.",
    "There once was {a_nature} {kind}. The name of the {kind} was {hero}, and home was {place}.",
    "Far away, in {place}, lived {hero}, {a_nature} {kind}.",
    "Everyone in {place} knew {hero}, the {nature} {kind}.",
]
_HABIT = [
    "Every day {hero} ate {food} for breakfast.", "{hero} loved {food} more than anything.",
    "In the evenings {hero} liked to look at the stars.",
    "{hero} knew every path and every stone there.", "People said that {hero} had the kindest heart of all.",
    "Most days were calm, and {hero} liked them that way.", "{hero} often sat by the window and dreamed.",
    "Nobody could laugh as loudly as {hero}.", "On Sundays {hero} baked {food} for the neighbors.",
]

_PLOTS = {
    "lost": (["who lost {a_treasure}", "and a lost {treasure}", "who cannot find {a_treasure}"], [
        ["{day}, {hero} woke up and could not find the {treasure}.", "{day}, the {treasure} of {hero} was gone.",
         "{day}, {hero} reached for the {treasure}, but it was not there.", "{day}, {hero} lost {a_treasure} that had been a gift."],
        ["{hero} looked under the bed and behind the door.", "First {hero} searched the whole house.",
         "\"Where can it be?\" asked {hero}.", "{hero} felt a tear coming.", "It had been a present from grandmother."],
        ["Then {friend} the {kind2} came by and asked what was wrong.", "On the road {hero} met {friend}, a wise {kind2}.",
         "A {kind2} named {friend} heard the noise and came to help.", "{friend} the {kind2} wanted to help at once."],
        ["\"Think of where you were yesterday,\" said {friend}.", "\"Two can search better than one,\" said {friend}.",
         "\"Do not worry, we will look together,\" said {friend}.", "\"Let us walk the same way again,\" {friend} said."],
        ["They searched all day and asked everyone they met.", "They looked high and low until the sun went down.",
         "Together they followed the small footprints.", "They went past the river and over the hill."],
        ["At last they found the {treasure} {spot}.", "There it was: the {treasure} lay {spot}.",
         "And {spot}, something was shining. It was the {treasure}!", "Suddenly {friend} pointed. The {treasure} was {spot}."],
        ["{hero} hugged {friend} and laughed.", "\"Thank you, my friend!\" cried {hero}.", "{hero} jumped with joy.",
         "{hero} was so happy that both of them danced."],
        ["That night they shared {food} and told stories.", "From then on, {hero} kept the {treasure} in a safe place.",
         "And {hero} learned that a good friend is the best treasure.", "Since that day the two were never apart for long."]]),
    "learn": (["who wants to {skill}", "who learns to {skill}", "who cannot {skill}"], [
        ["{hero} had one great wish: to learn to {skill}.", "More than anything, {hero} wanted to {skill}.",
         "But there was one thing {hero} could not do: {hero} could not {skill}.", "{day}, {hero} decided to learn to {skill}."],
        ["The others laughed and said it was impossible.", "\"You will never learn that,\" said the others.",
         "Everybody else seemed to do it with ease.", "Nobody believed that it could be done."],
        ["{hero} tried once and failed.", "The first try ended in the mud.", "On the first day nothing worked at all.",
         "At first it went very badly."],
        ["Then {friend}, an old {kind2}, stopped and watched.", "A {kind2} named {friend} saw how hard it was.",
         "{friend} the {kind2} had once had the same trouble."],
        ["\"Try a little every day,\" said {friend}.", "\"Be patient and do not give up,\" said {friend}.",
         "\"Everyone falls before they rise,\" {friend} said kindly.", "\"I will show you how,\" said {friend}."],
        ["So {hero} practiced each morning, even in the rain.", "Day after day {hero} practiced, and {friend} helped.",
         "{hero} tried ten times, and then ten times more.", "Weeks went by, and every week it went a bit better."],
        ["And then, {day_low}, {hero} could {skill}!", "At last it worked: {hero} could really {skill}.",
         "Before long {hero} was able to {skill} better than anyone.", "Suddenly it was easy, and {hero} could {skill}."],
        ["The others stared and clapped.", "Even those who had laughed were amazed.", "\"How did you do that?\" they all asked.",
         "Everyone came to see it."],
        ["\"I only kept trying,\" said {hero} with a smile.", "Now {hero} teaches all who want to {skill}.",
         "That evening {hero} and {friend} celebrated with {food}.", "So {hero} learned that patience is a kind of magic."]]),
    "storm": (["and a storm", "in a big storm", "who helps in a storm"], [
        ["{day}, dark clouds came over the hills.", "{day}, a terrible storm began.", "{day}, the wind grew louder and louder.",
         "{day}, thunder rolled over the land."],
        ["The rain fell so hard that the paths became rivers.", "Trees bent and doors slammed.", "Lightning lit the whole sky.",
         "Water came in through every crack."],
        ["{hero} was safe inside with {food} on the stove.", "{hero} closed the shutters and lit a candle.",
         "{hero} was afraid, but tried to be brave."],
        ["Then there was a knock at the door.", "Suddenly {hero} heard a small voice outside.", "Somebody was calling for help."],
        ["It was {friend}, a {kind2} whose home had been swept away.", "Outside stood {friend} the {kind2}, wet and shaking.",
         "{friend} the {kind2} was stuck in the mud."],
        ["\"Come in and get warm,\" said {hero}.", "{hero} did not think twice and ran out into the rain.",
         "\"Hold on to me!\" called {hero}."],
        ["Inside, they dried by the fire and ate {food}.", "Soon both of them sat by the fire, wrapped in blankets.",
         "They talked all night while the wind howled."],
        ["In the morning the sun came out again.", "When the storm was over, a rainbow stood in the sky.",
         "The next day the world was clean and quiet."],
        ["Together they built a new home for {friend}.", "\"I will never forget this,\" said {friend}.",
         "{friend} gave {hero} {a_treasure} as thanks."],
        ["From that day on they were best friends.", "And so a bad storm brought something good.",
         "Since then no storm has frightened them."]]),
    "gift": (["who finds {a_treasure}", "and {a_treasure}", "who shares {a_treasure}"], [
        ["{day}, {hero} found {a_treasure} {spot}.", "{day}, something was shining {spot}. It was {a_treasure}.",
         "{day}, {hero} came upon {a_treasure} {spot}."],
        ["It was the most beautiful thing {hero} had ever seen.", "{hero} turned it around and around.",
         "\"What a wonderful {treasure}!\" said {hero}."],
        ["But somebody must have lost it.", "\"Who may be missing it?\" wondered {hero}.", "{hero} wanted to keep it, but that felt wrong."],
        ["So {hero} went from door to door and asked.", "{hero} asked the baker, the miller and the postman.",
         "{hero} put up a note at the market."],
        ["No one knew anything about it.", "All of them shook their heads.", "Hours went by without an answer."],
        ["At the end of the street sat {friend}, a sad {kind2}.", "Then a {kind2} named {friend} came running.",
         "Finally {hero} met {friend}, a {kind2} with red eyes."],
        ["\"I lost my {treasure}, and it was all I had,\" said {friend}.", "\"That is mine!\" cried {friend}. \"I have looked for it everywhere.\"",
         "\"Have you seen my {treasure}?\" asked {friend}."],
        ["{hero} gave it back at once.", "With a smile {hero} handed over the {treasure}.", "\"Here it is,\" said {hero}."],
        ["{friend} was so glad that the two shared {food}.", "To say thanks, {friend} invited {hero} to eat {food}.",
         "{friend} laughed for the first time in days."],
        ["{hero} went home with empty hands and a full heart.", "And {hero} knew that giving is better than keeping.",
         "The {treasure} was gone, but a friend had come."]]),
    "feast": (["who bakes {food}", "and the {food}", "who makes {food}"], [
        ["{day}, {hero} wanted to make {food} for everyone.", "{day}, {hero} planned a feast with {food}.",
         "{day}, it was the turn of {hero} to bring {food} to the party."],
        ["But the cupboard was empty.", "Something important was missing in the kitchen.", "There was not even a spoon of sugar left."],
        ["So {hero} took a basket and went out.", "{hero} put on a hat and walked to the market.",
         "\"I will ask the neighbors,\" thought {hero}."],
        ["{friend} the {kind2} gave some flour.", "The first door was that of {friend}, a {kind2} with a big garden.",
         "On the way {hero} met {friend} the {kind2}, who had plenty of eggs."],
        ["The hen next door brought milk and butter.", "An old woman added a jar of honey.", "The miller gave salt and a smile."],
        ["Then they all cooked together and sang.", "Soon the whole house smelled wonderful.", "Everybody helped to stir the big pot."],
        ["Oh no, the pot was boiling over!", "For a moment the oven smoked like a chimney.", "Then the wind blew the door open and flour flew everywhere."],
        ["They looked at each other and laughed.", "\"It will taste good all the same,\" said {friend}.",
         "\"Never mind,\" said {hero}, \"we will start again.\""],
        ["When it was done, it was the best {food} of all time.", "In the end the {food} was perfect.",
         "The {food} was a little burnt, but nobody minded."],
        ["They ate until the moon was high.", "And everyone took a piece home.", "Food tastes best when many hands have made it."]]),
    "journey": (["who travels far", "who goes on a journey", "who wants to see the world"], [
        ["{day}, {hero} wanted to see what lay behind the mountains.", "{day}, {hero} packed a bag and set out to see the world.",
         "{day}, {hero} found {a_treasure} and followed where it led."],
        ["In the bag were {food} and a warm blanket.", "The road was long and dusty.", "{weather}, and the road was empty."],
        ["At the river there was no bridge.", "Soon a deep river blocked the way.", "After three days {hero} came to a wide lake."],
        ["\"Climb on my back,\" said {friend}, a friendly {kind2}.", "A {kind2} named {friend} knew a way across.",
         "There {hero} met {friend}, a {kind2} who was traveling too."],
        ["So they went on together.", "From there the two walked side by side.", "\"Where are you going?\" asked {friend}. \"To the end of the road,\" said {hero}."],
        ["They crossed a dark forest and a field of snow.", "They saw castles, deserts and a city of lights.",
         "They climbed so high that clouds were below them."],
        ["At the top of the last hill they saw the sea.", "And then, at the end of the road, there was the sea.",
         "Behind the last mountain the sea was shining."],
        ["{hero} had never seen anything so big.", "For a long time neither of them said a word.", "They ran down and put their feet into the water."],
        ["\"It is beautiful,\" said {hero}, \"but I miss my home.\"", "That night {hero} dreamed of home.",
         "After a while {hero} wanted to tell everyone at home."],
        ["So they walked back, and the way seemed half as long.", "The way back was full of songs.", "{friend} came along and stayed."],
        ["Now {hero} tells about the sea every winter.", "And home felt warmer than ever before.",
         "The world is wide, but a friend makes every place a home."]]),
    "night": (["who is afraid of the dark", "who cannot sleep", "and the moon"], [
        ["There was only one problem: {hero} was afraid of the dark.", "But at night {hero} could not sleep.",
         "Every evening {hero} counted the stars and still could not sleep."],
        ["Shadows moved on the wall like monsters.", "The floor creaked, and the wind whispered.", "Every sound seemed loud."],
        ["{day_night}, a soft light came through the window.", "{day_night}, {hero} heard someone humming outside.",
         "{day_night}, {hero} took {a_treasure} and went out to look."],
        ["It was {friend} the {kind2}, who liked the night.", "There sat {friend}, a {kind2} with bright eyes.",
         "A {kind2} named {friend} was looking at the moon."],
        ["\"Why are you awake?\" asked {friend}.", "\"Are you not afraid?\" asked {hero}.", "\"Come and sit with me,\" said {friend}."],
        ["\"The dark is only the day with its eyes closed,\" said {friend}.", "\"The night has its own friends,\" {friend} said. \"Listen!\"",
         "\"Look how many stars there are,\" whispered {friend}."],
        ["They heard crickets, frogs and the far river.", "Together they found shapes among the stars.",
         "Slowly the shadows turned into trees and chairs."],
        ["{hero} was not afraid any more.", "For the first time the dark felt soft.", "{hero} yawned and smiled."],
        ["Soon {hero} was fast asleep.", "Back in bed, {hero} slept until noon.", "That night {hero} dreamed of {food}."],
        ["Since then {hero} says good night to the moon.", "And now {hero} likes the night as much as the day.",
         "Every full moon the two friends meet again."]]),
}
_ASK = ["Tell me a story about {x}.", "Write a short story about {x}.", "Tell a story about {x}.", "Can you tell me a story about {x}?",
        "Write a story about {x}.", "I would like a story about {x}.", "A story about {x}, please.", "Make up a story about {x}.",
        "Please write a little story about {x}.", "Do you know a story about {x}?", "Give me a short story about {x}.",
        "Once more a story, this time about {x}.", "Write a very long story about {x}.", "Story about {x}", "story about {x}",
        "A short story about {x}", "Write me a story about {x}", "Can I have a story about {x}?", "Now one about {x}.", "Invent a tale about {x}.", "Tell me about {x}, as a story."]
_ASK_ANY = ["Tell me a story.", "Write a short story.", "Tell a story.", "Can you tell me a story?", "A story, please.",
            "I want to hear a story.", "Make up a story.", "Do you know a story?", "Tell me a bedtime story.", "Write something nice.", "Another story, please.",
            "Once upon a time", "story", "Tell me something.", "Write a long story.", "Tell me a story about anything.",
            "Tell me another story.", "Another one please", "One more story!", "Continue with another story.",
            "Tell me a story in five sentences.", "Write a fairy tale.", "Entertain me."]


def sentences(text):
    """The sentences of a story, for the check that none comes twice; `score.py` cuts them the same way."""
    return [s.strip() for s in re.split(r"(?<=[.!?])\"?\s+", text) if s.strip()]


def example(rng):
    """A request and its story, or in one of five cases the bare text of a story."""
    question, story, hero, kind = _drawn(rng)
    expect = {"story": True, "mentions": [m for m in (hero, kind) if m and m in question]}
    key = f"story {question}" if hero else ALWAYS
    return Item("stories", key, [user(question), assistant(story)], expect, max_tokens=400)


def bare_text(rng):
    return _drawn(rng)[1]


def _drawn(rng):
    while True:
        plot = rng.choice(sorted(_PLOTS))
        slots = _slots(rng)
        story = _told(rng, plot, slots)
        parts = sentences(story)
        if len(set(parts)) == len(parts):
            break
    named = rng.random()
    if named < 0.14:
        return dressed(rng, rng.choice(_ASK_ANY)), story, None, None
    subject = slots["a_nature"] + " " + slots["kind"] if rng.random() < 0.3 else with_article(slots["kind"])
    if named < 0.45:
        subject += f" named {slots['hero']}"
    elif named < 0.53:
        subject = slots["hero"]
    draw = rng.random()
    if draw < 0.45:
        subject += " " + rng.choice(_PLOTS[plot][0]).format(**slots)
    elif draw < 0.6:
        subject += f" and {with_article(slots['kind2'])}"
    question = rng.choice(_ASK).format(x=subject)
    return dressed(rng, question) if rng.random() < 0.5 else question, story, slots["hero"], slots["kind"]


def _slots(rng):
    draw = rng.random()
    kind = rng.choice(_ANIMALS if draw < 0.6 else _PEOPLE if draw < 0.85 else _OTHERS if draw < 0.93 else THINGS)
    if draw > 0.98:
        kind = syllables(rng)
    hero, friend = rng.choice(FIRST) if rng.random() < 0.75 else syllables(rng).capitalize(), rng.choice(_FRIENDS)
    nature = rng.choice(_NATURE)
    treasure, day = rng.choice(_TREASURES), rng.choice(_DAYTIME)
    return {"kind": kind, "kind2": rng.choice([k for k in _ANIMALS if k != kind and k[0] not in "aeiou"]), "hero": hero,
            "friend": friend, "nature": nature, "a_nature": with_article(nature), "place": rng.choice(_PLACES),
            "treasure": treasure, "a_treasure": with_article(treasure), "spot": rng.choice(_SPOTS), "skill": rng.choice(_SKILLS),
            "food": rng.choice(_FOODS), "weather": rng.choice(_WEATHER), "day": day, "day_low": day[0].lower() + day[1:],
            "day_night": rng.choice(["One night", "Once", "In the middle of the night", "On a clear night"])}


def _told(rng, plot, slots):
    lines = [rng.choice(_START)]
    if rng.random() < 0.6:
        lines.append(rng.choice(_HABIT))
    beats = _PLOTS[plot][1]
    for beat in beats:
        lines.append(rng.choice(beat))
        if len(beat) > 3 and rng.random() < 0.2:
            extra = rng.choice([b for b in beat if b != lines[-1]])
            if not any(mark in extra for mark in ("{friend}", "{treasure}", "{a_treasure}", "{day}", "{skill}")):
                lines.append(extra)
    return " ".join(lines).format(**slots)
