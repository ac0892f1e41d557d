"""The functions that the tool lesson offers: names, parameters with value makers, requests and answers to results.

A parameter is `(names it may have, JSON type, maker, its name in requests)`; a request that leaves a parameter out
makes it optional. The result maker gives the tool's JSON and the sentence that reports it.
"""

from . import words as w


class Family:
    def __init__(self, names, about, parameters, requests, result=None):
        self.names, self.about, self.parameters = names.split(), about, parameters
        self.requests, self.result = requests, result


def _p(names, kind, maker, slot, choices=None):
    return {"names": names.split(), "type": kind, "maker": maker, "slot": slot, "enum": choices}


def _one_of(*choices):
    return lambda rng: rng.choice(choices)


def _whole(low, high):
    return lambda rng: rng.randint(low, high)


def _weather(rng, v):
    t, c = rng.randint(-15, 40), rng.choice(w.CONDITIONS)
    return {"temperature": t, "condition": c}, f"It is {t} degrees and {c} in {v['city']}."


def _time(rng, v):
    t = w.clock(rng)
    return {"time": t}, f"It is {t} in {v['city']}."


def _stock(rng, v):
    p = w.price(rng)
    return {"price": p}, f"The price of {v['symbol']} is {p}."


def _rate(rng, v):
    r = w.price(rng)
    return {"amount": r}, f"{v['amount']} {v['source']} is {r} {v['target']}."


def _translated(rng, v):
    text = " ".join(w.syllables(rng, 1, 2) for _ in range(rng.randint(1, 4)))
    return {"translation": text}, f"In {v['language']}: {text}"


def _found(rng, v):
    name = w.title(rng)
    return {"title": name}, f"I found {name}."


def _distance(rng, v):
    km = rng.randint(5, 9000)
    return {"km": km}, f"It is {km} km from {v['origin']} to {v['destination']}."


def _booked(rng, v):
    c = w.code(rng)
    return {"confirmation": c}, f"It is booked. The confirmation is {c}."


def _sum(rng, v):
    n = rng.randint(-9999, 99999)
    return {"result": n}, f"The result is {n}."


