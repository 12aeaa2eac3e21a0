"""Several runs put together: random-effects mean with a Hartung-Knapp interval, and exact shares of few cases.

Sources: DerSimonian & Laird (1986); Paule & Mandel (1982); Hartung & Knapp (2001), Sidik & Jonkman (2002); never
narrower than without their factor, Knapp & Hartung (2003); why that is needed with few studies, Roever, Knapp & Friede
(2015); exact binomial interval, Clopper & Pearson (1934).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import special

from truing.stats.evidence import Array
from truing.types.verdicts import Estimate

Index = NDArray[np.int64]

LEAST_SEEDS = 3
"""fewest runs about which anything is said beyond "this run" """
Limits = Callable[[float], tuple[float, float]]
"""interval of a number as a function of its level"""


@dataclass(frozen=True, slots=True)
class Pooled:
    """The mean over runs, where runs differ by more than their own measurement error."""

    value: float | None
    """random-effects mean; None with too little data"""
    se: float | None
    """its standard error, Hartung and Knapp's factor included"""
    df: int
    """degrees of freedom of the t interval: runs less one"""
    runs: int
    """runs used"""
    tau2: float | None
    """variance between runs, in the square of the unit"""
    i2: float | None
    """share of the spread that is between runs, 0..1"""
    q: float | None
    """Cochran's Q"""
    q_p: float | None
    """p of Q under no difference between runs"""
    tau: str = ""
    """how the variance between runs was estimated"""
    reason: str = ""
    """why there is no mean, or no interval"""

    def limits(self, level: float) -> tuple[float, float]:
        """The t interval at a level.

        Raises:
            ValueError: there is none (see `reason`).
        """
        if self.value is None or self.se is None:
            raise ValueError(f"no interval: {self.reason}")
        half = float(special.stdtrit(self.df, (1 + level) / 2)) * self.se
        return self.value - half, self.value + half


def random_effects(y: Array, v: Array, *, tau: str = "paule-mandel") -> Pooled:
    """Random-effects mean with the modified Hartung-Knapp standard error.

    With weights w = 1 / (v + tau^2), the variance of the mean is max(1, q) / sum(w), where q = sum(w (y - mean)^2) /
    (k - 1), and t has k - 1 degrees of freedom. Without the maximum, runs that agree by chance would give an interval
    narrower than their own measurement error allows. Fewer than 3 runs give a mean and no interval.

    Args:
        y: [k] one estimate per run.
        v: [k] its variance within the run, above 0.
        tau: "paule-mandel" or "dersimonian-laird".

    Raises:
        ValueError: shapes differ, a value that is not finite, a variance that is not above 0, an unknown `tau`.
    """
    y, v = np.asarray(y, dtype=float), np.asarray(v, dtype=float)
    if y.shape != v.shape or y.ndim != 1:
        raise ValueError(f"one variance per estimate, got shapes {y.shape} and {v.shape}")
    if not (np.isfinite(y).all() and np.isfinite(v).all()):
        raise ValueError("an estimate or a variance is not finite")
    if (v <= 0).any():
        raise ValueError("a variance is not above 0: such a run would weigh infinitely")
    if tau not in _TAU:
        raise ValueError(f"tau {tau!r}: use {' or '.join(_TAU)}")
    k = len(y)
    if k < 2:
        return Pooled(
            float(y[0]) if k else None, None, 0, k, None, None, None, None, tau, "one run" if k else "no runs"
        )
    q = _spread(y, v, 0.0)
    tau2 = _TAU[tau](y, v)
    w = 1 / (v + tau2)
    value = float((w * y).sum() / w.sum())
    factor = max(1.0, float((w * (y - value) ** 2).sum()) / (k - 1))
    se = sqrt(factor / float(w.sum()))
    few = k < LEAST_SEEDS
    return Pooled(
        value,
        None if few else se,
        k - 1,
        k,
        tau2,
        max(0.0, 1 - (k - 1) / q) if q > 0 else 0.0,
        q,
        float(special.chdtrc(k - 1, q)),
        tau,
        f"{k} runs; an interval needs {LEAST_SEEDS}" if few else "",
    )


def dersimonian_laird(y: Array, v: Array) -> float:
    """Variance between runs by moments, from weights 1 / v; 0 where runs differ less than their errors."""
    w = 1 / np.asarray(v, dtype=float)
    scale = float(w.sum() - (w**2).sum() / w.sum())
    return max(0.0, (_spread(np.asarray(y, dtype=float), 1 / w, 0.0) - (len(w) - 1)) / scale)


