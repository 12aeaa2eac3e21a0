"""Simulated runs of known truth for the searches: shares of misaligned answers per step and prompt, and what is right.

Prompts differ as a beta distribution does, with a given correlation of answers to one prompt, and the same prompts are
the risky ones at every step. Used by tests and benchmarks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy import special

from truing.stats.evidence import Array
from truing.stats.samples import Group, SampleRequest
from truing.stats.sequential_base import SequentialTest
from truing.types.verdicts import Onset


@dataclass(frozen=True, slots=True)
class World:
    """A simulated run: steps 1..K, prompts "0".."M-1"."""

    run: Array
    """[K, M] share misaligned per step and prompt"""
    base: Array
    """[M] the base's"""

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(range(1, len(self.run) + 1))

    @property
    def prompt_ids(self) -> tuple[str, ...]:
        return tuple(str(m) for m in range(len(self.base)))

    @property
    def excess(self) -> Array:
        """[K] true excess over the base, on exactly these prompts."""
        return self.run.mean(axis=1) - self.base.mean()

    def answer(self, sample: SampleRequest, rng: Generator) -> str:
        """One answer; a control is like the base."""
        shares = self.run[sample.step - 1] if sample.group is Group.RUN else self.base
        return "positive" if rng.random() < shares[int(sample.prompt_id)] else "negative"


def excess_curve(family: str, steps: int, height: float, rng: Generator, *, quiet: float = 0.0) -> Array:
    """[K] an excess over the steps, at random places.

    Args:
        family: logistic; step; ramp (linear over a third of the run or more); dip (a step with three steps of quiet
            after it); spike (two quiet steps apart from one high one); never.
        steps: K.
        height: the excess where it is full.
        rng: places and widths.
        quiet: the excess where there is none ("never": its height).
    """
    k = np.arange(1, steps + 1)
    start = rng.uniform(0.2, 0.85) * steps
    if family == "logistic":
        shape = 1 / (1 + np.exp(-(k - start) / rng.uniform(0.4, 1.6)))
    elif family == "step":
        shape = (k >= start).astype(float)
    elif family == "ramp":
        shape = np.clip((k - start) / (rng.uniform(0.3, 0.6) * steps), 0, 1)
    elif family == "dip":
        start = rng.uniform(0.15, 0.6) * steps
        shape = ((k >= start) & ~((k >= start + 3) & (k < start + 6))).astype(float)
    elif family == "spike":
        shape = (k == round(start)).astype(float)
    else:
        assert family == "never"
        shape = np.zeros(steps)
    return np.asarray(quiet + (height - quiet) * shape, dtype=float)


def make_world(excess: Array, base: float, prompts: int, correlation: float, rng: Generator) -> World:
    """Prompts around the shares base + excess, with a correlation of answers to one prompt."""
    shares = np.clip(np.concatenate([[base], base + excess]), 0, 1)
    if correlation <= 0:
        table = np.repeat(shares[:, None], prompts, axis=1)
    else:
        u, size = rng.random(prompts), (1 - correlation) / correlation
        a, b = np.maximum(shares * size, 1e-9), np.maximum((1 - shares) * size, 1e-9)
        table = np.nan_to_num(special.betaincinv(a[:, None], b[:, None], u[None, :]))
    return World(table[1:], table[0])


def answered(search: SequentialTest, answer: Callable[[SampleRequest], str | float], batch: int = 24) -> list:
    """Answer whatever is requested; returns all requests."""
    asked: list[SampleRequest] = []
    while not search.done:
        samples = search.next(batch)
        asked += samples
        assert 1 <= len(samples) <= batch and len(asked) < 100_000
        search.update([(d, answer(d)) for d in samples])
    return asked


def play(search: SequentialTest, world: World, rng: Generator, *, batch: int = 24) -> int:
    """Answer as a world does; returns how many answers that took."""
    return len(answered(search, lambda d: world.answer(d, rng), batch))


def is_right(found: Onset, excess: Array, lo: float, hi: float, steps: Sequence[int]) -> bool:
    """Whether every claim holds: what is certified above is above lo, and what is certified below, or comes before the
    set (all steps, where it is empty), is under hi."""
    true = dict(zip(steps, excess.tolist(), strict=True))
    above = [t.step for t in found.tested if t.claim == "above"]
    clear = [t.step for t in found.tested if t.claim == "below"]
    clear += [s for s in steps if found.earliest is None or s < found.earliest]
    return all(true[s] > lo for s in above) and all(true[s] < hi for s in clear)
