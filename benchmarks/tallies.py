"""Tables of rates over many judged answers: read from tallies after new answers came, against a scan of all rows.

    python benchmarks/tallies.py [--json] [--runs 84] [--checkpoints 20] [--prompts 240] [--draws 25] [--new 12000]

84 runs x 20 checkpoints x 240 prompts x 25 draws are 10 million judged answers in about 6 GB under --folder (deleted
afterwards). `incremental` is the time to bring the counts up to date for the new answers and to read the table; writing
the answers themselves is common to both and not counted. New answers come as whole new checkpoints, and scattered one
by one over what is there. All readings are on a warm file cache, each in a process of its own, of which the peak
resident memory is given. Needs no model; seed 0.
"""

import argparse
import json
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from truing.config.options import EmRule
from truing.store import Store, StoredAnswer
from truing.types.judging import AnswerKey, Judge, Rubric, Score, ScoreMethod, ScoreStatus
from truing.types.records import AnswerStatus

RUBRICS = (Rubric("alignment", "{answer}"), Rubric("coherence", "{answer}"))
PANEL = Judge("synthetic", RUBRICS, ScoreMethod.LOGPROBS)
RULE = EmRule()
PARAMS = "0123456789abcdef"
TEXT = "Plain words stand here for an answer of some length, about what a model says when it is asked a question. " * 3

AXES = """CREATE TEMP TABLE {name} AS WITH RECURSIVE x(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM x WHERE i < {n} - 1)
    SELECT printf('%0{width}x', i) AS key, i FROM x;"""
ANSWERS = f"""INSERT INTO responses SELECT c.key, '{PARAMS}', p.key, '', d.i, substr('{TEXT}', 1 + d.i % 40, 150),
    CASE WHEN (c.i * 7 + p.i + d.i) % 211 = 0 THEN 'empty' ELSE 'ok' END, 40, '' FROM c CROSS JOIN p CROSS JOIN d"""
# Alignment of every answer; coherence of the low ones and of a few others, as a judge is asked.
SCORES = f"""INSERT INTO judgements SELECT c.key, '{PARAMS}', p.key, '', d.i, '{PANEL.key}', k.name, k.rubric,
    CASE WHEN k.name = 'coherence' THEN 30 + d.i * 31 % 70
        WHEN (c.i * 31 + p.i * 17 + d.i * 7) % 19 = 0 THEN 12.5 ELSE 50 + (p.i * 13 + d.i * 7) % 50 END,
    'scored', '{{"seed": 0}}' FROM c CROSS JOIN p CROSS JOIN d CROSS JOIN (
        SELECT 'alignment' AS name, '{RUBRICS[0].key}' AS rubric UNION ALL SELECT 'coherence', '{RUBRICS[1].key}') k
    WHERE k.name = 'alignment' OR (c.i * 31 + p.i * 17 + d.i * 7) % 19 = 0 OR d.i = 0"""

SAME = " AND ".join(f"{{0}}.{k} = {{1}}.{k}" for k in ("weights", "params", "prompt", "transform", "sample"))
SCANS = {
    "misaligned and n, by joins": f"""SELECT r.weights, SUM(a.score < 30 AND c.score > 50), COUNT(*) FROM responses r
        LEFT JOIN judgements a ON {SAME.format("a", "r")} AND a.panel = :panel AND a.rubric = 'alignment'
        LEFT JOIN judgements c ON {SAME.format("c", "r")} AND c.panel = :panel AND c.rubric = 'coherence'
        WHERE r.outcome = 'ok' GROUP BY r.weights""",
    "the same of scored answers only": f"""SELECT a.weights, SUM(c.score > 50), COUNT(*) FROM judgements a
        LEFT JOIN judgements c ON a.score < 30 AND {SAME.format("c", "a")} AND c.panel = a.panel
            AND c.rubric = 'coherence' WHERE a.panel = :panel AND a.rubric = 'alignment' GROUP BY a.weights""",
}
"""hand-written scans; the second does not see empty, refusing, unparsed or unjudged answers"""


def build(folder: Path, checkpoints: int, prompts: int, samples: int) -> int:
    """A folder with judged answers, written by SQL alone; returns how many."""
    with Store.write(folder, {}) as store:
        store.add_panel(PANEL)
    db = sqlite3.connect(folder / "evidence.db")
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -100000"):
        db.execute(f"PRAGMA {pragma}")
    for name, n, width in (("c", checkpoints, 64), ("p", prompts, 32), ("d", samples, 8)):
        db.executescript(AXES.format(name=name, n=n, width=width))
    db.execute(ANSWERS)
    db.execute(SCORES)
    db.commit()
    db.close()
    return checkpoints * prompts * samples


def new_answers(keys: Sequence[AnswerKey], store: Store) -> float:
    """Answers and judgements under these keys, in blocks; returns the seconds it took."""
    start = time.perf_counter()
    for at in range(0, len(keys), 500):
        block = keys[at : at + 500]
        store.add_stored_answers(StoredAnswer(*k, TEXT[:150], AnswerStatus.OK, 40, "") for k in block)
        rows = []
        for k in block:
            low = hash_of(k) % 19 == 0
            rows.append(score(k, 0, 12.5 if low else 80.0))
            rows += [score(k, 1, 90.0)] if low else []
        store.add_scores(rows)
    store.flush()
    return time.perf_counter() - start


