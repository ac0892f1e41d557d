"""Questions about Pallium and its flags. Every fact is taught; held out are wordings that training never shows."""

from .base import Item, assistant, dressed, misspelt, user
from .flag_facts import FLAGS, MAPPED, SHORT, WITHOUT_EFFECT
from .pallium_facts import FACTS
from .words import syllables

_MEANING = [
    "What does {f} do?", "What is {f}?", "Explain {f}.", "What is {f} for?", "What does the flag {f} do?",
    "Can you explain {f}?", "Tell me about {f}.", "What happens with {f}?", "Describe {f}.", "What does {f} mean?",
    "What is the purpose of {f}?", "Why would I use {f}?", "When do I need {f}?", "What's {f}?", "How does {f} work?",
    "What does the option {f} control?", "I saw {f} in a script. What is it?", "{f}?", "Meaning of {f}?",
    "What effect does {f} have?", "Help me understand {f}.", "Say what {f} does.", "What do I get from {f}?",
    "Could you tell me what {f} does?", "What is the flag {f} good for?", "I do not understand {f}.",
    "What will {f} change?", "In a few words, what is {f}?", "Is there a description of {f}?", "What does setting {f} do?",
    "Give me a short explanation of {f}.", "What is the meaning of {f} in Pallium?", "What's the use of {f}?",
    "Please describe the flag {f}.", "What am I doing when I pass {f}?", "Do you know what {f} does?",
]
_DEFAULT = [
    "What is the default of {f}?", "What is the default value of {f}?", "Default of {f}?", "What does {f} default to?",
    "Which default does {f} have?", "What is {f} by default?", "What value does {f} have if I don't set it?",
    "Tell me the default for {f}.", "What's the default for {f}?", "If I leave {f} out, what is used?",
    "Do you know the default of {f}?", "Give me the default of {f}.", "{f} default", "What is used without {f}?",
    "The default value for {f}, please.", "How is {f} set by default?", "What does Pallium use when {f} is not given?",
    "Which value has {f} by default?", "I need the default value of {f}.", "What is the standard value of {f}?",
    "What does {f} start out as?", "What would {f} be if I say nothing?", "Say the default of {f}.",
    "Can you tell me the default of {f}?", "Which default value does {f} take?", "What default does {f} come with?",
    "Default value of {f}?", "Please tell me the default of {f}.", "What's {f} by default?", "What is {f} set to by default?",
    "What is the preset of {f}?", "Is there a default for {f}?", "Name the default value of the flag {f}.",
]
_WHICH = [
    "Which flag sets {t}?", "What flag sets {t}?", "How do I set {t}?", "How can I change {t}?", "Which flag controls {t}?",
    "Which option is for {t}?", "What is the flag for {t}?", "Is there a flag for {t}?", "How do I choose {t}?",
    "How do I configure {t}?", "I want to set {t}.", "What do I pass for {t}?", "Which flag is about {t}?",
    "Tell me the flag for {t}.", "Where do I set {t}?", "What is the option for {t} called?", "I need a flag for {t}.",
    "Name the flag for {t}.", "Can I set {t}?", "How would I adjust {t}?", "Which switch is for {t}?",
    "What flag do I need for {t}?", "Which command line flag handles {t}?", "How is {t} configured?",
    "What should I type for {t}?", "Looking for the flag for {t}.", "How do I tell Pallium about {t}?",
    "What's the name of the flag for {t}?", "Does Pallium have an option for {t}?", "I would like to change {t}.",
]
_TWIN = [
    "Which environment variable stands for {f}?", "What is the environment variable of {f}?",
    "How do I set {f} by an environment variable?", "What is the environment twin of {f}?",
    "Which variable can I export instead of {f}?", "Name the environment variable for {f}.", "env var for {f}?",
    "Can I set {f} in the environment?", "I use containers. Which variable replaces {f}?",
    "What do I export to set {f}?", "Is there an environment variable for {f}?", "Environment variable for {f}, please.",
]
_EXAMPLE = [
    "Show me how to use {f}.", "Give me an example of {f}.", "Example for {f}?", "How do I write {f}?",
    "How is {f} used on the command line?", "Show a command with {f}.", "What does a command with {f} look like?",
    "An example with {f}, please.", "How do I pass {f}?", "Can I see {f} in use?", "Write a command that uses {f}.",
]
_SHORT = ["What is {f}?", "What does {f} stand for?", "What does {f} mean?", "{f}?", "Explain {f}.", "What is {f} short for?",
          "Which flag is {f}?", "What is the long form of {f}?"]
