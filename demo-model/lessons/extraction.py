"""JSON extraction: a text and the names of some fields in, one JSON object out. Most values are made up, so copying
is what is learned; a field the text does not name is null."""

import json

from . import words as w
from .base import Item, assistant, user

# kind -> fields with their generators, sentence forms with the fields they show, name of the kind in a request.
_DOMAINS = {
    "person": ({"name": w.full_name, "age": lambda r: r.randint(5, 95), "city": w.city, "job": lambda r: r.choice(
        "teacher baker pilot nurse painter farmer lawyer driver cook singer writer plumber".split())}, [
        "{name} is {age} years old and lives in {city}.", "{name}, {age}, is a {job} in {city}.",
        "Our new {job} {name} comes from {city} and is {age}.", "In {city} lives {name}, a {job} aged {age}.",
        "My name is {name}, I am {age} and I work as a {job} in {city}.", "{name} works as a {job} in {city}.",
        "At {age}, {name} moved to {city}.", "Meet {name}. {age} years old. A {job} from {city}.",
        "{name} is a {job} and {age} years old."]),
    "order": ({"item": w.thing, "quantity": lambda r: r.randint(1, 99), "price": w.price, "customer": w.full_name}, [
        "{customer} ordered {quantity} {item}s at {price} dollars each.", "Please send {quantity} pieces of {item} to {customer}.",
        "Order: {item}, quantity {quantity}, price {price}, customer {customer}.",
        "{customer} bought a {item} for {price} dollars.", "We sold {quantity} of the {item} for {price} each.",
        "For {customer}: {quantity} x {item} at {price}.", "{customer} would like {quantity} units of {item}."]),
    "event": ({"title": w.title, "date": w.date, "time": w.clock, "place": w.city}, [
        "{title} takes place in {place} on {date} at {time}.", "Join us for {title} on {date} in {place}.",
        "On {date} at {time} we meet for {title}.", "{title}: {date}, {time}, {place}.",
        "The event {title} starts at {time} on {date}.", "Do not miss {title} in {place}, {date} at {time}!",
        "{place} will host {title} on {date}."]),
    "contact": ({"name": w.full_name, "email": w.email, "phone": w.phone, "company": w.company}, [
        "You can reach {name} at {email} or {phone}.", "{name} from {company}: {email}.", "{name} works at {company}. Call {phone}.",
        "Contact {name}, {company}, {email}, {phone}.", "Write to {email} to talk to {name}.",
        "The phone number of {name} is {phone} and the mail address is {email}.", "{company} is represented by {name}, {phone}."]),
    "product": ({"product": w.thing, "brand": lambda r: w.syllables(r).capitalize(), "price": w.price, "color": lambda r: r.choice(w.COLORS)}, [
        "The {product} by {brand} costs {price} dollars and comes in {color}.", "{brand} sells a {product} for {price} dollars.",
        "New from {brand}: a {product} in {color}.", "For {price} dollars you get a {product} in {color}.",
        "{product}, {brand}, {color}, {price}.", "I bought a {color} {product} made by {brand}."]),
    "book": ({"title": w.title, "author": w.full_name, "year": lambda r: r.randint(1800, 2030), "pages": lambda r: r.randint(40, 999)}, [
        "{title} was written by {author} in {year}.", "{author} published {title} in {year}; it has {pages} pages.",
        "The book {title} by {author} has {pages} pages.", "In {year} {author} wrote {title}.",
        "{title} ({year}), {author}, {pages} pages."]),
    "trip": ({"origin": w.city, "destination": w.city, "date": w.date, "passengers": lambda r: r.randint(1, 9)}, [
        "A flight from {origin} to {destination} on {date} for {passengers} passengers.",
        "{passengers} people travel from {origin} to {destination}.", "On {date} the train leaves {origin} for {destination}.",
        "Book {passengers} seats to {destination} from {origin} for {date}.", "We go from {origin} to {destination} on {date}."]),
    "weather": ({"city": w.city, "temperature": lambda r: r.randint(-20, 42), "condition": lambda r: r.choice(w.CONDITIONS), "wind": lambda r: r.randint(0, 120)}, [
        "It is {temperature} degrees and {condition} in {city}.", "In {city} it is {condition} with wind of {wind} km/h.",
        "{city}: {condition}, {temperature} degrees, wind {wind}.", "Today {city} has {condition} weather and {temperature} degrees."]),
    "payment": ({"payer": w.full_name, "amount": w.price, "currency": lambda r: r.choice(["euros", "dollars", "pounds", "francs"]), "invoice": w.code}, [
        "{payer} paid {amount} {currency} for invoice {invoice}.", "Invoice {invoice}: {amount} {currency} from {payer}.",
        "We received {amount} {currency} from {payer}.", "{payer} still owes {amount} {currency} on {invoice}."]),
    "task": ({"task": w.errand, "owner": w.first_name, "due": lambda r: r.choice(w.DAYS), "priority": lambda r: r.choice(["low", "medium", "high"])}, [
        "{owner} has to {task} by {due}.", "By {due}, {owner} should {task}. Priority: {priority}.",
        "Task for {owner}: {task}. Due {due}, priority {priority}.", "It is of {priority} priority that {owner} will {task}."]),
}
_ASK = [
    "Extract {k} as JSON: {t}", "Extract {k} from this text as JSON.\n{t}", "Return a JSON object with the keys {k}.\n{t}",
    "Give me {k} as JSON.\n\n{t}", "{t}\nExtract {k} as JSON.", "{t}\n\nReturn {k} as a JSON object.",
    "Turn this into JSON with {k}: {t}", "Read the text and answer with JSON holding {k}. Text: {t}",
    "Text: {t}\nFields: {k}\nJSON:", "Convert to JSON ({k}): {t}", "Please extract {k} from: {t}",
    "From the text below, extract {k} and answer only with JSON.\n{t}", "What are {k} here? Answer in JSON. {t}",
    "JSON with {k}, please: {t}", "Find {k} in \"{t}\" and reply in JSON.",
    "Make a JSON object with the fields {k} from this sentence: {t}", "I need {k} as JSON. {t}",
]
_SYSTEMS = ["You extract data as JSON.", "Answer only with JSON.", "You turn text into JSON objects.", "Reply with one JSON object."]


