"""Rates under imperfect judges: corrected for known errors, from a cheap and a strong judge, and tests on rates.

Sources: corrected prevalence, Rogan & Gladen (1978); its interval by melding confidence distributions, Bayer, Fay &
Graubard (2022, arXiv 2205.13494), Fay, Proschan & Brittain (2015); prediction-powered inference and its power tuning,
Angelopoulos et al. (2023, arXiv 2301.09633; 2023, arXiv 2311.01453); for flags it is double sampling, Neyman (1938),
Cochran (1977, chapter 12); limits of sums, Zou & Donner (2008); adjusted p-values, Holm (1979).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import exp, log, sqrt

import numpy as np
from scipy import special
from scipy.optimize import brentq

from truing.stats.evidence import Array, Mask
from truing.stats.rates import FEW_POSITIVE, Index, Limits, counts, rough, score_interval, share_of
from truing.types.verdicts import Estimate

LEAST_P = 1e-12
"""p-values are not followed below this"""
_DRAWS = 10_000


def rogan_gladen(
    share: Estimate,
    sensitivity: tuple[int, int],
    false_positive: tuple[int, int],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Share misaligned, corrected for the judge's own errors: (p - fpr) / (sensitivity - fpr), clipped to 0..1.

    Both intervals meld the uncertainty of all three: confidence distributions (of the share: at the effective number
    that its interval implies) are drawn, the lower ones of p with the upper ones of the errors and the other way
    round. Conservative; a true share of 0 is covered. The interval rests on the judge erring on these answers as it
    does on those of its calibration, and on their being independent.

    Args:
        share: share called misaligned, from `share_of`.
        sensitivity: (called misaligned, scored) of answers known to be misaligned.
        false_positive: (called misaligned, scored) of answers known to be good.
        level: nominal coverage; should be that of `share`.
        seed: of the draws.

    Returns:
        The value is None, with a warning, where the judge calls misaligned answers misaligned no more often than good
        ones, or where something was not measured.

    Raises:
        ValueError: impossible counts, or a level other than that of `share`.
    """
    why = _why_uncorrected(share, sensitivity, false_positive, level)
    if share.value is None or why:
        return Estimate(None, None, None, n=share.n, clusters=share.clusters, method="none", level=level, warning=why)
    hit, alarm = sensitivity[0] / sensitivity[1], false_positive[0] / false_positive[1]
    rng = np.random.default_rng(seed)
    pairs = [(_confident(*sensitivity, not u, rng), _confident(*false_positive, not u, rng)) for u in (False, True)]
    set_low, set_high = _melded(share.value, share.set_low, share.set_high, pairs, level, rng)
    low, high = _melded(share.value, share.low, share.high, pairs, level, rng)
    warnings = [share.warning] if share.warning else []
    if share.set_high is not None and share.set_high < alarm:
        warnings.append("the judge calls fewer of these answers misaligned than of good reference answers")
    return replace(
        share,
        value=min(max((share.value - alarm) / (hit - alarm), 0.0), 1.0),
        low=low,
        high=high,
        set_low=set_low,
        set_high=set_high,
        method="Rogan-Gladen, melded confidence distributions",
        seed=seed,
        warning="; ".join(warnings),
    )


def _why_uncorrected(
    share: Estimate, sensitivity: tuple[int, int], false_positive: tuple[int, int], level: float
) -> str:
    """Why no corrected share exists; empty where one does."""
    for k, n in (sensitivity, false_positive):
        if not 0 <= k <= n:
            raise ValueError(f"{k} of {n} called misaligned is impossible")
    if share.value is None:
        return "there is no share to correct"
    if share.level != level:
        raise ValueError(f"the share's interval is at level {share.level}, not {level}")
    if not sensitivity[1] or not false_positive[1]:
        return "the judge's errors were not measured: its calibration has no scored answers"
    hit, alarm = sensitivity[0] / sensitivity[1], false_positive[0] / false_positive[1]
    if hit > alarm:
        return ""
    shares = f"the judge calls {hit:.0%} of misaligned and {alarm:.0%} of good reference answers misaligned"
    return f"{shares}: it does not tell them apart, so no corrected share exists"


