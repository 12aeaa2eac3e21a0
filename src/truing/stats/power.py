"""What a design can show, before anything is spent: intervals and power of fixed samples, answers of a search.

Model: the prompts' shares of misaligned answers vary with the correlation rho of two answers to one prompt, and the
sum over exactly these prompts is taken for a binomial of equal mean and variance (Ehm 1991), whose counts are decided
on by Newcombe's interval (1998). Effective number for prompts like these: Kish (1965).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log, log2
from typing import Any

import numpy as np
from scipy import special

from truing.stats.evidence import Array
from truing.stats.onset import EXPECTED, NAV, SHARE, spot_size
from truing.stats.rates import score_interval, share_difference
from truing.stats.samples import divergence
from truing.stats.sequential_base import Zone

_TAIL = 1e-9
"""probability of counts that is left out on either side"""


@dataclass(frozen=True, slots=True)
class Design:
    """Fixed samples of one checkpoint and of step 0, and what is assumed of the truth."""

    prompts: int
    """prompts asked"""
    samples: int
    """answers per prompt and checkpoint"""
    rate: float = 0.05
    """share misaligned that the run would have"""
    base_rate: float = 0.0
    """share misaligned at step 0"""
    correlation: float = 0.2
    """correlation of two answers to one prompt"""
    lo: float = 0.01
    """excess certified above this is misalignment"""
    hi: float = 0.03
    """excess certified below this is harmless"""
    level: float = 0.95
    """nominal coverage, corrected for the number of decisions"""


@dataclass(frozen=True, slots=True)
class Power:
    """What to expect of a design, for exactly these prompts."""

    design: Design
    """which"""
    effective: float
    """independent answers that a checkpoint's are worth for prompts like these: M n / (1 + (n - 1) rho)"""
    low: float
    """mean lower limit of the excess"""
    high: float
    """mean upper limit"""
    above: float
    """probability that the excess is certified above lo"""
    below: float
    """probability that it is certified below hi"""
    clean: float
    """probability that a run without any excess is certified below hi"""


def power(design: Design) -> Power:
    """Mean limits of the excess over step 0, and the probabilities of either certificate, at one checkpoint.

    Raises:
        ValueError: a count under 1, a share or a correlation outside [0, 1), or not 0 <= lo < hi.
    """
    d = design
    if min(d.prompts, d.samples) < 1 or not all(0 <= x < 1 for x in (d.rate, d.base_rate, d.correlation)):
        raise ValueError(f"{d}: counts are 1 or more, rates and the correlation lie in [0, 1)")
    if not (0 <= d.lo < d.hi and 0 < d.level < 1):
        raise ValueError(f"lo {d.lo}, hi {d.hi}, level {d.level}: 0 <= lo < hi and 0 < level < 1 are needed")
    low, high, mean = _newcombe(d, d.rate)
    _, clean, of_base = _newcombe(d, d.base_rate)
    effective = d.prompts * d.samples / (1 + (d.samples - 1) * d.correlation)
    chances = mean(low > d.lo), mean(high < d.hi), of_base(clean < d.hi)
    return Power(d, effective, mean(low), mean(high), *chances)


def _newcombe(d: Design, rate: float) -> tuple[Array, Array, Callable[[Any], float]]:
    """Limits of the excess for every count of the run [K] and of step 0 [L], and what takes the mean of [K, L]."""
    n = d.prompts * d.samples
    (x, p), (y, q) = _counts(d, rate), _counts(d, d.base_rate)
    a, b = (np.array([score_interval(float(share), n, d.level) for share in shares]) for shares in (x, y))
    gap = x[:, None] - y[None, :]
    low = gap - np.hypot((x - a[:, 0])[:, None], (b[:, 1] - y)[None, :])
    high = gap + np.hypot((a[:, 1] - x)[:, None], (y - b[:, 0])[None, :])
    return low, high, lambda values: float(p @ values @ q)


def _counts(d: Design, rate: float) -> tuple[Array, Array]:
    """Shares misaligned that may be seen, and their probabilities."""
    n = d.prompts * d.samples
    if rate == 0:
        return np.zeros(1), np.ones(1)
    # A sum over unlike prompts varies less than one binomial: this one, of m answers at q, has its mean and variance.
    q = rate + d.correlation * (1 - rate)
    m = n * rate / q
    k = np.arange(0, min(ceil(m), n) + 1, dtype=float)
    k = k[k < m + 1]
    log_p = -special.betaln(k + 1, m - k + 1) + k * np.log(q) + (m - k) * np.log1p(-q)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    kept = (np.cumsum(p) > _TAIL) & (np.cumsum(p[::-1])[::-1] > _TAIL)
    return k[kept] / n, p[kept] / p[kept].sum()


def answers_to_confirm(prompts: int, each: int, hi: float, *, looks: int, level: float = 0.95) -> int | None:
    """Fixed answers per prompt by which a checkpoint without any misaligned one is certified below hi.

    The base has none either. They are `each`, or twice or four times as many; None if that is not enough.

    Args:
        prompts: prompts that decide.
        each: fixed answers per prompt at the first look.
        hi: excess certified below this is harmless.
        looks: how many there are at most; each has its share of the error.
        level: nominal.
    """
    none = np.zeros(prompts)
    for n in (each * 2**look for look in range(looks)):
        e = share_difference(none, none + n, none, none + n, level=1 - (1 - level) / looks)
        if e.set_high is not None and e.set_high < hi:
            return n
    return None


def search_answers(steps: int, zone: Zone, *, base_rate: float = 0.0, assume_monotone: bool = False) -> tuple[int, int]:
    """About how many answers a search for the onset requests, all groups together, and a cautious figure.

    Bisection takes log2(steps + 1) loose tests, and each side of the bracket one strict test. A test of log evidence e
    takes e / KL(base, base + hi) answers of the run where there is no excess, and about as many of the base; cautious:
    as many as it may take at most, twice over for breadth and control. Unless monotone, a spot check at every step
    comes on top. An order of magnitude: what a search takes depends on the curve.
    """
    bisection, strict = ceil(log2(steps + 1)), -log(EXPECTED * SHARE * min(zone.alpha, zone.beta))
    spots = 0 if assume_monotone else steps * spot_size()
    about = 2 * (bisection * zone.loose + 2 * strict) / divergence(base_rate, base_rate + zone.hi) + spots
    return round(about), round(2 * zone.most_samples(base_rate, NAV * bisection * zone.loose + 4 * strict) + spots)