def example(rng):
    kind = rng.choice(sorted(_DOMAINS)) if rng.random() < 0.85 else None
    values, shown, text = _sentence(rng, kind) if kind else _listing(rng)
    keys = shown[:]
    if kind and rng.random() < 0.10:
        keys += rng.sample([f for f in values if f not in shown] or keys[:0], k=min(1, len(values) - len(shown)))
    if len(keys) > 1 and rng.random() < 0.35:
        keys = rng.sample(keys, rng.randint(1, len(keys)))
    elif rng.random() < 0.5:
        rng.shuffle(keys)
    answer = {k: values[k] if k in shown else None for k in keys}
    text = _with_distraction(rng, text)
    question = casual_ask(rng, keys, text)
    messages = [user(question), assistant(json.dumps(answer, ensure_ascii=False))]
    if rng.random() < 0.25:
        messages.insert(0, {"role": "system", "content": rng.choice(_SYSTEMS)})
    return Item("json", f"json {text}", messages, {"json": answer}, max_tokens=140)


def casual_ask(rng, keys, text):
    joined = rng.choice([w.listed(keys), ", ".join(keys), w.listed([f'"{k}"' for k in keys])])
    if rng.random() < 0.3:
        joined = "the " + joined
    return rng.choice(_ASK).format(k=joined, t=text)


def _sentence(rng, kind):
    fields, forms = _DOMAINS[kind]
    values = {name: make(rng) for name, make in fields.items()}
    form = rng.choice(forms)
    shown = [name for name in fields if "{" + name + "}" in form]
    return values, shown, form.format(**values)


def _listing(rng):
    """Made-up field names, so that new ones work too: `velora is 12, brand is Kemo`."""
    count = rng.randint(1, 4)
    names = set()
    while len(names) < count:
        names.add(rng.choice([w.syllables(rng), rng.choice(w.NOUNS), rng.choice(w.THINGS), rng.choice(w.COLORS)]))
    makers = [w.number, w.city, w.full_name, w.code, w.price, w.errand, w.date, lambda r: r.choice(w.COLORS), w.email, w.title]
    values = {name: rng.choice(makers)(rng) for name in sorted(names)}
    link = rng.choice([" is ", ": ", " = ", " equals "])
    joint = rng.choice([", ", "; ", " and "])
    return values, list(values), joint.join(f"{rng.choice(['', 'the '])}{k}{link}{v}" for k, v in values.items()) + "."


def _with_distraction(rng, text):
    draw = rng.random()
    if draw < 0.12:
        return f"{text} {rng.choice(['Thank you.', 'See you soon.', 'That is all for now.', 'Let me know.', 'Best wishes.'])}"
    if draw < 0.2:
        return f"{rng.choice(['Hello!', 'Good news.', 'A short note.', 'As discussed:', 'Dear all,'])} {text}"
    return text