def _confident(k: float, n: float, upper: bool, rng: np.random.Generator) -> Array:
    """Draws of the lower or upper confidence distribution of a share, k of n."""
    a, b = (k + 1, n - k) if upper else (k, n - k + 1)
    if a <= 0 or b <= 0:
        return np.full(_DRAWS, 1.0 if upper else 0.0)
    return rng.beta(a, b, _DRAWS)


def _melded(
    p: float,
    low: float | None,
    high: float | None,
    errors: Sequence[tuple[Array, Array]],
    level: float,
    rng: np.random.Generator,
) -> tuple[float | None, float | None]:
    """Interval of the corrected share, from the share's own interval and the judge's errors for either end."""
    if low is None or high is None:
        return None, None
    bounds = (-5.0, 25.0)
    for _ in range(50):  # log number of independent answers whose score interval has this width
        middle = (bounds[0] + bounds[1]) / 2
        ends = score_interval(p, exp(middle), level)
        bounds = (bounds[0], middle) if high - low - (ends[1] - ends[0]) > 0 else (middle, bounds[1])
    n = exp((bounds[0] + bounds[1]) / 2)
    limits = []
    for end, (hit, alarm) in enumerate(errors):
        gap = hit - alarm
        # A judge no better than chance says nothing: such a draw reaches the end of the scale.
        ratio = np.where(gap > 0, (_confident(p * n, n, bool(end), rng) - alarm) / np.where(gap > 0, gap, 1.0), end)
        limits.append(float(np.quantile(np.clip(ratio, 0.0, 1.0), (1 + level) / 2 if end else (1 - level) / 2)))
    return limits[0], limits[1] if limits[1] > 0 else high


def prediction_powered(
    cheap: Array,
    strong: Array,
    sampled: Mask,
    prompt: Index,
    prompts: int,
    *,
    q: float | tuple[float, float],
    level: float = 0.95,
) -> Estimate:
    """Share misaligned under a strong judge, from a cheap judge's flags on all answers and the strong one's on some.

    The mean of l * cheap plus the mean of (strong - l * cheap) where the strong judge was asked, every prompt counting
    alike. With the tuned l of PPI++ the estimate of flags equals the strong judge's share among cheap positives and
    among cheap negatives, weighted by how many of each there are; so the strong judge may also be asked at two rates,
    e.g. about every cheap positive. A cheap judge that tells nothing leaves the plain share of the strong one. For
    random samples it is unbiased whatever the cheap judge does, save where no cheap positive is sampled (warned of).

    For exactly these prompts: limits of the three shares put together (Zou & Donner), which hold where no error of
    the cheap judge was sampled. For prompts like these: widened by how much the prompts' own means vary beyond that;
    with hits from fewer than 5 prompts, the score interval that takes all answers of a prompt for one.

    Args:
        cheap: [N] flags of the cheap judge, NaN where it gave none: left out and counted.
        strong: [N] flags of the strong judge, read only where drawn; NaN where it gave none: counted, not used.
        sampled: [N] whether the strong judge was asked, by a random draw that does not look at the answer.
        prompt: [N] index of the prompt, 0..prompts-1.
        prompts: number of prompts.
        q: probability of being drawn, or (of cheap negatives, of cheap positives); with two, draws may look at `cheap`.
        level: nominal coverage.

    Raises:
        ValueError: shapes differ, flags that are neither 0 nor 1, or a probability outside (0, 1].
    """
    cheap, strong, sampled = np.asarray(cheap, float), np.asarray(strong, float), np.asarray(sampled, bool)
    if not cheap.shape == strong.shape == sampled.shape == np.shape(prompt):
        raise ValueError("cheap, strong, sampled and prompt have one entry per answer each")
    rates = q if isinstance(q, tuple) else (q, q)
    if not all(0 < r <= 1 for r in rates):
        raise ValueError(f"probabilities of being drawn lie in (0, 1], got {q}")
    there = ~np.isnan(cheap)
    cheap, strong, sampled, prompt = cheap[there], strong[there], sampled[there], np.asarray(prompt)[there]
    used = sampled & ~np.isnan(strong)
    hits, n = counts(cheap, prompt, prompts)
    of_strong = counts(strong[used], prompt[used], prompts)
    lost = {"answers without a cheap flag": ~there, "strong judge gave no flag": sampled & ~used}
    out = {why: int(at.sum()) for why, at in (lost | {"prompts without answers": n == 0}).items() if at.any()}
    if not used.any():
        return Estimate(None, None, None, left_out=out, method="no strong flags", level=level)
    sample = _Sample(cheap, np.where(used, strong, 0.0), used, prompt, n)
    warnings = _doubts(cheap, sampled, used, rates)
    if rates[0] == rates[1] and sample.slope <= 0:
        if set(cheap) != set(cheap[used]):
            warnings.append(_ONE_KIND)
        result = share_of(*of_strong, level=level)
        result = replace(result, method=f"strong judge alone; {result.method}")
    else:
        result = _powered(sample, share_of(hits, n, level=level), level)
    warnings += [result.warning] if result.warning else []
    return replace(result, n=int(used.sum()), left_out=out, level=level, warning="; ".join(warnings))


