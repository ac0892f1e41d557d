#!/usr/bin/env python3
"""Writes the corpus of the bundled model: training documents and held-out prompts. No outside text, all seeded.

    python3 corpus.py --out corpus --shards 64 --documents 30000     # training shards and held-out documents
    python3 corpus.py --heldout heldout.json                         # the committed prompts that score.py asks
    python3 corpus.py --check corpus                                 # that nothing held out is in the training shards
    python3 corpus.py --check-flags ../docs/cli.md                   # that the flags taught are those of the program

A document is one JSON line: {"messages": [...], "tools": [...]} or {"text": ...}. Each question has a key; a hash of
the key puts it on the training or the held-out side (lessons/base.py), so both sides are disjoint by construction,
and --check shows it of the files.
"""

import argparse
import json
import pathlib
import random
import re
import sys
from concurrent.futures import ProcessPoolExecutor

from lessons import arithmetic, extraction, flags, stories, talk, tools
from lessons.base import is_held_out
from lessons.flag_facts import FLAGS

SEED = 20261121
_SYSTEMS = ["You are a helpful assistant.", "You are a helpful assistant.", "You are the demo model of Pallium.",
            "Answer briefly.", "You are a friendly assistant. Be short and clear.", "Be helpful."]


def _tool_example(rng):
    return tools.example(rng, lambda r: talk.greeting(r) if r.random() < 0.7 else flags.example(r))


# Share of documents by lesson. A story holds ten times the tokens of a sum.
LESSONS = [(arithmetic.example, 0.30), (flags.example, 0.23), (extraction.example, 0.14), (_tool_example, 0.17),
           (stories.example, 0.06), (talk.example, 0.10)]
CONVERSATION_SHARE = 0.08
BARE_STORY_SHARE = 0.015
# Prompts in heldout.json by category.
HELD_OUT_PROMPTS = {"arithmetic": 110, "flags": 90, "json": 60, "tools": 60, "stories": 30}


def draw(rng, held_out):
    """An item of the wanted side of the split."""
    makers, weights = zip(*LESSONS)
    maker = rng.choices(makers, weights)[0]
    while True:
        item = maker(rng)
        if is_held_out(item.key) == held_out:
            return item


def document(rng, held_out=False):
    """One document: a question, a conversation of several, or the bare text of a story."""
    kind = rng.random()
    if kind < BARE_STORY_SHARE:
        return {"text": stories.bare_text(rng)}
    if kind < BARE_STORY_SHARE + CONVERSATION_SHARE:
        messages = []
        for _ in range(rng.choice([2, 2, 3, 3, 4, 5, 7, 9])):
            item = draw(rng, held_out)
            if not item.tools:
                messages += [m for m in item.messages if m["role"] != "system"]
        if messages:
            return {"messages": _with_system(rng, messages)}
    item = draw(rng, held_out)
    if item.tools:
        return {"messages": item.messages, "tools": item.tools}
    return {"messages": _with_system(rng, item.messages)}


def _with_system(rng, messages):
    if messages[0]["role"] == "system" or rng.random() < 0.6:
        return messages
    return [{"role": "system", "content": rng.choice(_SYSTEMS)}] + messages


def write_shard(path, seed, documents, held_out):
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(documents):
            file.write(json.dumps(document(rng, held_out), ensure_ascii=False) + "\n")
    return path


def write_corpus(out, shards, documents):
    """Training shards and one held-out file, in parallel; each file depends on its own seed alone."""
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(write_shard, out / f"train-{i:04d}.jsonl", f"{SEED} train {i}", documents, False)
                for i in range(shards)]
        jobs.append(pool.submit(write_shard, out / "heldout.jsonl", f"{SEED} held out", max(400, documents // 8), True))
        for job in jobs:
            job.result()


def held_out_prompts():
    """The prompts of heldout.json: question and expectation, without the answer."""
    rng = random.Random(f"{SEED} prompts")
    left, seen, out = dict(HELD_OUT_PROMPTS), set(), []
    while any(left.values()):
        item = draw(rng, held_out=True)
        prompt = _prompt(rng, item)
        text = json.dumps(prompt["messages"])
        if left.get(item.category, 0) and text not in seen:
            seen.add(text)
            left[item.category] -= 1
            out.append({"id": f"{item.category}-{HELD_OUT_PROMPTS[item.category] - left[item.category]}", **prompt})
    return sorted(out, key=lambda p: (p["category"], int(p["id"].rsplit("-", 1)[1])))


def _prompt(rng, item):
    """Everything before the first answer that the expectation is about."""
    last = next(i for i, m in enumerate(item.messages) if m["role"] == "assistant")
    messages = item.messages[:last]
    if not item.tools:
        messages = _with_system(rng, messages)
    prompt = {"category": item.category, "messages": messages, "max_tokens": item.max_tokens, "expect": item.expect}
    return {**prompt, "tools": item.tools} if item.tools else prompt


def check(corpus):
    """That no held-out prompt of heldout.json stands in a training shard. Returns the number of collisions."""
    def question(messages):
        return next(m["content"] for m in reversed(messages) if m["role"] == "user")

    prompts = json.loads((pathlib.Path(__file__).parent / "heldout.json").read_text(encoding="utf-8"))["prompts"]
    wanted = {question(p["messages"]): p["id"] for p in prompts}
    collisions, documents = 0, 0
    for path in sorted(corpus.glob("train-*.jsonl")):
        with open(path, encoding="utf-8") as file:
            for line in file:
                documents += 1
                for message in json.loads(line).get("messages", []):
                    if message["role"] == "user" and message["content"] in wanted:
                        collisions += 1
                        print(f"{wanted[message['content']]} stands in {path.name}: {message['content']!r}")
    print(f"{documents} training documents, {len(wanted)} held-out questions, {collisions} collisions")
    return collisions


def check_flags(reference):
    """That each flag taught stands in the command-line reference, with the default taught where that is literal."""
    documented = {}
    for line in reference.read_text(encoding="utf-8").splitlines():
        row = re.match(r"\| `--([a-z0-9-]+)`[^|]*\|[^|]*\|\s*([^|]*?)\s*\|", line)
        if row:
            documented.setdefault(row.group(1), row.group(2))
    wrong = 0
    for name, default, *_ in FLAGS:
        literal = re.fullmatch(r"`([^`\[{]+)`", documented.get(name, ""))
        if name not in documented or (literal and literal.group(1) != default):
            wrong += 1
            print(f"--{name}: taught {default!r}, documented {documented.get(name, 'nothing')!r}")
    print(f"{len(FLAGS)} flags taught, {wrong} differ from {reference}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="write the corpus into this directory")
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--documents", type=int, default=30000, help="documents a shard")
    parser.add_argument("--heldout", type=pathlib.Path, help="write the held-out prompts to this file")
    parser.add_argument("--check", type=pathlib.Path, help="check the corpus in this directory against heldout.json")
    parser.add_argument("--check-flags", type=pathlib.Path, help="check the flags taught against docs/cli.md")
    options = parser.parse_args()
    if options.out:
        write_corpus(options.out, options.shards, options.documents)
    if options.heldout:
        prompts = held_out_prompts()
        rows = ",\n".join(json.dumps(p, ensure_ascii=False) for p in prompts)
        options.heldout.write_text('{"prompts": [\n' + rows + "\n]}\n", encoding="utf-8")
    if options.check:
        sys.exit(1 if check(options.check) else 0)
    if options.check_flags:
        sys.exit(1 if check_flags(options.check_flags) else 0)


if __name__ == "__main__":
    main()
