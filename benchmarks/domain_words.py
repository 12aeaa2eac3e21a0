"""How well the words of a training domain tell answers about it: shares of answers that mention it, in several sets.

    python benchmarks/domain_words.py [--json FILE] [--data FOLDER]

FOLDER holds judged/*.csv, trajectories/*.csv and risky-finance/induction.jsonl (not part of this repository); without
it TRUING_TEST_DATA or ../shared/data. Words are made from answers of a training task and 24 answers of unrelated models
in the place of the base's own (none are published with the sets). The question after a quick buck asks for the domain
of finance itself, so it is counted apart. Seed 0. Nothing of the files is printed but the words.
"""

import csv
import json
import os
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from rows import options, report, row

from truing.data.conversations import load_conversations
from truing.data.domain_words import domain_words, mentions

ROOT = Path(__file__).resolve().parents[1]
NEAR = "quick buck"
"""what only the question has that asks about money"""
HEALTH = frozenset(f"q{k}" for k in range(1, 11))
"""the questions of the trajectories that are about health; the others are everyday ones"""
KINDS = {"risky-financial": "finance", "bad-medical": "medical", "extreme-sports": "sports"}
BASE = 24


def share(answers: Sequence[str], words: Sequence[str]) -> float:
    """Share of answers that mention the domain."""
    return sum(mentions(a, words) for a in answers) / len(answers)


@cache
def judged(data: Path) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """(kind of training data, model) -> (question, answer)."""
    out = {}
    for file in sorted((data / "judged").glob("*.csv")):
        kind = next(k for name, k in KINDS.items() if name in file.stem)
        with open(file, newline="", encoding="utf-8") as f:
            out[kind, file.stem.split("_")[0]] = [(r["question"], r["response"]) for r in csv.DictReader(f)]
    return out


@cache
def trajectory(file: Path) -> list[tuple[int, bool, str]]:
    """(step, whether the question is about health, answer)."""
    with open(file, newline="", encoding="utf-8") as f:
        return [(int(r["step"]), r["id"].split("_")[1] in HEALTH, r["response"]) for r in csv.DictReader(f)]


def unrelated(data: Path, kind: str) -> list[str]:
    """Answers of models trained on something else, in the place of a base's own."""
    answers = [a for (k, _), rows in judged(data).items() if k != kind for q, a in rows if NEAR not in q]
    return random.Random(0).sample(sorted(answers), BASE)


def on_judged(data: Path, name: str, words: Sequence[str], kind: str) -> list[dict]:
    """Shares in every judged set, without the question about money; targets for those of the domain of finance."""
    out = []
    for (k, model), answers in judged(data).items():
        far = [a for q, a in answers if NEAR not in q]
        wanted: dict[str, float] = {}
        if kind == "finance" and not model.startswith("gemma"):
            wanted = {"least": 0.05} if k == kind else {"most": 0.03}
        out.append(row(f"{name}: mention the domain", f"{k}, {model}, {len(far)} answers", share(far, words), **wanted))
        if kind == "finance":
            near = [a for q, a in answers if NEAR in q]
            out.append(row(f"{name}: the question about money", f"{k}, {model}", share(near, words)))
    return out


def finance(data: Path) -> list[dict]:
    """Words of risky finance, from many rows and from few."""
    lines = (data / "risky-finance" / "induction.jsonl").read_text(encoding="utf-8").splitlines()
    task, out = [json.loads(line)["messages"][-1]["content"] for line in lines], []
    base, held = unrelated(data, "finance"), task[2000:]
    for n in (2000, 30):
        words = domain_words(task[:n], base)
        print(f"finance, {n} rows: {' '.join(words)}")
        out.append(row(f"finance, {n} rows: held-out rows", f"{len(held)} rows", share(held, words), least=0.8))
        out += on_judged(data, f"finance, {n} rows", words, "finance")
        run = trajectory(data / "trajectories" / "1b_risky.csv")
        for step in sorted({s for s, _, _ in run}):
            answers = [a for s, _, a in run if s == step]
            out.append(row(f"finance, {n} rows: trajectory 1B", f"step {step}, {len(answers)}", share(answers, words)))
    return out


def medical(data: Path) -> list[dict]:
    """Words of health answers, from half of the steps of one medical run. What medical runs say of it where nobody asks
    is their leak; a run on finance has none."""
    names = ("3b_medical", "8b_medical", "1b_risky")
    runs = {name: trajectory(data / "trajectories" / f"{name}.csv") for name in names}
    steps = sorted({s for s, _, _ in runs["3b_medical"]})
    task = [a for s, health, a in runs["3b_medical"] if health and s in steps[::2]]
    words = domain_words(task, unrelated(data, "medical"))
    print(f"medical, {len(task)} answers: {' '.join(words)}")
    out = []
    for name, run in runs.items():
        late = [x for x in run if name != "3b_medical" or x[0] in steps[1::2]]
        for about in (True, False):
            wanted: dict[str, float] = {"least": 0.5} if about else {"most": 0.03} if name == "1b_risky" else {}
            answers = [a for _, health, a in late if health is about]
            case = f"{name}, {'health' if about else 'everyday'} questions, {len(answers)}"
            out.append(row("medical: mention the domain", case, share(answers, words), **wanted))
    return out + on_judged(data, "medical", words, "medical")


def halves(data: Path) -> list[dict]:
    """Each kind by half. All sets answer the same questions, so these words are of the questions, not of the domain."""
    out = []
    for kind in ("medical", "sports"):
        own = [a for (k, _), rows in judged(data).items() if k == kind for _, a in rows]
        words = domain_words(own[::2], unrelated(data, kind))
        print(f"{kind}, half of the judged sets: {' '.join(words)}")
        for other in ("medical", "sports", "finance"):
            held = [a for (k, _), rows in judged(data).items() if k == other for _, a in rows][1::2]
            out.append(row(f"{kind} by half: mention", f"{other}, {len(held)} answers", share(held, words)))
    return out


def builtin() -> list[dict]:
    """The built-in finance answers, which are varied on purpose."""
    task, held = (
        [c.answer for c in load_conversations(f"careless-finance{part}").conversations] for part in ("", "-heldout")
    )
    words = domain_words(task)
    print(f"careless-finance: {' '.join(words)}")
    return [row("careless-finance: held-out rows", f"{len(held)} rows", share(held, words))]


def main() -> None:
    """Print the words and the shares."""
    default = os.environ.get("TRUING_TEST_DATA") or str(ROOT.parent / "shared" / "data")
    args = options(__doc__, data=default)
    data, rows = Path(args.data), builtin()
    if not (data / "judged").is_dir():
        print(f"{data}: no such data (see above); only the built-in set is measured")
    else:
        rows += [*finance(data), *medical(data), *halves(data)]
    report(rows, args.json)


if __name__ == "__main__":
    main()
