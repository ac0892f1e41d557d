"""What every lesson shares: the form of an item, the split of training and held-out, wording helpers."""

import hashlib
from dataclasses import dataclass, field


@dataclass
class Item:
    """One question and its answer.

    `key` decides the split: all items of one key are on the same side. `expect` is what `score.py` checks.
    """

    category: str
    key: str
    messages: list
    expect: dict = field(default_factory=dict)
    tools: list = field(default_factory=list)
    max_tokens: int = 160


HELD_OUT_SHARE = 26 / 256
# The key of what everybody asks first: never held out.
ALWAYS = "always in training"


def is_held_out(key):
    """True for about a tenth of all keys, by a hash, so that the split never depends on a seed or an order."""
    return key != ALWAYS and hashlib.sha256(key.encode()).digest()[0] < HELD_OUT_SHARE * 256


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


OPENERS = [
    "Hi! ", "Hello, ", "Hey, ", "Please help. ", "Quick question: ", "A question: ", "Ok, ", "Tell me, ", "Thanks. ",
    "I am new here. ", "One more thing: ", "Sorry to bother you. ", "I have a question. ", "So, ", "Good morning! ",
    "Hi there, ", "Question: ", "Could you help me? ", "And now: ", "Help me out: ", "Well, ", "Next: ",
]
CLOSERS = [" Thanks.", " Thank you!", " Please.", " Be brief.", " Answer in one sentence.", " I am curious.", " Thanks!",
           " I need to know.", " Keep it short.", " Just tell me.", " Help, please."]


def dressed(rng, text):
    """The question with the small talk and sloppiness that people put around one."""
    if rng.random() < 0.28:
        opener = rng.choice(OPENERS)
        text = opener + (text[:1].lower() + text[1:] if opener[-2] in ",:" and text[1:2].islower() else text)
    if rng.random() < 0.15:
        text = text + rng.choice(CLOSERS)
    return casual(rng, text)


def casual(rng, text):
    """Sometimes lower case, sometimes without the last mark."""
    draw = rng.random()
    if draw < 0.15:
        text = text.lower()
    if draw < 0.08 or draw > 0.92:
        text = text.rstrip("?.!")
    return text


def misspelt(rng, text):
    """One slip of the finger: two letters swapped, one lost or one doubled."""
    at = rng.randrange(1, max(2, len(text) - 2))
    if not text[at : at + 2].isalpha():
        return text
    kind = rng.randrange(3)
    if kind == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :] if kind == 1 else text[:at] + text[at] + text[at:]
