"""How fast stored labels are counted: GROUP BY in the database against a plain scan of the rows in Python.

    python benchmarks/labels.py [--json FILE] [--rows 1000000] [--repeats 3]

The store is made once, under $TRUING_CACHE/benchmarks: 21 checkpoints, 240 prompts, one judge, and samples until --rows
labels are there, most of them negative. A million take about 400 MB. Both ways give reasons by checkpoint and prompt;
the scan reads four columns of every row. Both must agree.
"""

import os
import random
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from math import nan

import rows

from truing.migrations import SCHEMA_VERSION
from truing.models.download import cache_dir
from truing.store import Store
from truing.types.hashing import digest
from truing.types.records import AnswerKey
from truing.types.traits import Label, Reason, Rule

CHECKPOINTS, PROMPTS = 21, 240
JUDGE, PARAMS, RULE = digest("judge", 16), digest("params", 16), Rule()
OTHER = (Reason.POSITIVE, Reason.INCOHERENT, Reason.REFUSAL, Reason.UNPARSED)
BLOCK = 10_000


def labels(count):
    """`count` labels in key order, seed 0."""
    rng = random.Random(0)
    places = CHECKPOINTS * PROMPTS
    each, more = divmod(count, places)
    weights = sorted(digest(["weights", k], 64) for k in range(CHECKPOINTS))
    prompts = sorted(digest(["prompt", k], 64) for k in range(PROMPTS))
    for k in range(places):
        w, p = weights[k // PROMPTS], prompts[k % PROMPTS]
        for sample in range(each + (k < more)):
            reason = Reason.NEGATIVE if rng.random() < 0.9 else rng.choice(OTHER)
            value = None if reason is Reason.UNPARSED else reason is Reason.POSITIVE
            yield AnswerKey(w, PARAMS, p, "", sample), Label(value, reason, rng.uniform(0, 100), nan)


def made(count):
    """The folder of a store with `count` labels; it appears whole or not at all."""
    folder = cache_dir() / "benchmarks" / f"labels-{count}-schema{SCHEMA_VERSION}"
    if folder.exists():
        return folder
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Store.write(part, {}) as store:
            block = []
            for one in labels(count):
                block.append(one)
                if len(block) == BLOCK:
                    store.add_labels(block, JUDGE, RULE)
                    block = []
            store.add_labels(block, JUDGE, RULE)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def grouped(folder):
    """(weights, prompt, reason) -> labels, by the library."""
    with Store.read(folder) as store:
        counts = store.label_counts(JUDGE, RULE, PARAMS)
    return {(*place, reason): n for place, found in counts.items() for reason, n in found.items()}


def scanned(folder):
    """The same, row by row."""
    sql = "SELECT weights, prompt, reason FROM labels WHERE judge = ? AND rule = ? AND params = ? AND variant = ''"
    with closing(sqlite3.connect(folder / "evidence.db")) as db:
        return dict(Counter(db.execute(sql, (JUDGE, RULE.key, PARAMS))))


def main():
    args = rows.options(__doc__, rows=1_000_000, repeats=3)
    making, folder = rows.timed(lambda: made(args.rows))
    mine, theirs = grouped(folder), scanned(folder)  # warms the page cache for both
    assert mine == theirs and sum(mine.values()) == args.rows
    spent = rows.alternate({"ours": lambda: grouped(folder), "scan": lambda: scanned(folder)}, args.repeats)
    seconds = {name: rows.middle(s).wall for name, s in spent.items()}
    case = f"{args.rows:,} labels, {CHECKPOINTS} checkpoints, {PROMPTS} prompts"
    found = [
        rows.row("seconds to count labels, GROUP BY", case, seconds["ours"]),
        rows.row("seconds to count labels, scan in Python", case, seconds["scan"]),
        rows.row("times faster than the scan", case, rows.faster(spent["ours"], spent["scan"]).wall, least=1.0),
    ]
    if making.wall > 1:
        found.append(rows.row("seconds to write them, once", case, making.wall))
    rows.report(found, args.json)


if __name__ == "__main__":
    main()