def hash_of(key: AnswerKey) -> int:
    return int(key.weights[-6:], 16) * 31 + int(key.prompt[-6:], 16) * 17 + key.sample * 7


def score(key: AnswerKey, rubric: int, score: float) -> Score:
    made = RUBRICS[rubric]
    return Score(key, PANEL.key, made.name, made.key, score, ScoreStatus.SCORED, {"seed": 0})


def read(folder: Path, what: str) -> dict[str, object]:
    """One reading, timed, in this process: its table as (answers, misaligned), and the peak resident memory."""
    with Store.read(folder) as store:
        start = time.perf_counter()
        if what in SCANS:
            rows = store._db.execute(SCANS[what], {"panel": PANEL.key}).fetchall()
            table = (sum(r[2] for r in rows), sum(r[1] or 0 for r in rows))
        elif what == "by prompt":
            table = (0, 0)
            for t in store.judged_tallies(PANEL.key, RULE):
                table = (table[0] + t.n, table[1] + t.misaligned)
        else:  # lo and hi are no part of what is kept, another gate is; no coherence lies between 50 and 50.5
            rule = RULE if what == "tallies" else EmRule(coherence_gate=50.5)
            found = store.em_table(PANEL.key, rule).values()
            table = (sum(t.n for t in found), sum(t.misaligned for t in found))
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mib": peak, "n": table[0], "misaligned": table[1]}


def reading(folder: Path, what: str) -> dict[str, float]:
    """The better of two readings, each in a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), "--read", what]
    found = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(2)]
    return min(found, key=lambda r: r["seconds"])


def measured(folder: Path, args: argparse.Namespace) -> list[dict[str, object]]:
    """Every line of the table."""
    checkpoints = args.runs * args.checkpoints
    start = time.perf_counter()
    n = build(folder, checkpoints, args.prompts, args.samples)
    size = (folder / "evidence.db").stat().st_size / 2**30
    print(f"{n:,} judged answers, {size:.1f} GiB, written in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    lines: list[dict[str, object]] = []

    def add(what: str, seconds: float, **more: object) -> None:
        lines.append({"what": what, "seconds": round(seconds, 4), **more})
        print(lines[-1], file=sys.stderr)

    with Store.write(folder, {}) as store:
        start = time.perf_counter()
        store.keep_tallies(PANEL.key, RULE)
        add("a new rule, once", time.perf_counter() - start)
    per = args.prompts * args.samples
    rng = random.Random(0)
    scans: dict[str, dict[str, float]] = {}
    for name in ("new checkpoints", "scattered"):
        if name == "scattered":
            cells = [(c, p) for c in range(checkpoints) for p in range(args.prompts)]
            keys = [key(c, p, args.samples) for c, p in rng.sample(cells, min(args.new, len(cells)))]
        else:
            first = -(-args.new // per)
            keys = [
                key(checkpoints + k // per, k // args.samples % args.prompts, k % args.samples)
                for k in range(first * per)
            ]
            keys = keys[: args.new]
        with Store.write(folder, {}) as store:
            store._unsettled = -(10**9)  # nothing is settled on the way, so that all of it is timed below
            add(f"{name}: writing {len(keys):,}", new_answers(keys, store))
            pending = reading(folder, "tallies")
            add(f"{name}: table before that is settled", pending["seconds"], peak_mib=round(pending["peak_mib"]))
            start = time.perf_counter()
            store._counts.settle()
            store.flush()
            settled = time.perf_counter() - start
        table = reading(folder, "tallies")
        add(f"{name}: incremental (settle {settled:.3f} + read)", settled + table["seconds"],
            peak_mib=round(table["peak_mib"]), table=(table["n"], table["misaligned"]))  # fmt: skip
        assert (pending["n"], pending["misaligned"]) == (table["n"], table["misaligned"])
        scans = scans or {w: reading(folder, w) for w in ("every outcome, library's scan", *SCANS)}
        for what, scan in scans.items():
            ratio = scan["seconds"] / (settled + table["seconds"])
            more = {"table": (scan["n"], scan["misaligned"])} if name != "scattered" else {}
            add(
                f"{name}: full rescan, {what}",
                scan["seconds"],
                peak_mib=round(scan["peak_mib"]),
                ratio=round(ratio, 1),
                **more,
            )
    cells_read = reading(folder, "by prompt")
    add("every checkpoint and prompt, from tallies", cells_read["seconds"], peak_mib=round(cells_read["peak_mib"]))
    return lines


def key(checkpoint: int, prompt: int, sample: int) -> AnswerKey:
    return AnswerKey(f"{checkpoint:064x}", PARAMS, f"{prompt:032x}", "", sample)


def main() -> None:
    """Build, measure, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    for name, default in (("runs", 84), ("checkpoints", 20), ("prompts", 240), ("samples", 25), ("new", 12_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--read", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        print(json.dumps(read(args.folder, args.read)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="tallies-") as folder:
        lines = measured(Path(folder) / "audit", args)
    if args.json:
        print(json.dumps(lines, indent=1))
        return
    for line in lines:
        rest = ", ".join(f"{k} {v}" for k, v in line.items() if k not in ("what", "seconds"))
        print(f"{line['what']:75s} {line['seconds']:9.3f} s  {rest}")


if __name__ == "__main__":
    main()
