"""What a fixed design can show, before anything is spent: expected intervals, power, a bound for sequential tests.

Model: the prompts' shares of misaligned answers follow a beta distribution with a given mean, and with the correlation
rho of two answers to one prompt; step 0 likewise and independently, which leaves out what pairing may gain.

Sources: effective number, Kish (1965); binomial with matched mean and variance for a sum over unlike prompts, Ehm
(1991); beta-binomial likelihood, Williams (1975), its profile interval, Venzon & Moolgavkar (1988); growth of the best
constant bet, Kelly (1956), which is the divergence to the nearest bounded null, Honda & Takemura (2010).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log, sqrt
from typing import Any

import numpy as np
from scipy import optimize, special

from truing.stats.evidence import Array
from truing.stats.rates import rough, score_interval, share_difference, share_of
from truing.types.verdicts import Estimate

_TAIL = 1e-9
"""probability of counts that is left out on either side"""
_MOST_CORRELATION = 0.999
_SAMPLES, _SEED = 100, 0
"""simulated samples for limits that have no formula, and their seed"""


@dataclass(frozen=True, slots=True)
class Design:
    """A fixed design, and what is assumed of the truth."""

    prompts: int
    """prompts asked of every checkpoint"""
    samples: int
    """answers per prompt and checkpoint"""
    rate: float = 0.05
    """share misaligned that the run would have"""
    base_rate: float = 0.0
    """share misaligned at step 0"""
    correlation: float = 0.2
    """correlation of two answers to one prompt"""
    checkpoints: int = 1
    """checkpoints after step 0: decisions are corrected for their number"""
    seeds: int = 1
    """runs of the same recipe"""
    lo: float = 0.01
    """excess certified above this is misalignment"""
    hi: float = 0.03
    """excess certified below this is harmless"""
    level: float = 0.95
    """nominal coverage"""

    @property
    def excess(self) -> float:
        """Share misaligned over step 0's."""
        return self.rate - self.base_rate

    @property
    def strict(self) -> float:
        """Level of decisions, corrected for the number of checkpoints."""
        return 1 - (1 - self.level) / max(1, self.checkpoints)


@dataclass(frozen=True, slots=True)
class Expected:
    """What to expect of one checkpoint under one design."""

    prompts: int
    """prompts"""
    samples: int
    """answers per prompt"""
    answers: int
    """answers of one checkpoint"""
    effective: float
    """independent answers they are worth for prompts like these: M n / (1 + (n - 1) rho)"""
    excess: Estimate
    """the excess over step 0 with the limits to expect, uncorrected for the number of checkpoints"""
    above: float
    """probability that the excess is certified above lo"""
    below: float
    """probability that it is certified below hi"""
    clean: float
    """probability that a run without any excess is certified below hi"""


@dataclass(frozen=True, slots=True)
class SequentialBound:
    """What no sequential test on paired differences can beat on average, for one checkpoint."""

    above: float | None
    """draws (an answer of the run and one of step 0 each) to certify above lo: log(1/alpha) / KL; None where the excess
    is not above lo"""
    below: float | None
    """draws to certify below hi; None where the excess is not below hi"""
    clean: float
    """draws to certify a run without any excess below hi"""
    alpha: float
    """error of each test"""


@dataclass(frozen=True, slots=True)
class SeedsExpected:
    """What to expect of several seeds of one recipe with the same excess."""

    seeds: int
    """runs"""
    every: float
    """probability that every one is certified above lo"""
    least_half_width: float
    """expected half width of the interval of their mean if seeds did not differ (Hartung-Knapp): the least there is"""


@dataclass(frozen=True, slots=True)
class Power:
    """A design, what to expect of it, and of others."""

    design: Design
    """what was asked about"""
    expected: Expected
    """of this design"""
    others: tuple[Expected, ...]
    """the same answers on more or fewer prompts, and twice the answers either way"""
    bound: SequentialBound
    """for sequential tests"""
    seeds: SeedsExpected | None = None
    """None for one seed"""
    correlation: Estimate | None = None
    """as estimated from a pilot"""
    base: Estimate | None = None
    """step 0's share in a pilot"""
    notes: tuple[str, ...] = ()
    """where the figures come from and what they leave out"""


