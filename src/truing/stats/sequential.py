"""Tests of an excess between two groups that may be looked at after every answer, and intervals that always hold.

Each sample takes a prompt uniformly, with replacement, so that answers have the mean of the whole set of prompts
however much prompts differ. For every value m that the reference's mean may have, two bets are made: that the run's
mean is above m + bound, and that the reference's is below m. If the excess is at most `bound`, then for the true m
neither bet gains on average, whoever decides when to look and which group to sample next, and their product exceeds
1 / alpha with probability alpha at most (Ville 1939). What counts is the least product over all m. The reference's
answers are thus shared by all checkpoints, and sharpen every test.

Sources: betting on bounded means, Waudby-Smith & Ramdas (2024); mixtures of bets, Robbins (1970); the least e-value
over a nuisance parameter, Wasserman, Ramdas & Balakrishnan (2020), Turner, Ly & Grunwald (2024).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from truing.stats.evidence import Array, Mask

_FINE = 20
"""cells of the reference's mean up to the bound"""
_GROWTH = 1.04
"""ratio of neighbouring limits between cells where that is coarser"""
_ABOVE = (
    (1.0, 1.05, 1.15, 1.5, 2.5, 5.0, 18.0),
    (0.02, 0.01, 0.04, 0.13, 0.30, 0.32, 0.18),
    (0.04, 0.18, 0.28, 0.28, 0.10, 0.06, 0.06),
)
"""odds of the mean that is betted on over the odds of the null; weights where the null is small, and where it is not"""
_BELOW = (
    (1.0, 0.95, 0.85, 0.65, 0.4, 0.15),
    (0.02, 0.01, 0.04, 0.10, 0.20, 0.63),
    (0.04, 0.22, 0.34, 0.25, 0.10, 0.05),
)
"""the same for a mean below"""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Answers of one group: values from 0 (good) to 1 (positive), and how often each came."""

    values: tuple[float, ...] = (0.0, 1.0)
    """distinct values within [0, 1]"""
    counts: tuple[int, ...] = (0, 0)
    """answers with each value"""

    @classmethod
    def hits(cls, hits: int, n: int) -> "Sampled":
        """Yes-or-no answers; ValueError if that many hits cannot be."""
        if not 0 <= hits <= n:
            raise ValueError(f"{hits} hits of {n} answers")
        return cls((0.0, 1.0), (n - hits, hits))

    @property
    def n(self) -> int:
        """Answers."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Their mean; NaN without any."""
        return sum(v * c for v, c in zip(self.values, self.counts, strict=True)) / self.n if self.n else float("nan")


def log_evidence(run: Sampled, reference: Sampled, bound: float) -> float:
    """Log of the evidence that mean(run) - mean(reference) is above `bound`, which lies within (-1, 1).

    Valid at every look: were the excess at most `bound`, it would ever reach log(1 / alpha) with probability alpha at
    most. The groups are sampled independently. For evidence *below* a bound see `log_evidence_below`.

    Raises:
        ValueError: a bound outside (-1, 1).
    """
    return weakest(run, reference, bound)[0]


def weakest(run: Sampled, reference: Sampled, bound: float) -> tuple[float, float]:
    """`log_evidence`, and the mean of the reference at which it is least: what stands in the way of a decision."""
    if not -1 < bound < 1:
        raise ValueError(f"an excess lies between -1 and 1, not at {bound}")
    gains = _wealth(run, bound, True) + _wealth(reference, bound, False)
    k = int(gains.argmin())
    return float(gains[k]), _cells(bound)[0][k]


def log_evidence_below(run: Sampled, reference: Sampled, bound: float) -> float:
    """Log of the evidence that mean(run) - mean(reference) is below `bound`: `log_evidence`, groups exchanged."""
    return log_evidence(reference, run, -bound)


def limits(run: Sampled, reference: Sampled, enough_low: float, enough_high: float) -> tuple[float, float]:
    """Limits of mean(run) - mean(reference) that hold at every look: the bounds not rejected by so much evidence, which
    is log(1 / error) of either end. Within 1e-4, on the cautious side."""

    def edge(sure: float, inside: float, enough: float) -> float:
        """Between the end of the scale and a bound that is not rejected."""
        found = log_evidence if sure < inside else log_evidence_below
        for _ in range(14 if sure != inside else 0):
            middle = (sure + inside) / 2
            sure, inside = (middle, inside) if found(run, reference, middle) >= enough else (sure, middle)
        return sure

    if not run.n:
        return -1.0, 1.0
    point = run.mean - (reference.mean if reference.n else 0.0)
    return edge(-1.0, point, enough_low), edge(1.0, point, enough_high)


class _Bets(NamedTuple):
    """Fixed bets against each of K values of a mean."""

    null: Array
    """[K, 1] means held to be true"""
    stake: Array
    """[K, J] what is put on an answer above the null"""
    weight: Array
    """[K, J] logarithms of the weights"""
    vacuous: Mask
    """[K] nulls that nothing can speak against"""


@lru_cache(maxsize=64)
def _cells(bound: float) -> tuple[tuple[float, ...], _Bets, _Bets]:
    """Limits between cells of the reference's mean, from the least one possible (-bound, if that is above 0) to 1; and
    the bets of both groups in each: were the mean in [m, m'], the run's is m' + bound at most, the reference's m at
    least."""
    scale = max(abs(bound), 0.005)
    limits = [max(0.0, -bound)]
    while limits[-1] < 1:
        limits.append(min(1.0, limits[-1] + max(scale / _FINE, (_GROWTH - 1) * limits[-1])))
    ours = _bets(np.array([m + bound for m in limits[1:]]), above=True, scale=scale)
    return tuple(limits), ours, _bets(np.array(limits[:-1]), above=False, scale=scale)


@lru_cache(maxsize=256)
def _wealth(sampled: Sampled, bound: float, ours: bool) -> Array:
    """[K] log wealth of one group in every cell: the mean over bets of the product of 1 + stake (y - null), which for a
    yes or no is the likelihood ratio. One group often stands still while the other grows."""
    _, run, reference = _cells(bound)
    bets = run if ours else reference
    total = bets.weight.copy()
    for value, count in zip(sampled.values, sampled.counts, strict=True):
        if count:
            total += count * np.log1p(bets.stake * (value - bets.null))
    most = total.max(axis=1)
    wealth = most + np.log(np.exp(total - most[:, None]).sum(axis=1))
    return np.where(bets.vacuous, 0.0, wealth)


def _bets(null: Array, *, above: bool, scale: float) -> _Bets:
    """Bets that a mean is above (below) each null. The choice moves the power, never the error.

    Near zero most is put on far alternatives, which a few answers settle; at means much larger than the scale of the
    excess, on near ones, since the excess is small beside them.
    """
    a = np.clip(null, 1e-12, 1 - 1e-12)[:, None]
    far = np.minimum(1.0, scale / a)
    ratio, near_zero, elsewhere = _ABOVE if above else _BELOW
    weight = far * np.array(near_zero) + (1 - far) * np.array(elsewhere)
    odds = np.array(ratio) * a / (1 - a)
    stake = (odds / (1 + odds) - a) / (a * (1 - a))
    return _Bets(a, stake, np.log(weight), null >= 1 if above else null <= 0)
