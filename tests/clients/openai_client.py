"""Drives a server with the official `openai` package: completions and chat, streaming and not.

Usage: openai_client.py URL [API_KEY]   (URL ends with /v1)
"""

import asyncio
import sys

import openai


def check(condition, what):
    if not condition:
        raise SystemExit(f"FAILED: {what}")
    print(f"ok: {what}")


def refused(call, error, what):
    try:
        call()
    except error as e:
        check(e.body is not None and e.body["code"] == e.status_code, f"{what}: {type(e).__name__}")
        return e
    raise SystemExit(f"FAILED: {what}: nothing was refused")


def completions(client, model):
    ask = dict(model=model, prompt="Once upon a time", max_tokens=12, temperature=0)
    whole = client.completions.create(**ask)
    choice = whole.choices[0]
    check(whole.object == "text_completion" and whole.id.startswith("cmpl-"), "completion: envelope")
    check(choice.finish_reason in ("stop", "length"), "completion: finish_reason")
    check(1 <= whole.usage.completion_tokens <= 12, "completion: usage")
    check(whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, "completion: sum")

    chunks = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].text for c in chunks if c.choices)
    check(text == choice.text, "completion: streamed text equals whole text")
    check(chunks[-1].choices == [] and chunks[-1].usage == whole.usage, "completion: streamed usage equals whole usage")

    many = client.completions.create(model=model, prompt=["One", "Two"], n=2, max_tokens=3, temperature=1, seed=7)
    check([c.index for c in many.choices] == [0, 1, 2, 3], "completion: two prompts, two answers each")
    again = client.completions.create(model=model, prompt=["One", "Two"], n=2, max_tokens=3, temperature=1, seed=7)
    check([c.text for c in again.choices] == [c.text for c in many.choices], "completion: a seed repeats the draw")

    scored = client.completions.create(**{**ask, "max_tokens": 3}, logprobs=2, echo=True)
    logprobs = scored.choices[0].logprobs
    check(logprobs.token_logprobs[0] is None, "completion: the first echoed token has no log-probability")
    lengths = {len(logprobs.tokens), len(logprobs.token_logprobs), len(logprobs.top_logprobs), len(logprobs.text_offset)}
    check(lengths == {scored.usage.total_tokens}, "completion: log-probabilities of prompt and answer")
    check(scored.choices[0].text.startswith("Once upon a time"), "completion: echo")


def chat(client, model):
    messages = [{"role": "user", "content": "Tell me a short story. 你好 😀"}]
    ask = dict(model=model, messages=messages, max_completion_tokens=12, temperature=0)
    whole = client.chat.completions.create(**ask)
    choice = whole.choices[0]
    check(whole.object == "chat.completion" and whole.id.startswith("chatcmpl-"), "chat: envelope")
    check(choice.message.role == "assistant" and choice.message.content is not None, "chat: message")

    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    check(chunks[0].choices[0].delta.role == "assistant", "chat: the first chunk has the role")
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    check(text == choice.message.content, "chat: streamed text equals whole text")
    check(chunks[-1].usage == whole.usage, "chat: streamed usage equals whole usage")

    scored = client.chat.completions.create(**{**ask, "max_completion_tokens": 2}, logprobs=True, top_logprobs=3)
    content = scored.choices[0].logprobs.content
    check(len(content) == scored.usage.completion_tokens, "chat: log-probabilities of every token")
    check(all(len(c.top_logprobs) == 3 and c.logprob <= 0 for c in content), "chat: three candidates each")


def errors(client, model):
    ask = lambda **more: client.completions.create(**{"model": model, "prompt": "x", **more})
    e = refused(lambda: ask(model="no-such-model"), openai.NotFoundError, "unknown model")
    check(e.param == "model", "unknown model: param")
    e = refused(lambda: ask(temperature=3), openai.BadRequestError, "temperature 3")
    check(e.param == "temperature", "temperature 3: param")
    refused(lambda: ask(prompt=""), openai.BadRequestError, "empty prompt")
    refused(lambda: ask(max_tokens=0), openai.BadRequestError, "max_tokens 0")
    refused(lambda: ask(logprobs=10_000), openai.BadRequestError, "too many logprobs")


async def concurrent(client, model):
    async def one(i):
        stream = await client.completions.create(
            model=model, prompt=f"Number {i}", max_tokens=8, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])

    together = await asyncio.gather(*(one(i) for i in range(8)))
    alone = [await one(i) for i in range(8)]
    check(together == alone, "eight streams at once give what each gives alone")


def main():
    url = sys.argv[1]
    key = sys.argv[2] if len(sys.argv) > 2 else "none"
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    models = client.models.list().data
    check(models and models[0].object == "model", "models: list")
    model = models[0].id
    check(client.models.retrieve(model).id == model, "models: retrieve")
    completions(client, model)
    chat(client, model)
    errors(client, model)
    asyncio.run(concurrent(openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0), model))
    print("all passed")


main()
