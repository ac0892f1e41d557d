#!/usr/bin/env python3
"""Scores the bundled model on the held-out prompts through a running server, greedily, and exits 1 below the bars.

    pallium serve &  python3 score.py --url http://localhost:8000

Only the Python standard library. `grade` judges one answer; train.py uses it too.
"""

import argparse
import json
import pathlib
import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

HERE = pathlib.Path(__file__).resolve().parent
# Least percentage per mark. `*_valid` asks for well-formed output, `*_right` for the exact expected values.
BARS = {"arithmetic_right": 90, "flags_right": 90, "json_valid": 95, "json_right": 90, "tools_valid": 95,
        "tools_right": 90, "stories_unrepeated": 100, "stories_finished": 90}
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.S)


def sentences(text):
    """The sentences of a story; as lessons/stories.py cuts them."""
    return [s.strip() for s in re.split(r"(?<=[.!?])\"?\s+", text) if s.strip()]


def calls_in(text):
    """The tool calls in the text of an answer, or None when one is malformed."""
    calls = []
    for body in _CALL.findall(text):
        try:
            call = json.loads(body)
        except ValueError:
            return None
        if not (isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)):
            return None
        calls.append({"name": call["name"], "arguments": call["arguments"]})
    stray = _CALL.sub("", text)
    return None if "tool_call>" in stray else calls


def grade(prompt, text, calls, finished):
    """The marks of one answer, `{mark: bool}`. `calls` is None when a tool call is malformed."""
    expect = prompt["expect"]
    if "number" in expect:
        numbers = re.findall(r"(?<!\d)-?\d+", text)
        return {"arithmetic_right": bool(numbers) and int(numbers[-1]) == expect["number"]}
    if "json" in expect:
        try:
            value = json.loads(text)
        except ValueError:
            return {"json_valid": False, "json_right": False}
        return {"json_valid": isinstance(value, dict), "json_right": value == expect["json"]}
    if "calls" in expect:
        return {"tools_valid": _valid(prompt, calls), "tools_right": calls == expect["calls"]}
    if "no_call" in expect:
        return {"tools_valid": calls is not None, "tools_right": calls == [] and bool(text.strip())}
    if "story" in expect:
        parts = sentences(text)
        return {"stories_unrepeated": len(parts) > 1 and len(set(parts)) == len(parts), "stories_finished": finished,
                "stories_on_topic": all(word in text for word in expect["mentions"])}
    return {"flags_right": all(part in text for part in expect["contains"])}


def _valid(prompt, calls):
    """At least one call, each to a function that is there, with only arguments it has and all it requires."""
    schemas = {t["function"]["name"]: t["function"]["parameters"] for t in prompt["tools"]}
    return bool(calls) and all(
        c["name"] in schemas
        and set(c["arguments"]) <= set(schemas[c["name"]]["properties"])
        and set(schemas[c["name"]].get("required", [])) <= set(c["arguments"])
        for c in calls)


def summarize(marks):
    """Percentage per mark over `[{mark: bool}]`, and how many answers had it."""
    out = {}
    for row in marks:
        for mark, good in row.items():
            right, of = out.get(mark, (0, 0))
            out[mark] = (right + bool(good), of + 1)
    return {mark: (100.0 * right / of, of) for mark, (right, of) in sorted(out.items())}


def report(summary):
    """Prints the marks; True when every bar is reached."""
    good = True
    for mark, (percent, of) in summary.items():
        bar = BARS.get(mark)
        good &= bar is None or percent >= bar
        print(f"{mark:20} {percent:6.1f} % of {of:4}   {'' if bar is None else f'bar {bar} %'}"
              f"{'   BELOW' if bar is not None and percent < bar else ''}")
    return good and set(BARS) <= set(summary)


def load_prompts(path=HERE / "heldout.json"):
    return json.loads(path.read_text(encoding="utf-8"))["prompts"]


def ask(url, key, model, prompt):
    """One greedy answer: `(text, calls, finished)`."""
    body = {"model": model, "messages": prompt["messages"], "temperature": 0, "max_tokens": prompt["max_tokens"]}
    if "tools" in prompt:
        body["tools"] = prompt["tools"]
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        choice = json.load(answer)["choices"][0]
    message, text = choice["message"], choice["message"].get("content") or ""
    if not message.get("tool_calls"):
        return text, calls_in(text), choice["finish_reason"] == "stop"
    try:
        calls = [{"name": c["function"]["name"], "arguments": json.loads(c["function"]["arguments"])}
                 for c in message["tool_calls"]]
    except ValueError:
        calls = None
    return text, calls, True


def served_model(url, key):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/models", headers=headers), timeout=30) as answer:
        return json.load(answer)["data"][0]["id"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="such as http://localhost:8000")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--model", help="served name; the first of /v1/models when absent")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--show", action="store_true", help="print every wrong answer")
    options = parser.parse_args()
    url, prompts = options.url.rstrip("/"), load_prompts()
    try:
        model = options.model or served_model(url, options.api_key)
        with ThreadPoolExecutor(options.concurrency) as pool:
            answers = list(pool.map(lambda p: ask(url, options.api_key, model, p), prompts))
    except (urllib.error.URLError, OSError) as error:
        sys.exit(f"{url} did not answer: {error}")
    marks = [grade(p, *a) for p, a in zip(prompts, answers)]
    if options.show:
        for prompt, answer, row in zip(prompts, answers, marks):
            if not all(row.values()):
                print(f"{prompt['id']}: {prompt['messages'][-1]['content']!r} -> {answer[0]!r} {answer[1]} {row}")
    good = report(summarize(marks))
    print(f"{len(prompts)} held-out prompts: {'every bar is reached' if good else 'BELOW a bar'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