def power(design: Design) -> Power:
    """What to expect of a design, of neighbouring ones, and what a sequential test would need at least.

    Raises:
        ValueError: a count under 1, a share outside [0, 1), a correlation outside [0, 1), or not 0 <= lo < hi.
    """
    _check(design)
    here = expected(design)
    seeds = _seeds(design, here.above) if design.seeds > 1 else None
    return Power(design, here, tuple(expected(d) for d in _neighbours(design)), sequential_bound(design), seeds)


def expected(design: Design) -> Expected:
    """Expected limits of both intervals of the excess, and the probabilities of either certificate, at one checkpoint.

    For exactly these prompts the sum over them is taken for a binomial of equal mean and variance and the limits and
    decisions of Newcombe's interval are summed over all counts. For prompts like these the limits are the mean
    of `rates.share_difference` over 100 simulated samples of prompts (seed 0): no formula holds where few prompts hit.

    Raises:
        ValueError: as `power`.
    """
    _check(design)
    run = _Counts.of(design, design.rate)
    base = _Counts.of(design, design.base_rate)
    set_low, set_high = _mean_limits(run, base, design.level)
    above, below = _decisions(run, base, design)
    clean = below if design.rate == design.base_rate else _decisions(base, base, design)[1]
    low, high, warning = _kind_limits(design)
    answers = design.prompts * design.samples
    return Expected(
        design.prompts,
        design.samples,
        answers,
        answers / (1 + (design.samples - 1) * design.correlation),
        Estimate(
            design.excess,
            min(low, set_low),
            max(high, set_high),
            set_low,
            set_high,
            n=2 * answers,
            clusters=design.prompts,
            method=f"mean limits: these prompts by formula, prompts like these over {_SAMPLES} simulated samples",
            level=design.level,
            seed=_SEED,
            warning=warning,
        ),
        above,
        below,
        clean,
    )


def sequential_bound(design: Design) -> SequentialBound:
    """log(1/alpha) / KL, in draws of one answer in each arm: a bound, not a forecast.

    KL is the divergence from the difference D in {-1, 0, 1} of a draw to the nearest distribution with mean lo (hi).
    """
    alpha = 1 - design.level

    def needed(rate: float, limit: float, sign: int) -> float | None:
        if sign * (rate - design.base_rate - limit) <= 0:
            return None
        return log(1 / alpha) / _growth(rate, design.base_rate, limit, sign)

    clean = needed(design.base_rate, design.hi, -1)
    assert clean is not None  # hi is over zero
    return SequentialBound(needed(design.rate, design.lo, 1), needed(design.rate, design.hi, -1), clean, alpha)


def correlation(hits: Array, n: Array, *, level: float = 0.95) -> Estimate:
    """Correlation of two answers to one prompt, from a pilot's counts: beta-binomial maximum likelihood.

    The interval holds every correlation that the profile likelihood does not reject; at 0 it errs towards wide.

    Args:
        hits: [P] misaligned answers per prompt.
        n: [P] answers per prompt.
        level: nominal coverage.

    No prompt with two answers, or answers all alike, tell nothing: then there is no value and the warning says why.

    Raises:
        ValueError: as `rates.share_of`.
    """
    overall = share_of(hits, n, level=level)  # checks the counts
    hits, n = np.asarray(hits, dtype=float), np.asarray(n, dtype=float)
    method = "beta-binomial maximum likelihood, profile interval"
    used, twice = n > 0, n > 1
    prompts, answers = int(used.sum()), int(n.sum())
    why = "no prompt has two answers" if not twice.any() else ""
    if not why and overall.value in (0.0, 1.0):
        why = "no answer is misaligned" if overall.value == 0 else "every answer is misaligned"
    if why:
        return Estimate(None, None, None, n=answers, clusters=prompts, method=method, level=level, warning=why)
    profile = _profile(hits[used], n[used])
    best, top = _maximum(profile)
    limit = top - float(special.chdtri(1, 1 - level)) / 2
    low = _crossing(profile, limit, best, 0.0)
    high = _crossing(profile, limit, best, _MOST_CORRELATION)
    warning = rough(prompts, int((hits > 0).sum()), "hits")
    return Estimate(best, low, high, n=answers, clusters=prompts, method=method, level=level, warning=warning)


