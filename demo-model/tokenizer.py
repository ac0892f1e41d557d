#!/usr/bin/env python3
"""Trains the byte-level BPE tokenizer of the bundled model and writes its Hugging Face files.

    python3 tokenizer.py --corpus corpus --out .     # tokenizer.json, tokenizer_config.json, chat_template.jinja
    python3 tokenizer.py --corpus corpus --check .   # the template renders as chat.py does, and text survives

Digits are single tokens, so that sums line up. Needs the PyPI package `tokenizers`; --check also `transformers`.
"""

import argparse
import itertools
import json
import pathlib
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import chat

VOCABULARY = 2048
CONTEXT = 2048
TRAINING_DOCUMENTS = 60000


def texts(corpus, documents):
    """The texts between special tokens of some documents of each training shard."""
    paths = sorted(corpus.glob("train-*.jsonl"))
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in itertools.islice(file, -(-documents // len(paths))):
                yield from (text for _, text, _ in chat.segments(json.loads(line)) if text)


def train(corpus):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    marks = [chat.TOOL_CALL_OPEN, chat.TOOL_CALL_CLOSE]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=chat.SPECIAL_TOKENS + marks,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts(corpus, TRAINING_DOCUMENTS), trainer)
    begin = (chat.BEGIN, tokenizer.token_to_id(chat.BEGIN))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{chat.BEGIN} $A", special_tokens=[begin])
    return unhidden(tokenizer, marks)


def unhidden(tokenizer, marks):
    """The tool-call marks stay single tokens, but are no longer left out of decoded text."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] not in marks
    return Tokenizer.from_str(json.dumps(state))


def write(tokenizer, out):
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    added = {str(tokenizer.token_to_id(t)): {"content": t, "lstrip": False, "normalized": False, "rstrip": False,
                                             "single_word": False, "special": not t.endswith("tool_call>")}
             for t in chat.SPECIAL_TOKENS + [chat.TOOL_CALL_OPEN, chat.TOOL_CALL_CLOSE]}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT, "bos_token": chat.BEGIN,
        "eos_token": chat.END, "pad_token": chat.PAD, "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": added, "chat_template": chat.CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check(corpus, directory):
    """Renders documents by the chat template and by chat.py; encodes and decodes each."""
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(directory)
    rng = random.Random(1)
    lines = (corpus / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [d for d in map(json.loads, rng.sample(lines, min(2000, len(lines)))) if "messages" in d]
    for document in documents:
        prompt = document["messages"][-1]["role"] != "assistant"
        text = hf.apply_chat_template(document["messages"], tools=document.get("tools"), tokenize=False,
                                      add_generation_prompt=prompt)
        assert text == chat.rendered(document, prompt), f"template:\n{text}\nchat.py:\n{chat.rendered(document, prompt)}"
        ids = hf.encode(text, add_special_tokens=False)
        assert hf.decode(ids, skip_special_tokens=False) == text, text
        pieces = [i for special, body, _ in chat.segments(document) for i in
                  [hf.convert_tokens_to_ids(special), *hf.encode(body, add_special_tokens=False)]]
        assert pieces == ids, text
    for text in ["Grüße, 你好, 🙂!", "  two  spaces\n\tand a tab", "1234567890"]:
        assert hf.decode(hf.encode(text, add_special_tokens=False)) == text, text
    print(f"{len(documents)} documents render and encode alike by chat template and chat.py; vocabulary {len(hf)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--check", type=pathlib.Path)
    options = parser.parse_args()
    if options.out:
        write(train(options.corpus), options.out)
    if options.check:
        check(options.corpus, options.check)


if __name__ == "__main__":
    main()
