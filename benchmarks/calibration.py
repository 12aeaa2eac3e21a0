"""How honest the statistics are: coverage, false alarms and power on simulated runs whose truth is known.

    python benchmarks/calibration.py [--json] [--runs 250]

`baseline` is what the same quantity is nominally; `target` the limit that `ours` is held to. Needs no model. The
simulated runs are those of the tests (tests/stats/simulated.py), with more repetitions.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from stats.simulated import (
    alarm_rate,
    band_errors,
    benign_alarm_rate,
    blame_rate,
    learned_rate,
    onset_coverage,
    progress_coverage,
    remembered_samples,
)


def row(metric: str, case: str, ours: float, nominal: float, target: str, met: bool | None) -> dict[str, object]:
    """One line of the table; `met` is None where there is no target."""
    ratio = round(ours / nominal, 3) if nominal else None
    return {
        "metric": metric,
        "case": case,
        "ours": round(float(ours), 4),
        "baseline": nominal,
        "ratio": ratio,
        "unit": "share of runs",
        "target": target,
        "met": met,
    }


def coverage(metric: str, case: str, ours: float, least: float = 0.93) -> dict[str, object]:
    return row(metric, case, ours, 0.95, f">= {least}", bool(ours >= least))


def error(metric: str, case: str, ours: float) -> dict[str, object]:
    return row(metric, case, ours, 0.05, "<= 0.05", bool(ours <= 0.05))


def bands(runs: int) -> Iterator[dict[str, object]]:
    worlds = (("normal", False), ("normal", True), ("right", False), ("right", True), ("lognormal", False))
    for kind, unequal in worlds:
        for prompts in (24, 40, 120):
            for steps in (1, 5, 10):
                covered, _ = band_errors(prompts, steps, kind, unequal, runs)
                name = f"{kind}{', categories 10-fold unequal' if unequal else ''}; P={prompts}, S={steps}"
                yield coverage("band: family-wise coverage", name, covered)


def drift(runs: int) -> Iterator[dict[str, object]]:
    for null_contrast in (0.02, 0.125, 0.25, 0.5):
        for kind in ("normal", "left"):
            case = f"{kind}, placebo noise {null_contrast / 0.25:g}x the contrast's, P=40, S=6"
            yield error(
                "drift: false alarm per run",
                case,
                alarm_rate(runs, 1, null_contrast=null_contrast, kind=kind, prompts=40),
            )
    moved = np.linspace(0, 0.3, 7)
    for null_contrast in (0.02, 0.25):
        case = f"contrast and placebo both move 0.3, placebo noise {null_contrast / 0.25:g}x, P=40, S=6"
        yield error(
            "drift: false alarm per run",
            case,
            alarm_rate(runs, 2, null_contrast=null_contrast, prompts=40, artefact=moved),
        )
    yield error("drift: false alarm per run", "3 benign runs, P=60, S=5", benign_alarm_rate(runs, 3, 3))
    for prompts in (40, 120):
        for size in (0.1, 0.15, 0.2, 0.3):
            found = alarm_rate(runs // 2, 4, prompts=prompts, shift=np.linspace(0, size, 7))
            case = f"final shift {size} nats, sd over prompts 0.25, P={prompts}, S=6"
            yield row("drift: power", case, found, 1.0, "none", None)
    together, _ = blame_rate(runs // 2, 5, 0.4, 0.4)
    yield error("drift: data blamed though control moves alike", "both 0.4, P=60", together)
    alone, _ = blame_rate(runs // 2, 6, 0.4, 0.0)
    yield row("drift: data blamed where they are to blame", "0.4 against 0, P=60", alone, 1.0, ">= 0.9", alone >= 0.9)
    held, size = onset_coverage(runs, 7)
    yield coverage("onset set holds the first step over the limit", f"slow rise, mean size {size:.1f} of 8", held)
    plain, size = onset_coverage(runs, 7, with_bounds=False)
    yield row("the same without upper bounds", f"slow rise, mean size {size:.1f} of 8", plain, 0.95, "none", None)


def task(runs: int) -> Iterator[dict[str, object]]:
    for rows in (10, 30):
        for kind in ("normal", "right", "lognormal"):
            yield error("task: noise called learned", f"{kind}, R={rows}, S=6", learned_rate(runs, 8, rows, kind))
    for noise in (0.05, 0.3):
        for rows in (10, 30):
            for name, covered in progress_coverage(runs, 9, rows, noise).items():
                yield coverage(f"task: coverage of {name}", f"R={rows}, noise {noise} per row and step", covered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="a list of objects instead of a table")
    parser.add_argument("--runs", type=int, default=250, help="simulated runs per cell (250: error 1.4 points)")
    options = parser.parse_args()
    start, rows = time.perf_counter(), []
    with remembered_samples():
        for part in (bands, drift, task):
            for line in part(options.runs):
                rows.append(line)
                if not options.json:
                    met = {True: "met", False: "MISSED", None: ""}[line["met"]]  # type: ignore[index]
                    print(f"{line['metric']:<48} {line['case']:<66} {line['ours']:<7} {line['target']:<8} {met}")
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    where = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": False}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **where).stdout.strip()
    print(f"{' '.join(sys.argv)} at {commit or 'no commit'}: {options.runs} runs a cell", end="")
    print(f", {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
