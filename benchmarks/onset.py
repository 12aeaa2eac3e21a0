"""How many judged answers it takes to locate an onset, how often the result is right, and what peeking does to others.

    python benchmarks/onset.py [--json FILE] [--runs 200] [--jobs 1] [--only main narrow shapes live peeking]

Answers of all groups are counted. The reference is 50 answers per prompt at 20 checkpoints and the base: 252,000.
"right" means that every claim holds: what is certified above lo is above it, what is certified (or counts as) clear is
under hi.
Every run has its own world and its own seed; the seeds are (table, cell, run).
"""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import log, sqrt
from pathlib import Path

import numpy as np
import rows

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


def table(title: str, cells: Sequence[tuple], runs: int, jobs: int) -> list[dict]:
    """One line per cell; every claim of a run holds in 95 % of runs."""
    out = []
    print(f"\n## {title}; {runs} runs a cell")
    print("| excess | base | correlation | method | answers, mean | fewer | right | set, median (mean) | found |")
    print("|---|---|---|---|---|---|---|---|---|")
    for cell in cells:
        found = np.array(each(partial(one, cell), runs, jobs), dtype=float)
        family, height, base, correlation, _, method, _ = cell
        used, right, size, hit = found.mean(axis=0)
        print(
            f"| {family} {height:.1%} | {base:.1%} | {correlation} | {method} | {used:,.0f} | {EXHAUSTIVE / used:.0f}x "
            f"| {right:.3f} | {np.median(found[:, 2]):.0f} ({size:.1f}) | {hit:.2f} |",
            flush=True,
        )
        case = f"{title}: {family} {height:g}, base {base:g}, correlation {correlation:g}"
        out.append(rows.nominal("share of runs without a wrong claim", case, right, runs))
    return out


def each(f: Callable[[int], tuple], runs: int, jobs: int) -> list[tuple]:
    if jobs == 1:
        return [f(r) for r in range(runs)]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(f, range(runs), chunksize=max(1, runs // (4 * jobs))))


# ---------------------------------------------------------------------------------------------------------------------
# Peeking, and other tests of one step


def peeking_table(runs: int, jobs: int) -> list[dict]:
    """Truth exactly at lo, a look after every 24 answers of the run (and 24 of the base) up to 12,000."""
    print(f"\n## wrong 'above lo' where the excess is exactly lo = 1 %, 500 looks; {runs} runs a cell")
    print("| base | correlation | this test | Wilson on the run's share alone | difference of Wilson intervals |")
    print("|---|---|---|---|---|")
    out = []
    for base in (0.0, 0.01, 0.05):
        for correlation in (0.0, 0.5):
            wrong = np.array(each(partial(_peek, base, correlation), runs, jobs), dtype=float).mean(axis=0)
            print(f"| {base:.0%} | {correlation} | " + " | ".join(f"{w:.3f}" for w in wrong) + " |", flush=True)
            case = f"base {base:g}, correlation {correlation:g}"
            out.append(rows.nominal("share of runs right at each of 500 looks", case, 1 - wrong[0], runs))
    return out


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


# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    args = rows.options(__doc__, runs=200, jobs=1, only=["main", "narrow", "shapes", "live", "peeking"])
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
    made = {name: partial(table, *grid) for name, grid in grids.items()} | {"peeking": peeking_table}
    rows.report([r for name in args.only for r in made[name](args.runs, args.jobs)], args.json)


if __name__ == "__main__":
    main()
