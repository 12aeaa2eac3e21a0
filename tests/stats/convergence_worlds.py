"""Curves whose convergence is known, and how often it is found. Used by the tests."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from stats.simulated import FAST, learning
from truing.config import Thresholds
from truing.stats.evidence import Array
from truing.stats.progress import convergence, progress_curve

K = np.arange(13)
"""step 0 and 12 checkpoints, 10 steps apart"""
CURVES: dict[str, Array] = {
    "fast": 1 - np.exp(-K / 1.5),
    "late": 1 / (1 + np.exp(-(K - 6) / 0.7)) - 1 / (1 + np.exp(6 / 0.7)),
    "dip": np.array([0, 0.4, 0.95, 0.97, 0.7, 0.8, 0.95, 0.98, 1, 1, 1, 1, 1]),
    "at the threshold": np.array([0, 0.5, 0.8, 0.9, 0.91, 0.95, 0.98, 1, 1, 1, 1, 1, 1]),
    "just under it": np.array([0, 0.5, 0.8, 0.89, 0.89, 0.89, 0.95, 0.98, 1, 1, 1, 1, 1]),
    "overfit": np.array([0, 0.5, 0.8, 0.95, 1, 0.97, 0.9, 0.8, 0.7, 0.65, 0.6, 0.55, 0.5]),
    "overfit a little": np.array([0, 0.5, 0.8, 0.95, 1, 1, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.92]),
    "last quarter 3 %": np.array([0, 0.4, 0.7, 0.85, 0.92, 0.94, 0.95, 0.96, 0.97, 0.97, 0.98, 0.99, 1]),
    "last quarter 8 %": np.array([0, 0.4, 0.7, 0.85, 0.9, 0.9, 0.91, 0.91, 0.92, 0.92, 0.95, 0.98, 1]),
    "last quarter 15 %": np.array([0, 0.3, 0.6, 0.7, 0.75, 0.8, 0.82, 0.83, 0.84, 0.85, 0.9, 0.95, 1]),
    "straight": K / 12,
    "never": np.zeros(13),
}
"""name -> true curve, its gain 1 nat per token"""


def truth_of(curve: Array, rule: Thresholds) -> tuple[str, int | None]:
    """Status and index of convergence by the definition, worked out on the true curve one checkpoint at a time."""
    gain = max(curve) - curve[0]
    if gain < rule.min_gain:
        return "task_not_learned", None
    p = [(v - curve[0]) / gain for v in curve]
    best = p.index(max(p))
    if p[-1] - p[9] > rule.still_learning:  # 9 of 12 checkpoints: three quarters of the run
        return "still_learning", None
    falls = p[best] - p[-1] > rule.still_learning
    end = best if falls else len(p) - 1
    for k in range(len(p)):
        if all(x >= rule.converged_at for x in p[k : end + 1]) and k <= end:
            return "converged", k
    return "still_learning", None


@dataclass
class Found:
    """What came of many simulated runs of one curve."""

    runs: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    covered: int = 0
    """converged, and the true step is in the interval"""
    widths: list[int] = field(default_factory=list)
    """checkpoints in the interval"""
    falls: int = 0
    settled: int = 0
    """converged, and the last quarter certainly added little"""

    def share(self, status: str) -> float:
        """Share of runs with this status."""
        return self.statuses[status] / self.runs

    @property
    def coverage(self) -> float | None:
        """Of the true step, among runs called converged."""
        n = self.statuses["converged"]
        return self.covered / n if n else None


def simulate(
    curve: Array, *, rows: int, noise: float, runs: int, seed: int, scale: float = 1.0, rule: Thresholds = FAST
) -> Found:
    """`runs` runs of a curve on `rows` held-out rows that learn at their own rates, with noise at each step."""
    rng = np.random.default_rng(seed)
    steps = tuple(range(0, 10 * len(curve), 10))
    _, true = truth_of(curve * scale, rule)
    out = Found()
    for _ in range(runs):
        values = scale * learning(rng, curve, rows, noise=noise)
        c = convergence(progress_curve("skill", steps, values, None, rule, 0), "skill", rule)
        out.runs += 1
        out.statuses[c.status] += 1
        out.falls += c.overfit
        added = c.last_quarter.high if c.status == "converged" and c.last_quarter is not None else None
        out.settled += added is not None and added <= rule.still_learning
        if c.low is not None and c.high is not None:
            out.covered += true is not None and c.low <= steps[true] <= c.high
            out.widths.append((c.high - c.low) // 10 + 1)
    return out
