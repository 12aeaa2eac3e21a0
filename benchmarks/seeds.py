"""What is said of several seeds together: coverage of the intervals over seeds, and how often a claim is wrong.

    python benchmarks/seeds.py [--json FILE] [--runs 2000] [--seed 0]

First normal estimates with known variances: the modified Hartung-Knapp interval beside the unmodified one and the t
interval of the plain mean. Then whole cells from answers: prompts that differ
(gamma, shape 1), seeds that differ, step 0's answers shared by the runs or not.
"""

from itertools import product
from math import sqrt

import numpy as np
import rows
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


EXCESSES = ((0.0, 0.0, 0.01), (0.01, 0.005, 0.01), (0.03, 0.01, 0.01), (0.05, 0.02, 0.03), (0.2, 0.05, 0.01))
"""mean excess of seeds, their spread, and step 0's rate"""


def main():
    args = rows.options(__doc__, runs=2000, seed=0)
    found = []
    for k, tau, ratio in product(SEEDS, (0.0, 0.01, 0.05), (1, 10)):
        rng = np.random.default_rng([args.seed, k, round(1000 * tau), ratio])
        covered, width = normal_coverage(k, tau, ratio, args.runs, rng)
        case = f"normal estimates, {k} seeds, tau {tau:g}, variances 1:{ratio}"
        found.append(rows.nominal("coverage of the mean over seeds", case, covered[0], args.runs))
        found += [rows.row(f"by {w}", case, c) for w, c in zip(("plain HK", "t of mean"), covered[1:], strict=True)]
        found.append(rows.row("width, points", case, 100 * width))
    runs = max(50, args.runs // 5)
    for k, (mean, tau, base), shared in product(SEEDS, EXCESSES, (False, True)):
        rng = np.random.default_rng([args.seed, k, round(1000 * mean), shared])
        these, like, consistent, wrong, equivalent, wrongly = cells(k, mean, tau, base, shared, runs, rng)
        case = f"{k} seeds, excess {mean:g}, tau {tau:g}, base {base:g}, step 0 {'shared' if shared else 'own'}"
        found += [
            rows.nominal("coverage for these prompts", case, these, runs),
            rows.row("coverage for prompts like these", case, like),
            rows.row("share called consistent", case, consistent),
            rows.nominal("1 - share wrongly called consistent", case, 1 - wrong, runs),
            rows.row("share called equivalent", case, equivalent),
            rows.nominal("1 - share wrongly called equivalent", case, 1 - wrongly, runs),
        ]
    rows.report(found, args.json)


if __name__ == "__main__":
    main()
