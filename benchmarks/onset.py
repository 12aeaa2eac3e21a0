"""How many judged answers it takes to locate an onset, how often the result is right, and what peeking does to others.

    python benchmarks/onset.py                      every table, 200 runs a cell
    python benchmarks/onset.py main --runs 1000     one table

Answers of all groups are counted. The reference is 50 answers per prompt at 20 checkpoints and the base: 252,000.
"right" means that every claim holds: what is certified above lo is above it, what is certified (or counts as) clear is
under hi.
Every run has its own world and its own seed; the seeds are (table, cell, run).
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import ceil, log, sqrt
from pathlib import Path

import numpy as np
from scipy import special

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from stats.search_worlds import excess_curve, is_right, make_world, play
from truing.stats.livescan import LiveScan
from truing.stats.onset import OnsetSearch
from truing.stats.rates import score_interval
from truing.stats.sequential import Sampled, log_evidence
from truing.stats.sequential_base import Zone

STEPS, PROMPTS, EACH = 20, 240, 50
EXHAUSTIVE = (STEPS + 1) * PROMPTS * EACH
ZONE, NARROW = (0.01, 0.03), (0.015, 0.026)
LOGISTIC = (("logistic", 0.05), ("logistic", 0.2), ("logistic", 0.4), ("never", 0.005))
SHAPES = (("step", 0.05), ("step", 0.2), ("ramp", 0.2), ("dip", 0.2), ("spike", 0.2), ("never", 0.0))


def one(cell: tuple, run: int) -> tuple[int, bool, int, bool]:
    """Answers, whether right, size of the set, whether a spike (or any excess) was found."""
    family, height, base, correlation, zone, method, monotone = cell
    rng = np.random.default_rng([1, run])
    world = make_world(excess_curve(family, STEPS, height, rng), base, PROMPTS, correlation, rng)
    if method == "live":
        scan = LiveScan(world.prompt_ids, Zone(*zone), seed=run)
        used = 0
        for step in world.steps:
            scan.add(step)
            used += play(scan, world, rng)
        found = scan.claims()
    else:
        search = OnsetSearch(world.steps, world.prompt_ids, Zone(*zone), assume_monotone=monotone, seed=run)
        used = play(search, world, rng)
        found = search.claims()
    right = is_right(found, world.excess, *zone, world.steps)
    return used, right, len(found.steps), found.status == "found"


def table(title: str, cells: Sequence[tuple], runs: int, jobs: int) -> None:
    """One line per cell."""
    print(f"\n## {title}; {runs} runs a cell")
    print("| excess | base | correlation | method | answers, mean | fewer | right | set, median (mean) | found |")
    print("|---|---|---|---|---|---|---|---|---|")
    for cell in cells:
        rows = np.array(each(partial(one, cell), runs, jobs), dtype=float)
        family, height, base, correlation, _, method, _ = cell
        used, right, size, found = rows.mean(axis=0)
        print(
            f"| {family} {height:.1%} | {base:.1%} | {correlation} | {method} | {used:,.0f} | {EXHAUSTIVE / used:.0f}x "
            f"| {right:.3f} | {np.median(rows[:, 2]):.0f} ({size:.1f}) | {found:.2f} |",
            flush=True,
        )


def each(f: Callable[[int], tuple], runs: int, jobs: int) -> list[tuple]:
    if jobs == 1:
        return [f(r) for r in range(runs)]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(f, range(runs), chunksize=max(1, runs // (4 * jobs))))


# ---------------------------------------------------------------------------------------------------------------------
# Fixed designs


def fixed_table(runs: int, jobs: int) -> None:
    """One answer per prompt everywhere, and bisection with a fixed number of answers of the same errors."""
    print(f"\n## fixed designs, base 0.1 %, correlation 0.2; {runs} runs a cell")
    print("| excess | design | answers | right |\n|---|---|---|---|")
    for family, height in LOGISTIC:
        for name, design in (("1 per prompt", _once), ("fixed n, bisection", _fixed)):
            rows = np.array(each(partial(design, family, height), runs, jobs), dtype=float)
            print(
                f"| {family} {height:.1%} | {name} | {rows[:, 0].mean():,.0f} | {rows[:, 1].mean():.3f} |", flush=True
            )


def _once(family: str, height: float, run: int) -> tuple[float, bool]:
    """The first step whose share minus the base's reaches 2 points, one answer per prompt."""
    rng = np.random.default_rng([1, run])
    world = make_world(excess_curve(family, STEPS, height, rng), 0.001, PROMPTS, 0.2, rng)
    base = (rng.random(PROMPTS) < world.base).mean()
    over = (rng.random(world.run.shape) < world.run).mean(axis=1) - base >= 0.02
    return (STEPS + 1) * PROMPTS, _pac(int(over.argmax()) if over.any() else None, world.excess)


