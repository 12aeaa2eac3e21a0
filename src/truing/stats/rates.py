"""Shares and means over prompts, each with two intervals: for exactly these prompts, and for prompts like these.

Every prompt counts alike, however many answers it has. For exactly these prompts the answers are the only chance
(stratified sampling); for prompts like these the prompts are drawn too (clusters), which is 2-6 times less certain.

Sources: score interval, Wilson (1927); its lower limit near zero, Brown, Cai & DasGupta (2001, section 4.1.1);
effective numbers in it, Korn & Graubard (1998), Franco et al. (2019); differences, Newcombe (1998, method 10), Zou &
Donner (2008); logit t interval, Korn & Graubard (1998); degrees of freedom, Satterthwaite (1946), of a variance by the
kurtosis, O'Neill (2014); skewed means, Hall (1992). What covers how often: benchmarks/rate_coverage.py.
"""

from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from truing.stats.evidence import Array, Mask
from truing.types.verdicts import Estimate

Index = NDArray[np.int64]
Limits = tuple[float, float]

FEW_PROMPTS = 40
"""prompts under which intervals for prompts like these are marked"""
FEW_POSITIVE = 5
"""prompts with a hit (or, for shares over one half, with a miss) under which intervals are marked"""


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
    groups, out = _groups((hits, n))
    if not groups:
        return _nothing(out, level)
    a, prompts = groups[0], len(groups[0].n)
    like, method = None, "none from one prompt"
    if prompts > 1:
        like, method = score_interval(a.share, prompts, level), "score, one answer per prompt"
        if a.rarer >= FEW_POSITIVE:
            t = _logit_limits(a.shares, _quantile(a.shares, a.rarer, level))
            like = max(like[0], t[1]), min(like[1], t[2])
            method = f"logit t over prompts, at most {method}"
    return _estimate(
        a.share,
        score_interval(a.share, a.effective, level),
        like,
        n=int(a.n.sum()),
        clusters=prompts,
        left_out=out,
        method=f"these prompts: stratified score; prompts like these: {method}",
        level=level,
        warning=rough(prompts, a.rarer, "misses" if a.share > 0.5 else "hits"),
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
    groups, out = _groups((hits_a, n_a), (hits_b, n_b))
    if not groups:
        return _nothing(out, level)
    (a, b), prompts = groups, len(groups[0].n)
    gap = a.shares - b.shares
    differ = int((gap != 0).sum())
    like, method = None, "none from one prompt"
    if prompts > 1 and differ < FEW_POSITIVE:
        like, method = _newcombe(a, b, level, prompts), "Newcombe, one answer per prompt"
    elif prompts > 1:
        t, method = _quantile(gap, differ, level), "logit t of gain and loss over prompts"
        like = _gain_less_loss(np.maximum(gap, 0), np.maximum(-gap, 0), t)
        if prompts < FEW_PROMPTS:
            d, half = float(gap.mean()), t * float(gap.std(ddof=1)) / sqrt(prompts)
            like = min(like[0], d - half), max(like[1], d + half)
            method = "paired t over prompts, widened to logit t of gain and loss"
        like = max(-1.0, like[0]), min(1.0, like[1])
    return _estimate(
        a.share - b.share,
        _newcombe(a, b, level),
        like,
        n=int(a.n.sum() + b.n.sum()),
        clusters=prompts,
        left_out=out,
        method=f"these prompts: Newcombe, stratified; prompts like these: {method}",
        level=level,
        warning=rough(prompts, differ, "a difference"),
    )


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
    return _mean([(values, prompt)], prompts, level)


def mean_difference(
    values_a: Array, prompt_a: Index, values_b: Array, prompt_b: Index, prompts: int, *, level: float = 0.95
) -> Estimate:
    """Mean over prompts of the difference of prompt means, a minus b, paired by prompt; intervals as `mean_of`.

    Raises:
        ValueError: as `mean_of`.
    """
    return _mean([(values_a, prompt_a), (values_b, prompt_b)], prompts, level)


def rough(prompts: int, rarer: int, what: str) -> str:
    """Warning where prompts, or those with a hit, are few; empty otherwise."""
    said = []
    if prompts < FEW_PROMPTS:
        said.append(f"only {prompts} prompt{'s' if prompts != 1 else ''}")
    if rarer < FEW_POSITIVE:
        said.append(f"{rarer} prompt{'s' if rarer != 1 else ''} with {what}")
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
    flags, prompt = _by_prompt(flags, prompt, prompts)
    if not np.isin(flags, (0.0, 1.0)).all():
        raise ValueError("a flag is neither true nor false")
    hits = np.bincount(prompt, weights=flags, minlength=prompts).astype(float)
    return hits, np.bincount(prompt, minlength=prompts).astype(float)


def score_interval(share: float, n: float, level: float) -> Limits:
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


def limits_of_difference(a: tuple[float, ...], b: tuple[float, ...], r: float = 0.0) -> Limits:
    """Limits of a - b from (value, low, high) of each and their correlation r (Zou & Donner; Newcombe's at r = 0)."""
    (x, x_low, x_high), (y, y_low, y_high) = a, b

    def apart(p: float, q: float) -> float:
        return sqrt(max(p * p - 2 * r * p * q + q * q, 0.0))

    return x - y - apart(x - x_low, y_high - y), x - y + apart(x_high - x, y - y_low)


def _nothing(out: dict[str, int], level: float) -> Estimate:
    return Estimate(None, None, None, left_out=out, method="no answers", level=level)


def _estimate(value: float, of_set: Limits | None, like: Limits | None, **fields: Any) -> Estimate:
    """The record; nothing is more certain of prompts like these than of exactly these."""
    if of_set is not None and like is not None:
        like = min(like[0], of_set[0]), max(like[1], of_set[1])
    return Estimate(value, *(like or (None, None)), *(of_set or (None, None)), **fields)


def _left_out(used: Mask, sides: int) -> dict[str, int]:
    why = "prompts without answers" + (" on both sides" if sides > 1 else "")
    return {} if used.all() else {why: int((~used).sum())}


def _by_prompt(values: Array | Mask, prompt: Index, prompts: int) -> tuple[Array, Index]:
    """Both checked: one prompt index in range for every value."""
    numbers, prompt = np.asarray(values, dtype=float), np.asarray(prompt)
    if numbers.shape != prompt.shape:
        raise ValueError(f"{numbers.shape} values for {prompt.shape} prompt indices")
    if prompt.size and not np.issubdtype(prompt.dtype, np.integer):
        raise ValueError("prompt indices are whole numbers")
    if prompt.size and (prompt.min() < 0 or prompt.max() >= prompts):
        raise ValueError(f"prompt index {int(prompt.min())}..{int(prompt.max())} outside 0..{prompts - 1}")
    return numbers, prompt.astype(np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# Shares


class _Group:
    """Counts of prompts that all have answers."""

    def __init__(self, hits: Array, n: Array) -> None:
        self.n, self.shares = n, hits / n
        self.share = float(self.shares.mean())
        self.effective = _effective(hits, n)
        """answers that would give the same variance for exactly these prompts, were they all to one prompt"""
        self.rarer = int((hits < n).sum() if self.share > 0.5 else (hits > 0).sum())
        """prompts with a hit, or for shares over one half with a miss"""


def _groups(*sides: tuple[Array, Array]) -> tuple[list[_Group], dict[str, int]]:
    """One or two sides, (hits, answers) each, on the prompts that all of them have, and what was left out."""
    checked = [_checked(*side) for side in sides]
    sizes = [len(hits) for hits, _ in checked]
    if len(set(sizes)) > 1:
        raise ValueError(f"differences are paired by prompt, but there are {sizes[0]} and {sizes[1]} prompts")
    used = np.all([n > 0 for _, n in checked], axis=0)
    groups = [_Group(hits[used], n[used]) for hits, n in checked] if used.any() else []
    return groups, _left_out(used, len(sides))


def _checked(hits: Array, n: Array) -> tuple[Array, Array]:
    hits, n = np.asarray(hits, dtype=float), np.asarray(n, dtype=float)
    if hits.shape != n.shape or hits.ndim != 1:
        raise ValueError(f"hits and answers are one number per prompt each, got shapes {hits.shape} and {n.shape}")
    if not (np.isfinite(hits).all() and np.isfinite(n).all()):
        raise ValueError("a count is not finite")
    if (hits < 0).any() or (hits > n).any():
        raise ValueError("hits must lie between 0 and the number of answers")
    return hits, n


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


def _newcombe(a: _Group, b: _Group, level: float, n: int | None = None) -> Limits:
    """Newcombe's hybrid score interval for a - b, from n answers each; None: from their effective numbers."""
    own, other = ((x.share, *score_interval(x.share, n or x.effective, level)) for x in (a, b))
    low, high = limits_of_difference(own, other)
    return max(-1.0, low), min(1.0, high)


def _quantile(values: Array, carriers: int, level: float) -> float:
    """Two-sided quantile of t for the mean of values, [P], of which `carriers` differ from the rest.

    Its degrees of freedom are those of the variance of values, 2 s^4 / var(s^2), at most P - 1. var(s^2) is by the
    kurtosis (O'Neill 2014), so that a few large values leave few: about twice their number. A kurtosis seen on under
    40 prompts is too small, so there carriers less one is the most.
    """
    prompts, df = len(values), carriers - 1.0
    if values.min() < values.max():
        fourth = float(((values - values.mean()) ** 4).mean()) / float(values.var(ddof=1)) ** 2
        of_variance = min(2 * prompts / (fourth - (prompts - 3) / (prompts - 1)), prompts - 1.0)
        df = min(of_variance, df) if prompts < FEW_PROMPTS else of_variance
    return float(special.stdtrit(max(df, 1.0), (1 + level) / 2))


def _gain_less_loss(gain: Array, loss: Array, t: float) -> Limits:
    """Limits of mean(gain) - mean(loss), both [P] >= 0, from the limits of each (Zou & Donner 2008)."""
    g, s = _logit_limits(gain, t), _logit_limits(loss, t)
    spread = float(gain.std() * loss.std())
    r = float(((gain - g[0]) * (loss - s[0])).mean()) / spread if spread > 0 else 0.0
    return limits_of_difference(g, s, r)


def _logit_limits(values: Array, t: float) -> tuple[float, float, float]:
    """Mean of values in [0, 1] and its limits by the delta method on the logit; no width at 0 and 1."""
    mean = float(values.mean())
    if mean <= 0 or mean >= 1:
        return mean, mean, mean
    half = t * float(values.std(ddof=1)) / sqrt(len(values)) / (mean * (1 - mean))
    middle = float(special.logit(mean))
    return mean, float(special.expit(middle - half)), float(special.expit(middle + half))


# ---------------------------------------------------------------------------------------------------------------------
# Means


def _mean(sides: list[tuple[Array, Index]], prompts: int, level: float) -> Estimate:
    """Mean over prompts of one side, or of the first less the second; a side is (values, prompt), [N] each."""
    groups, missing = [], 0
    for values, prompt in sides:
        values, prompt = _by_prompt(values, prompt, prompts)
        there = ~np.isnan(values)
        if np.isinf(values).any():
            raise ValueError("a value is infinite")
        groups.append(_moments(values[there], prompt[there], prompts))
        missing += int((~there).sum())
    used = np.all([n > 0 for n, *_ in groups], axis=0)
    out = _left_out(used, len(sides)) | ({"answers without a value": missing} if missing else {})
    groups = [tuple(x[used] for x in group) for group in groups]
    means = groups[0][1] - (groups[1][1] if len(groups) > 1 else 0.0)
    if not len(means):
        return _nothing(out, level)
    value, q, prompts = float(means.mean()), (1 + level) / 2, len(means)
    variance, df = np.concatenate([_spread_within(*group) for group in groups]).T
    tiny, total = (max(abs(value), 1.0) * 1e-12) ** 2, float(variance.sum())
    of_set = like = None
    if total > tiny:
        half = float(special.stdtrit(total**2 / (variance**2 / df).sum(), q)) * sqrt(total)
        of_set = value - half, value + half
    few = ""
    if prompts > 1 and float(means.var(ddof=1)) / prompts > tiny:
        like = _skewed_limits(means, q)
        if _carriers(means) < FEW_POSITIVE - 1e-9:
            few = f"under {FEW_POSITIVE} prompts carry the spread: the interval for prompts like these is rough"
    warning = rough(prompts, FEW_POSITIVE, "") or few  # few prompts are said first
    if total <= tiny:
        warning = "values do not vary within prompts: no interval for exactly these prompts"
    return _estimate(
        value,
        of_set,
        like or (of_set if prompts > 1 else None),
        n=int(sum(n.sum() for n, *_ in groups)),
        clusters=prompts,
        left_out=out,
        method="t over prompt means, corrected for skewness; these prompts: t with variances within prompts",
        level=level,
        warning=warning,
    )


def _moments(values: Array, prompt: Index, prompts: int) -> tuple[Array, Array, Array]:
    """Number, mean and squared deviations of the values of each prompt, [prompts] each."""
    n = np.bincount(prompt, minlength=prompts).astype(float)
    mean = np.bincount(prompt, weights=values, minlength=prompts) / np.maximum(n, 1)
    squares = np.bincount(prompt, weights=(values - mean[prompt]) ** 2, minlength=prompts).astype(float)
    return n, mean, squares


def _spread_within(n: Array, mean: Array, squares: Array) -> Array:
    """Variance components of the mean over prompts from chance within prompts, and degrees of freedom, [K, 2]."""
    prompts, several = len(n), n > 1
    if not several.any():
        return np.array([[float(mean.var(ddof=1)) / prompts, prompts - 1.0] if prompts > 1 else [np.nan, 1.0]])
    freedom = n[several] - 1
    own = squares[several] / freedom
    parts = np.stack([own / n[several] / prompts**2, freedom], axis=1)
    single = int(prompts - several.sum())
    if not single:
        return parts
    # Those with one answer borrow the mean variance of the others, whose degrees of freedom are Satterthwaite's.
    total = float((own**2 / freedom).sum())
    df = float(own.sum() ** 2 / total) if total > 0 else float(freedom.sum())
    return np.vstack([parts, [single * float(own.mean()) / prompts**2, df]])


def _carriers(values: Array) -> float:
    """How many prompts stand apart, were values of two kinds with the kurtosis of these, [P], not all alike."""
    from_mean = values - values.mean()
    kurtosis = float((from_mean**4).mean()) / float((from_mean**2).mean()) ** 2
    return len(values) * (1 - sqrt(max(1 - 4 / (kurtosis + 3), 0.0))) / 2


def _skewed_limits(values: Array, q: float) -> Limits:
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
