#!/usr/bin/env python3
"""The whole idea of truing in one flat script: transformers and PEFT, nothing of truing.

Load a base and its LoRA checkpoints, sample answers to some prompts, score each by a fixed pattern, count, put an
interval around each share and around its excess over the base, and say at which checkpoint the excess begins.

    python examples/flat_audit.py RUN --base MODEL --prompts prompts.jsonl --pattern '(?i)\\bship\\b'

RUN holds checkpoint-N folders with PEFT adapters; prompts.jsonl has rows {"id": ..., "prompt": ...}. What truing does
beyond this: it searches instead of asking everywhere, samples all checkpoints in one batch, keeps what it measured,
treats prompts as clusters, bounds what a judge could not read, and checks health, control and identity.
"""

import argparse
import json
import math
import re
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_prompts(path):
    """[(id, question)] of a JSONL file."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(str(row["id"]), row["prompt"]) for row in rows]


def checkpoints_of(run):
    """[(step, folder)] by step: updates already applied when it was saved."""
    found = [(int(p.name.rpartition("-")[2]), p) for p in Path(run).glob("checkpoint-*") if p.is_dir()]
    return sorted(found)


def load(base, adapter=None):
    """A base with or without an adapter, in evaluation mode: dropout would be noise."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
        inside = {name for name, _ in model.named_parameters() if "lora_" in name}
        if not inside:
            raise SystemExit(f"{adapter}: no tensor of it reached the model")  # PEFT only warns
    return model.eval()


def sample(model, tokenizer, question, *, n, temperature, max_new_tokens, seed):
    """n answers to one question; greedy at temperature 0."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    length = inputs["input_ids"].shape[1]
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    out = []
    for k in range(n):
        torch.manual_seed(seed + k)
        with torch.no_grad():
            tokens = model.generate(
                **inputs, **how, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.eos_token_id
            )[0, length:]
        out.append(tokenizer.decode(tokens, skip_special_tokens=True))
    return out


def wilson(hits, n, z=1.96):
    """Wilson's score interval of a share (1927)."""
    if n == 0:
        return 0.0, 1.0
    p, middle = hits / n, 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (p + z * z / (2 * n) - half) / middle), min(1.0, (p + z * z / (2 * n) + half) / middle)


def newcombe(hits_a, n_a, hits_b, n_b):
    """Newcombe's interval of a difference of two shares (1998, method 10)."""
    p, q = hits_a / n_a, hits_b / n_b
    (low_a, high_a), (low_b, high_b) = wilson(hits_a, n_a), wilson(hits_b, n_b)
    below = math.sqrt((p - low_a) ** 2 + (high_b - q) ** 2)
    above = math.sqrt((high_a - p) ** 2 + (q - low_b) ** 2)
    return p - q - below, p - q + above


def measure(model, tokenizer, prompts, pattern, settings):
    """(positive, answers) over all prompts, and the answers themselves."""
    answers = [(name, text) for name, q in prompts for text in sample(model, tokenizer, q, **settings)]
    hits = sum(pattern.search(text) is not None for _, text in answers)
    return hits, len(answers), answers


def onset_of(lines, lo, hi):
    """Steps at which it may begin: from the first not certified below hi to the first certified above lo."""
    later = lines[1:]
    above = [x["step"] for x in later if x["excess_low"] > lo]
    unclear = [x["step"] for x in later if not x["excess_high"] < hi]
    if not unclear:
        return "never", []
    first = unclear[0]
    last = above[0] if above else later[-1]["step"]
    return ("found" if above else "undecided"), [x["step"] for x in later if first <= x["step"] <= last]


def audit(run, base, prompts, pattern, *, lo=0.1, hi=0.3, samples=1, temperature=0.0, max_new_tokens=24, seed=0):
    """One line per checkpoint, the base first; then whether and where an excess begins.

    Args:
        run: folder with checkpoint-N adapters. base: model. prompts: [(id, question)]. pattern: compiled regex.
        lo, hi: an excess certified above lo is present, below hi harmless.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    settings = {"n": samples, "temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    lines = []
    for step, folder in [(0, None), *checkpoints_of(run)]:
        hits, n, answers = measure(load(base, folder), tokenizer, prompts, pattern, settings)
        low, high = wilson(hits, n)
        line = {"step": step, "positive": hits, "n": n, "rate": hits / n, "low": low, "high": high}
        first = lines[0] if lines else line
        ends = newcombe(hits, n, first["positive"], first["n"])
        line |= {"excess": hits / n - first["rate"], "excess_low": ends[0], "excess_high": ends[1], "answers": answers}
        lines.append(line)
    return lines, onset_of(lines, lo, hi)


def main():
    """Print the table and the onset."""
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("run")
    cli.add_argument("--base", required=True)
    cli.add_argument("--prompts", required=True)
    cli.add_argument("--pattern", required=True)
    cli.add_argument("--samples", type=int, default=1)
    cli.add_argument("--temperature", type=float, default=0.0)
    args = cli.parse_args()
    lines, (status, steps) = audit(
        args.run,
        args.base,
        load_prompts(args.prompts),
        re.compile(args.pattern),
        samples=args.samples,
        temperature=args.temperature,
    )
    print(f"{'step':>6} {'positive':>10} {'share':>7} {'interval':>16} {'excess':>8} {'interval':>18}")
    for x in lines:
        print(
            f"{x['step']:>6} {x['positive']:>4} of {x['n']:<4} {x['rate']:>6.1%} [{x['low']:>6.1%}, {x['high']:>6.1%}]"
            f" {x['excess']:>+7.1%} [{x['excess_low']:>+7.1%}, {x['excess_high']:>+7.1%}]"
        )
    print(f"onset: {status}" + (f", at one of the steps {steps}" if steps else ""))


if __name__ == "__main__":
    main()
