"""Several runs put together: random-effects mean, test of equivalence, exact shares of few cases.

Sources: variance between runs, Paule & Mandel (1982); interval, Hartung & Knapp (2001), Sidik & Jonkman (2002), never
narrower than without their factor, Knapp & Hartung (2003), which few runs need, Roever, Knapp & Friede (2015); limits
of a sum, Zou & Donner (2008); two one-sided tests, Schuirmann (1987), put together with the test of a difference, Tryon
(2001); exact binomial interval, Clopper & Pearson (1934).
"""

from dataclasses import dataclass, replace
from math import exp, hypot, inf, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from truing.stats.evidence import Array
from truing.types.verdicts import Estimate

LEAST_P = 1e-12
"""p-values are not followed below it"""
ALPHA = 0.05
"""error of either test of equivalence"""
LEAST_SEEDS = 3
"""fewest runs about which anything is said beyond "this run" """


@dataclass(frozen=True, slots=True)
class Mean:
    """A number with a t error, and possibly a further normal one."""

    value: float
    """the number"""
    se: float
    """standard error, above 0"""
    df: float
    """its degrees of freedom; inf for a normal error"""
    more: float = 0.0
    """variance of a further, independent normal error"""

    def limits(self, level: float) -> tuple[float, float]:
        """The two-sided interval at a level: the halves of both errors, squared and added."""
        half = self._half((1 - level) / 2)
        return self.value - half, self.value + half

    def p_above(self, bound: float) -> float:
        """One-sided p of being above a bound: the error at which the interval reaches it, followed down to 1e-12."""
        distance = abs(self.value - bound)
        p = LEAST_P
        if self._half(p) > distance:
            found: Any = optimize.brentq(lambda x: self._half(exp(x)) - distance, log(LEAST_P), log(0.5), xtol=1e-12)
            p = exp(found)
        return p if self.value >= bound else 1 - p

    def plus(self, variance: float) -> "Mean":
        """With a further normal error of known variance."""
        return replace(self, more=self.more + variance)

    def _half(self, tail: float) -> float:
        t, z = float(special.stdtrit(self.df, 1 - tail)), float(special.ndtri(1 - tail))
        return hypot(t * self.se, z * sqrt(self.more))


@dataclass(frozen=True, slots=True)
class Pooled:
    """The mean over runs, where runs differ by more than their own measurement error."""

    mean: Mean
    """Hartung and Knapp's factor is in its error"""
    tau2: float
    """variance between runs, in the square of the unit"""
    i2: float
    """share of the spread that is between runs, 0..1"""


def random_effects(y: Array, v: Array) -> Pooled:
    """Random-effects mean with the modified Hartung-Knapp standard error.

    With weights w = 1 / (v + tau^2), the variance of the mean is max(1, q) / sum(w), where q = sum(w (y - mean)^2) /
    (k - 1), and t has k - 1 degrees of freedom. Without the maximum, runs that agree by chance would give an interval
    narrower than their own measurement error allows.

    Args:
        y: [k] one estimate per run.
        v: [k] its variance within the run, above 0.

    Raises:
        ValueError: fewer than 3 runs, or not one variance above 0 for each.
    """
    if y.shape != v.shape or len(y) < LEAST_SEEDS or not (np.isfinite(y + v).all() and (v > 0).all()):
        raise ValueError(f"at least {LEAST_SEEDS} finite estimates, each with a variance above 0, not {y} and {v}")
    k, tau2 = len(y), paule_mandel(y, v)
    w, q = 1 / (v + tau2), _spread(y, v, 0.0)
    factor = max(1.0, _spread(y, v, tau2) / (k - 1))
    mean = Mean(float((w * y).sum() / w.sum()), sqrt(factor / float(w.sum())), k - 1)
    return Pooled(mean, tau2, max(0.0, 1 - (k - 1) / q) if q > 0 else 0.0)


def paule_mandel(y: Array, v: Array) -> float:
    """The variance between runs at which the weighted spread is what it should be, k - 1; 0 where it never is more."""
    wanted = len(y) - 1
    if _spread(y, v, 0.0) <= wanted:
        return 0.0
    high = float(np.var(y, ddof=1)) + float(v.max())
    while _spread(y, v, high) > wanted:  # it falls as the variance grows
        high *= 2
    found: Any = optimize.brentq(lambda t: _spread(y, v, t) - wanted, 0.0, high, xtol=1e-15)
    return float(found)


def _spread(y: Array, v: Array, tau2: float) -> float:
    """Weighted squared distances from the weighted mean."""
    w = 1 / (v + tau2)
    return float((w * (y - (w * y).sum() / w.sum()) ** 2).sum())


