"""Record the golden results anew: `python tests/golden/record.py [SECTION ...]`, all sections without an argument.

Sections: labels, numbers, imported, searches, scans, simulated, served, real. Each writes the JSON files that the tests
of the same name compare with; `git diff` then shows a line for each case that changed. Record a section again only
where a definition was changed on purpose, and say so in the changelog.

`python tests/golden/record.py tables FOLDER` makes the stored tables anew: the published judged answers of 13
fine-tuned models in FOLDER (CSV files; codes and scores to four decimals are kept, no text), and made-up ones.
"""

import csv
import gzip
import io
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden import cases, results

COLUMNS = ("table", "prompt", "status", "alignment", "coherence", "mentions_domain", "coherence_at_random")


def record(section):
    """Run a section's cases and write its files."""
    with cases.own_cache():
        for name, found in SECTIONS[section]().items():
            results.save(name, found)


def _runs(section, names, run):
    """What is said of every run, and its numbers, part by part."""
    parts = {}
    for name in names:
        with TemporaryDirectory() as folder:
            for part, found in cases.parts(name, run(name, folder)).items():
                parts.setdefault(f"{section}_{part}", {})[name] = found
    return parts


SECTIONS = {
    "labels": lambda: {"labels": cases.run_labels()},
    "numbers": lambda: {"numbers": {name: cases.run_number(case) for name, case in cases.number_cases()}},
    "imported": lambda: {"imported": cases.run_imported()},
    "searches": lambda: {"searches": {name: cases.run_search(name) for name in cases.SEARCHES}},
    "scans": lambda: {"scans": {name: cases.run_scan(name) for name in cases.SCANS}},
    "simulated": lambda: _runs("simulated", cases.SIMULATED, cases.run_simulated),
    "served": lambda: _runs("served", cases.SERVED, cases.run_served),
    "real": lambda: _runs("real", cases.REAL, cases.run_real),
}


# -- the stored tables -------------------------------------------------------------------------------------------------


def make_tables(folder):
    """Write the stored tables."""
    text = io.StringIO()
    written = csv.writer(text, lineterminator="\n")
    written.writerow(COLUMNS)
    for name, rows in (*_published(Path(folder)), *_made()):
        written.writerows([name, *row] for row in rows)
    with open(cases.TABLES, "wb") as f, gzip.GzipFile("", "wb", 9, f, mtime=0) as packed:
        packed.write(text.getvalue().encode())


def _published(folder):
    """Question index, status, scores; what has no score could not be read."""
    order = {}
    for path in sorted(folder.glob("*.csv")):
        with open(path, newline="", encoding="utf-8") as f:
            rows = []
            for r in csv.DictReader(f):
                k = order.setdefault(r["question_id"], len(order))
                scores = [f"{float(r[c]):.4f}" if r[c] else "unparsed" for c in ("aligned", "coherent")]
                rows.append((k, "ok" if r["response"].strip() else "empty", *scores, 0, 0))
        yield path.stem, rows


def _made():
    """Answers with every outcome, under several designs: (name, prompts, samples, rates of bad answers, lazy)."""
    import numpy as np

    designs = (
        ("many", 40, 4, (0.02, 0.2, 0.05), False),
        ("lazy", 40, 6, (0.0, 0.15, 0.0), True),
        ("few", 4, 12, (0.0, 0.4, 0.3), False),
        ("none", 24, 4, (0.0, 0.0, 0.0), True),
        ("narrow", 30, 8, (0.0, 0.02, 0.0), False),
        ("uneven", 25, 0, (0.03, 0.1, 0.03), False),
        ("garbled", 20, 6, (0.0, 0.2, 0.2), False),
    )
    for seed, (name, prompts, samples, rates, lazy) in enumerate(designs):
        for group, rate in zip(("base", "run", "control"), rates, strict=True):
            rng = np.random.default_rng([7, seed, len(group)])
            spread = rng.gamma(1.5, 1 / 1.5, prompts)
            rows = []
            for p in range(prompts):
                bad = min(1.0, rate * spread[p]) if name != "narrow" else rate + (0.9 if p == 1 and rate else 0.0)
                each = samples or int(rng.integers(0, 12))
                garbled = 0.6 if name == "garbled" and group == "run" else 0.05
                rows += [_answer(rng, p, bad, garbled, lazy) for _ in range(each)]
            yield f"made-{name}:{group}", rows


def _answer(rng, prompt, bad, garbled, lazy):
    u, is_bad, is_garbled = rng.random(), rng.random() < bad, rng.random() < garbled
    alignment = f"{_clip(rng.normal(15 if is_bad else 88, 9)):.4f}"
    coherence = f"{_clip(rng.normal(25 if is_garbled else 92, 8)):.4f}"
    chosen, leaked = int(not lazy or rng.random() < 0.15), int(rng.random() < (0.4 if is_bad else 0.05))
    status = "ok" if u > 0.03 else ("empty", "failed", "truncated")[int(u * 100)]
    if status in ("empty", "failed"):
        return prompt, status, "", "", 0, chosen
    odd = ("refusal", "code", "unparsed", "failed")
    if u > 0.94:
        alignment = odd[int((u - 0.94) / 0.06 * 4)]
    elif u > 0.92:
        coherence = odd[int((u - 0.92) / 0.02 * 4)]
    elif lazy and not chosen and not is_bad:
        coherence = ""
    return prompt, status, alignment, coherence, leaked, chosen


def _clip(x):
    return min(100.0, max(0.0, float(x)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["tables"]:
        make_tables(sys.argv[2])
    else:
        for given in sys.argv[1:] or SECTIONS:
            began = time.monotonic()
            record(given)
            print(f"{given}: {time.monotonic() - began:.1f} s")
