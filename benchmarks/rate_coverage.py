"""Whether the intervals of rates cover as they say, over prompts, rates, likeness within prompts, and draws.

    OMP_NUM_THREADS=1 python benchmarks/rate_coverage.py [--runs 1000] [--json] [--all]
        [--only share|difference|mean|mean-difference|corrected|powered]

Needs no model. Nominal coverage is 0.95 and every cell of 40, 80 or 240 prompts is to lie in 0.93-0.97 for prompts
like these, among the runs without a warning, or to carry the warning. A cell that seems to fail is run again on five
times as many fresh draws, and that result is shown instead; the limits are then taken two standard errors wide. Shown
are the marked cells (--all: every one), for prompts like these among runs without a warning and among all runs, ends
missed below (the lower limit too high) and above, and coverage for exactly these prompts (set). Marks:

    (none)   in range
    warned   at least 90 % of the runs carry the warning
    few      over 0.97 for one end only: that end would be missed where few prompts have a hit, which is where the
             interval is the wide one and carries the warning; the other end is missed in 1-4 %
    nested   over 0.97 only since the interval is never inside the one for exactly these prompts, which is conservative
    chosen   10-90 % of the runs are warned: those without are the ones that happened to have many hits. The cell as a
             whole is at 0.93 or more
    over     over 0.97, none of the above
    UNDER    under 0.93, none of the above

Worlds: the propensities of prompts follow a beta distribution, or ("few fire") a small share of prompts fires at one
rate and the others never do. Differences: what is added to the base's propensity is drawn for itself ("added"), or one
order of prompts holds for both arms ("ranked"), or the arms are independent ("apart"). Means: scores that are normal,
skewed (mean 85 of 100), or 88 with the given share at 15 ("rare"). `corrected` and `powered` are held to 0.93 for both
intervals, marked * below it. Also 8 and 24 prompts, always warned: for these the least coverage is printed.
Seeds: the cell's number in its part, and 0 for the first run, 1 for the second.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from scipy import special

from truing.stats.correction import prediction_powered, rogan_gladen
from truing.stats.rates import mean_difference, mean_of, share_difference, share_of
from truing.types.verdicts import Estimate

PROMPTS = (40, 80, 240)
FEW = (8, 24)
RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
SOME_RATES = (0.005, 0.02, 0.2)
LIKENESS = (0.0, 0.1, 0.3, 0.5)
DRAWS = (1, 5, 50)
LEAST, MOST = 0.93, 0.97
TINY = 1e-12


def propensities(world: str, shape: tuple[int, int], rate: float, likeness: float, rng: np.random.Generator):
    """Rates of prompts, [runs, prompts]; `likeness` is the correlation of two answers to one prompt."""
    if rate == 0 or likeness == 0:
        return np.full(shape, rate)
    if world == "few fire":
        fire = rate + likeness * (1 - rate)
        return fire * (rng.random(shape) < rate / fire)
    spread = (1 - likeness) / likeness
    return rng.beta(rate * spread, (1 - rate) * spread, shape)


class Cell:
    """Coverage of one cell, counted run by run."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.width, self.errors = 0.0, []

    def add(self, e: Estimate, of_set: float, of_kind: float) -> None:
        if e.value is None or e.low is None:
            self.count["no interval"] += 1
            return
        below, above = e.low > of_kind + TINY, e.high < of_kind - TINY
        silent = not e.warning
        self.count.update(runs=1, below=below, above=above, silent=silent)
        self.count.update(silent_below=silent and below, silent_above=silent and above)
        self.width += e.high - e.low
        if e.set_low is not None:  # answers of a prompt that are all the same give none
            self.count["nested"] += silent and not (e.low < e.set_low - TINY and e.high > e.set_high + TINY)
            self.count["with set"] += 1
            self.count["set"] += e.set_low - TINY <= of_set <= e.set_high + TINY
            self.errors.append(e.value - of_set)

    def row(self, bias: bool) -> dict:
        c, n = self.count, max(self.count["runs"], 1)
        silent = max(c["silent"], 1)
        spread = np.std(self.errors) / np.sqrt(n) if bias else 0.0
        numbers = {
            "kind": 1 - (c["silent_below"] + c["silent_above"]) / silent if c["silent"] else None,
            "below": c["silent_below"] / silent,
            "above": c["silent_above"] / silent,
            "nested": c["nested"] / silent,
            "warned": 1 - c["silent"] / n,
            "all": 1 - (c["below"] + c["above"]) / n,
            "set": c["set"] / c["with set"] if c["with set"] else None,
            "width": self.width / n,
            "bias_z": np.mean(self.errors) / spread if spread > 0 else 0.0,
        }
        return {k: None if v is None else round(float(v), 4) for k, v in numbers.items()} | {"runs": c["runs"]}


