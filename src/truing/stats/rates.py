"""Shares and means over prompts, each with two intervals: for exactly these prompts, and for prompts like these.

Every prompt counts alike, however many answers it has. For exactly these prompts the answers are the only chance
(stratified sampling); for prompts like these the prompts are drawn too (clusters), which is 2-6 times less certain.

Sources: score interval, Wilson (1927); its lower limit near zero, Brown, Cai & DasGupta (2001, section 4.1.1);
effective numbers in it, Korn & Graubard (1998), Franco et al. (2019); differences, Newcombe (1998, method 10), Zou &
Donner (2008); logit t interval, Korn & Graubard (1998); degrees of freedom, Satterthwaite (1946), of a variance by the
kurtosis, O'Neill (2014); skewed means, Hall (1992). What covers how often: benchmarks/rate_coverage.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import special

from truing.stats.evidence import Array, Mask
from truing.types.verdicts import Estimate

Index = NDArray[np.int64]

FEW_PROMPTS = 40
"""prompts under which intervals for prompts like these are marked"""
FEW_POSITIVE = 5
"""prompts with a hit (or, for shares over one half, with a miss) under which intervals are marked"""
LEFT_OUT = "prompts without answers"
_NO_VALUE = "answers without a value"


def share_of(hits: Array, n: Array, *, level: float = 0.95) -> Estimate:
    """Mean over prompts of hits / n, with both intervals.

    For exactly these prompts: Wilson's interval at the effective number 1 / sum(w^2 / n_p), which is conservative since
    prompts differ; its limits near 0 and 1 are widened to exact one-sided ones. For prompts like these: t on the logit
    of the mean with the variance between prompts and the degrees of freedom its kurtosis leaves it (under 40 prompts
    at most prompts with a hit, or a miss, less one); never wider than the score interval that takes all answers of a
    prompt for one, which is used alone where fewer than 5 prompts have a hit (a miss), and never inside the interval
    for exactly these prompts.

    Args:
        hits: [P] answers that count, per prompt.
        n: [P] answers per prompt; a prompt with none is left out and counted.
        level: nominal coverage.

    Raises:
        ValueError: shapes differ, a count is negative or not finite, or hits exceed n.
    """
    hits, n, used = _checked(hits, n)
    out = {LEFT_OUT: int((~used).sum())} if not used.all() else {}
    if not used.any():
        return Estimate(None, None, None, left_out=out, method="no answers", level=level)
    group = _Group.of(hits[used], n[used])
    set_low, set_high = score_interval(group.share, group.effective, level)
    low, high, method = _cluster_share(group, level)
    if low is not None and high is not None:
        low, high = min(low, set_low), max(high, set_high)
    return Estimate(
        group.share,
        low,
        high,
        set_low,
        set_high,
        n=int(group.n.sum()),
        clusters=len(group.n),
        left_out=out,
        method=f"these prompts: stratified score; prompts like these: {method}",
        level=level,
        warning=rough(len(group.n), group.rarer, "misses" if group.share > 0.5 else "hits"),
    )


def share_difference(hits_a: Array, n_a: Array, hits_b: Array, n_b: Array, *, level: float = 0.95) -> Estimate:
    """Mean over prompts of the difference of two shares, a minus b, paired by prompt, with both intervals.

    Only prompts with answers on both sides are used. For exactly these prompts: Newcombe's hybrid of the two stratified
    score intervals. For prompts like these: the limits that logit t intervals of the mean gain and the mean loss give
    together, paired by prompt (a few prompts carry an excess; plain t missed its upper end in 8-12 % of simulated
    runs), degrees of freedom as in `share_of`; under 40 prompts never inside the paired t interval; where fewer than 5
    prompts differ, Newcombe's hybrid with all answers of a prompt taken for one. Never inside the interval for exactly
    these prompts.

    Raises:
        ValueError: as `share_of`, or the two sides have different numbers of prompts.
    """
    groups, out = _paired(hits_a, n_a, hits_b, n_b)
    if groups is None:
        return Estimate(None, None, None, left_out=out, method="no answers", level=level)
    a, b = groups
    set_low, set_high = _newcombe(a, b, level)
    low, high, method = _cluster_difference(a, b, level)
    if low is not None and high is not None:
        low, high = min(low, set_low), max(high, set_high)
    return Estimate(
        a.share - b.share,
        low,
        high,
        set_low,
        set_high,
        n=int(a.n.sum() + b.n.sum()),
        clusters=len(a.n),
        left_out=out,
        method=f"these prompts: Newcombe, stratified; prompts like these: {method}",
        level=level,
        warning=rough(len(a.n), int((a.shares != b.shares).sum()), "a difference"),
    )


def set_limits(
    hits_a: Array, n_a: Array, hits_b: Array, n_b: Array
) -> tuple[float, Callable[[float], tuple[float, float]]] | None:
    """The difference of `share_difference` and its interval for exactly these prompts as a function of the level.

    None without shared prompts.

    Raises:
        ValueError: as `share_difference`.
    """
    groups, _ = _paired(hits_a, n_a, hits_b, n_b)
    if groups is None:
        return None
    a, b = groups
    return a.share - b.share, lambda level: _newcombe(a, b, level)


def mean_of(values: Array, prompt: Index, prompts: int, *, level: float = 0.95) -> Estimate:
    """Mean over prompts of the prompts' mean values, with both intervals.

    For exactly these prompts: t with the variances within prompts (one answer to a prompt: the others' mean variance;
    one answer to every prompt: the spread between prompts, which is conservative), Satterthwaite's degrees of freedom.
    For prompts like these: t over prompt means, transformed by their skewness (a few prompts with low scores pull the
    mean one way; plain t missed that end in 5-14 % of simulated runs), under 40 prompts never inside plain t, and never
    inside the former; warned where under 5 prompts carry the spread. That cannot be seen where values so rare that
    under 5 prompts are expected to have one did not come up at all. Values without any spread give no interval.

    Args:
        values: [N] in any unit; NaN is left out and counted.
        prompt: [N] index of the prompt, 0..prompts-1.
        prompts: number of prompts.
        level: nominal coverage.

    Raises:
        ValueError: shapes differ, an infinite value, or a prompt index out of range.
    """
    group, missing = _moments(values, prompt, prompts)
    used = group.n > 0
    out = {}
    if not used.all():
        out[LEFT_OUT] = int((~used).sum())
    if missing:
        out[_NO_VALUE] = missing
    return _mean_estimate(group.mean[used], _spread_within(group.at(used)), int(group.n.sum()), out, level)


def mean_difference(
    values_a: Array, prompt_a: Index, values_b: Array, prompt_b: Index, prompts: int, *, level: float = 0.95
) -> Estimate:
    """Mean over prompts of the difference of prompt means, a minus b, paired by prompt; intervals as `mean_of`.

    Raises:
        ValueError: as `mean_of`.
    """
    a, missing_a = _moments(values_a, prompt_a, prompts)
    b, missing_b = _moments(values_b, prompt_b, prompts)
    used = (a.n > 0) & (b.n > 0)
    out = {}
    if not used.all():
        out["prompts without answers on both sides"] = int((~used).sum())
    if missing_a + missing_b:
        out[_NO_VALUE] = missing_a + missing_b
    n = int(a.n[used].sum() + b.n[used].sum())
    within = (*_spread_within(a.at(used)), *_spread_within(b.at(used)))
    return _mean_estimate(a.mean[used] - b.mean[used], within, n, out, level)


def cluster_bootstrap(
    hits: Array, n: Array, *, resamples: int = 10_000, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the pooled share sum(hits) / sum(n), prompts resampled whole.

    What published tables use. With few prompts or few hits it is too narrow (0.52 coverage at 8 prompts and 2 %), and
    where all prompts are alike it has no width: it is for comparison with them only. Source: Efron & Tibshirani (1993,
    chapter 13); clusters, Davison & Hinkley (1997, section 3.8).

    Raises:
        ValueError: as `share_of`, or no prompt has an answer.
    """
    hits, n, used = _checked(hits, n)
    if not used.any():
        raise ValueError("a bootstrap needs at least one answer")
    prompts = int(used.sum())
    weights = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    shares = (weights @ hits[used]) / (weights @ n[used])
    low, high = np.quantile(shares, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def rough(prompts: int, rarer: int, what: str) -> str:
    """Warning where prompts, or those with a hit, are few; empty otherwise."""
    said = []
    if prompts < FEW_PROMPTS:
        said.append(f"only {prompts} prompt{'s' if prompts != 1 else ''}")
    if rarer < FEW_POSITIVE:
        said.append(f"{rarer} prompts with {what}" if rarer != 1 else f"1 prompt with {what}")
    return f"{' and '.join(said)}: the interval for prompts like these is rough" if said else ""


def counts(flags: Array | Mask, prompt: Index, prompts: int) -> tuple[Array, Array]:
    """Hits and answers per prompt, both [prompts], from one flag per answer.

    Args:
        flags: [N] true where an answer counts.
        prompt: [N] index of the prompt, 0..prompts-1.
        prompts: number of prompts.

    Raises:
        ValueError: shapes differ, a prompt index out of range, or a flag that is neither 0 nor 1.
    """
    flags, prompt = np.asarray(flags, dtype=float), _indices(prompt, prompts)
    if flags.shape != prompt.shape:
        raise ValueError(f"{flags.shape} flags for {prompt.shape} prompt indices")
    if not np.isin(flags, (0.0, 1.0)).all():
        raise ValueError("a flag is neither true nor false")
    hits = np.bincount(prompt, weights=flags, minlength=prompts).astype(float)
    return hits, np.bincount(prompt, minlength=prompts).astype(float)


def _checked(hits: Array, n: Array) -> tuple[Array, Array, Mask]:
    """Both as floats, and which prompts have answers."""
    hits, n = np.asarray(hits, dtype=float), np.asarray(n, dtype=float)
    if hits.shape != n.shape or hits.ndim != 1:
        raise ValueError(f"hits and answers are one number per prompt each, got shapes {hits.shape} and {n.shape}")
    if not (np.isfinite(hits).all() and np.isfinite(n).all()):
        raise ValueError("a count is not finite")
    if (hits < 0).any() or (hits > n).any():
        raise ValueError("hits must lie between 0 and the number of answers")
    return hits, n, np.asarray(n > 0)


def _indices(prompt: Index, prompts: int) -> Index:
    prompt = np.asarray(prompt)
    if prompt.size == 0:
        return prompt.astype(np.int64)
    if not np.issubdtype(prompt.dtype, np.integer):
        raise ValueError("prompt indices are whole numbers")
    if prompt.min() < 0 or prompt.max() >= prompts:
        raise ValueError(f"prompt index {int(prompt.min())}..{int(prompt.max())} outside 0..{prompts - 1}")
    return prompt.astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Group:
    """Counts of prompts that all have answers."""

    hits: Array
    n: Array
    shares: Array
    share: float
    effective: float
    """answers that would give the same variance for exactly these prompts, were they all to one prompt"""

    @classmethod
    def of(cls, hits: Array, n: Array) -> "_Group":
        shares = hits / n
        return cls(hits, n, shares, float(shares.mean()), _effective(hits, n))

    @property
    def rarer(self) -> int:
        """Prompts with a hit, or for shares over one half with a miss."""
        return int((self.hits < self.n).sum() if self.share > 0.5 else (self.hits > 0).sum())


def _paired(
    hits_a: Array, n_a: Array, hits_b: Array, n_b: Array
) -> tuple[tuple[_Group, _Group] | None, dict[str, int]]:
    """Both sides on the prompts with answers on both sides, and what was left out."""
    hits_a, n_a, used_a = _checked(hits_a, n_a)
    hits_b, n_b, used_b = _checked(hits_b, n_b)
    if hits_a.shape != hits_b.shape:
        raise ValueError(f"differences are paired by prompt, but there are {len(hits_a)} and {len(hits_b)} prompts")
    used = used_a & used_b
    out = {"prompts without answers on both sides": int((~used).sum())} if not used.all() else {}
    if not used.any():
        return None, out
    return (_Group.of(hits_a[used], n_a[used]), _Group.of(hits_b[used], n_b[used])), out


def _effective(hits: Array, n: Array) -> float:
    """Effective number of answers for exactly these prompts.

    With equally many answers p(1 - p) / this bounds the variance, as prompts differ (Jensen). With unequally many it
    does not where the prompts with few have the hits; so there the variance is summed over up to four groups of
    prompts by number of answers, each with its own share, and the larger variance counts. Prompts with as many answers
    are never parted, so that the order of prompts does not matter.
    """
    prompts = len(n)
    nominal = prompts**2 / float((1 / n).sum())
    share = float((hits / n).mean())
    if n.min() == n.max() or share in (0.0, 1.0):
        return nominal
    variance = 0.0
    edges = [0.0]
    for sampled in np.unique(n):  # a group ends once it holds a quarter of the prompts; what is left joins the last
        if ((n > edges[-1]) & (n <= sampled)).sum() >= prompts / 4:
            edges.append(float(sampled))
    edges[-1] = np.inf
    for low, high in pairwise(edges):
        g = (n > low) & (n <= high)
        p = float((hits[g] / n[g]).mean())
        variance += p * (1 - p) * float((1 / n[g]).sum()) / prompts**2
    return min(nominal, share * (1 - share) / variance) if variance > 0 else nominal


def score_interval(share: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's interval for a share of n (effective) answers, limits near 0 and 1 widened to exact one-sided ones.

    Wilson's lower limit is too high at one to three hits (coverage down to 0.84); the limit that leaves 1 - level below
    it is not (Brown, Cai & DasGupta 2001).
    """
    z = float(special.ndtri((1 + level) / 2))
    scale = 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * sqrt(max(share * (1 - share), 0.0) / n + z * z / (4 * n * n))
    hits, misses = share * n, (1 - share) * n
    low = min(middle - half, float(special.betaincinv(hits, misses + 1, 1 - level))) if hits > 0 else 0.0
    high = max(middle + half, float(special.betaincinv(hits + 1, misses, level))) if misses > 0 else 1.0
    return max(0.0, low), min(1.0, high)


def _cluster_share(group: _Group, level: float) -> tuple[float | None, float | None, str]:
    """Interval for prompts like these."""
    prompts = len(group.n)
    if prompts < 2:
        return None, None, "none from one prompt"
    low, high = score_interval(group.share, prompts, level)
    whole = "score, one answer per prompt"
    if group.rarer < FEW_POSITIVE:
        return low, high, whole
    _, t_low, t_high = _logit_limits(group.shares, _quantile(group.shares, group.rarer, level))
    return max(low, t_low), min(high, t_high), f"logit t over prompts, at most {whole}"


def _newcombe(a: _Group, b: _Group, level: float, whole: bool = False) -> tuple[float, float]:
    """Newcombe's hybrid score interval for a - b; `whole` takes all answers of a prompt for one."""
    low_a, high_a = score_interval(a.share, len(a.n) if whole else a.effective, level)
    low_b, high_b = score_interval(b.share, len(b.n) if whole else b.effective, level)
    d = a.share - b.share
    low = d - sqrt((a.share - low_a) ** 2 + (high_b - b.share) ** 2)
    high = d + sqrt((high_a - a.share) ** 2 + (b.share - low_b) ** 2)
    return max(-1.0, low), min(1.0, high)


def _cluster_difference(a: _Group, b: _Group, level: float) -> tuple[float | None, float | None, str]:
    """Interval of a - b for prompts like these."""
    prompts = len(a.n)
    if prompts < 2:
        return None, None, "none from one prompt"
    gap = a.shares - b.shares
    differ = int((gap != 0).sum())
    if differ < FEW_POSITIVE:
        low, high = _newcombe(a, b, level, whole=True)
        return low, high, "Newcombe, one answer per prompt"
    t = _quantile(gap, differ, level)
    low, high = _gain_less_loss(np.maximum(gap, 0), np.maximum(-gap, 0), t)
    if prompts >= FEW_PROMPTS:
        return max(-1.0, low), min(1.0, high), "logit t of gain and loss over prompts"
    d, half = float(gap.mean()), t * float(gap.std(ddof=1)) / sqrt(prompts)
    method = "paired t over prompts, widened to logit t of gain and loss"
    return max(-1.0, min(low, d - half)), min(1.0, max(high, d + half)), method


def _quantile(values: Array, carriers: int, level: float) -> float:
    """Two-sided quantile of t for the mean of values, [P], of which `carriers` differ from the rest.

    A kurtosis seen on under 40 prompts is too small, so there carriers less one is the most degrees of freedom.
    """
    df = _freedom(values) if values.min() < values.max() else carriers - 1.0
    df = min(df, carriers - 1.0) if len(values) < FEW_PROMPTS else df
    return float(special.stdtrit(max(df, 1.0), (1 + level) / 2))


def _freedom(values: Array) -> float:
    """Degrees of freedom of the variance of values, [P], not all alike: 2 s^4 / var(s^2), at most P - 1.

    var(s^2) is by the kurtosis (O'Neill 2014), so that a few large values leave few: about twice their number.
    """
    prompts = len(values)
    fourth = float(((values - values.mean()) ** 4).mean()) / float(values.var(ddof=1)) ** 2
    return min(2 * prompts / (fourth - (prompts - 3) / (prompts - 1)), prompts - 1.0)


def _carriers(values: Array) -> float:
    """How many prompts stand apart, were values of two kinds with the kurtosis of these, [P], not all alike."""
    from_mean = values - values.mean()
    kurtosis = float((from_mean**4).mean()) / float((from_mean**2).mean()) ** 2
    return len(values) * (1 - sqrt(max(1 - 4 / (kurtosis + 3), 0.0))) / 2


def _skewed_limits(values: Array, q: float) -> tuple[float, float]:
    """Limits of the mean of values, [P >= 2], by t under Hall's (1992) cubic transformation; q is the upper quantile.

    With c = skewness / sqrt(P), T + c T^2 / 3 + c^2 T^3 / 27 + c / 6 is nearer to a t variable than T is.
    """
    prompts, mean = len(values), float(values.mean())
    error, t = float(values.std(ddof=1)) / sqrt(prompts), float(special.stdtrit(prompts - 1, q))
    c = float(((values - mean) ** 3).mean()) / float(values.std()) ** 3 / sqrt(prompts)
    if abs(c) < 1e-6:
        return mean - t * error, mean + t * error
    up, down = (3 / c * (float(np.cbrt(1 + c * (x - c / 6))) - 1) for x in (t, -t))
    if prompts < FEW_PROMPTS:  # a skewness seen on so few is not to be trusted with a shorter end
        up, down = max(up, t), min(down, -t)
    return mean - max(up, 0.0) * error, mean - min(down, 0.0) * error


def _gain_less_loss(gain: Array, loss: Array, t: float) -> tuple[float, float]:
    """Limits of mean(gain) - mean(loss), both [P] >= 0, from the limits of each (Zou & Donner 2008)."""
    g, g_low, g_high = _logit_limits(gain, t)
    s, s_low, s_high = _logit_limits(loss, t)
    spread = float(gain.std() * loss.std())
    r = float(((gain - g) * (loss - s)).mean()) / spread if spread > 0 else 0.0
    below, above = (g - g_low, s_high - s), (g_high - g, s - s_low)
    low = g - s - sqrt(max(below[0] ** 2 - 2 * r * below[0] * below[1] + below[1] ** 2, 0.0))
    high = g - s + sqrt(max(above[0] ** 2 - 2 * r * above[0] * above[1] + above[1] ** 2, 0.0))
    return low, high


def _logit_limits(values: Array, t: float) -> tuple[float, float, float]:
    """Mean of values in [0, 1] and its limits by the delta method on the logit; no width at 0 and 1."""
    mean = float(values.mean())
    if mean <= 0 or mean >= 1:
        return mean, mean, mean
    half = t * float(values.std(ddof=1)) / sqrt(len(values)) / (mean * (1 - mean))
    middle = float(special.logit(mean))
    return mean, float(special.expit(middle - half)), float(special.expit(middle + half))


@dataclass(frozen=True, slots=True)
class _Moments:
    """Number, mean and squared deviations of the values of each prompt."""

    n: Array
    mean: Array
    squares: Array

    def at(self, used: Mask) -> "_Moments":
        return _Moments(self.n[used], self.mean[used], self.squares[used])


def _moments(values: Array, prompt: Index, prompts: int) -> tuple[_Moments, int]:
    """Moments per prompt, [prompts], and how many values are missing."""
    values, prompt = np.asarray(values, dtype=float), _indices(prompt, prompts)
    if values.shape != prompt.shape:
        raise ValueError(f"{values.shape} values for {prompt.shape} prompt indices")
    there = ~np.isnan(values)
    values, prompt = values[there], prompt[there]
    if not np.isfinite(values).all():
        raise ValueError("a value is infinite")
    n = np.bincount(prompt, minlength=prompts).astype(float)
    mean = np.bincount(prompt, weights=values, minlength=prompts) / np.maximum(n, 1)
    squares = np.bincount(prompt, weights=(values - mean[prompt]) ** 2, minlength=prompts).astype(float)
    return _Moments(n, mean, squares), int((~there).sum())


def _spread_within(group: _Moments) -> tuple[tuple[float, float], ...]:
    """Variance components of the mean over prompts from chance within prompts, as (variance, degrees of freedom)."""
    prompts, several = len(group.n), group.n > 1
    single = int(prompts - several.sum())
    if not several.any():
        if prompts < 2:
            return ((float("nan"), 1.0),)
        return ((float(group.mean.var(ddof=1)) / prompts, prompts - 1.0),)
    own = group.squares[several] / (group.n[several] - 1)
    parts = [
        (float(v), float(k)) for v, k in zip(own / group.n[several] / prompts**2, group.n[several] - 1, strict=True)
    ]
    if single:
        # Those with one answer borrow the mean variance of the others, whose degrees of freedom are Satterthwaite's.
        total = float((own**2 / (group.n[several] - 1)).sum())
        df = float(own.sum() ** 2 / total) if total > 0 else float((group.n[several] - 1).sum())
        parts.append((single * float(own.mean()) / prompts**2, df))
    return tuple(parts)


def _mean_estimate(
    means: Array, within: tuple[tuple[float, float], ...], n: int, out: dict[str, int], level: float
) -> Estimate:
    """The record of a mean over prompts."""
    prompts = len(means)
    if prompts == 0:
        return Estimate(None, None, None, left_out=out, method="no answers", level=level)
    value = float(means.mean())
    q = (1 + level) / 2
    variance, df = np.array(within).T
    set_low = set_high = low = high = None
    tiny = (max(abs(value), 1.0) * 1e-12) ** 2
    total = float(variance.sum())
    if total > tiny:
        half = float(special.stdtrit(total**2 / (variance**2 / df).sum(), q)) * sqrt(total)
        set_low, set_high = value - half, value + half
    few = ""
    if prompts > 1 and float(means.var(ddof=1)) / prompts > tiny:
        low, high = _skewed_limits(means, q)
        if _carriers(means) < FEW_POSITIVE - 1e-9:
            few = f"under {FEW_POSITIVE} prompts carry the spread: the interval for prompts like these is rough"
    if prompts > 1 and set_low is not None and set_high is not None:
        low, high = min(set_low, set_low if low is None else low), max(set_high, set_high if high is None else high)
    warning = rough(prompts, FEW_POSITIVE, "") or few  # few prompts are said first
    if total <= tiny:
        warning = "values do not vary within prompts: no interval for exactly these prompts"
    method = "t over prompt means, corrected for skewness; these prompts: t with variances within prompts"
    return Estimate(value, low, high, set_low, set_high, n, prompts, out, method=method, level=level, warning=warning)
