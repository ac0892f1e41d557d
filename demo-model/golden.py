#!/usr/bin/env python3
"""Writes golden.json: what Hugging Face transformers makes of a few conversations with the bundled model.

    python3 golden.py      # needs torch and transformers

Each row: messages and tools, the prompt by the chat template, its token ids, the greedy answer in float32.
"""

import json
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).resolve().parent
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Get the current weather in a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    "required": ["city"]}}}
ALARM = {"type": "function", "function": {"name": "set_alarm", "parameters": {
    "type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}}}
NOW = {"type": "function", "function": {"name": "now", "description": "Get the time"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln"}}}

CONVERSATIONS = [
    {"messages": [{"role": "user", "content": "What is 417 + 385?"}]},
    {"messages": [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "What does --max-model-len do?"}]},
    {"messages": [{"role": "user", "content": "Extract name and age as JSON: Anna Kemolit is 31 years old."}]},
    {"messages": [{"role": "user", "content": "What is the weather in Köln?"}], "tools": [ALARM, WEATHER, NOW]},
    {"messages": [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "What is the weather in Köln?"},
                  {"role": "assistant", "content": None, "tool_calls": [CALL]},
                  {"role": "tool", "content": "{\"temperature\": -3, \"condition\": \"snowy\"}", "tool_call_id": "c1"}], "tools": [WEATHER]},
    {"messages": [{"role": "user", "content": "My name is Zorva."}, {"role": "assistant", "content": "Nice to meet you, Zorva!"},
                  {"role": "user", "content": "What is my name?"}]},
    {"messages": [{"role": "user", "content": "Tell me a story about a fox named Mia and a storm."}]},
]


def main():
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    model = AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32)
    rows = []
    for conversation in CONVERSATIONS:
        tools = conversation.get("tools")
        text = tokenizer.apply_chat_template(conversation["messages"], tools=tools, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False)
        with torch.no_grad():
            out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=300)[0].tolist()[len(ids):]
        rows.append({**conversation, "text": text, "ids": ids, "answer_ids": out,
                     "answer": tokenizer.decode(out, skip_special_tokens=True)})
        print(rows[-1]["answer"])
    lines = ",\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    (HERE / "golden.json").write_text("[\n" + lines + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