def mark(row: dict, strict: bool) -> str:
    """What is to be said of a cell; `strict` after the first run, with room for chance after the second."""
    if row["test"] in ("corrected", "powered"):
        return "*" if min(row["set"], row["all"]) < LEAST else ""
    runs = max(row["runs"] * (1 - row["warned"]), 1)
    room = 0.0 if strict else 2 * np.sqrt(0.95 * 0.05 / runs)
    if row["warned"] >= 0.9:
        return "warned"
    if row["kind"] < LEAST - room:
        return "chosen" if row["warned"] >= 0.1 and row["all"] >= LEAST - room else "UNDER"
    if row["kind"] > MOST + room:
        ends = sorted((row["below"], row["above"]))
        if ends[0] <= 0.003 and 0.01 <= ends[1] <= 0.04:
            return "few"
        return "nested" if row["nested"] >= 0.2 else "over"
    return ""


def share_cases() -> Iterator[dict]:
    """One answer a prompt knows no likeness."""
    for world, prompts, rate, k, n in product(("beta", "few fire"), (*FEW, *PROMPTS), RATES, LIKENESS, DRAWS):
        if (k or world == "beta") and not (n == 1 and k):
            yield {"world": world, "prompts": prompts, "rate": rate, "likeness": k, "samples": n}


def run_share(case: dict, runs: int, rng: np.random.Generator) -> Cell:
    cell, n = Cell(), np.full(case["prompts"], float(case["samples"]))
    for p in propensities(case["world"], (runs, len(n)), case["rate"], case["likeness"], rng):
        cell.add(share_of(rng.binomial(case["samples"], p).astype(float), n), p.mean(), case["rate"])
    return cell


def difference_cases() -> Iterator[dict]:
    """`rate` is the excess, `base` what it is added to."""
    for world, prompts, base, excess, k, n in product(
        ("added", "ranked", "apart"), (24, *PROMPTS), (0.0, 0.01, 0.05), (0.0, 0.01, 0.03, 0.1), LIKENESS, DRAWS
    ):
        plain = world == "added"
        if base + excess > 0 and (plain or (base and k == 0.3)) and (prompts > 24 or k == 0.3):
            yield {"world": world, "prompts": prompts, "base": base, "rate": excess, "likeness": k, "samples": n}


