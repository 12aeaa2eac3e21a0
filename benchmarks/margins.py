"""How fast margins are scored: token trees through the engine against a plain loop, alternating in one process.

    python benchmarks/margins.py [--json FILE] [--prompts 12] [--repeats 3] [--threads 1] [--tiny]

The plain way scores one sequence at a time with full logits, on smollm2-135m (fetched once; --tiny: a random
model, to see that it runs). The bound beside each
ratio is that of FLOPs: distinct tokens through the layers and predicted positions through the head, against every token
through both.
"""

import sys
import tempfile
from pathlib import Path

import rows
import torch

from truing.config import ModelConfig
from truing.data.prompts import load_prompts
from truing.interp.likelihoods import margin_requests
from truing.models.download import get_model
from truing.models.engine.scoring import ROW_TOKENS
from truing.models.engine.token_tree import Branch, pack
from truing.models.hf import LocalBackend

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from zoo import build


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
    packed = pack(branches, ROW_TOKENS)
    tokens = sum(len(b.prefix) + len(b.completion) for b in branches)
    predicted = sum(len({n for _, at in r.scored for n in at}) for r in packed)
    return tokens * (layers + head) / (sum(len(r.tokens) for r in packed) * layers + predicted * head)


def measure(folder, dtype, args):
    """Seconds of both ways, and the result rows."""
    backend = LocalBackend(folder, (), ModelConfig(dtype=dtype, device="cpu"))
    model = backend.use(backend.base_checkpoint())
    branches = branches_of(backend, args.prompts)
    ours(backend, model, branches[:8])
    plain(model, branches[:2])
    arms = {"ours": lambda: ours(backend, model, branches), "plain": lambda: plain(model, branches)}
    spent = rows.alternate(arms, args.repeats)
    bound = flop_bound(model, branches)
    case = f"{len(branches)} sequences, {dtype}, {args.threads} thread(s), FLOP bound {bound:.2f}"
    found = [rows.row("margins per CPU second", case, rows.faster(spent["ours"], spent["plain"]).cpu, least=1.6)]
    if dtype == "float32":
        mine, theirs = arms["ours"](), arms["plain"]()
        worst = max(abs(theirs[b.index] - mine[b.index]) / len(b.completion) for b in branches)
        found.append(rows.row("largest difference, nats per token", case, worst, most=1e-3))
    return spent, found


def main():
    args = rows.options(__doc__, prompts=12, repeats=3, threads=1, tiny=False)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as made:
        folder = str(build.tiny_base(Path(made) / "base") if args.tiny else get_model("smollm2-135m"))
        single, found = measure(folder, "float32", args)
        half, more = measure(folder, "bfloat16", args)
    ratio = rows.faster(half["ours"], single["plain"]).cpu
    found += [*more, rows.row("margins per CPU second", "packed bfloat16 to plain float32", ratio, least=3.0)]
    rows.report(found, args.json)


if __name__ == "__main__":
    main()