def implied_variance(e: Estimate, *, like_these: bool = False) -> float | None:
    """The variance of a normal number whose interval at the estimate's level is as wide; None without an interval.

    A count of zero has a score interval of some width, where its plain variance would be zero.

    Args:
        e: the estimate.
        like_these: of its interval for prompts like these, instead of the one for exactly these.
    """
    low, high = (e.low, e.high) if like_these else (e.set_low, e.set_high)
    if low is None or high is None or high <= low:
        return None
    return ((high - low) / (2 * float(special.ndtri((1 + e.level) / 2)))) ** 2


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Whether a difference is none that matters."""

    status: str
    """equivalent (certainly inside -delta..delta), different (certainly not 0), else undetermined"""
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
    """the same, adjusted for the other cells of the study (Holm); None for one alone"""
    excludes_zero: bool | None = None
    """whether the interval of level 1 - alpha excludes 0; an equivalent difference may"""
    reason: str = ""
    """why there is no interval to test with"""


def equivalence(mean: Mean | None, delta: float, *, reason: str = "") -> Equivalence:
    """Two one-sided tests of a difference against -delta and delta.

    Args:
        mean: the difference; None where there is none with an interval.
        delta: largest difference that does not matter, above 0.
        reason: why there is none.

    Raises:
        ValueError: delta is not above 0.
    """
    if not 0 < delta < inf:
        raise ValueError(f"delta {delta} is not above 0")
    if mean is None:
        return Equivalence("undetermined", None, None, delta, ALPHA, None, reason=reason)
    (low, high), (wide_low, wide_high) = mean.limits(1 - 2 * ALPHA), mean.limits(1 - ALPHA)
    excludes = wide_low > 0 or wide_high < 0
    status = "equivalent" if -delta < low and high < delta else "different" if excludes else "undetermined"
    p = max(1 - mean.p_above(delta), mean.p_above(-delta))
    return Equivalence(status, low, high, delta, ALPHA, p, excludes_zero=excludes)


def exact_limits(hits: float, n: float, level: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of hits out of n; neither needs to be whole."""
    tail = (1 - level) / 2
    low = float(special.betaincinv(hits, n - hits + 1, tail)) if hits > 0 else 0.0
    high = float(special.betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return low, high


def exact_share(yes: int, no: int, unknown: int = 0, *, groups: int | None = None, level: float = 0.95) -> Estimate:
    """Share of cases, with exact intervals; unknown ones count as no for the lower end and as yes for the upper.

    `set_low, set_high` take cases as independent; `low, high` take all cases of a group (a model) for one, which is the
    least that several seeds of a model can be worth. The value leaves the unknown out.

    Args:
        yes, no: cases of which it holds, and does not.
        unknown: cases of which nothing can be said.
        groups: models that the cases are of; None for as many as cases.
        level: nominal coverage.

    Raises:
        ValueError: a negative count, or more groups than cases.
    """
    n = yes + no + unknown
    groups = n if groups is None else groups
    if min(yes, no, unknown) < 0 or groups > n or (n and groups < 1):
        raise ValueError(f"{yes} yes, {no} no, {unknown} unknown in {groups} groups")
    out = {"unknown": unknown} if unknown else {}
    if yes + no == 0:
        return Estimate(None, None, None, n=0, clusters=0, left_out=out, method="no cases", level=level)

    (set_low, set_high), (low, high) = (
        (exact_limits(yes * worth, n * worth, level)[0], exact_limits((yes + unknown) * worth, n * worth, level)[1])
        for worth in (1.0, groups / n)
    )
    warning = f"{unknown} cases unknown: the ends count them as no and as yes" if unknown else ""
    method = "exact (Clopper-Pearson); cases as independent, and all cases of a model taken for one"
    value = yes / (yes + no)
    return Estimate(value, low, high, set_low, set_high, yes + no, groups, out, method, level, warning=warning)


def mean_over_cases(values: Array, group: NDArray[np.int64], *, level: float = 0.95) -> Estimate:
    """Mean over cases. `set_low, set_high`: t over cases; `low, high`: t over groups (cluster-robust), groups less one.

    Either needs 3 (cases, groups) and some spread.

    Args:
        values: [N] one number per case.
        group: [N] number of the model that a case is of.
        level: nominal coverage.
    """
    n = len(values)
    if n == 0:
        return Estimate(None, None, None, method="no cases", level=level)
    mean = float(values.mean())
    residuals = values - mean
    sums = np.bincount(np.unique(group, return_inverse=True)[1], weights=residuals)
    m = len(sums)
    of_cases = float((residuals**2).sum()) / (n - 1) / n if n > 1 else 0.0
    of_groups = m / (m - 1) * float((sums**2).sum()) / n**2 if m > 1 else 0.0

    def ends(variance: float, k: int) -> tuple[float | None, float | None]:
        return Mean(mean, sqrt(variance), k - 1).limits(level) if k >= LEAST_SEEDS and variance > 0 else (None, None)

    few = f"{m} model{'s' if m != 1 else ''}: an interval for models like these needs {LEAST_SEEDS}"
    method, warning = "t over cases, and over models", few if m < LEAST_SEEDS else ""
    inner, outer = ends(of_cases, n), ends(max(of_groups, of_cases), m)
    return Estimate(mean, *outer, *inner, n, m, method=method, level=level, warning=warning)