def groups(case: dict, runs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Propensities of both arms, [runs, prompts] each."""
    shape, base, total, k = (runs, case["prompts"]), case["base"], case["base"] + case["rate"], case["likeness"]
    if case["world"] == "added":
        p = propensities("beta", shape, base, k, rng)
        return p + (1 - p) * propensities("beta", shape, case["rate"] / (1 - base), k, rng), p
    if case["world"] == "apart":
        return propensities("beta", shape, total, k, rng), propensities("beta", shape, base, k, rng)
    middles = (np.arange(200_000) + 0.5) / 200_000  # quantiles of both, the same of them for a prompt
    at, spread = rng.integers(0, len(middles), shape), (1 - k) / k
    a, b = (special.betaincinv(p * spread, (1 - p) * spread, middles)[at] for p in (total, base))
    return a, b


def run_difference(case: dict, runs: int, rng: np.random.Generator) -> Cell:
    cell, n = Cell(), np.full(case["prompts"], float(case["samples"]))
    for a, b in zip(*groups(case, runs, rng), strict=True):
        hits = [rng.binomial(case["samples"], p).astype(float) for p in (a, b)]
        cell.add(share_difference(hits[0], n, hits[1], n), (a - b).mean(), case["rate"])
    return cell


def mean_cases() -> Iterator[dict]:
    for world, prompts, k, n in product(
        ("normal", "skewed", "rare 0.02", "rare 0.05", "rare 0.2"), (*FEW, *PROMPTS), LIKENESS, DRAWS
    ):
        yield {"world": world, "prompts": prompts, "rate": 0.0, "likeness": k, "samples": n}


def mean_scores(case: dict, p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[prompts * draws] scores of one run; p is uniform noise (normal) or the propensity of each prompt."""
    each = np.repeat(p, case["samples"])
    if case["world"] == "normal":
        return 70 + 15 * (np.sqrt(case["likeness"]) * each + np.sqrt(1 - case["likeness"]) * rng.normal(size=len(each)))
    if case["world"] == "skewed":
        return 25.0 * rng.binomial(4, each)
    return np.where(rng.random(len(each)) < each, 15.0, 88.0) + rng.normal(0, 6, len(each))


def mean_world(case: dict, runs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """What prompts are like, [runs, prompts], their true means for exactly these prompts, and for prompts like them."""
    shape, k = (runs, case["prompts"]), case["likeness"]
    if case["world"] == "normal":
        p = rng.normal(size=shape)
        return p, 70 + 15 * np.sqrt(k) * p.mean(axis=1), 70.0
    share = 0.85 if case["world"] == "skewed" else float(case["world"].split()[1])
    p = propensities("beta", shape, share, k, rng)
    scale = (0.0, 100.0) if case["world"] == "skewed" else (88.0, -73.0)
    return p, scale[0] + scale[1] * p.mean(axis=1), scale[0] + scale[1] * share


def run_mean(case: dict, runs: int, rng: np.random.Generator) -> Cell:
    cell, index = Cell(), np.repeat(np.arange(case["prompts"]), case["samples"])
    world, of_set, of_kind = mean_world(case, runs, rng)
    for p, mean in zip(world, of_set, strict=True):
        cell.add(mean_of(mean_scores(case, p, rng), index, case["prompts"]), mean, of_kind)
    return cell


def run_mean_difference(case: dict, runs: int, rng: np.random.Generator) -> Cell:
    """Two arms on the same prompts whose scores differ by chance alone."""
    cell, index = Cell(), np.repeat(np.arange(case["prompts"]), case["samples"])
    for p in mean_world(case, runs, rng)[0]:
        a, b = mean_scores(case, p, rng), mean_scores(case, p, rng)
        cell.add(mean_difference(a, index, b, index, case["prompts"]), 0.0, 0.0)
    return cell


def corrected_cases() -> Iterator[dict]:
    for judge, prompts, rate in product(((0.95, 0.0), (0.9, 0.01), (0.8, 0.05)), (48, 240), (0.0, *SOME_RATES)):
        yield {"world": "judge {} {}".format(*judge), "prompts": prompts, "rate": rate, "likeness": 0.1, "samples": 4}


def run_corrected(case: dict, runs: int, rng: np.random.Generator) -> Cell:
    cell, n = Cell(), np.full(case["prompts"], float(case["samples"]))
    hit, alarm = (float(x) for x in case["world"].split()[1:])
    for p in propensities("beta", (runs, len(n)), case["rate"], case["likeness"], rng):
        called = share_of(rng.binomial(case["samples"], p * hit + (1 - p) * alarm).astype(float), n)
        e = rogan_gladen(called, (rng.binomial(48, hit), 48), (rng.binomial(300, alarm), 300))
        cell.add(e, p.mean(), case["rate"])
    return cell


def powered_cases() -> Iterator[dict]:
    for judge, prompts, rate, q in product(
        ((0.8, 0.05), (0.97, 0.02), (0.5, 0.5)), (48, 240), SOME_RATES, (0.25, 0.15)
    ):
        which = "all" if q == 0.25 else "negatives"  # of the answers drawn at random; all cheap positives besides
        world = f"judge {judge[0]} {judge[1]} {q} {which}"
        yield {"world": world, "prompts": prompts, "rate": rate, "likeness": 0.1, "samples": 8}


def run_powered(case: dict, runs: int, rng: np.random.Generator) -> Cell:
    cell, prompts = Cell(), case["prompts"]
    hit, alarm, share = (float(x) for x in case["world"].split()[1:4])
    q = (share, 1.0) if case["world"].endswith("negatives") else share
    at = np.repeat(np.arange(prompts), case["samples"])
    for p in propensities("beta", (runs, prompts), case["rate"], case["likeness"], rng):
        strong = (rng.random(len(at)) < p[at]).astype(float)
        cheap = (rng.random(len(at)) < np.where(strong == 1, hit, alarm)).astype(float)
        sampled = rng.random(len(at)) < (np.where(cheap == 1, q[1], q[0]) if isinstance(q, tuple) else q)
        cell.add(prediction_powered(cheap, strong, sampled, at, prompts, q=q), p.mean(), case["rate"])
    return cell


PARTS: dict[str, tuple[Callable, Callable, float]] = {
    "share": (share_cases, run_share, 1.0),
    "difference": (difference_cases, run_difference, 0.5),
    "mean": (mean_cases, run_mean, 0.5),
    "mean-difference": (mean_cases, run_mean_difference, 0.2),
    "corrected": (corrected_cases, run_corrected, 0.3),
    "powered": (powered_cases, run_powered, 0.3),
}
"""name -> its cells, what runs one, and the share of the runs they get"""


def rows_of(name: str, runs: int) -> Iterator[dict]:
    """Every cell of a part; those that seem to fail from five times as many fresh runs."""
    cases, run, share = PARTS[name]
    runs = max(int(runs * share), 20)
    for index, case in enumerate(cases()):
        bias = name == "powered"
        row = {"test": name, **case, **run(case, runs, np.random.default_rng([index, 0])).row(bias)}
        row["mark"] = mark(row, True)
        if row["mark"] not in ("", "warned"):
            row |= run(case, 5 * runs, np.random.default_rng([index, 1])).row(bias)
            row["mark"] = mark(row, False)
        yield row


def show(row: dict) -> None:
    base = f" base {row['base']:<4}" if "base" in row else ""
    kind = "  -  " if row["kind"] is None else f"{row['kind']:.3f}"
    bias = f" bias z {row['bias_z']:+.1f}" if row["test"] == "powered" else ""
    print(
        f"{row['test']:<15} {row['world']:<20}{base} prompts {row['prompts']:>3} rate {row['rate']:<5} likeness "
        f"{row['likeness']:<3} draws {row['samples']:>2}: {kind} (below {row['below']:.3f} above {row['above']:.3f}) "
        f"warned {row['warned']:.2f} all {row['all']:.3f} set {row['set']:.3f} width {row['width']:.4g}{bias} "
        f"{row['mark']}"
    )


def summary(rows: list[dict]) -> None:
    """One line per part, one per number of prompts that is always warned."""
    for name in dict.fromkeys(r["test"] for r in rows):
        part = [r for r in rows if r["test"] == name]
        main = [r for r in part if r["prompts"] >= min(PROMPTS)]
        marks = Counter(r["mark"] or "in range" for r in main)
        silent = [r["kind"] for r in main if r["kind"] is not None and r["warned"] < 0.1]
        print(
            f"{name}: {len(main)} cells: {', '.join(f'{n} {m}' for m, n in marks.most_common())}; unwarned coverage "
            f"{min(silent):.3f}-{max(silent):.3f} where under 10 % of runs are warned; least of all runs "
            f"{min(r['all'] for r in main):.3f}; this set {min(r['set'] for r in main):.3f}-"
            f"{max(r['set'] for r in main):.3f}"
        )
        for few in sorted({r["prompts"] for r in part} - {r["prompts"] for r in main}):
            cells = [r for r in part if r["prompts"] == few]
            least = min(cells, key=lambda r: r["all"])
            print(
                f"    {few} prompts: {len(cells)} cells, warned in at least {min(r['warned'] for r in cells):.2f}, "
                f"least {least['all']:.3f} ({least['world']}, rate {least['rate']}, likeness {least['likeness']}, "
                f"draws {least['samples']})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="coverage of the intervals of rates")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--all", action="store_true", help="show every cell")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    began = time.perf_counter()
    rows = [row for name in PARTS if args.only in (None, name) for row in rows_of(name, args.runs)]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        if args.all or row["mark"] not in ("", "warned"):
            show(row)
    summary(rows)
    print(f"{args.runs} runs per cell (parts: {', '.join(f'{k} x {v[2]}' for k, v in PARTS.items())}), seeds as above")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
