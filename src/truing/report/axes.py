"""Where things go on a chart: steps along x (linear, or logarithmic where they are spaced so), round ticks along y."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

UNEVEN = 8.0
"""ratio of the widest to the narrowest gap between steps above which the x axis is logarithmic"""


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round numbers (1, 2, 2.5 or 5 times a power of ten apart) within [low, high]."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    width = next(k * power for k in (1, 2, 2.5, 5, 10) if k * power >= raw * (1 - 1e-9))
    first = math.ceil(low / width - 1e-9)
    last = math.floor(high / width + 1e-9)
    return [k * width for k in range(first, last + 1)]


@dataclass(frozen=True)
class StepAxis:
    """The x axis of one run: checkpoints with a step by that step, those without at the right end, under their label.

    Positions are fractions of the width, 0 to 1.
    """

    steps: tuple[int | None, ...]
    """[S] step of each checkpoint, None = unknown"""
    labels: tuple[str, ...]
    """[S] label of each checkpoint"""

    @property
    def known(self) -> list[int]:
        """Distinct known steps, ascending."""
        return sorted({s for s in self.steps if s is not None})

    @property
    def logarithmic(self) -> bool:
        """Whether steps are spaced so unevenly that a linear axis would heap the early ones."""
        gaps = [b - a for a, b in pairwise(self.known)]
        return len(gaps) >= 3 and max(gaps) > UNEVEN * min(gaps)

    @property
    def title(self) -> str:
        """What the axis shows, its unit and its scale."""
        return "optimizer updates (step" + (", log scale)" if self.logarithmic else ")")

    @property
    def known_end(self) -> float:
        """Where the part with steps ends; checkpoints without a step lie beyond."""
        unknown = sum(s is None for s in self.steps)
        return 1 - min(0.14 * unknown, 0.5) if self.known else 0.0

    def at_step(self, step: int) -> float:
        """Position of a step."""
        last = max(self.known, default=0)
        if last <= 0:
            return 0.0
        clipped = min(max(step, 0), last)
        if not self.logarithmic:
            return self.known_end * clipped / last
        unit = min((s for s in self.known if s > 0), default=1)
        return self.known_end * math.log1p(clipped / unit) / math.log1p(last / unit)

    def at(self, index: int) -> float:
        """Position of a checkpoint."""
        step = self.steps[index]
        if step is not None:
            return self.at_step(step)
        without = [i for i, s in enumerate(self.steps) if s is None]
        start = self.known_end
        return start + (1 - start) * (without.index(index) + 1) / len(without)

    def marks(self, width: float, per_tick: float) -> list[tuple[float, str]]:
        """(position, text) of the ticks for a plot `width` wide, each at least `per_tick` from the next."""
        candidates = self.known
        if len(candidates) > width / per_tick and not self.logarithmic:
            most = max(2, int(width * self.known_end / per_tick))
            candidates = [round(t) for t in ticks(0, max(self.known), most) if t == round(t)]
        placed: list[tuple[float, str]] = []
        # The ends first; then from the right, since on a log scale the early steps are the crowded ones.
        ordered = sorted(candidates, reverse=True)
        for step in dict.fromkeys([*ordered[:1], *ordered[-1:], *ordered]):
            position = self.at_step(step)
            if all(abs(other - position) * width >= per_tick for other, _ in placed):
                placed.append((position, f"{step:,}".replace(",", "\u202f")))
        unknown = [(self.at(i), self.labels[i]) for i, s in enumerate(self.steps) if s is None]
        return sorted(placed) + unknown


@dataclass(frozen=True)
class ValueAxis:
    """The y axis: a round range that holds every value, and of the intervals as much as leaves the values readable."""

    low: float
    """bottom"""
    high: float
    """top"""
    ticks: tuple[float, ...]
    """round numbers in between"""

    @classmethod
    def around(cls, values: Sequence[float], ends: Sequence[float], most: int = 7) -> "ValueAxis":
        """Over `values` and as far over interval `ends` as the values' own span again."""
        low, high = min(values), max(values)
        span = (high - low) or max(abs(high), 0.1)
        low = max(min([low, *ends]), low - span)
        high = min(max([high, *ends]), high + span)
        pad = 0.04 * (high - low or 1.0)
        low, high = low - pad, high + pad
        return cls(low, high, tuple(ticks(low, high, most)))

    def at(self, value: float) -> float:
        """Position as a fraction of the height from the bottom; may lie outside 0 to 1 for a clipped interval."""
        return (value - self.low) / (self.high - self.low)
