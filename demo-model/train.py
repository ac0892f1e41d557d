#!/usr/bin/env python3
"""Trains the bundled model and writes it as a Hugging Face checkpoint (LlamaForCausalLM, bfloat16).

    python3 train.py --corpus corpus --out . --minutes 6     # on one GPU; the learning rate follows the clock
    python3 train.py --corpus corpus --out . --steps 8000    # the same by a number of steps
    python3 train.py --score .                               # scores a written checkpoint without a server

Needs torch, tokenizers, safetensors and numpy. Runs on a CPU too, slowly.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from inspect import signature

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

try:
    from torch.nn.attention.varlen import varlen_attn

    CAUSAL = {"is_causal": True} if "is_causal" in signature(varlen_attn).parameters else {"window_size": (-1, 0)}
except ImportError:
    varlen_attn = None

import chat
import score

ROW = 2048  # tokens a packed row; no document is longer
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, INNER = 256, 6, 4, 2, 64, 448
ROPE_THETA, EPSILON = 10000.0, 1e-5
PEAK_RATE, LAST_RATE, WARM_STEPS, WEIGHT_DECAY = 2e-3, 1e-5, 300, 0.1


# ---- model ----

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(HIDDEN, EPSILON), nn.RMSNorm(HIDDEN, EPSILON)
        self.q = nn.Linear(HIDDEN, HEADS * HEAD, bias=False)
        self.k = nn.Linear(HIDDEN, KV_HEADS * HEAD, bias=False)
        self.v = nn.Linear(HIDDEN, KV_HEADS * HEAD, bias=False)
        self.o = nn.Linear(HEADS * HEAD, HIDDEN, bias=False)
        self.gate = nn.Linear(HIDDEN, INNER, bias=False)
        self.up = nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x, rope, attend):
        h = self.norm1(x)
        q = rotated(self.q(h).unflatten(-1, (HEADS, HEAD)), rope)
        k = rotated(self.k(h).unflatten(-1, (KV_HEADS, HEAD)), rope)
        v = self.v(h).unflatten(-1, (KV_HEADS, HEAD))
        groups = HEADS // KV_HEADS
        k, v = k.repeat_interleave(groups, -2), v.repeat_interleave(groups, -2)
        x = x + self.o(attend(q, k, v).flatten(-2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """The Llama decoder with tied embeddings. Tokens [B, L] and positions [B, L] to logits [B, L, V]."""

    def __init__(self, vocabulary):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN, EPSILON)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * LAYERS) if name.endswith(("o.weight", "down.weight")) else 1))
        frequency = ROPE_THETA ** (-torch.arange(0, HEAD, 2, dtype=torch.float32) / HEAD)
        angles = torch.outer(torch.arange(ROW, dtype=torch.float32), frequency)
        self.register_buffer("cos", torch.cat([angles.cos(), angles.cos()], -1), persistent=False)
        self.register_buffer("sin", torch.cat([angles.sin(), angles.sin()], -1), persistent=False)

    def forward(self, tokens, positions, layout=None):
        attend = causal if layout is None else partial(masked if layout.dtype == torch.bool else varlen, layout)
        x = self.embed(tokens)
        rope = (self.cos[positions].unsqueeze(-2), self.sin[positions].unsqueeze(-2))
        for layer in self.layers:
            x = layer(x, rope, attend)
        return F.linear(self.norm(x), self.embed.weight)


def rotated(x, rope):
    cos, sin = rope
    a, b = x.float().chunk(2, -1)
    return (x * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)


def causal(q, k, v):
    """Attention over rows that hold one document each: [B, L, H, D]."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
    return out.transpose(1, 2)


