"""How fast margins are scored: token trees through the engine against a plain loop, alternating in one process.

    python benchmarks/margins.py [--json FILE] [--prompts 12] [--repeats 3] [--threads 1]

The plain way scores one sequence at a time with full logits, on smollm2-135m (fetched once). The bound beside each
ratio is that of FLOPs: distinct tokens through the layers and predicted positions through the head, against every token
through both.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch

from truing.data.prompts import load_prompts
from truing.interp.likelihoods import margin_requests
from truing.models.download import get_model
from truing.models.engine.scoring import ROW_TOKENS
from truing.models.engine.token_tree import Branch, pack
from truing.models.hf import LocalBackend


def branches_of(backend, count):
    prompts = load_prompts("v1").only("eval", count).prompts
    out = []
    for k, request in enumerate(margin_requests(backend.base_checkpoint(), prompts)):
        r = backend.chat.render(request.messages, request.completion)
        out.append(Branch(k, r.prefix_ids, r.completion_ids))
    return out


def plain(model, branches):
    out = {}
    with torch.inference_mode():
        for b in branches:
            logits = model(torch.tensor([b.prefix + b.completion]), use_cache=False).logits[0].float()
            logp = logits.log_softmax(-1)[len(b.prefix) - 1 : -1]
            out[b.index] = float(logp.gather(-1, torch.tensor(b.completion)[:, None]).sum())
    return out


def ours(backend, model, branches):
    return {s.index: s.total for s in backend.engine.score(lambda: model, branches)}


def flop_bound(model, branches):
    """FLOPs of the plain way over those of the packed one (attention left out: it is under 3 % at these lengths)."""
    head = model.get_output_embeddings().weight.numel()
    layers = sum(p.numel() for p in model.parameters()) - head
    rows = pack(branches, ROW_TOKENS)
    tokens = sum(len(b.prefix) + len(b.completion) for b in branches)
    predicted = sum(len({n for _, at in r.scored for n in at}) for r in rows)
    return tokens * (layers + head) / (sum(len(r.tokens) for r in rows) * layers + predicted * head)


def timed(run):
    start = time.process_time()
    result = run()
    return result, time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE")
    for name, default in {"prompts": 12, "repeats": 3, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder, rows, seconds = str(get_model("smollm2-135m")), [], {}

    def note(metric, case, ratio, target, met):
        rows.append({"metric": metric, "case": case, "ratio": round(ratio, 6), "target": target, "met": met})

    for dtype in ("float32", "bfloat16"):
        backend = LocalBackend(folder, (), ModelConfig(dtype=dtype, device="cpu"))
        model = backend.use(backend.base_checkpoint())
        branches = branches_of(backend, args.prompts)
        ours(backend, model, branches[:8])
        plain(model, branches[:2])
        spent, reference, mine = {"plain": [], "ours": []}, {}, {}
        for _ in range(args.repeats):
            reference, cpu = timed(lambda m=model, b=branches: plain(m, b))
            spent["plain"].append(cpu)
            mine, cpu = timed(lambda e=backend, m=model, b=branches: ours(e, m, b))
            spent["ours"].append(cpu)
        seconds[dtype] = {name: statistics.median(s) for name, s in spent.items()}
        ratio = seconds[dtype]["plain"] / seconds[dtype]["ours"]
        bound = flop_bound(model, branches)
        case = f"{len(branches)} sequences, {dtype}, {args.threads} thread(s), FLOP bound {bound:.2f}"
        note("margins per CPU second", case, ratio, 1.6, ratio >= 1.6)
        if dtype == "float32":
            worst = max(abs(reference[b.index] - mine[b.index]) / len(b.completion) for b in branches)
            note("largest difference, nats per token", case, worst, 1e-3, worst <= 1e-3)
    ratio = seconds["float32"]["plain"] / seconds["bfloat16"]["ours"]
    note("margins per CPU second", "packed bfloat16 against plain float32", ratio, 3.0, ratio >= 3.0)
    print(f"load {os.getloadavg()[0]:.2f}, medians of {args.repeats}")
    for r in rows:
        print(
            f"{r['metric']:<36}{r['ratio']:>10}  wanted {r['target']}  {'met' if r['met'] else 'NOT MET'}  {r['case']}"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
