"""What is said of several seeds together: coverage of the intervals over seeds, and how often a claim is wrong.

    python benchmarks/seeds.py [--runs 2000] [--seed 0] [--json FILE]

First normal estimates with known variances: the modified Hartung-Knapp interval beside the unmodified one and the t
interval of the plain mean. Then whole cells from answers: prompts that differ
(gamma, shape 1), seeds that differ, step 0's answers shared by the runs or not.
"""

import argparse
import json
from math import sqrt
from pathlib import Path

import numpy as np
from scipy import stats as sps

from truing.stats.meta import paule_mandel, random_effects
from truing.stats.rates import share_difference, share_of
from truing.stats.studies import SeedRun, cell_of
from truing.types.cases import Case
from truing.types.traits import Rule

SEEDS = (3, 5, 10)
TRUTH = 0.05
PROMPTS, SAMPLES = 60, 10


def normal_coverage(k, tau, ratio, runs, rng):
    """Coverage of 95 % intervals of the mean: modified HK, plain HK, t of the plain mean; and mean width."""
    v = np.geomspace(1, ratio, k) * 2e-4
    inside, width = np.zeros(3), 0.0
    for _ in range(runs):
        y = rng.normal(TRUTH, np.sqrt(tau**2 + v))
        low, high = random_effects(y, v).mean.limits(0.95)
        t = sps.t.ppf(0.975, k - 1)
        w = 1 / (v + paule_mandel(y, v))
        mean = (w * y).sum() / w.sum()
        plain = t * sqrt((w * (y - mean) ** 2).sum() / (k - 1) / w.sum())
        inside += (
            low <= TRUTH <= high,
            abs(mean - TRUTH) <= plain,
            abs(y.mean() - TRUTH) <= t * y.std(ddof=1) / sqrt(k),
        )
        width += high - low
    return inside / runs, width / runs


def one_cell(k, mean, tau, base, shared, rng):
    """(cell, true mean excess on exactly these prompts)"""
    g = rng.gamma(1.0, 1.0, PROMPTS)
    n = np.full(PROMPTS, float(SAMPLES))

    def hits(excess):
        return rng.binomial(SAMPLES, np.clip(base + excess * g, 0, 1)).astype(float)

    common, runs = hits(0.0), []
    for s in range(k):
        mine, theirs = hits(max(0.0, mean + tau * rng.standard_normal())), common if shared else hits(0.0)
        key = "k" if shared else f"k{s}"
        case = Case("m", "d", "r", s)
        runs.append(
            SeedRun(case, "found", share_difference(mine, n, theirs, n), share_of(mine, n), share_of(theirs, n), key)
        )
    return cell_of(runs, Rule(), delta=0.03), mean * g.mean()


def cells(k, mean, tau, base, shared, runs, rng):
    """Coverage for these prompts and for prompts like these; share called consistent, equivalent, and wrongly so."""
    out = np.zeros(6)
    for _ in range(runs):
        cell, here = one_cell(k, mean, tau, base, shared, rng)
        e = cell.excess
        out += (
            e.set_low <= here <= e.set_high,
            e.low <= mean <= e.high,
            cell.consistent == "above",
            cell.consistent == "above" and here <= 0.01,
            cell.equivalence.status == "equivalent",
            cell.equivalence.status == "equivalent" and abs(here) >= 0.03,
        )
    return out / runs


def row(metric, case, share, runs):
    """Nominal 95 %, less three standard errors."""
    target = 0.95 - 3 * sqrt(0.95 * 0.05 / runs)
    return {"metric": metric, "case": case, "ratio": float(share), "target": target, "met": bool(share >= target)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=2000, help="simulated studies per cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    args, rows = parser.parse_args(), []
    print(f"{args.runs} runs per cell, seed {args.seed}; nominal 95 %\n")
    print("Normal estimates: coverage of the mean over seeds")
    print("seeds  tau/pts  variances   modified HK   plain HK   t of mean   width of modified, pts")
    for k in SEEDS:
        for tau in (0.0, 0.01, 0.05):
            for ratio in (1, 10):
                rng = np.random.default_rng([args.seed, k, round(1000 * tau), ratio])
                c, width = normal_coverage(k, tau, ratio, args.runs, rng)
                cells_ = f"{c[0]:11.3f}  {c[1]:9.3f}  {c[2]:10.3f}  {100 * width:10.1f}"
                print(f"{k:5d}  {100 * tau:7.0f}  {f'1:{ratio}':>9}   {cells_}")
                case = f"normal estimates, {k} seeds, tau {tau:g}, variances 1:{ratio}"
                rows.append(row("coverage of the mean over seeds", case, c[0], args.runs))
    print(f"\nWhole cells: {PROMPTS} prompts x {SAMPLES} answers, prompts differ (gamma), delta 3 points, lo 1")
    print(
        "seeds  excess  tau  base  step 0    these prompts  prompts like these  consistent (wrong)  equivalent (wrong)"
    )
    for k in SEEDS:
        for mean, tau, base in (
            (0.0, 0.0, 0.01),
            (0.01, 0.005, 0.01),
            (0.03, 0.01, 0.01),
            (0.05, 0.02, 0.03),
            (0.2, 0.05, 0.01),
        ):
            for shared in (False, True):
                rng = np.random.default_rng([args.seed, k, round(1000 * mean), shared])
                runs = max(50, args.runs // 5)
                c = cells(k, mean, tau, base, shared, runs, rng)
                case = f"cells, {k} seeds, excess {mean:g}, tau {tau:g}, step 0 {'shared' if shared else 'own'}"
                rows.append(row("coverage for these prompts", case, c[0], runs))
                rows.append(row("1 - share wrongly called consistent", case, 1 - c[3], runs))
                rows.append(row("1 - share wrongly called equivalent", case, 1 - c[5], runs))
                what = f"{100 * mean:6.1f}  {100 * tau:3.1f}  {100 * base:4.0f}  {'shared' if shared else 'own':<8}"
                print(
                    f"{k:5d}  {what}  {c[0]:13.3f}  {c[1]:18.3f}  {c[2]:10.3f} ({c[3]:.3f})  {c[4]:10.3f} ({c[5]:.3f})"
                )
    print(f"\n{sum(r['met'] for r in rows)} of {len(rows)} targets met")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