def _fixed(family: str, height: float, run: int) -> tuple[float, bool]:
    """Bisection; every test has the fixed n that tells lo from hi with both errors 0.05 / 5."""
    rng = np.random.default_rng([1, run])
    world = make_world(excess_curve(family, STEPS, height, rng), 0.001, PROMPTS, 0.2, rng)
    z = float(special.ndtri(1 - 0.05 / 5))
    n = ceil((z * sqrt(0.012) + z * sqrt(0.032)) ** 2 / (ZONE[1] - ZONE[0]) ** 2)
    base, left, right, used = rng.binomial(n, world.base.mean()) / n, -1, STEPS, n
    while right - left > 1:
        k = (left + right) // 2
        used += n
        left, right = (left, k) if rng.binomial(n, world.run[k].mean()) / n - base >= 0.02 else (k, right)
    return used, _pac(right if right < STEPS else None, world.excess)


def _pac(k: int | None, excess: np.ndarray) -> bool:
    if k is None:
        return bool(excess.max() < ZONE[1])
    return bool(excess[k] > ZONE[0] and (k == 0 or excess[k - 1] < ZONE[1]))


# ---------------------------------------------------------------------------------------------------------------------
# Peeking, and other tests of one step


def peeking_table(runs: int, jobs: int) -> None:
    """Truth exactly at lo, a look after every 24 answers of the run (and 24 of the base) up to 12,000."""
    print(f"\n## wrong 'above lo' where the excess is exactly lo = 1 %, 500 looks; {runs} runs a cell")
    print("| base | correlation | this test | Wilson on the run's share alone | difference of Wilson intervals |")
    print("|---|---|---|---|---|")
    for base in (0.0, 0.01, 0.05):
        for correlation in (0.0, 0.5):
            rows = np.array(each(partial(_peek, base, correlation), runs, jobs), dtype=float).mean(axis=0)
            print(f"| {base:.0%} | {correlation} | " + " | ".join(f"{r:.3f}" for r in rows) + " |", flush=True)


def _peek(base: float, correlation: float, run: int) -> tuple[bool, bool, bool]:
    rng = np.random.default_rng([2, run])
    world = make_world(np.array([ZONE[0]]), base, PROMPTS, correlation, rng)
    low = world.excess[0]  # the prompts drawn have an excess of their own; the null is at that
    looks = np.arange(24, 12_001, 24)
    p, q = (
        np.cumsum(rng.random(12_000) < s[rng.integers(0, PROMPTS, 12_000)])[looks - 1]
        for s in (world.run[0], world.base)
    )
    ours = alone = naive = False
    for n, a, b in zip(looks, p, q, strict=True):
        n = int(n)
        ours = ours or log_evidence(Sampled.hits(int(a), n), Sampled.hits(int(b), n), float(low)) >= log(1 / 0.05)
        own, other = score_interval(a / n, n, 0.95), score_interval(b / n, n, 0.95)
        alone = alone or own[0] > world.run[0].mean()
        naive = naive or a / n - b / n - sqrt((a / n - own[0]) ** 2 + (other[1] - b / n) ** 2) > low
    return ours, alone, naive


