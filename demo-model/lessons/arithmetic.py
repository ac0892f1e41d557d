"""Small arithmetic. The stated range: sums and differences of whole numbers from 0 to 999, of three numbers up to
99, times tables and exact division up to 12, the larger or smaller of two numbers up to 999."""

from .base import ALWAYS, Item, assistant, casual, user
from .words import THINGS, first_name

RANGE = "add and subtract whole numbers up to 999 and know the times tables up to 12"
BEYOND = f"That is beyond me: I can {RANGE}."

_ASK = ["What is {e}?", "{e}", "{e} =", "{e} = ?", "Calculate {e}.", "How much is {e}?", "Compute {e}.", "{e}?",
        "What's {e}?", "Can you work out {e}?", "Please calculate {e}.", "Solve {e}.", "Tell me what {e} is.",
        "Work out {e}", "I need {e}.", "What does {e} give?", "Give me the result of {e}.", "what is {e}", "whats {e}"]
_WORDED = {
    "+": ["{a} plus {b}", "the sum of {a} and {b}", "{a} and {b} added together", "{a} added to {b}"],
    "-": ["{a} minus {b}", "{a} less {b}", "{b} taken away from {a}", "{b} subtracted from {a}",
          "the difference when {b} is taken from {a}"],
    "*": ["{a} times {b}", "{a} multiplied by {b}", "the product of {a} and {b}", "{a} x {b}", "{a}*{b}", "{a} × {b}"],
    "/": ["{a} divided by {b}", "{a} over {b}", "{a}/{b}", "{a} ÷ {b}"],
}
_MORE = ["gets {b} more", "buys {b} more", "finds {b} more", "receives another {b}", "picks up {b} more"]
_LESS = ["gives away {b}", "loses {b}", "sells {b}", "breaks {b}", "hands {b} to a friend"]


def example(rng):
    draw = rng.random()
    if draw < 0.40:
        return _two_numbers(rng, "+")
    if draw < 0.70:
        return _two_numbers(rng, "-")
    if draw < 0.80:
        return _table(rng, "*")
    if draw < 0.85:
        return _table(rng, "/")
    if draw < 0.91:
        return _told(rng)
    if draw < 0.95:
        return _three_numbers(rng)
    if draw < 0.96:
        return _continued(rng)
    return _compared(rng) if draw < 0.98 else _beyond(rng)


def _item(key, question, answer, value):
    return Item("arithmetic", key, [user(question), assistant(answer)], {"number": value}, max_tokens=48)


def _operand(rng, most=999):
    return rng.randint(0, min(most, rng.choice([12, 99, 99, 999, 999, 999])))


def _asked(rng, op, a, b):
    tight = rng.random() < 0.25
    plain = f"{a}{op}{b}" if tight else f"{a} {op} {b}"
    text = plain if rng.random() < 0.65 else rng.choice(_WORDED[op]).format(a=a, b=b)
    return casual(rng, rng.choice(_ASK).format(e=text))


def _pair_key(op, a, b):
    """Both orders of a sum are one key; the smallest pairs, which everybody tries first, are never held out."""
    if max(a, b) <= 12:
        return ALWAYS
    return f"{op} {min(a, b)} {max(a, b)}"


def _two_numbers(rng, op):
    a, b = _operand(rng), _operand(rng)
    if op == "-" and a < b and rng.random() < 0.6:
        a, b = b, a
    value = a + b if op == "+" else a - b
    return _item(_pair_key(op, a, b), _asked(rng, op, a, b), f"{a} {op} {b} = {value}", value)


def _table(rng, op):
    """A table of 169 products cannot be guessed from others: what is held out here is the wording of each."""
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    if op == "/":
        b = max(b, 1)
        a = a * b
    value = a * b if op == "*" else a // b
    question = _asked(rng, op, a, b)
    return _item(f"table {question}", question, f"{a} {op} {b} = {value}", value)


def _told(rng):
    plus = rng.random() < 0.5
    a, b = sorted((rng.randint(1, 99), rng.randint(1, 99)), reverse=True)
    if plus and rng.random() < 0.5:
        a, b = b, a
    name, things = first_name(rng), rng.choice(THINGS) + "s"
    change = rng.choice(_MORE if plus else _LESS).format(b=b)
    question = f"{name} has {a} {things} and {change}. " + rng.choice(
        [f"How many {things} does {name} have now?", f"How many {things} are there now?", "How many is that?",
         f"How many {things} does {name} have in the end?"])
    op, value = ("+", a + b) if plus else ("-", a - b)
    return _item(_pair_key(op, a, b), question, f"{a} {op} {b} = {value}, so the answer is {value}", value)


def _three_numbers(rng):
    a, b, c = (rng.randint(0, 99) for _ in range(3))
    value = a + b + c
    question = casual(rng, rng.choice(_ASK).format(e=f"{a} + {b} + {c}"))
    return _item(f"three {a} {b} {c}", question, f"{a} + {b} + {c} = {a + b} + {c} = {value}", value)


def _continued(rng):
    """A second sum that goes on from the first one's result."""
    a, b, c = (rng.randint(0, 99) for _ in range(3))
    plus = rng.random() < 0.6 or a + b < c
    op, value = ("+", a + b + c) if plus else ("-", a + b - c)
    ask = rng.choice(["And {w} {c}?", "and {w} {c}?", "Now {w} {c}.", "{w} {c}?", "And then {w} {c}?", "{o} {c}"]).format(
        w="plus" if plus else "minus", o=op, c=c)
    first = [user(_asked(rng, "+", a, b)), assistant(f"{a} + {b} = {a + b}")]
    second = [user(ask), assistant(f"{a + b} {op} {c} = {value}")]
    return Item("continued", f"continued {a} {b} {c}", first + second)


def _compared(rng):
    a, b = _operand(rng), _operand(rng)
    if a == b:
        b = a + 1
    words, value = rng.choice([(["larger", "bigger", "greater"], max(a, b)), (["smaller", "less"], min(a, b))])
    word = rng.choice(words)
    question = rng.choice(["Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?", "What is {w}, {a} or {b}?"])
    return _item(f"compare {min(a, b)} {max(a, b)}", casual(rng, question.format(w=word, a=a, b=b)),
                 f"The {word} number is {value}", value)


def _beyond(rng):
    big = rng.randint(1000, rng.choice([9999, 99999, 9999999]))
    other = rng.randint(1, rng.choice([99, 999, 99999]))
    op = rng.choice("+-*/")
    if op in "*/" and rng.random() < 0.6:
        big, other = rng.randint(13, 999), rng.randint(13, 999)
    a, b = (big, other) if rng.random() < 0.7 else (other, big)
    return Item("beyond", f"beyond {a}{op}{b}", [user(_asked(rng, op, a, b)), assistant(BEYOND)])
