"""Equivalence: whether a difference is certainly smaller than delta, so that "nothing there" is a finding.

Two one-sided tests (Schuirmann 1987): equivalent at error alpha exactly where the interval of level 1 - 2 alpha lies
inside -delta..delta. Together with the test of a difference, Tryon (2001): equivalent, different, or undetermined.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
from scipy import special

from truing.stats.evidence import Array
from truing.stats.meta import Limits

LEAST_P = 1e-12
"""p-values are not followed below it"""


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Whether a difference is none that matters."""

    status: str
    """equivalent (certainly inside -delta..delta), different (certainly not 0), else undetermined"""
    value: float | None
    """the difference"""
    low: float | None
    """lower end of the interval of level 1 - 2 alpha: 90 % for alpha 5 %"""
    high: float | None
    """its upper end"""
    delta: float
    """largest difference that does not matter"""
    alpha: float
    """error of either test"""
    p: float | None
    """of a difference as large as delta: the larger of the two one-sided ones"""
    p_adjusted: float | None = None
    """the same, adjusted for the other models of the study (Holm); None for one alone"""
    excludes_zero: bool | None = None
    """whether the interval of level 1 - alpha excludes 0; an equivalent difference may"""
    reason: str = ""
    """why it is undetermined where there is no interval"""

    @property
    def words(self) -> str:
        """In words, delta in points of 100."""
        size = f"{100 * self.delta:g} points"
        if self.status == "equivalent":
            return f"equivalent within {size}" + (", though not 0" if self.excludes_zero else "")
        if self.status == "different":
            return "different: " + ("more" if (self.value or 0) > 0 else "less")
        return f"undetermined ({self.reason})" if self.reason else f"undetermined (at {size})"


def equivalence(value: float, limits: Limits, delta: float, *, alpha: float = 0.05) -> Equivalence:
    """Two one-sided tests of a difference against -delta and delta, from its interval at any level.

    Args:
        value: the difference.
        limits: its two-sided interval as a function of the level; narrower at a lower level.
        delta: largest difference that does not matter, above 0.
        alpha: error of either test, in (0, 0.5).

    Raises:
        ValueError: delta is not above 0, or alpha is outside (0, 0.5).
    """
    _check(delta, alpha)
    low, high = limits(1 - 2 * alpha)
    wide_low, wide_high = limits(1 - alpha)
    inside, excludes = -delta < low and high < delta, wide_low > 0 or wide_high < 0
    status = "equivalent" if inside else "different" if excludes else "undetermined"
    p = max(p_under(value, limits, delta), p_above(value, limits, -delta))
    return Equivalence(status, value, low, high, delta, alpha, p, excludes_zero=excludes)


def undetermined(delta: float, reason: str, *, value: float | None = None, alpha: float = 0.05) -> Equivalence:
    """The record where there is no interval to test with."""
    _check(delta, alpha)
    return Equivalence("undetermined", value, None, None, delta, alpha, None, reason=reason)


def paired_equivalence(differences: Array, delta: float, *, alpha: float = 0.05) -> Equivalence:
    """The two tests on differences paired by prompt, by t over prompts: a statement on prompts like these.

    Differences that do not vary give no interval, and so no finding: all zero may be nothing, or too few answers.

    Args:
        differences: [P] one per prompt.
        delta: as `equivalence`.
        alpha: as `equivalence`.

    Raises:
        ValueError: as `equivalence`, or a difference that is not finite.
    """
    d = np.asarray(differences, dtype=float)
    if d.ndim != 1 or not np.isfinite(d).all():
        raise ValueError("differences are one finite number per prompt")
    value = float(d.mean()) if len(d) else None
    spread = float(d.std(ddof=1)) if len(d) > 1 else 0.0
    if value is None or spread <= 1e-12 * max(1.0, abs(value)):
        why = "differences do not vary" if len(d) > 1 else f"{len(d)} prompts"
        return undetermined(delta, why, value=value, alpha=alpha)
    return equivalence(value, t_limits(value, spread / sqrt(len(d)), len(d) - 1), delta, alpha=alpha)


def t_limits(value: float, se: float, df: float) -> Limits:
    """The t interval as a function of its level."""

    def limits(level: float) -> tuple[float, float]:
        half = float(special.stdtrit(df, (1 + level) / 2)) * se
        return value - half, value + half

    return limits


def p_above(value: float, limits: Limits, bound: float) -> float:
    """One-sided p of being above `bound`: the error at which the lower end reaches it; followed down to 1e-12."""
    if value >= bound:
        return _crossing(lambda level: limits(level)[0] > bound)
    return 1 - _crossing(lambda level: limits(level)[1] < bound)


def p_under(value: float, limits: Limits, bound: float) -> float:
    """One-sided p of being under `bound`."""
    if value <= bound:
        return _crossing(lambda level: limits(level)[1] < bound)
    return 1 - _crossing(lambda level: limits(level)[0] > bound)


def _crossing(certain: Callable[[float], bool]) -> float:
    """The least one-sided error at which an interval is certain of something, by bisection on its logarithm."""
    low, high = log(LEAST_P), log(0.5)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if certain(1 - 2 * exp(middle)) else (middle, high)
    return exp(high)


def _check(delta: float, alpha: float) -> None:
    if not 0 < delta < float("inf"):
        raise ValueError(f"delta {delta}: a difference that does not matter is above 0")
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha {alpha}: an error lies in (0, 0.5)")
