"""Tool calls: which function, which arguments, when none is needed, and what to say about a result."""

import json

from . import words as w
from .base import Item, assistant, user
from .tool_families import FAMILIES, VERBS, Family

_SYSTEMS = ["You are a helpful assistant.", "Use the functions when they help.", "You are an assistant with tools.",
            "Help the user. Call functions when needed.", "You control a smart home.", "Be brief."]
_NO_TOOL = "I have no function for that."
_DONE = ["Done.", "It is done."]


def example(rng, small_talk):
    """`small_talk(rng)` gives questions that need no function."""
    draw = rng.random()
    if draw < 0.10:
        return _not_needed(rng, small_talk)
    family = _made_up(rng) if rng.random() < 0.4 else rng.choice(FAMILIES)
    if draw < 0.16:
        return _missing(rng, family)
    return _called(rng, family, double=draw > 0.93)


def _offered(rng, bound, most=4):
    """The tools of one request: the wanted one among others, in any order."""
    others = rng.sample([f for f in FAMILIES if f is not (bound and bound["family"])], rng.choice([0, 1, 1, 2, 3, most]))
    if bound is None and not others:
        others = [rng.choice(FAMILIES)]
    tools = [_bind(rng, f)["tool"] for f in others]
    if bound:
        tools = [t for t in tools if t["function"]["name"] != bound["tool"]["function"]["name"]]
        tools.insert(rng.randint(0, len(tools)), bound["tool"])
    return tools


def _bind(rng, family):
    """One concrete function of a family: its name, parameter names and JSON schema."""
    names, properties, used = {}, {}, set()
    shown = family.parameters if rng.random() < 0.8 or len(family.parameters) < 2 else family.parameters[:-1]
    for p in shown:
        name = rng.choice([n for n in p["names"] if n not in used])
        used.add(name)
        names[p["slot"]] = name
        properties[name] = {"type": p["type"], **({"enum": p["enum"]} if p["enum"] else {})}
    optional = {p["slot"] for p in shown if any("{" + p["slot"] + "}" not in r for r in family.requests)}
    required = [names[p["slot"]] for p in shown if p["slot"] not in optional]
    function = {"name": rng.choice(family.names), "parameters": {"type": "object", "properties": properties, "required": required}}
    if rng.random() < 0.9:
        function = {"name": function["name"], "description": family.about, "parameters": function["parameters"]}
    return {"family": family, "names": names, "tool": {"type": "function", "function": function}}


def _request(rng, bound):
    """A request in words that only names what the function takes, and the call that answers it."""
    family, names = bound["family"], bound["names"]
    slots = [p["slot"] for p in family.parameters]
    fitting = [r for r in family.requests if all(s in names or "{" + s + "}" not in r for s in slots)]
    form = rng.choice(fitting or family.requests[:1])
    values = {p["slot"]: p["maker"](rng) for p in family.parameters}
    named = [s for s in slots if "{" + s + "}" in form and s in names]
    arguments = {names[s]: values[s] for s in named}
    call = {"type": "function", "function": {"name": bound["tool"]["function"]["name"], "arguments": arguments}}
    return form.format(**values), call, values


def _checked_bind(rng, family):
    """A binding for which at least one request form fits."""
    while True:
        bound = _bind(rng, family)
        slots = [p["slot"] for p in family.parameters]
        if any(all(s in bound["names"] or "{" + s + "}" not in r for s in slots) for r in family.requests):
            return bound


def _called(rng, family, double):
    bound = _checked_bind(rng, family)
    text, call, values = _request(rng, bound)
    calls = [call]
    if double:
        text2, call2, _ = _request(rng, bound)
        text = f"{text.rstrip('.')} {rng.choice(['and also:', 'And then:', 'Also:'])} {text2}"
        calls.append(call2)
    messages = [user(_polite(rng, text)), {"role": "assistant", "content": None, "tool_calls": calls}]
    expect = {"calls": [c["function"] for c in calls]}
    item = Item("tools", f"call {text}", messages, expect, _offered(rng, bound), max_tokens=150)
    if not double and rng.random() < 0.35:
        messages += _reported(rng, family, values)
    return _with_system(rng, item)


