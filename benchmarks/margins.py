"""How fast margins are scored: packed against a plain loop, alternating in one process.

    python benchmarks/margins.py [--json] [--prompts 12] [--repeats 5] [--threads 1]

The plain way scores one sequence at a time with full logits. The bound beside each figure is that of FLOPs: distinct
tokens through the layers and predicted positions through the head, against every token through both.
"""

import argparse
import json
import os
import statistics
import subprocess
import time

import torch

from truing.config import ModelConfig
from truing.data.prompts import load_prompts
from truing.interp.likelihoods import margin_requests
from truing.models.engine import token_tree as packing
from truing.models.engine.runner import Trunk
from truing.models.engine.scoring import ROW_TOKENS, score_trees
from truing.models.hf import LocalBackend


def branches(backend, count):
    prompts = load_prompts("v1").only("eval", count).prompts
    out = []
    for k, request in enumerate(margin_requests(backend.base_checkpoint(), prompts)):
        r = backend.chat.render(request.messages, request.completion)
        out.append(packing.Branch(k, r.prefix_ids, r.completion_ids))
    return out


def plain(model, asked):
    out = {}
    with torch.inference_mode():
        for b in asked:
            logits = model(torch.tensor([b.prefix + b.completion]), use_cache=False).logits[0].float()
            logp = logits.log_softmax(-1)[len(b.prefix) - 1 : -1]
            out[b.index] = float(logp.gather(-1, torch.tensor(b.completion)[:, None]).sum())
    return out


def ours(model, asked):
    trunk = Trunk(model)
    return {s.index: s.total for _, s in score_trees(trunk, None, packing.pack(asked, ROW_TOKENS), (-1,))}


def flop_bound(model, asked, rows):
    """FLOPs of the plain way over those of the packed one (attention left out: it is under 3 % at these lengths)."""
    head = model.get_output_embeddings().weight.numel()
    layers = sum(p.numel() for p in model.parameters()) - head
    tokens = sum(len(b.prefix) + len(b.completion) for b in asked)
    nodes = sum(len(r.tokens) for r in rows)
    predicted = sum(len({n for _, at in r.scored for n in at}) for r in rows)
    return tokens * (layers + head) / (nodes * layers + predicted * head)


def timed(run):
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = []
    seconds = {}
    for dtype in args.dtypes.split(","):
        backend = LocalBackend("smollm2-135m", (), ModelConfig(dtype=dtype, device="cpu"))
        model = backend.use(backend.base_checkpoint())
        asked = branches(backend, args.prompts)
        bound = flop_bound(model, asked, packing.pack(asked, ROW_TOKENS))
        ours(model, asked[:8])
        plain(model, asked[:2])
        times, reference, mine = {"plain": [], "ours": []}, {}, {}
        for _ in range(args.repeats):
            reference, wall, cpu = timed(lambda m=model, a=asked: plain(m, a))
            times["plain"].append((wall, cpu))
            mine, wall, cpu = timed(lambda m=model, a=asked: ours(m, a))
            times["ours"].append((wall, cpu))
        worst = max(abs(reference[b.index] - mine[b.index]) / len(b.completion) for b in asked)
        medians = {k: [statistics.median(column) for column in zip(*v, strict=True)] for k, v in times.items()}
        seconds[dtype] = medians
        case = (
            f"{args.prompts} prompts, {len(asked)} sequences, {dtype}, {args.threads} thread(s), FLOP bound {bound:.2f}"
        )
        ratio = medians["plain"][1] / medians["ours"][1]
        found.append(
            {"metric": "margins of a checkpoint", "case": case, "ours": round(medians["ours"][1], 3),
             "baseline": round(medians["plain"][1], 3), "ratio": round(ratio, 2), "unit": "CPU s", "target": 1.6,
             "met": ratio >= 1.6}
        )  # fmt: skip
        limit = 1e-3 if dtype == "float32" else None
        found.append(
            {"metric": "largest difference to plain", "case": case, "ours": round(worst, 6), "baseline": 0.0,
             "ratio": None, "unit": "nats/token", "target": limit, "met": limit is None or worst <= limit}
        )  # fmt: skip
    if {"float32", "bfloat16"} <= set(seconds):
        ratio = seconds["float32"]["plain"][1] / seconds["bfloat16"]["ours"][1]
        case = f"packed bfloat16 against plain float32, {args.threads} thread(s)"
        found.append(
            {"metric": "margins of a checkpoint", "case": case, "ours": round(seconds["bfloat16"]["ours"][1], 3),
             "baseline": round(seconds["float32"]["plain"][1], 3), "ratio": round(ratio, 2), "unit": "CPU s",
             "target": 3.0, "met": ratio >= 3.0}
        )  # fmt: skip
    if args.json:
        print(json.dumps(found, indent=1))
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"python benchmarks/margins.py at {commit}; load {os.getloadavg()[0]:.2f}; median of {args.repeats}")
    for f in found:
        print(f"{f['metric']:<28} {f['ours']:>9} vs {f['baseline']:>9} {f['unit']:<10} x{f['ratio']}  "
              f"target {f['target']}  {'met' if f['met'] else 'NOT MET'}  ({f['case']})")  # fmt: skip


if __name__ == "__main__":
    main()
