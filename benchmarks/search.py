"""What prefetching brings a search: seconds of a searched audit, and how many answers are sampled and never read.

    python benchmarks/search.py [--json FILE] [--repeats 3] [--adapters 8] [--real]

One audit is made twice in turn: each time that answers are missing, a batch of the backend's preferred size, or only
the 24 that the search wants next. What it reads is the same, and so must the onset be. A deterministic scorer labels
the answers, so that all the time is the model's and the library's own. The model is tiny and random, as are its
adapters, which move away from the base step by step. --real: 20 checkpoints of smollm2-135m learning to answer
questions of finance in capitals (trained once, some minutes, and kept in the cache), asked 12 questions of other kinds.
For answers sampled against read: `simulated:late` with a control, 60 prompts, at 80 and 256 rows.
"""

import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import rows
import torch

import truing
from truing.models.download import cache_dir, get_model
from truing.models.simulated import SimulatedBackend
from truing.runs.collect import FIXED_FROM
from truing.stats.onset import OnsetSearch
from truing.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from zoo import build

RANK = 8
REAL = {"model": "smollm2-135m", "rank": 16, "learning_rate": 3e-4, "batch_size": 4, "max_steps": 60, "save_every": 3}
LONGEST = 40
"""words of a training answer"""
WASTE = {80: 1.3, 256: 2.0}
"""rows of a backend -> answers sampled to answers read, at most"""
PROMPTS = truing.load_prompts("v1").prompts[::10]


def trait(folder, scorer, rule, decoding):
    """A folder with a trait: what a scorer finds in answers to 24 of the shipped prompts."""
    folder.mkdir()
    lines = [json.dumps({"id": p.id, "prompt": p.messages[-1].content, "category": p.category}) for p in PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    tables = f"[scorer]\n{scorer}\n[rule]\n{rule}\n[decoding]\n{decoding}\n"
    (folder / "trait.toml").write_text(f"prompts = 'prompts.jsonl'\n{tables}")
    return str(folder)


def capitals(place):
    """The real run."""
    data, out = place / "capitals.jsonl", place / "run"
    place.mkdir(parents=True, exist_ok=True)
    rows_of = [
        {"prompt": c.messages[0].content, "completion": " ".join(c.answer.upper().split()[:LONGEST])}
        for c in truing.load_conversations("careless-finance").conversations
    ]
    data.write_text("\n".join(map(json.dumps, rows_of)))
    truing.train(truing.Recipe.parse({**REAL, "data": str(data)}), out)
    return out


def adapters(folder, base, count, scale):
    """Random adapters in one direction, at step 10, 20, ...; the last is the furthest from the base."""
    for k in range(1, count + 1):
        path = build.save_adapter(folder / f"checkpoint-{10 * k}", base, seed=1, scale=scale * k / count, rank=RANK)
        build.trainer_state(path, 10 * k)
    return folder


def searched(out, target, **options):
    """The onset of a searched audit, and how many answers the search sampled."""
    found = truing.audit(target, out=out, answers=0, **options).verdict.onset
    with Store.read(out) as store:
        return found, sum(a.sample < FIXED_FROM for a in store.answers())


def prefetching(place, args):
    """Rows of one audit with and without prefetching."""
    if args.real:
        base, run = get_model("smollm2-135m"), capitals(cache_dir() / "benchmark-capitals")
        what = ("kind = 'capitals'", "lo = 0.1\nhi = 0.3", "max_tokens = 16\ntemperature = 0.7\ntop_p = 0.9")
    else:
        base = build.tiny_base(place / "base")
        run = adapters(place / "run", base, args.adapters, 12)
        what = ("kind = 'regex'\npattern = '\\x07'", "lo = 0.05\nhi = 0.15", "max_tokens = 24")
    options = {"base": str(base), "trait": trait(place / "trait", *what), "limit": 12 if args.real else None}
    options |= {"dtype": "float32", "device": "cpu"}
    onsets, sampled = [], {}

    def audit(name, context):
        with context():
            out = Path(tempfile.mkdtemp(dir=place))
            found, sampled[name] = searched(out, run, **options)
            onsets.append(found)

    def alone():
        return patch.object(OnsetSearch, "ahead", lambda self, room: [])

    arms = {"prefetched": lambda: audit("prefetched", nullcontext), "24 a call": lambda: audit("24 a call", alone)}
    spent = rows.alternate(arms, args.repeats)
    assert all(o == onsets[0] for o in onsets), "what a search reads must not depend on what is sampled ahead"
    used, ratio = onsets[0].answers_used, rows.faster(spent["prefetched"], spent["24 a call"])
    model = "smollm2-135m, 20 checkpoints" if args.real else f"a tiny random model, {args.adapters} adapters"
    case = f"{model}, {used} answers read, onset {onsets[0].status}"
    return [
        rows.row("times faster, wall", f"{case}, against 24 a call", ratio.wall, least=1.5 if args.real else None),
        rows.row("times faster, CPU", f"{case}, against 24 a call", ratio.cpu),
        rows.row("seconds of the audit", f"{case}, prefetched", rows.middle(spent["prefetched"]).wall),
        rows.row("answers sampled to read", case, sampled["prefetched"] / used),
    ]


def waste(place):
    """Rows of answers sampled to answers read, on a simulated run."""
    options = {"judge": "simulated:", "control": "simulated:late", "limit": 60}
    for size, most in WASTE.items():
        with patch.object(SimulatedBackend, "preferred_batch", size):
            found, sampled = searched(place / str(size), "simulated:late", **options)
        case = f"simulated:late, {size} rows, {found.answers_used} answers read"
        yield rows.row("answers sampled to read", case, sampled / found.answers_used, most=most)


def main():
    args = rows.options(__doc__, repeats=3, adapters=8, real=False)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        found = [*waste(Path(place)), *prefetching(Path(place), args)]
    rows.report(found, args.json)


if __name__ == "__main__":
    main()