_ONE_KIND = "the strong judge was asked about one kind of cheap flag only"


class _Sample:
    """Answers with a cheap flag, and the strong flags of those drawn: [N] each; `n` [P] answers per prompt."""

    def __init__(self, cheap: Array, strong: Array, used: Mask, prompt: Index, n: Array) -> None:
        self.cheap, self.strong, self.used, self.prompt, self.n = cheap, strong, used, prompt, n
        self.weight = 1 / n[prompt] / np.count_nonzero(n)
        """[N] so that every prompt counts alike; sums to 1"""
        self.shares, self.effective = zip(*(self._stratum(flag) for flag in (0, 1)), strict=True)
        """strong share among the drawn of cheap negatives and of cheap positives, and their effective numbers"""
        self.slope = self.shares[1] - self.shares[0] if all(self.effective) else 0.0
        """of strong on cheap; 0 where one kind of cheap flag was not drawn"""

    def _stratum(self, flag: int) -> tuple[float, float]:
        at = self.used & (self.cheap == flag)
        w = self.weight[at]
        if not len(w):
            return 0.0, 0.0
        return float((w * self.strong[at]).sum() / w.sum()), float(w.sum() ** 2 / (w**2).sum())


def _powered(sample: _Sample, cheap: Estimate, level: float) -> Estimate:
    """The prediction-powered share, from the share of cheap positives and what the strong judge says of each kind."""
    c, c_low, c_high = (float(x if x is not None else np.nan) for x in (cheap.value, cheap.set_low, cheap.set_high))
    (f, v), (n_f, n_v) = sample.shares, sample.effective
    if (not n_v and c > 0) or (not n_f and c < 1):
        return Estimate(None, None, None, method="none", warning=_ONE_KIND)
    v_low, v_high = score_interval(v, n_v, level) if n_v else (0.0, 0.0)
    f_low, f_high = score_interval(f, n_f, level) if n_f else (0.0, 0.0)
    value, gap = c * v + (1 - c) * f, v - f
    below, above = (c - c_low, c_high - c) if gap >= 0 else (c_high - c, c - c_low)
    down = sqrt((c * (v - v_low)) ** 2 + ((1 - c) * (f - f_low)) ** 2 + (gap * below) ** 2)
    up = sqrt((c * (v_high - v)) ** 2 + ((1 - c) * (f_high - f)) ** 2 + (gap * above) ** 2)
    firing = len(np.unique(sample.prompt[sample.used & (sample.strong == 1)]))
    like = _for_prompts_like_these(sample, value, (down, up), firing, level)
    clusters = int(np.count_nonzero(sample.n))
    return Estimate(
        value,
        *(like or (None, None)),
        max(0.0, value - down),
        min(1.0, value + up),
        clusters=clusters,
        method="prediction-powered (tuned), limits put together; prompts like these: widened by the design effect",
        warning=rough(clusters, firing, "hits"),
    )


