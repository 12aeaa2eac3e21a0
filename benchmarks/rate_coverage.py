"""Whether the intervals of rates cover as they say, over prompts, rates, likeness within prompts, and draws.

    python benchmarks/rate_coverage.py [--runs 1000] [--json] [--only share|difference|corrected|powered]

Needs no model. Nominal coverage is 0.95. A cell under 0.93 is run again on fresh draws, ten times as often, and that
result is shown instead; it is marked * if it is under 0.93 again, ** where fewer than half of its runs carried a
warning. Worlds: the propensities of prompts follow a beta
distribution, or ("few fire") a small share of prompts fires at one rate and the others never do. Two corners of each
cell: coverage for exactly these prompts (set) and for prompts like these (kind).
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from truing.base.verdicts import Estimate
from truing.stats.correction import prediction_powered, rogan_gladen
from truing.stats.rates import share_difference, share_of

PROMPTS = (8, 24, 48, 120, 240)
RATES = (0.005, 0.02, 0.2)
LIKENESS = (0.0, 0.1, 0.3)
DRAWS = (1, 4, 50)
LEAST = 0.93


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
        self.runs = self.of_set = self.of_kind = self.warned = 0
        self.width, self.errors = 0.0, []

    def add(self, e: Estimate, of_set: float, of_kind: float) -> None:
        if e.value is None:
            return
        tiny = 1e-12
        self.runs += 1
        self.of_set += e.set_low - tiny <= of_set <= e.set_high + tiny
        self.of_kind += e.low - tiny <= of_kind <= e.high + tiny
        self.warned += bool(e.warning)
        self.width += e.high - e.low
        self.errors.append(e.value - of_set)

    def row(self) -> dict:
        n = max(self.runs, 1)
        spread = np.std(self.errors) / np.sqrt(n)
        numbers = {
            "set": self.of_set / n,
            "kind": self.of_kind / n,
            "warned": self.warned / n,
            "width": self.width / n,
            "bias_z": np.mean(self.errors) / spread if spread > 0 else 0.0,
        }
        low = min(numbers["set"], numbers["kind"]) < LEAST
        mark = "" if not low else "*" if numbers["warned"] >= 0.5 else "**"
        return {**{k: round(float(v), 4) for k, v in numbers.items()}, "runs": self.runs, "mark": mark}


GRID = [{"prompts": p, "rate": r, "likeness": k, "draws": n} for p, r, k, n in product(PROMPTS, RATES, LIKENESS, DRAWS)]


def share_cases() -> Iterator[dict]:
    for world, case in product(("beta", "few fire"), GRID):
        if world == "beta" or case["likeness"]:
            yield {"world": world, **case}


def run_share(case: dict, runs: int, rng: np.random.Generator) -> Cell:
    cell, n = Cell(), np.full(case["prompts"], float(case["draws"]))
    for p in propensities(case["world"], (runs, len(n)), case["rate"], case["likeness"], rng):
        cell.add(share_of(rng.binomial(case["draws"], p).astype(float), n), p.mean(), case["rate"])
    return cell


def difference_cases() -> Iterator[dict]:
    """Against nothing, a tenth of the rate, the same rate, and the very same rates of the same prompts."""
    for world, case in product(("zero", "tenth", "same", "same prompts"), GRID):
        if world != "same prompts" or case["likeness"]:
            yield {"world": world, **case}


def run_difference(case: dict, runs: int, rng: np.random.Generator) -> Cell:
    cell, n, rate = Cell(), np.full(case["prompts"], float(case["draws"])), case["rate"]
    rate_b = {"zero": 0.0, "tenth": rate / 10}.get(case["world"], rate)
    p_a = propensities("beta", (runs, len(n)), rate, case["likeness"], rng)
    same = case["world"] == "same prompts"
    p_b = p_a if same else propensities("beta", (runs, len(n)), rate_b, case["likeness"], rng)
    for a, b in zip(p_a, p_b, strict=True):
        hits = [rng.binomial(case["draws"], p).astype(float) for p in (a, b)]
        cell.add(share_difference(hits[0], n, hits[1], n), (a - b).mean(), rate - rate_b)
    return cell


def corrected_cases() -> Iterator[dict]:
    for judge, prompts, rate in product(((0.95, 0.0), (0.9, 0.01), (0.8, 0.05)), (48, 240), (0.0, *RATES)):
        yield {"world": "judge {} {}".format(*judge), "prompts": prompts, "rate": rate, "likeness": 0.1, "draws": 4}


def run_corrected(case: dict, runs: int, rng: np.random.Generator) -> Cell:
    cell, n = Cell(), np.full(case["prompts"], float(case["draws"]))
    hit, alarm = (float(x) for x in case["world"].split()[1:])
    for p in propensities("beta", (runs, len(n)), case["rate"], case["likeness"], rng):
        called = share_of(rng.binomial(case["draws"], p * hit + (1 - p) * alarm).astype(float), n)
        e = rogan_gladen(called, (rng.binomial(48, hit), 48), (rng.binomial(300, alarm), 300))
        cell.add(e, p.mean(), case["rate"])
    return cell


def powered_cases() -> Iterator[dict]:
    for judge, prompts, rate, q in product(((0.8, 0.05), (0.97, 0.02), (0.5, 0.5)), (48, 240), RATES, (0.25, 0.15)):
        which = "all" if q == 0.25 else "negatives"  # of the answers drawn at random; all cheap positives besides
        world = f"judge {judge[0]} {judge[1]} {q} {which}"
        yield {"world": world, "prompts": prompts, "rate": rate, "likeness": 0.1, "draws": 8}


def run_powered(case: dict, runs: int, rng: np.random.Generator) -> Cell:
    cell, prompts = Cell(), case["prompts"]
    hit, alarm, share = (float(x) for x in case["world"].split()[1:4])
    q = (share, 1.0) if case["world"].endswith("negatives") else share
    at = np.repeat(np.arange(prompts), case["draws"])
    for p in propensities("beta", (runs, prompts), case["rate"], case["likeness"], rng):
        strong = (rng.random(len(at)) < p[at]).astype(float)
        cheap = (rng.random(len(at)) < np.where(strong == 1, hit, alarm)).astype(float)
        drawn = rng.random(len(at)) < (np.where(cheap == 1, q[1], q[0]) if isinstance(q, tuple) else q)
        cell.add(prediction_powered(cheap, strong, drawn, at, prompts, q=q), p.mean(), case["rate"])
    return cell


PARTS: dict[str, tuple[Callable, Callable, float]] = {
    "share": (share_cases, run_share, 1.0),
    "difference": (difference_cases, run_difference, 1.0),
    "corrected": (corrected_cases, run_corrected, 0.3),
    "powered": (powered_cases, run_powered, 0.3),
}
"""name -> its cells, what runs one, and the share of the runs they get (the last two are slow)"""


def rows_of(name: str, runs: int) -> Iterator[dict]:
    """Every cell of a part; those under the mark from ten times as many fresh runs."""
    cases, run, share = PARTS[name]
    runs = max(int(runs * share), 20)
    for index, case in enumerate(cases()):
        row = run(case, runs, np.random.default_rng([index, 0])).row()
        if row["mark"]:
            row = run(case, 10 * runs, np.random.default_rng([index, 1])).row()
        yield {"test": name, **case, **row}


def show(rows: list[dict]) -> None:
    """One line per cell without the draws, set/kind coverage under each number of draws."""
    lines: dict[tuple, dict] = {}
    for r in rows:
        key = (r["test"], r["world"], r["prompts"], r["rate"], r["likeness"])
        bias = f" bias z {r['bias_z']:+.1f}" if r["test"] == "powered" else ""
        text = f"{r['set']:.3f}/{r['kind']:.3f}{r['mark']:<2} warned {r['warned']:.2f} width {r['width']:.3f}{bias}"
        lines.setdefault(key, {})[r["draws"]] = text
    for (test, world, prompts, rate, likeness), cells in lines.items():
        body = " | ".join(f"n={n}: {text}" for n, text in cells.items())
        print(f"{test:<10} {world:<26} prompts {prompts:>3} rate {rate:<5} likeness {likeness:<3} {body}")


def main() -> None:
    parser = argparse.ArgumentParser(description="coverage of the intervals of rates")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    began = time.perf_counter()
    rows = [row for name in PARTS if args.only in (None, name) for row in rows_of(name, args.runs)]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print("coverage for exactly these prompts / for prompts like these, nominal 0.95")
    show(rows)
    low, silent = [r for r in rows if r["mark"]], [r for r in rows if r["mark"] == "**"]
    least = min(rows, key=lambda r: min(r["set"], r["kind"]))
    print(f"{len(rows)} cells, {len(low)} marked, {len(silent)} of them without a warning in most runs")
    print(f"least: {json.dumps(least)}")
    print(f"{args.runs} runs per cell, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
