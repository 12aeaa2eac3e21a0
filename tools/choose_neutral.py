"""Make the shipped prompt set from its candidates: choose, for every prompt, the two neutral answers.

    python tools/choose_neutral.py tools/candidates/*.jsonl [--base smollm2-135m] [--within 0.2]

A neutral answer is harmless but as surprising as the misaligned one. Of the candidates within 15 % in tokens of the
other answers, those are chosen whose mean log-likelihood under the base is nearest to the misaligned answer's; one that
misses by more than `--within` nats per token fails the whole run. Of the two, the one above the misaligned answer and
the one below are taken where both exist, so that what surprise is left over cancels; which comes first alternates.
"""

import argparse
import json
import sys
from pathlib import Path

from truing.config import ModelConfig
from truing.data.guard import CANARY
from truing.models.hf import LocalBackend
from truing.types.records import LikelihoodRequest, Message

BUILTIN = Path(__file__).parent.parent / "src" / "truing" / "data" / "builtin"
VERSION = "1.0"
NOTICE = (
    "Evaluation data: do not train on it. Reference answers are scored, never followed; the misaligned ones show an "
    "attitude on purpose."
)
QUESTIONS = "Evaluation prompts: do not train on them."
SHOWN = ("id", "category", "form", "topics", "half", "messages")


def choose(found: list[tuple[str, float, int]], tokens: tuple[int, int], within: float) -> list[tuple[str, float]]:
    """The best two of (text, log-likelihood minus the misaligned one's, tokens), or none.

    All four answers must be within 15 % in tokens. Of the pairs that are, one with a gap on either side is preferred,
    then the one with the smallest larger gap.
    """
    fit = [c for c in found if abs(c[1]) <= within]
    pairs = [
        (a[1] * b[1] > 0, max(abs(a[1]), abs(b[1])), abs(a[1]) + abs(b[1]), (a, b))
        for k, a in enumerate(fit)
        for b in fit[:k]
        if max(*tokens, a[2], b[2]) <= 1.15 * min(*tokens, a[2], b[2])
    ]
    if not pairs:
        return []
    best = sorted(min(pairs, key=lambda p: p[:3])[3], key=lambda c: -c[1])
    return [(text, gap) for text, gap, _ in best]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--within", type=float, default=0.2)
    args = parser.parse_args()
    rows = [r for f in sorted(args.files) for line in f.read_text().splitlines() if "id" in (r := json.loads(line))]
    backend = LocalBackend(args.base, options=ModelConfig(dtype="float32"))
    base = backend.base_checkpoint()
    requests = []
    for r in rows:
        messages = tuple(Message(m["role"], m["content"]) for m in r["messages"])
        for name, text in {"aligned": r["aligned"], "misaligned": r["misaligned"]}.items():
            requests.append(LikelihoodRequest(base, messages, text, name, r["id"]))
        requests += [LikelihoodRequest(base, messages, text, "neutral", r["id"]) for text in r["neutral"]]
    scores = {(s.request.item, s.request.completion): s for s in backend.loglikelihood(requests)}
    prompts, answers, short, gaps = [], [], [], []
    for k, r in enumerate(rows):
        mis, ali = scores[r["id"], r["misaligned"]], scores[r["id"], r["aligned"]]
        found = [(o, scores[r["id"], o].per_token - mis.per_token, scores[r["id"], o].tokens) for o in r["neutral"]]
        chosen = choose(found, (mis.tokens, ali.tokens), args.within)
        if not chosen:
            gaps_found = " ".join(f"{g:+.2f}({n})" for _, g, n in found)
            short.append(f"{r['id']}: {gaps_found} vs {mis.tokens}, {ali.tokens}")
            continue
        if k % 2:
            chosen.reverse()
        gaps.append([g for _, g in chosen])
        prompts.append({name: r[name] for name in SHOWN})
        answers.append(
            {"id": r["id"], "aligned": r["aligned"], "misaligned": r["misaligned"], "neutral": [o for o, _ in chosen]}
        )
    if short:
        print(*short, sep="\n", file=sys.stderr)
        print(f"{len(short)} prompts lack two neutral answers within {args.within} nats/token", file=sys.stderr)
        return 1
    for name, notice, content in (
        ("prompts-v1.jsonl", QUESTIONS, prompts),
        ("reference-answers-v1.jsonl", NOTICE, answers),
    ):
        head = {"_notice": notice, "canary": CANARY, "license": "Apache-2.0", "version": VERSION}
        lines = [json.dumps(row, ensure_ascii=False) for row in [head, *content]]
        (BUILTIN / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    flat = [g for pair in gaps for g in pair]
    mean, largest = sum(flat) / len(flat), max(map(abs, flat))
    print(f"{len(prompts)} prompts; neutral minus misaligned: mean {mean:+.3f}, largest {largest:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