def paule_mandel(y: Array, v: Array) -> float:
    """The variance between runs at which the weighted spread is what it should be, k - 1; 0 where it never is more."""
    y, v = np.asarray(y, dtype=float), np.asarray(v, dtype=float)
    wanted = len(y) - 1
    if _spread(y, v, 0.0) <= wanted:
        return 0.0
    low, high = 0.0, float(np.var(y, ddof=1)) + float(v.max())
    while _spread(y, v, high) > wanted:
        high *= 2
    for _ in range(100):  # the spread falls with tau^2
        middle = (low + high) / 2
        low, high = (middle, high) if _spread(y, v, middle) > wanted else (low, middle)
    return (low + high) / 2


_TAU: dict[str, Callable[[Array, Array], float]] = {
    "paule-mandel": paule_mandel,
    "dersimonian-laird": dersimonian_laird,
}


def _spread(y: Array, v: Array, tau2: float) -> float:
    """Weighted squared distances from the weighted mean."""
    w = 1 / (v + tau2)
    return float((w * (y - (w * y).sum() / w.sum()) ** 2).sum())


def implied_variance(e: Estimate, *, like_these: bool = False) -> float | None:
    """The variance of a normal number whose interval at the estimate's level is as wide; None without an interval.

    A count of zero has a score interval of some width, where its plain variance would be zero.

    Args:
        e: the estimate.
        like_these: of its interval for items like these, instead of the one for exactly this set.
    """
    low, high = (e.low, e.high) if like_these else (e.set_low, e.set_high)
    if low is None or high is None or high <= low:
        return None
    return ((high - low) / (2 * float(special.ndtri((1 + e.level) / 2)))) ** 2


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
        yes: cases of which it holds.
        no: cases of which it does not.
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

    def ends(worth: float) -> tuple[float, float]:
        low, _ = exact_limits(yes * worth, n * worth, level)
        return low, exact_limits((yes + unknown) * worth, n * worth, level)[1]

    (set_low, set_high), (low, high) = ends(1.0), ends(groups / n)
    return Estimate(
        yes / (yes + no),
        low,
        high,
        set_low,
        set_high,
        n=yes + no,
        clusters=groups,
        left_out=out,
        method="exact (Clopper-Pearson); cases as independent, and all cases of a model taken for one",
        level=level,
        warning=f"{unknown} cases unknown: the ends count them as no and as yes" if unknown else "",
    )


def mean_over_cases(values: Array, group: Index, *, level: float = 0.95) -> Estimate:
    """Mean over cases. `set_low, set_high`: t over cases; `low, high`: t over groups (cluster-robust), groups less one.

    Either needs 3 (cases, groups) and some spread.

    Args:
        values: [N] one number per case.
        group: [N] number of the model that a case is of.
        level: nominal coverage.

    Raises:
        ValueError: shapes differ, or a value is not finite.
    """
    values, group = np.asarray(values, dtype=float), np.asarray(group)
    if values.shape != group.shape or values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError("one finite value and one group per case")
    n = len(values)
    if n == 0:
        return Estimate(None, None, None, method="no cases", level=level)
    mean, names = float(values.mean()), np.unique(group)
    residuals = values - mean
    sums = np.array([float(residuals[group == g].sum()) for g in names])
    m = len(names)
    of_cases = float((residuals**2).sum()) / (n - 1) / n if n > 1 else 0.0
    of_groups = m / (m - 1) * float((sums**2).sum()) / n**2 if m > 1 else 0.0

    def ends(variance: float, k: int) -> tuple[float | None, float | None]:
        if k < LEAST_SEEDS or variance <= 0:
            return None, None
        half = float(special.stdtrit(k - 1, (1 + level) / 2)) * sqrt(variance)
        return mean - half, mean + half

    (set_low, set_high), (low, high) = ends(of_cases, n), ends(max(of_groups, of_cases), m)
    said = f"{m} model{'s' if m != 1 else ''}: an interval for models like these needs {LEAST_SEEDS}"
    few = said if m < LEAST_SEEDS else ""
    return Estimate(
        mean, low, high, set_low, set_high, n, m, method="t over cases, and over models", level=level, warning=few
    )