_OLD = ["What about {f}?", "Does {f} still work?", "What does {f} do?", "What is {f}?", "Can I use {f}?", "Explain {f}.",
        "My old script has {f}.", "Is {f} supported?", "What happened to {f}?"]


def example(rng):
    draw = rng.random()
    if draw < 0.20:
        return _about_pallium(rng)
    if draw < 0.92:
        return _about_flag(rng)
    return rng.choice([_short, _old, _unknown])(rng)


def spelled(rng, name):
    """A flag as people write it."""
    draw = rng.random()
    if draw < 0.56:
        return f"--{name}"
    if draw < 0.68:
        return name
    if draw < 0.80:
        return "--" + name.replace("-", "_")
    if draw < 0.88:
        return name.replace("-", "_")
    return f"`--{name}`"


def command(name, value):
    return f"pallium serve --{name} {value}".rstrip()


def _about_flag(rng):
    name, default, meaning, things, value = rng.choice(FLAGS)
    draw = rng.random()
    if draw < 0.32:
        ask, answer, holds = _MEANING, f"--{name} {meaning}. Its default is {default}.", f"--{name} {meaning}."
    elif draw < 0.54:
        ask, answer = _DEFAULT, f"The default of --{name} is {default}."
        holds = answer
    elif draw < 0.84:
        ask, answer = _WHICH, f"Use --{name}. It {meaning}. Example: {command(name, value)}"
        holds = f"Use --{name}. It {meaning}."
    elif draw < 0.92:
        twin = "PALLIUM_" + name.upper().replace("-", "_")
        ask, answer, holds = _TWIN, f"The environment twin of --{name} is {twin}.", f"{twin}."
    else:
        ask, answer = _EXAMPLE, f"For example: {command(name, value)}"
        holds = command(name, value)
    wording = rng.choice(ask)
    thing = rng.choice(things)
    question = dressed(rng, wording.format(f=spelled(rng, name), t=thing))
    if rng.random() < 0.04:
        question = misspelt(rng, question)
    return Item("flags", f"wording {wording}", [user(question), assistant(answer)], {"contains": [holds]}, max_tokens=120)


def _about_pallium(rng):
    questions, answer, holds = rng.choice(FACTS)
    question = dressed(rng, rng.choice(questions))
    if rng.random() < 0.05:
        question = misspelt(rng, question)
    return Item("flags", f"asked {question}", [user(question), assistant(answer)], {"contains": [holds]}, max_tokens=120)


def _short(rng):
    short, name = rng.choice(sorted(SHORT.items()))
    meaning = next(row[2] for row in FLAGS if row[0] == name)
    wording = rng.choice(_SHORT)
    question = dressed(rng, wording.format(f=short))
    return Item("flags", f"wording {wording}", [user(question), assistant(f"{short} is short for --{name}. It {meaning}.")],
                {"contains": [f"--{name}"]})


def _old(rng):
    if rng.random() < 0.5:
        old, new = rng.choice(sorted(MAPPED.items()))
        answer, holds = f"--{old} is an older flag. It still works, with a notice; use --{new} instead.", f"use --{new}"
    else:
        old = rng.choice(WITHOUT_EFFECT)
        answer, holds = f"--{old} is an older flag. It is accepted without effect.", "without effect"
    wording = rng.choice(_OLD)
    question = dressed(rng, wording.format(f=spelled(rng, old)))
    return Item("flags", f"wording {wording}", [user(question), assistant(answer)], {"contains": [holds]})


def _unknown(rng):
    """A flag that does not exist: the model should say so and not make something up."""
    parts = [syllables(rng, 1, 2) for _ in range(rng.randint(1, 3))]
    known = rng.choice(FLAGS)[0].split("-")
    if rng.random() < 0.5:
        parts[rng.randrange(len(parts))] = rng.choice(known)
    name = "-".join(parts)
    if name in {row[0] for row in FLAGS}:
        name += "-x"
    wording = rng.choice(_MEANING + _DEFAULT)
    question = dressed(rng, wording.format(f=f"--{name}"))
    answer = f"I know no flag --{name.lower()}. Run pallium serve --help to see all flags."
    return Item("flags", f"wording {wording}", [user(question), assistant(answer)], {"contains": ["I know no flag"]})