def masked(mask, q, k, v):
    """Attention over packed rows; `mask` [B, 1, L, L] is true where a token sees another of its own document."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.transpose(1, 2)


def varlen(starts, q, k, v):
    """The same by one kernel over all documents end to end; `starts` [N + 1] int32 (CUDA, newer torch)."""
    flat = [t.flatten(0, 1).to(torch.bfloat16) for t in (q, k, v)]
    return varlen_attn(*flat, starts, starts, ROW, ROW, **CAUSAL).view(q.shape)


# ---- data ----

def tokenized(path, tokenizer_path):
    """The documents of one file as `(tokens uint16, learn bool, lengths int32)`, end to end."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process a file already
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    ids = {t: tokenizer.token_to_id(t) for t in chat.SPECIAL_TOKENS}
    tokens, learn, lengths = [], [], []
    with open(path, encoding="utf-8") as file:
        documents = [chat.segments(json.loads(line)) for line in file]
    encoded = iter(tokenizer.encode_batch([text for d in documents for _, text, _ in d], add_special_tokens=False))
    for document in documents:
        row, flags, inside = [], [], False
        for special, _, learned in document:
            body = next(encoded).ids
            row += [ids[special], *body]
            # An opening mark is given, never learned; an END is learned when the text before it was.
            flags += [learned and inside and special == chat.END] + [learned] * len(body)
            inside = learned
        if len(row) <= ROW:
            tokens += row
            learn += flags
            lengths.append(len(row))
    return np.array(tokens, np.uint16), np.array(learn, bool), np.array(lengths, np.int32)


def packed(parts, pad, seed):
    """Documents packed into rows of ROW tokens, in a seeded order: `(tokens [R, ROW], learn [R, ROW])`."""
    rng = np.random.default_rng(seed)
    places = [(p, at, n) for p, (_, _, lengths) in enumerate(parts)
              for at, n in zip((np.cumsum(lengths) - lengths).tolist(), lengths.tolist())]
    rows = -(-int(sum(n for _, _, n in places) * 1.06) // ROW) + 8
    tokens, learn = np.full((rows, ROW), pad, np.uint16), np.zeros((rows, ROW), bool)
    row, used = 0, 0
    for p, at, n in (places[i] for i in rng.permutation(len(places)).tolist()):
        if used + n > ROW:
            row, used = row + 1, 0
            if row == rows:
                break
        tokens[row, used : used + n] = parts[p][0][at : at + n]
        learn[row, used : used + n] = parts[p][1][at : at + n]
        used += n
    return tokens[: row + 1][:rows], learn[: row + 1][:rows]


def load_corpus(corpus, tokenizer_path, pad):
    paths = sorted(corpus.glob("train-*.jsonl")) + [corpus / "heldout.jsonl"]
    with ProcessPoolExecutor() as pool:
        parts = list(pool.map(tokenized, paths, [tokenizer_path] * len(paths)))
    return packed(parts[:-1], pad, 1), packed(parts[-1:], pad, 2)


class Batches:
    """Packed rows on the device; `take(rows)` gives tokens, targets, positions and the way to attend."""

    def __init__(self, data, begin, device, fast):
        self.tokens = torch.from_numpy(data[0].astype(np.int16)).to(device)
        self.learn = torch.from_numpy(data[1]).to(device)
        self.begin, self.device, self.fast = begin, device, fast

    def take(self, rows):
        tokens = self.tokens[rows].long()
        opens = tokens == self.begin
        at = torch.arange(ROW, device=self.device).expand_as(tokens)
        start = torch.where(opens, at, 0).cummax(1).values
        targets = torch.where(self.learn[rows], tokens, -100)
        targets = torch.cat([targets[:, 1:], torch.full_like(targets[:, :1], -100)], 1)
        if self.fast:
            starts = opens.flatten().nonzero().flatten().int()
            # A full length keeps the shape steady: empty documents at the end cost nothing.
            full = -(-(len(starts) + 1) // 1024) * 1024
            starts = F.pad(starts, (0, full - len(starts)), value=tokens.numel())
            return tokens, targets, at - start, starts
        document = opens.cumsum(1)
        mask = (document[:, None, :, None] == document[:, None, None, :]).tril()
        return tokens, targets, at - start, mask


# ---- training ----

def has_varlen(device):
    """True when the packed kernel is there and agrees with the masked one, forward and back."""
    if device != "cuda" or varlen_attn is None:
        return False
    try:
        q, k, v = (torch.randn(2, ROW, HEADS, HEAD, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        cuts = torch.tensor([0, 100, 1000, ROW, ROW + 7, 2 * ROW, 2 * ROW], device=device, dtype=torch.int32)
        document = torch.bucketize(torch.arange(2 * ROW, device=device), cuts[1:-1].long(), right=True).view(2, ROW)
        mask = (document[:, None, :, None] == document[:, None, None, :]).tril()
        results = []
        for attend in (partial(varlen, cuts), partial(masked, mask)):
            out = attend(q, k, v)
            results += [out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))]
        worst = max((a - b).abs().max().item() for a, b in zip(results[:4], results[4:]))
        print(f"packed attention kernel: largest difference {worst:.3g}", flush=True)
        return worst < 0.3
    except Exception as error:  # whatever this torch lacks, the masked path does the same work
        print(f"no packed attention kernel: {error!r:.300}", flush=True)
        return False


def loss_of(model, batch):
    tokens, targets, positions, layout = batch
    logits = model(tokens, positions, layout)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)


def rate_at(progress, step):
    """Linear warm-up, then a cosine from PEAK_RATE to LAST_RATE over `progress` 0..1."""
    cosine = LAST_RATE + (PEAK_RATE - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return cosine * min(1.0, (step + 1) / WARM_STEPS)


@torch.no_grad()
def held_out_loss(model, data, context, rows_at_once):
    total = 0.0
    count = 0
    for rows in torch.arange(len(data.tokens), device=data.device).split(rows_at_once):
        batch = data.take(rows)
        learned = (batch[1] != -100).sum().item()
        with context():
            total += loss_of(model, batch).item() * learned
        count += learned
    return total / count


def train(options, model, training, held_out, context):
    device = options.device
    decayed = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}],
                                  lr=PEAK_RATE, betas=(0.9, 0.95), fused=device == "cuda")
    runner = torch.compile(model) if options.compile else model
    generator = torch.Generator().manual_seed(3)
    order, start, step, log = [], time.time(), 0, time.time()
    while True:
        progress = step / options.steps if options.steps else (time.time() - start) / (60 * options.minutes)
        if progress >= 1:
            break
        if len(order) < options.rows:
            order = torch.randperm(len(training.tokens), generator=generator).to(device)
        rows, order = order[: options.rows], order[options.rows :]
        for group in optimizer.param_groups:
            group["lr"] = rate_at(progress, step)
        with context():
            try:
                loss = loss_of(runner, training.take(rows))
            except Exception as error:
                if runner is model or step:
                    raise
                print(f"compiling failed, running eagerly: {error!r:.500}", flush=True)
                runner = model
                continue
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step <= 2 or time.time() - log > options.log_s:
            log = time.time()
            speed = step * options.rows * ROW / (log - start)
            print(f"step {step:6}  {100 * progress:5.1f} %  loss {loss.item():.4f}  {speed / 1e6:.3f} M tokens/s  "
                  f"epoch {step * options.rows / len(training.tokens):.2f}", flush=True)
    print(f"{step} steps of {options.rows * ROW} tokens in {time.time() - start:.0f} s; held-out loss "
          f"{held_out_loss(model, held_out, context, options.rows):.4f}", flush=True)


