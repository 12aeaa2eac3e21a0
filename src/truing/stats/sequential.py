"""Tests of an excess between two arms that may be looked at after every answer, and intervals that hold at every look.

Each draw takes a prompt uniformly, with replacement, so that answers have the mean of the whole set of prompts however
much prompts differ. For every value m that the reference's mean may have, two bets are made: that the run's mean is
above m + bound, and that the reference's is below m. If the excess is at most `bound`, then for the true m neither bet
gains on average, whoever decides when to look and which arm to draw from next, and their product exceeds 1 / alpha
with probability alpha at most (Ville 1939). What counts is the least product over all m. The reference's answers are
thus shared by all checkpoints, and sharpen every test.

Sources: betting on bounded means, Waudby-Smith & Ramdas (2024); mixtures of bets, Robbins (1970); the least e-value
over a nuisance parameter, Wasserman, Ramdas & Balakrishnan (2020), Turner, Ly & Grunwald (2024); SPRT, Wald (1945).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, log

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
    """Answers drawn from one arm: values from 0 (good) to 1 (misaligned), and how often each came."""

    values: tuple[float, ...] = (0.0, 1.0)
    """distinct values within [0, 1]"""
    counts: tuple[int, ...] = (0, 0)
    """answers with each value"""

    @classmethod
    def hits(cls, hits: int, n: int) -> "Sampled":
        """Yes-or-no answers.

        Raises:
            ValueError: more hits than answers, or a negative number.
        """
        if not 0 <= hits <= n:
            raise ValueError(f"{hits} hits of {n} answers")
        return cls((0.0, 1.0), (n - hits, hits))

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sampled":
        """Any values within [0, 1].

        Raises:
            ValueError: one outside, or no number.
        """
        found, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
        if found.size and not (found[0] >= 0 and found[-1] <= 1):
            raise ValueError("values lie between 0 and 1")
        return cls(tuple(found.tolist()), tuple(counts.tolist()))

    @property
    def n(self) -> int:
        """Answers."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Their mean; NaN without any."""
        return sum(v * c for v, c in zip(self.values, self.counts, strict=True)) / self.n if self.n else float("nan")


def log_evidence(run: Sampled, reference: Sampled | None, bound: float) -> float:
    """Log of the evidence that mean(run) - mean(reference) is above `bound`.

    Valid at every look: were the excess at most `bound`, it would ever reach log(1 / alpha) with probability alpha at
    most. Evidence that the excess is *below* a bound is this with the arms exchanged: see `log_evidence_below`.

    Args:
        run: what was drawn from the arm in question.
        reference: what was drawn, independently of it, from the arm it is held against; None if its mean is known to
            be zero.
        bound: in the unit of the values, within (-1, 1).

    Raises:
        ValueError: a bound outside (-1, 1).
    """
    if reference is None:
        _check_bound(bound)
        return _mixture(run, _bets((bound,), above=True, scale=_scale(bound))).item() if bound > 0 else _sure(run)
    return weakest(run, reference, bound)[0]


def weakest(run: Sampled, reference: Sampled, bound: float) -> tuple[float, float]:
    """`log_evidence`, and the mean of the reference at which it is least: what stands in the way of a decision.

    Raises:
        ValueError: a bound outside (-1, 1).
    """
    _check_bound(bound)
    gains = _wealth(run, bound, True) + _wealth(reference, bound, False)
    k = int(gains.argmin())
    return float(gains[k]), _cells(bound)[0][k]


def log_evidence_below(run: Sampled, reference: Sampled | None, bound: float) -> float:
    """Log of the evidence that mean(run) - mean(reference) is below `bound`; as `log_evidence`."""
    if reference is None:
        _check_bound(bound)
        return _mixture(run, _bets((bound,), above=False, scale=_scale(bound))).item()
    return log_evidence(reference, run, -bound)


def confidence_sequence(run: Sampled, reference: Sampled | None, *, alpha: float) -> tuple[float, float]:
    """Limits of mean(run) - mean(reference) that hold at every look at once, each end wrong with alpha / 2 at most.

    What the two tests do not reject; for data whose number was decided by looking at them.

    Raises:
        ValueError: alpha outside (0, 0.5).
    """
    check_error("alpha", alpha)
    return limits(run, reference, log(2 / alpha), log(2 / alpha))


def limits(run: Sampled, reference: Sampled | None, enough_low: float, enough_high: float) -> tuple[float, float]:
    """Limits of mean(run) - mean(reference): the bounds that evidence of so much (logarithms) does not reject."""

    def edge(sure: float, open_: float, enough: float) -> float:
        """Between the end of the scale and a bound that is not rejected, to 1e-4, on the cautious side."""
        found = log_evidence if sure < open_ else log_evidence_below
        if sure == open_:
            return sure
        for _ in range(14):
            middle = (sure + open_) / 2
            sure, open_ = (middle, open_) if found(run, reference, middle) >= enough else (sure, middle)
        return sure

    if not run.n:
        return -1.0, 1.0
    least = 0.0 if reference is None else -1.0
    point = run.mean - (reference.mean if reference is not None and reference.n else 0.0)
    return max(least, edge(least, point, enough_low)), min(1.0, edge(1.0, point, enough_high))


