"""Whether the intervals of rates cover as they say, over prompts, rates, likeness within prompts, and samples.

    python benchmarks/rate_coverage.py [--json FILE] [--runs 100] [--only PART]

Needs no model. PART is share, difference, mean, mean-difference, corrected or powered. Nominal coverage is 0.95. Every
cell is to cover prompts like these in 0.93 of its runs, less two standard errors, or to warn in nine of ten. Few cells
of means and differences do not: where one to three prompts carry everything, no record of a run can tell.

Worlds: the propensities of prompts follow a beta distribution, or ("few fire") a small share of prompts fires at one
rate and the others never do. Differences: what is added to the base's propensity is drawn for itself ("added"), or one
order of prompts holds for both groups ("ranked"), or the groups are independent ("apart"). Means: scores that are
normal, skewed (mean 85 of 100), or 88 with the given share at 15 ("rare"). Seeds: the cell's number in its part.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import rows
from scipy import special

from truing.stats.correction import prediction_powered, rogan_gladen
from truing.stats.rates import mean_difference, mean_of, share_difference, share_of
from truing.types.verdicts import Estimate

PROMPTS = (40, 80, 240)
RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
SOME_RATES = (0.005, 0.02, 0.2)
LIKENESS = (0.0, 0.1, 0.3, 0.5)
SAMPLES = (1, 5, 50)
LEAST = 0.93
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

    def add(self, e: Estimate, of_set: float, of_kind: float) -> None:
        """One run: its interval, the truth for exactly these prompts, and for prompts like these."""
        if e.value is None or e.low is None or e.high is None:
            self.count["none"] += 1
            return
        self.count.update(runs=1, warned=bool(e.warning), all=e.low - TINY <= of_kind <= e.high + TINY)
        if e.set_low is not None and e.set_high is not None:  # answers of a prompt that are all the same give none
            self.count.update(with_set=1, set=e.set_low - TINY <= of_set <= e.set_high + TINY)

    @property
    def warned(self) -> float:
        """Share of runs that warn, or give no interval."""
        return (self.count["warned"] + self.count["none"]) / (self.count["runs"] + self.count["none"])

    @property
    def all(self) -> float:
        """Coverage for prompts like these."""
        return self.count["all"] / max(self.count["runs"], 1)

    @property
    def set(self) -> float:
        """Coverage for exactly these prompts."""
        return self.count["set"] / self.count["with_set"] if self.count["with_set"] else 1.0


def share_cases() -> Iterator[dict]:
    """One answer a prompt knows no likeness."""
    for world, prompts, rate, k, n in product(("beta", "few fire"), PROMPTS, RATES, LIKENESS, SAMPLES):
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
        ("added", "ranked", "apart"), PROMPTS, (0.0, 0.01, 0.05), (0.0, 0.01, 0.03, 0.1), LIKENESS, SAMPLES
    ):
        plain = world == "added"
        if base + excess > 0 and (plain or (base and k == 0.3)):
            yield {"world": world, "prompts": prompts, "base": base, "rate": excess, "likeness": k, "samples": n}


def groups(case: dict, runs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Propensities of both groups, [runs, prompts] each."""
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
        ("normal", "skewed", "rare 0.02", "rare 0.05", "rare 0.2"), PROMPTS, LIKENESS, SAMPLES
    ):
        yield {"world": world, "prompts": prompts, "rate": 0.0, "likeness": k, "samples": n}


def mean_scores(case: dict, p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[prompts * samples] scores of one run; p is uniform noise (normal) or the propensity of each prompt."""
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
    """Two groups on the same prompts whose scores differ by chance alone."""
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


def room(runs):
    """Two standard errors of a coverage of 0.95."""
    return 2 * np.sqrt(0.95 * 0.05 / max(runs, 1))


def measure(name, runs):
    """Result rows of a part: the share of its cells that cover, and the least coverage."""
    cases, run, share = PARTS[name]
    runs = max(int(runs * share), 20)
    cells = [(case, run(case, runs, np.random.default_rng([k, 0]))) for k, case in enumerate(cases())]
    least = LEAST - room(runs)
    what = f"{len(cells)} cells, {runs} runs each"
    good = [cell.warned >= 0.9 or cell.all >= least for _, cell in cells]
    worst = min(cells, key=lambda c: c[1].all if c[1].warned < 0.9 else 1.0)
    of_set = min(cell.set for _, cell in cells)
    where = ", ".join(f"{k} {v}" for k, v in worst[0].items())
    return [
        rows.row(f"{name}: cells that cover, or warn", what, np.mean(good), least=0.95),
        rows.row(f"{name}: least coverage, like these", where, worst[1].all),
        rows.row(f"{name}: least coverage, these prompts", what, of_set),
    ]


def main():
    args = rows.options(__doc__, runs=100, only="")
    if args.only not in ("", *PARTS):
        raise SystemExit(f"--only {args.only}: choose one of {', '.join(PARTS)}")
    found = [r for name in PARTS if args.only in ("", name) for r in measure(name, args.runs)]
    rows.report(found, args.json)


if __name__ == "__main__":
    main()