# ---- checkpoint and score ----

NAMES = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
         "v": "self_attn.v_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}


def hub_name(name):
    if not name.startswith("layers."):
        return {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight"


def write_checkpoint(model, tokenizer, out):
    special = {t: tokenizer.token_to_id(t) for t in (chat.BEGIN, chat.END, chat.PAD)}
    tensors = {hub_name(n): p.detach().to("cpu", torch.bfloat16).contiguous() for n, p in model.named_parameters()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "vocab_size": tokenizer.get_vocab_size(), "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "hidden_act": "silu",
        "max_position_embeddings": ROW, "rms_norm_eps": EPSILON, "rope_theta": ROPE_THETA, "rope_scaling": None,
        "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
        "initializer_range": 0.02, "use_cache": True, "bos_token_id": special[chat.BEGIN], "eos_token_id": special[chat.END],
        "pad_token_id": special[chat.PAD],
    }
    generation = {"bos_token_id": special[chat.BEGIN], "eos_token_id": [special[chat.END]], "pad_token_id": special[chat.PAD],
                  "do_sample": True, "temperature": 0.5, "top_p": 0.9}
    for name, value in (("config.json", config), ("generation_config.json", generation)):
        (out / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_checkpoint(directory):
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = Llama(tokenizer.get_vocab_size())
    tensors = load_file(directory / "model.safetensors")
    model.load_state_dict({n: tensors[hub_name(n)].float() for n, _ in model.named_parameters()})
    return model, tokenizer


@torch.no_grad()
def greedy(model, prompts, limits, end, device):
    """Greedy answers of a batch of token lists, the whole prefix run again each step: simple, and its own check."""
    rows = [list(p) for p in prompts]
    open_rows = list(range(len(rows)))
    while open_rows:
        longest = max(len(rows[i]) for i in open_rows)
        width = min(ROW, -(-longest // 32) * 32)
        tokens = torch.zeros(len(open_rows), width, dtype=torch.long)
        for at, i in enumerate(open_rows):
            tokens[at, : len(rows[i])] = torch.tensor(rows[i])
        tokens = tokens.to(device)
        positions = torch.arange(width, device=device).expand_as(tokens)
        last = torch.tensor([len(rows[i]) - 1 for i in open_rows], device=device)
        logits = model(tokens, positions)
        chosen = logits[torch.arange(len(open_rows), device=device), last].argmax(-1).tolist()
        for i, token in zip(open_rows, chosen):
            rows[i].append(token)
        open_rows = [i for i, token in zip(open_rows, chosen)
                     if token != end and len(rows[i]) - len(prompts[i]) < limits[i] and len(rows[i]) < ROW]
    return [row[len(p):] for row, p in zip(rows, prompts)]


def scored(model, tokenizer, device, dtype):
    """Answers and marks of all held-out prompts: the model in `dtype` throughout, as a server runs it."""
    prompts = score.load_prompts()
    end = tokenizer.token_to_id(chat.END)
    fresh = Llama(tokenizer.get_vocab_size())
    fresh.load_state_dict(model.state_dict())
    fresh = fresh.to(device, dtype)
    answers = [None] * len(prompts)
    for category in sorted({p["category"] for p in prompts}):
        indices = [i for i, p in enumerate(prompts) if p["category"] == category]
        ids = [tokenizer.encode(chat.rendered(prompts[i], True), add_special_tokens=False).ids for i in indices]
        out = greedy(fresh, ids, [prompts[i]["max_tokens"] for i in indices], end, device)
        for i, tokens in zip(indices, out):
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            answers[i] = (text, score.calls_in(text), bool(tokens) and tokens[-1] == end)
    marks = [score.grade(p, *a) for p, a in zip(prompts, answers)]
    return prompts, answers, marks


def show(model, tokenizer, device, path=None):
    for dtype in (torch.float32, torch.bfloat16):
        prompts, answers, marks = scored(model, tokenizer, device, dtype)
        print(f"\nscores in {dtype}:")
        score.report(score.summarize(marks))
    if path:
        rows = [{"id": p["id"], "question": p["messages"][-1]["content"], "answer": a[0], **m, "expect": p["expect"]}
                for p, a, m in zip(prompts, answers, marks)]
        path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), help="has tokenizer.json; gets the checkpoint")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--rows", type=int, default=32, help=f"packed rows of {ROW} tokens a step")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--log-s", type=float, default=10.0)
    parser.add_argument("--answers", type=pathlib.Path, help="write every held-out answer here")
    parser.add_argument("--score", type=pathlib.Path, help="only score the checkpoint in this directory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.score:
        show(*read_checkpoint(options.score), options.device, options.answers)
        return
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    began = time.time()
    tokenizer = Tokenizer.from_file(str(options.out / "tokenizer.json"))
    begin, pad = tokenizer.token_to_id(chat.BEGIN), tokenizer.token_to_id(chat.PAD)
    train_rows, held_rows = load_corpus(options.corpus, options.out / "tokenizer.json", pad)
    print(f"{train_rows[0].size / 1e6:.1f} M training tokens packed, {100 * train_rows[1].mean():.0f} % learned, "
          f"{100 * (train_rows[0] == pad).mean():.1f} % padding, in {time.time() - began:.0f} s", flush=True)
    fast = has_varlen(options.device)
    training, held_out = (Batches(d, begin, options.device, fast) for d in (train_rows, held_rows))
    model = Llama(tokenizer.get_vocab_size()).to(options.device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    def context():
        return torch.autocast("cuda", torch.bfloat16) if options.device == "cuda" else contextlib.nullcontext()
    train(options, model, training, held_out, context)
    write_checkpoint(model, tokenizer, options.out)
    show(*read_checkpoint(options.out), options.device, options.answers)


if __name__ == "__main__":
    main()
