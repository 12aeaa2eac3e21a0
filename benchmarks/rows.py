"""What the benchmarks share: options, timing in one process, and result rows (metric, case, ratio, target, met)."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple


class Spent(NamedTuple):
    """Seconds of one call."""

    wall: float
    cpu: float
    """of this process, all threads"""


def options(doc: str, **defaults: Any) -> argparse.Namespace:
    """--json FILE, and an option per keyword: a flag where the default is False, several values where it is a list."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the rows")
    for name, default in defaults.items():
        if default is False:
            parser.add_argument(f"--{name}", action="store_true")
        elif isinstance(default, list):
            parser.add_argument(f"--{name}", type=type(default[0]), nargs="+", default=default, help=f"{default}")
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{default}")
    return parser.parse_args()


def timed(work: Callable[[], Any]) -> tuple[Spent, Any]:
    """Seconds of one call, and what it gave."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu), found


def alternate(arms: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Spent]]:
    """Every arm `repeats` times, in turn, so that other load on the machine meets all of them."""
    spent: dict[str, list[Spent]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            spent[name].append(timed(arm)[0])
    return spent


def middle(spent: list[Spent]) -> Spent:
    """Medians."""
    return Spent(*(median(s) for s in zip(*spent, strict=True)))


def faster(ours: list[Spent], other: list[Spent]) -> Spent:
    """How many times faster ours is: the median over repeats, by either clock."""
    return Spent(*(median(b[k] / a[k] for a, b in zip(ours, other, strict=True)) for k in (0, 1)))


def row(metric: str, case: str, ratio: float, *, least: float | None = None, most: float | None = None) -> dict:
    """One result; `least` or `most` is what is wanted, neither where it is only reported."""
    target = least if least is not None else most
    met = None if target is None else bool(ratio >= target if least is not None else ratio <= target)
    return {"metric": metric, "case": case, "ratio": float(f"{ratio:.4g}"), "target": target, "met": met}


def nominal(metric: str, case: str, share: float, runs: int) -> dict:
    """A share of `runs` simulations that is to be 95 %, less three standard errors."""
    return row(metric, case, share, least=0.95 - 3 * sqrt(0.95 * 0.05 / runs))


def report(rows: list[dict], file: str | None) -> None:
    """Print the rows with the command, the commit and the load; write them to `file`."""
    here = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": False}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **here).stdout.strip() or "no commit"
    print(f"{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])} at {commit}, load {os.getloadavg()[0]:.1f}")
    said = {True: "met", False: "NOT MET", None: ""}
    for r in rows:
        wanted = "" if r["target"] is None else f"wanted {r['target']:.4g}"
        print(f"{r['metric']:<40}{r['ratio']:>10.4g}  {wanted:<15}{said[r['met']]:<9}{r['case']}")
    if file is not None:
        Path(file).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