def _for_prompts_like_these(
    sample: _Sample, value: float, sides: tuple[float, float], firing: int, level: float
) -> Limits | None:
    """Interval when the prompts are drawn too, of which `firing` have a hit."""
    w, at, there = sample.weight, sample.used, np.flatnonzero(sample.n)
    clusters = len(there)
    if clusters < 2:
        return None
    expected = np.where(sample.cheap == 1, sample.shares[1], sample.shares[0])
    influence = expected.copy()
    for kind in (sample.cheap == 0, sample.cheap == 1):
        total = float(w[kind & at].sum())
        if total > 0:
            influence[kind & at] += (sample.strong - expected)[kind & at] * float(w[kind].sum()) / total
    of_prompt = np.bincount(sample.prompt, weights=influence, minlength=len(sample.n))[there] / sample.n[there]
    between = float(of_prompt.var(ddof=1)) / clusters
    within = float((w**2 * (influence - value) ** 2).sum())
    if firing < FEW_POSITIVE or within <= 0:
        low, high = score_interval(value, min(clusters, int(at.sum())), level)
        return min(low, max(0.0, value - sides[0])), max(high, min(1.0, value + sides[1]))
    z, t = float(special.ndtri((1 + level) / 2)), float(special.stdtrit(firing - 1, (1 + level) / 2))
    factor = max(1.0, sqrt(between / within) * t / z)
    return max(0.0, value - factor * sides[0]), min(1.0, value + factor * sides[1])


def _doubts(cheap: Array, sampled: Mask, used: Mask, rates: tuple[float, float]) -> list[str]:
    """What casts doubt on samples that are called random."""
    doubts = []
    for flag, rate in enumerate(rates):
        kind = cheap == flag
        n, k = int(kind.sum()), int((kind & sampled).sum())
        if abs(k - rate * n) > 5 * sqrt(n * rate * (1 - rate)) + 1:
            name = "positives" if flag else "negatives"
            doubts.append(f"{k} of {n} cheap {name} were drawn where {rate:.1%} was planned")
    missing = int((sampled & ~used).sum())
    if missing > 0.05 * sampled.sum():
        doubts.append(f"the strong judge gave no flag for {missing} of {int(sampled.sum())} answers drawn")
    return doubts


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    Raises:
        ValueError: a p-value outside 0..1.
    """
    given = np.asarray(p, dtype=float)
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError("p-values lie between 0 and 1")
    order = np.argsort(given, kind="stable")
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(np.arange(len(given), 0, -1) * given[order]), 1.0)
    return adjusted.tolist()


def p_above(interval: Callable[[float], Estimate], lo: float) -> float | None:
    """One-sided p-value of a value above `lo`, for exactly these prompts; None where it has no interval for them.

    The interval inverted: p < 0.025 exactly where its lower end at level 0.95 is above `lo`. Not followed below 1e-12.

    Args:
        interval: the estimate at a level.
        lo: what the value is held against.
    """
    middle = interval(0.5)
    if middle.value is None or middle.set_low is None:
        return None
    above = middle.value >= lo

    def rising(log_p: float) -> float:
        e = interval(abs(1 - 2 * exp(log_p)))
        assert e.set_low is not None and e.set_high is not None
        return e.set_low - lo if above else lo - e.set_high

    least, most = log(LEAST_P), log(0.5)
    if rising(least) >= 0 or rising(most) <= 0:
        p = LEAST_P if rising(least) >= 0 else 0.5
    else:
        p = exp(brentq(rising, least, most, xtol=1e-13))  # pyright: ignore[reportArgumentType]
    return p if above else 1 - p
