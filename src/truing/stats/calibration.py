"""Simulated runs of known truth: what a search gets right on them, and thresholds that are right often enough.

A world has one share of misaligned answers per step and prompt. Prompts differ as a beta distribution does, with a
given correlation of answers to one prompt, and the same prompts are the risky ones at every step.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Protocol

import numpy as np
from numpy.random import Generator
from scipy import special

from truing.stats.evidence import Array
from truing.stats.inquiry import Levels
from truing.stats.onset import OnsetSearch
from truing.stats.samples import Group, Outcome, SampleRequest
from truing.types.verdicts import Onset

FAMILIES = ("logistic", "step", "ramp", "dip", "spike", "never")
"""shapes of an excess over the steps"""


class Asking(Protocol):
    """Whatever asks for answers and is told how they came out."""

    @property
    def done(self) -> bool: ...

    def ask(self, n: int) -> list[SampleRequest]: ...

    def tell(self, outcomes: Iterable[tuple[SampleRequest, Outcome | str | float]]) -> None: ...


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

    Raises:
        ValueError: an unknown family.
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
    elif family == "never":
        shape = np.zeros(steps)
    else:
        raise ValueError(f"{family} is none of {', '.join(FAMILIES)}")
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


def play(search: Asking, world: World, rng: Generator, *, batch: int = 24) -> int:
    """Answer whatever is asked; returns how many answers that took."""
    used = 0
    while not search.done:
        samples = search.ask(batch)
        used += len(samples)
        search.tell([(d, world.answer(d, rng)) for d in samples])
    return used


def is_right(found: Onset, excess: Array, lo: float, hi: float, steps: Sequence[int]) -> bool:
    """Whether every claim holds: what is certified above is above lo, and what is certified below, or comes before the
    set (all steps, where it is empty), is under hi."""
    true = dict(zip(steps, excess.tolist(), strict=True))
    above = [t.step for t in found.tested if t.said == "above"]
    clear = [t.step for t in found.tested if t.said == "below"]
    clear += [s for s in steps if found.earliest is None or s < found.earliest]
    return all(true[s] > lo for s in above) and all(true[s] < hi for s in clear)


LADDER = ((0.8, 0.6), (0.65, 0.7), (0.5, 0.8), (0.3, 1.0), (0.2, 1.1), (0.1, 1.2))
"""nominal errors and loose thresholds that are tried, least demanding first"""
CELLS = tuple(
    (family, height, base, correlation)
    for family, height in (("step", 0.05), ("ramp", 0.2), ("dip", 0.2), ("spike", 0.2), ("never", 0.0))
    for base in (0.0, 0.05)
    for correlation in (0.0, 0.5)
)
"""the declared family: shape of the excess, its height, the base's share, correlation of answers to one prompt"""
WANTED = 0.95
"""least share of right results in the worst cell"""


@dataclass(frozen=True, slots=True)
class Design:
    """What a search is made for."""

    steps: int
    """later checkpoints"""
    prompts: int
    """prompts"""
    lo: float
    """zone"""
    hi: float
    """zone"""
    assume_monotone: bool = False
    """as in the search"""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds of the simulated mode, and how they did."""

    levels: Levels
    """the thresholds"""
    worst: float
    """share of right results in the worst cell"""
    worst_cell: str
    """which that is"""
    cells: Mapping[str, float]
    """share of right results by cell"""
    runs: int
    """simulated runs per cell"""


@lru_cache(maxsize=16)
def calibrate(design: Design, *, runs: int = 60, seed: int = 0) -> Calibration:
    """The least demanding thresholds with which a search is right in at least 95 % of simulated runs in every cell.

    The family is declared in `CELLS` and simulated before any answer is drawn; it takes minutes. Under a monotone
    assumption only the shapes that are monotone count. Where nothing passes, the guaranteed thresholds are returned.

    Args:
        design: what is searched.
        runs: simulated runs per cell.
        seed: of the simulation.
    """
    shapes = [c for c in CELLS if not design.assume_monotone or c[0] not in ("dip", "spike")]
    for nominal, loose in (*LADDER, (0.05, log(4.0))):
        name = "guaranteed" if nominal == 0.05 else ""
        levels = Levels(nominal, nominal, loose, name or "error under the declared family")
        cells: dict[str, float] = {}
        for cell in shapes:
            share = right_share(cell, design, levels, runs=runs, seed=seed)
            cells["{} {:g}, base {:g}, correlation {:g}".format(*cell)] = share
            if share < WANTED and not name:
                break
        worst = min(cells, key=lambda c: cells[c])
        if cells[worst] >= WANTED or name:
            said = name or f"error under the declared family (worst cell: {cells[worst]:.1%} right, {worst})"
            return Calibration(Levels(nominal, nominal, loose, said), cells[worst], worst, cells, runs)
    raise AssertionError("the last rung returns")


def right_share(
    cell: tuple[str, float, float, float], design: Design, levels: Levels, *, runs: int, seed: int
) -> float:
    """Share of simulated runs of a cell in which every claim of a search is right."""
    family, height, base, correlation = cell
    right, (lo, hi) = 0, (design.lo, design.hi)
    for r in range(runs):
        rng = np.random.default_rng([seed, r])
        world = make_world(excess_curve(family, design.steps, height, rng), base, design.prompts, correlation, rng)
        monotone = design.assume_monotone
        search = OnsetSearch(
            world.steps, world.prompt_ids, lo=lo, hi=hi, assume_monotone=monotone, seed=r, levels=levels
        )
        play(search, world, rng)
        right += is_right(search.claims(), world.excess, lo, hi, world.steps)
    return right / runs