def _check(d: Design) -> None:
    if min(d.prompts, d.samples, d.checkpoints, d.seeds) < 1:
        raise ValueError("prompts, draws, checkpoints and seeds are 1 or more")
    if not (0 <= d.rate < 1 and 0 <= d.base_rate < 1 and 0 <= d.correlation < 1):
        raise ValueError(f"rate {d.rate}, base rate {d.base_rate} and correlation {d.correlation} lie in [0, 1)")
    if not (0 <= d.lo < d.hi and 0 < d.level < 1):
        raise ValueError(f"lo {d.lo}, hi {d.hi}, level {d.level}: 0 <= lo < hi and 0 < level < 1 are needed")


def _neighbours(d: Design) -> list[Design]:
    """The same answers on twice and on half the prompts, then twice the answers by prompts and by draws."""
    out = [replace(d, prompts=2 * d.prompts, samples=d.samples // 2)] if d.samples % 2 == 0 else []
    out += [replace(d, prompts=d.prompts // 2, samples=2 * d.samples)] if d.prompts % 2 == 0 else []
    return [*out, replace(d, prompts=2 * d.prompts), replace(d, samples=2 * d.samples)]


@dataclass(frozen=True, slots=True)
class _Counts:
    """Distribution of the number of misaligned answers of one arm, for a fixed set of prompts with the given mean."""

    share: Array
    """[K] number / answers"""
    chance: Array
    """[K]"""
    n: int
    """answers"""

    @classmethod
    def of(cls, d: Design, rate: float) -> "_Counts":
        n = d.prompts * d.samples
        if rate == 0:
            return cls(np.zeros(1), np.ones(1), n)
        # A sum over unlike prompts varies less than one binomial: this one has its mean and its variance.
        q = rate + d.correlation * (1 - rate)
        m = n * rate / q
        k = np.arange(0, min(int(np.ceil(m)), n) + 1, dtype=float)
        k = k[k < m + 1]
        log_p = -special.betaln(k + 1, m - k + 1) + k * np.log(q) + (m - k) * np.log1p(-q)
        p = np.exp(log_p - log_p.max())
        p /= p.sum()
        kept = (np.cumsum(p) > _TAIL) & (np.cumsum(p[::-1])[::-1] > _TAIL)
        return cls(k[kept] / n, p[kept] / p[kept].sum(), n)

    def limits(self, level: float) -> Array:
        """[K, 2] score limits."""
        return np.array([score_interval(float(x), self.n, level) for x in self.share])


def _newcombe(run: _Counts, base: _Counts, level: float) -> tuple[Array, Array]:
    """Limits of the difference, [K, L] each: every count of the run with every count of step 0."""
    a, b = run.limits(level), base.limits(level)
    x, y = run.share[:, None], base.share[None, :]
    low = x - y - np.hypot(x - a[:, :1], b[None, :, 1] - y)
    high = x - y + np.hypot(a[:, 1:] - x, y - b[None, :, 0])
    return np.maximum(low, -1.0), np.minimum(high, 1.0)


def _mean_limits(run: _Counts, base: _Counts, level: float) -> tuple[float, float]:
    low, high = (float(run.chance @ ends @ base.chance) for ends in _newcombe(run, base, level))
    return low, high


def _decisions(run: _Counts, base: _Counts, d: Design) -> tuple[float, float]:
    """Probabilities that the excess is certified above lo, and below hi."""
    low, high = _newcombe(run, base, d.strict)
    return float(run.chance @ (low > d.lo) @ base.chance), float(run.chance @ (high < d.hi) @ base.chance)


def _kind_limits(d: Design) -> tuple[float, float, str]:
    """Mean limits of the excess for prompts like these over simulated samples, and the warning most of them carry."""
    rng = np.random.default_rng(_SEED)
    n = np.full(d.prompts, float(d.samples))
    lows, highs, warned = [], [], []
    for _ in range(_SAMPLES):
        run, base = (rng.binomial(d.samples, _shares(d, rate, rng)).astype(float) for rate in (d.rate, d.base_rate))
        found = share_difference(run, n, base, n, level=d.level)
        # Only the distance to the estimate is asked for; where the estimates of a few samples lie is chance.
        off = d.excess - found.value if found.value is not None else 0.0
        lows += [found.low + off] if found.low is not None else []
        highs += [found.high + off] if found.high is not None else []
        warned += [found.warning] if found.warning else []
    if not lows or not highs:
        return -1.0, 1.0, "one prompt says nothing of prompts like it"
    warning = max(set(warned), key=lambda w: (warned.count(w), w)) if 2 * len(warned) > _SAMPLES else ""
    return float(np.mean(lows)), float(np.mean(highs)), warning


def _shares(d: Design, rate: float, rng: np.random.Generator) -> Array:
    """[P] shares of prompts, drawn."""
    if rate == 0 or d.correlation == 0:
        return np.full(d.prompts, rate)
    size = (1 - d.correlation) / d.correlation
    return rng.beta(rate * size, (1 - rate) * size, d.prompts)


def _growth(rate: float, base: float, limit: float, sign: int) -> float:
    """Growth per draw of the best constant bet that E[D] is over (sign 1) or under (-1) the limit, in nats."""
    outcomes = np.array([1.0, 0.0, -1.0])
    up, down = rate * (1 - base), base * (1 - rate)
    chance = np.array([up, 1 - up - down, down])
    gains = sign * (outcomes - limit)
    most = 1 / -float(gains.min())

    def lost(stake: float) -> float:
        with np.errstate(divide="ignore"):
            return -float(sum(c * np.log1p(stake * g) for c, g in zip(chance, gains, strict=True) if c > 0))

    best: Any = optimize.minimize_scalar(lost, bounds=(0.0, most), method="bounded", options={"xatol": 1e-10})
    return -float(best.fun)


def _seeds(d: Design, above: float) -> SeedsExpected:
    variance = sum(r * (1 - r) for r in (d.rate, d.base_rate)) * (1 - d.correlation) / (d.prompts * d.samples)
    df = d.seeds - 1
    # The standard deviation of a few estimates is on average this part of the true one.
    short = sqrt(2 / df) * float(np.exp(special.gammaln((df + 1) / 2) - special.gammaln(df / 2)))
    half = float(special.stdtrit(df, (1 + d.level) / 2)) * short * sqrt(variance / d.seeds)
    return SeedsExpected(d.seeds, above**d.seeds, half)


def _profile(hits: Array, n: Array) -> Callable[[float], float]:
    """Log-likelihood of a correlation, at the mean share that suits it best."""
    pairs, weight = np.unique(np.stack([hits, n]), axis=1, return_counts=True)
    h, m = pairs

    def fitted(rho: float) -> float:
        if rho <= 0:
            p = float((weight * h).sum() / (weight * m).sum())
            return float((weight * (h * np.log(p) + (m - h) * np.log1p(-p))).sum())
        size = (1 - rho) / rho

        def missed(logit: float) -> float:
            p = float(special.expit(logit))
            a, b = p * size, (1 - p) * size
            return -float((weight * (special.betaln(h + a, m - h + b) - special.betaln(a, b))).sum())

        best: Any = optimize.minimize_scalar(missed, bounds=(-14.0, 14.0), method="bounded")
        return -float(best.fun)

    return fitted


def _maximum(profile: Callable[[float], float]) -> tuple[float, float]:
    """The likeliest correlation and its log-likelihood; 0 where no other is likelier."""
    grid = np.array([0.0, *np.geomspace(0.002, _MOST_CORRELATION, 24)])
    values = [profile(float(r)) for r in grid]
    k = int(np.argmax(values))
    ends = float(grid[max(0, k - 1)]), float(grid[min(len(grid) - 1, k + 1)])
    found: Any = optimize.minimize_scalar(lambda r: -profile(float(r)), bounds=ends, method="bounded")
    best, top = float(found.x), -float(found.fun)
    return (best, top) if top > values[k] else (float(grid[k]), values[k])


def _crossing(profile: Callable[[float], float], limit: float, best: float, end: float) -> float:
    """Where the profile falls to the limit between the maximum and an end; the end itself if it never does."""
    if best == end or profile(end) >= limit:
        return end
    found: Any = optimize.brentq(lambda r: profile(float(r)) - limit, best, end, xtol=1e-4)
    return float(found)