FAMILIES = [
    Family("get_weather weather get_current_weather fetch_weather current_weather", "Get the current weather in a city",
           [_p("city location place", "string", w.city, "city"),
            _p("unit units", "string", _one_of("celsius", "fahrenheit"), "unit", ["celsius", "fahrenheit"])],
           ["What is the weather in {city}?", "How is the weather in {city}?", "Is it raining in {city}?", "Weather in {city}?",
            "Tell me the weather in {city} in {unit}.", "How warm is it in {city}?", "What's the weather like in {city}, in {unit}?",
            "Do I need an umbrella in {city}?", "what's the weather like in {city} today?", "Check the weather for {city}."], _weather),
    Family("get_time get_current_time current_time time_in", "Get the current time in a city",
           [_p("city place location", "string", w.city, "city")],
           ["What time is it in {city}?", "Tell me the time in {city}.", "How late is it in {city}?", "Current time in {city}?"], _time),
    Family("get_stock_price stock_price get_quote lookup_stock", "Get the price of a stock",
           [_p("symbol ticker", "string", w.symbol, "symbol")],
           ["What is the price of {symbol}?", "How much is {symbol} stock?", "Look up {symbol}.", "Stock price of {symbol}?",
            "What does a share of {symbol} cost?", "How is {symbol} doing?"], _stock),
    Family("convert_currency exchange convert_money", "Convert an amount of money into another currency",
           [_p("amount value", "number", w.number, "amount"), _p("from_currency source base", "string", _one_of("USD", "EUR", "GBP", "JPY", "CHF", "INR"), "source"),
            _p("to_currency target quote", "string", _one_of("CAD", "AUD", "SEK", "CNY", "BRL", "NOK"), "target")],
           ["Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?", "Change {amount} {source} into {target}.",
            "What are {amount} {source} worth in {target}?"], _rate),
    Family("send_email send_mail email compose_email", "Send an email",
           [_p("to recipient address", "string", w.email, "to"), _p("subject title", "string", w.errand, "subject"),
            _p("body text message", "string", w.phrase, "body")],
           ["Send an email to {to} with the subject {subject} and the text {body}.", "Email {to}: {body}", "Write a mail to {to} saying {body}.",
            "Mail {to} about {subject}: {body}", "Send {to} an email that says: {body}"]),
    Family("send_message message text_contact send_sms", "Send a message to a person",
           [_p("to name recipient contact", "string", w.first_name, "to"), _p("text message body", "string", w.phrase, "body")],
           ["Text {to}: {body}", "Send a message to {to} saying {body}.", "Tell {to} that {body}.", "Message {to}: {body}",
            "Let {to} know: {body}", "Send {to} this message: {body}"]),
    Family("create_reminder remind set_reminder add_reminder", "Set a reminder",
           [_p("text task what title", "string", w.errand, "task"), _p("time at when", "string", w.clock, "time")],
           ["Remind me to {task} at {time}.", "At {time}, remind me to {task}.", "Set a reminder to {task} at {time}.",
            "Remind me to {task}.", "I must not forget to {task} at {time}."]),
    Family("add_todo create_task add_task new_task", "Add a task to the list",
           [_p("task title text item", "string", w.errand, "task"), _p("priority level", "string", _one_of("low", "medium", "high"), "priority", ["low", "medium", "high"])],
           ["Add {task} to my list.", "New task: {task}", "Put {task} on the list with {priority} priority.", "I have to {task}, add it to my tasks.",
            "Create a {priority} priority task: {task}", "Add a task: {task}"]),
    Family("create_event add_event schedule_meeting add_to_calendar", "Put an event into the calendar",
           [_p("title name", "string", w.title, "title"), _p("date day", "string", w.date, "date"), _p("time start at", "string", w.clock, "time")],
           ["Schedule {title} on {date} at {time}.", "Put {title} in my calendar for {date}.", "Create an event called {title} on {date} at {time}.",
            "Add {title} to the calendar on {date}, {time}.", "Plan {title} for {date} at {time}."]),
    Family("set_alarm wake_me alarm create_alarm", "Set an alarm",
           [_p("time at", "string", w.clock, "time")],
           ["Wake me at {time}.", "Set an alarm for {time}.", "Alarm at {time}, please.", "I need to get up at {time}."]),
    Family("set_timer start_timer timer countdown", "Start a timer",
           [_p("minutes duration length", "integer", _whole(1, 120), "minutes")],
           ["Set a timer for {minutes} minutes.", "Start a {minutes} minute timer.", "Timer: {minutes} minutes.", "Count down {minutes} minutes."]),
    Family("translate translate_text translation", "Translate a text",
           [_p("text sentence input", "string", w.phrase, "text"), _p("language target to target_language", "string", lambda r: r.choice(w.LANGUAGES), "language")],
           ["Translate \"{text}\" into {language}.", "How do you say \"{text}\" in {language}?", "Say \"{text}\" in {language}.",
            "What is \"{text}\" in {language}?", "Translate to {language}: {text}"], _translated),
    Family("search_web web_search search google", "Search the web",
           [_p("query q text", "string", w.errand, "query"), _p("limit count max_results", "integer", _whole(1, 20), "limit")],
           ["Search the web for {query}.", "Look up {query} online.", "Find {limit} results about {query}.", "Search for {query}.",
            "Search online: {query}", "Show me {limit} web results for {query}."], _found),
    Family("find_book search_books lookup_book", "Find a book in the library",
           [_p("title book name", "string", w.title, "title"), _p("author writer", "string", w.full_name, "author")],
           ["Find the book {title} by {author}.", "Do you have {title}?", "I am looking for {title} by {author}.", "Is {title} in the library?"]),
    Family("play_music play play_song start_music", "Play a song",
           [_p("song title track", "string", w.title, "song"), _p("artist singer by", "string", w.full_name, "artist")],
           ["Play {song} by {artist}.", "Play {song}.", "I want to hear {song} by {artist}.", "Put on {song}."]),
    Family("turn_on_light set_light light control_light", "Switch a light",
           [_p("room place where", "string", _one_of("kitchen", "bedroom", "bathroom", "garage", "hall", "office", "garden"), "room"),
            _p("state status mode", "string", _one_of("on", "off"), "state", ["on", "off"])],
           ["Turn {state} the light in the {room}.", "Switch the {room} light {state}.", "Light {state} in the {room}, please.",
            "Turn the {room} lights {state}."]),
    Family("set_thermostat set_temperature heat", "Set the temperature of a room",
           [_p("temperature degrees value", "integer", _whole(10, 30), "temperature"), _p("room zone", "string", _one_of("kitchen", "bedroom", "bathroom", "office", "hall"), "room")],
           ["Set the {room} to {temperature} degrees.", "Make it {temperature} degrees in the {room}.", "Heat the {room} to {temperature}.",
            "Set the temperature to {temperature}."]),
    Family("book_flight find_flight search_flights", "Find a flight",
           [_p("origin from departure", "string", w.city, "origin"), _p("destination to arrival", "string", w.city, "destination"), _p("date day", "string", w.date, "date")],
           ["Book a flight from {origin} to {destination} on {date}.", "I want to fly from {origin} to {destination} on {date}.",
            "Find flights to {destination} from {origin}.", "Flight from {origin} to {destination}, {date}."], _booked),
    Family("get_distance distance route directions", "Get the distance between two places",
           [_p("origin start from", "string", w.city, "origin"), _p("destination end to", "string", w.city, "destination")],
           ["How far is it from {origin} to {destination}?", "Distance between {origin} and {destination}?", "How many km from {origin} to {destination}?"], _distance),
    Family("order_item order buy add_to_cart", "Order an item from the shop",
           [_p("item product article", "string", w.thing, "item"), _p("quantity count amount", "integer", _whole(1, 50), "quantity")],
           ["Order {quantity} of the {item}.", "Buy {quantity} pieces of {item}.", "I want {quantity} x {item}.", "Order a {item}.",
            "Add {quantity} {item} to my cart."], _booked),
    Family("track_package track_order package_status", "Find out where a package is",
           [_p("tracking_number number id code", "string", w.code, "code")],
           ["Where is my package {code}?", "Track {code}.", "What is the status of parcel {code}?", "When does {code} arrive?"]),
    Family("get_user lookup_user find_customer get_account", "Get the data of a user",
           [_p("user_id id number", "integer", _whole(1, 99999), "id")],
           ["Show me user {id}.", "Get the data of user {id}.", "Who is user {id}?", "Look up customer {id}."]),
    Family("calculate calculator evaluate compute", "Evaluate an arithmetic expression",
           [_p("expression input formula", "string", lambda r: f"{r.randint(2, 9999)} {r.choice('+-*/')} {r.randint(2, 9999)}", "expression")],
           ["What is {expression}?", "Calculate {expression}.", "Compute {expression}", "How much is {expression}?", "{expression} = ?"], _sum),
    Family("read_file open_file get_file load_file", "Read a file",
           [_p("path file filename name", "string", lambda r: f"{w.syllables(r)}.{r.choice(['txt', 'csv', 'md', 'json', 'log'])}", "path")],
           ["Read {path}.", "Open the file {path}.", "Show me {path}.", "What is in {path}?", "Print the contents of {path}."]),
    Family("run_command shell execute run", "Run a command in the shell",
           [_p("command cmd line", "string", lambda r: r.choice(["ls", "cat", "rm", "cp", "open", "make"]) + " " + w.syllables(r), "command")],
           ["Run {command}.", "Execute the command {command}", "Run `{command}` in the shell."]),
]

VERBS = "set get update delete create start stop check show add remove lock unlock open close count measure reset".split()