def sprt(hits: int, n: int, lo: float, hi: float) -> float:
    """Wald's log likelihood ratio of a share `hi` against `lo`, for one arm whose reference is known to be zero.

    Decide for hi at log((1 - beta) / alpha), for lo at log(beta / (1 - alpha)). Not for a share that stands beside a
    reference with a share of its own: there it calls 2 % of misaligned answers an excess whatever the base does.
    """
    return hits * log(hi / lo) + (n - hits) * log((1 - hi) / (1 - lo))


def _check_bound(bound: float) -> None:
    if not -1 < bound < 1:
        raise ValueError(f"an excess lies between -1 and 1, not at {bound}")


def check_error(name: str, value: float) -> None:
    """Refuse what is no error probability.

    Raises:
        ValueError: outside (0, 0.5).
    """
    if not 0 < value < 0.5:
        raise ValueError(f"{name} is an error probability between 0 and 0.5, not {value}")


def _scale(bound: float) -> float:
    return max(abs(bound), 0.005)


@lru_cache(maxsize=64)
def _cells(bound: float) -> "tuple[tuple[float, ...], _Bets, _Bets]":
    """Limits between cells of the reference's mean, and the bets in each: were the mean in [m, m'], the run's could be
    m' + bound at most and the reference's m at least."""
    limits, scale = _limits(bound), _scale(bound)
    ours = _bets(tuple(m + bound for m in limits[1:]), above=True, scale=scale)
    return limits, ours, _bets(limits[:-1], above=False, scale=scale)


@lru_cache(maxsize=256)
def _wealth(sampled: Sampled, bound: float, ours: bool) -> Array:
    """[K] log wealth of one arm in every cell. One arm often stands still while the other grows."""
    _, run, reference = _cells(bound)
    return _mixture(sampled, run if ours else reference)


def _limits(bound: float) -> tuple[float, ...]:
    """Values of the reference's mean that divide its range into cells, from the least one possible to 1.

    Under `excess <= bound` with a negative bound the reference is at least -bound.
    """
    step = _scale(bound) / _FINE
    limits = [max(0.0, -bound)]
    while limits[-1] < 1:
        limits.append(min(1.0, limits[-1] + max(step, (_GROWTH - 1) * limits[-1])))
    return tuple(limits)


@dataclass(frozen=True, slots=True)
class _Bets:
    """Fixed bets against each of K means: against what they stand, on what, with which weight."""

    null: Array
    """[K] means held to be true"""
    share: Array
    """[K, J] means betted on"""
    weight: Array
    """[K, J] logarithms of the weights"""
    vacuous: Mask
    """[K] nulls that nothing can speak against"""
    impossible: Mask
    """[K] nulls that cannot be true"""


def _bets(nulls: tuple[float, ...], *, above: bool, scale: float) -> _Bets:
    """Bets that a mean is above (below) each of `nulls`. The choice moves the power, never the error.

    Near zero most is put on far alternatives, which a few answers settle; at means much larger than the scale of the
    excess, on near ones, since the excess is small beside them.
    """
    null = np.array(nulls)
    impossible, vacuous = (null <= 0, null >= 1) if above else (null > 1, null <= 0)
    a = np.clip(null, 1e-12, 1 - 1e-12)[:, None]
    far = np.minimum(1.0, scale / a)
    ratio, near_zero, elsewhere = _ABOVE if above else _BELOW
    weight = far * np.array(near_zero) + (1 - far) * np.array(elsewhere)
    odds = np.array(ratio) * a / (1 - a)
    return _Bets(null, odds / (1 + odds), np.log(weight), vacuous, impossible)


def _mixture(sampled: Sampled, bets: _Bets) -> Array:
    """[K] log wealth: the mean over bets of the product of 1 + stake (y - null), which for a yes or no is the
    likelihood ratio."""
    a = np.clip(bets.null, 1e-12, 1 - 1e-12)[:, None]
    stake = (bets.share - a) / (a * (1 - a))
    total = bets.weight.copy()
    for value, count in zip(sampled.values, sampled.counts, strict=True):
        if count:
            total += count * np.log1p(stake * (value - a))
    most = total.max(axis=1)
    wealth = most + np.log(np.exp(total - most[:, None]).sum(axis=1))
    wealth[bets.vacuous] = 0.0
    wealth[bets.impossible] = inf
    return wealth


def _sure(run: Sampled) -> float:
    """A mean above a bound under zero needs no evidence; above zero itself, one answer that is not zero."""
    return inf if any(v > 0 and c for v, c in zip(run.values, run.counts, strict=True)) else 0.0