def _reported(rng, family, values):
    if rng.random() < 0.12:
        reason = rng.choice(["not found", "no connection", "access denied", "invalid input", "timeout"])
        return [{"role": "tool", "content": json.dumps({"error": reason})}, assistant(f"That did not work: {reason}.")]
    if family.result is None:
        return [{"role": "tool", "content": json.dumps({"status": rng.choice(["ok", "done", "success"])})}, assistant(rng.choice(_DONE))]
    result, sentence = family.result(rng, values)
    return [{"role": "tool", "content": json.dumps(result)}, assistant(sentence)]


def _not_needed(rng, small_talk):
    inner = small_talk(rng)
    item = Item("tools", inner.key, inner.messages, {"no_call": True, **inner.expect}, _offered(rng, None))
    return _with_system(rng, item)


def _missing(rng, family):
    """A request for which no function is there."""
    text, _, _ = _request(rng, _checked_bind(rng, family))
    tools = [t for t in _offered(rng, {"family": family, "tool": _bind(rng, family)["tool"]})]
    names = set(family.names)
    tools = [t for t in tools if t["function"]["name"] not in names] or [
        _bind(rng, rng.choice([f for f in FAMILIES if f is not family and f.about[:6] != family.about[:6]]))["tool"]]
    if family.about.startswith(("Send", "Set a r", "Add", "Find", "Search", "Evaluate")):
        return _called(rng, family, double=False)  # a near relative might be among the others
    item = Item("tools", f"call {text}", [user(_polite(rng, text)), assistant(_NO_TOOL)], {"no_call": True}, tools)
    return _with_system(rng, item)


def _polite(rng, text):
    draw = rng.random()
    if draw < 0.12:
        return f"{rng.choice(['Please:', 'Hey,', 'Hi!', 'Can you help?', 'Ok,', 'Hello!'])} {text}"
    return f"{text} {rng.choice(['Thanks.', 'Thank you!'])}" if draw < 0.18 and text[-1] in ".?!" else text


def _with_system(rng, item):
    if rng.random() < 0.4:
        item.messages.insert(0, {"role": "system", "content": rng.choice(_SYSTEMS)})
    return item


def _made_up(rng):
    """A function nobody has seen before; the request uses its own words."""
    verb, noun = rng.choice(VERBS), rng.choice(w.THINGS + w.NOUNS)
    if rng.random() < 0.3:
        noun = w.syllables(rng)
    makers = [("integer", w.number), ("string", lambda r: r.choice(w.COLORS)), ("string", w.city), ("string", w.code),
              ("string", w.first_name), ("number", w.price), ("string", w.errand), ("string", lambda r: w.syllables(r)),
              ("string", w.date), ("string", w.clock), ("string", w.email)]
    pool = ["name", "value", "level", "size", "code", "label", "target", "color", "kind", "owner", "speed", "mode", "id",
            w.syllables(rng, 1, 2), w.syllables(rng, 1, 2)]
    chosen = rng.sample(sorted(set(pool)), rng.randint(1, 3))
    parameters = []
    for name in chosen:
        kind, maker = rng.choice(makers)
        parameters.append({"names": [name], "type": kind, "maker": maker, "slot": name, "enum": None})
    detail = w.listed(["the " * (rng.random() < 0.2) + f"{n} {{{n}}}" for n in chosen])
    pairs = ", ".join(f"{n}={{{n}}}" for n in chosen)
    requests = [f"{verb.capitalize()} the {noun} with {detail}.", f"Please {verb} the {noun}: {detail}.",
                f"{verb.capitalize()} {noun}, {detail}.", f"I want to {verb} the {noun} with {detail}.",
                f"Call {verb}_{noun} with {pairs}."]
    return Family(f"{verb}_{noun}", f"{verb.capitalize()} the {noun}", parameters, requests)