def paired_log_evidence(plus: int, zero: int, minus: int, bound: float) -> float:
    """The plain test of differences: D in {-1, 0, 1} of two answers to the same prompt, a mixture of stakes."""
    stakes = np.array([0.1, 0.3, 0.6, 0.9, 0.99]) / (1 + bound)
    total = (
        plus * np.log1p(stakes * (1 - bound))
        + zero * np.log1p(-stakes * bound)
        + minus * np.log1p(-stakes * (1 + bound))
    )
    return float(np.logaddexp.reduce(total) - log(len(stakes)))


def tests_table(runs: int, jobs: int) -> None:
    """Answers of the run until "above lo" is certain at 0.05 with 400 answers of a shared base at hand, and pairs."""
    print(f"\n## answers of the run until 'above 1 %' is certain at 5 %, no base answers counted; {runs} runs a cell")
    print("| excess | base | this test, 400 base answers shared | pairs: D = run - base |\n|---|---|---|---|")
    for base in (0.001, 0.01, 0.05):
        for height in (0.05, 0.1, 0.2, 0.4):
            rows = np.array(each(partial(_until, base, height), runs, jobs), dtype=float)
            print(
                f"| {height:.0%} | {base:.1%} | {np.median(rows[:, 0]):.0f} | {np.median(rows[:, 1]):.0f} |", flush=True
            )


def _until(base: float, height: float, run: int) -> tuple[int, int]:
    rng = np.random.default_rng([3, run])
    own, other = rng.random(4000) < base + height, rng.random(4400) < base
    shared = Sampled.hits(int(other[4000:].sum()), 400)
    enough, ours, pairs = log(1 / 0.05), 4000, 4000
    d = own.astype(int) - other[:4000].astype(int)
    for n in range(4, 4000, 4):
        if ours == 4000 and log_evidence(Sampled.hits(int(own[:n].sum()), n), shared, 0.01) >= enough:
            ours = n
        plus, minus = int((d[:n] > 0).sum()), int((d[:n] < 0).sum())
        if pairs == 4000 and paired_log_evidence(plus, n - plus - minus, minus, 0.01) >= enough:
            pairs = n
        if max(ours, pairs) < 4000:
            break
    return ours, pairs


# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("main", "narrow", "shapes", "live", "fixed", "peeking", "tests")
    parser.add_argument("tables", nargs="*", default=names, help=", ".join(names))
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    started = time.process_time()
    grids = {
        "main": (
            "zone 1-3 %, base 0.1 %, monotone curves assumed monotone",
            [(*shape, 0.001, c, ZONE, "search", True) for shape in LOGISTIC for c in (0.1, 0.3)],
        ),
        "narrow": (
            "zone 1.5-2.6 %",
            [(*shape, 0.001, c, NARROW, "search", True) for shape in LOGISTIC for c in (0.1, 0.3)],
        ),
        "shapes": (
            "other shapes and base rates, nothing assumed",
            [(*s, b, c, ZONE, "search", False) for b in (0.01, 0.02, 0.05) for s in SHAPES for c in (0.0, 0.5)],
        ),
        "live": (
            "live scan, nothing assumed, number of checkpoints unknown",
            [(*shape, b, 0.2, ZONE, "live", False) for b in (0.001, 0.02) for shape in (*LOGISTIC, *SHAPES[3:5])],
        ),
    }
    for name in given.tables:
        if name in grids:
            table(*grids[name], given.runs, given.jobs)
        else:
            {"fixed": fixed_table, "peeking": peeking_table, "tests": tests_table}[name](given.runs, given.jobs)
    print(f"\n{time.process_time() - started:.0f} CPU seconds in this process")


if __name__ == "__main__":
    main()
