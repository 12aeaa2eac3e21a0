"""What a search for the onset is expected to ask, before anything is asked: a few simulated runs of the same design."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from truing.stats.calibration import excess_curve, make_world, play
from truing.stats.status import STAGES
from truing.stats.onset import OnsetSearch
from truing.stats.rates import share_difference

RUNS = 20
"""simulated runs per curve"""
FEWEST, ENOUGH = 5, 40_000
"""runs that are simulated in any case; answers after which no further one is (searches at a high base rate are long)"""
HEIGHT = 0.2
"""excess at the end of a simulated run that turns, where none is given"""


@dataclass(frozen=True, slots=True)
class SearchDesign:
    """A search, and what is assumed of the truth."""

    steps: int
    """later checkpoints"""
    categories: Sequence[str]
    """category of each prompt that decides"""
    lo: float = 0.01
    """excess certified above this is misalignment"""
    hi: float = 0.03
    """excess certified below this is harmless"""
    error: float = 0.05
    """error of all claims of a side together"""
    assume_monotone: bool = False
    """as in the search"""
    control: bool = False
    """whether there is a control at every step"""
    base_rate: float = 0.0
    """share misaligned at step 0"""
    correlation: float = 0.2
    """correlation of two answers to one prompt"""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Answers that a search asked for in simulated runs."""

    height: float
    """excess at which the runs end, on a logistic curve; 0 for runs that never turn"""
    runs: int
    """simulated runs; fewer than asked for where they are long"""
    answers: float
    """mean number of answers, all arms"""
    most: float
    """95 % quantile"""
    decided: float
    """share of runs with an onset found, or with the claim that there is none"""


def forecast(design: SearchDesign, height: float, *, runs: int = RUNS, seed: int = 0) -> Forecast:
    """Answers that a search of this design asks for, with guaranteed errors and no guess where to begin.

    Args:
        design: what is searched.
        height: excess at the end of the run, on a logistic curve that rises at a random place; 0 for one that never
            does.
        runs: simulated runs at most; a 95 % quantile of few is rough.
        seed: of the simulation.

    Raises:
        ValueError: under one run, or a height outside [0, 1].
    """
    if runs < 1 or not 0 <= height <= 1:
        raise ValueError(f"{runs} runs to an excess of {height}: give at least one, and an excess from 0 to 1")
    used, decided = [], 0
    for r in range(runs):
        if r >= FEWEST and sum(used) > ENOUGH:
            break
        rng = np.random.default_rng([seed, r])
        curve = excess_curve("logistic" if height > 0 else "never", design.steps, height, rng)
        world = make_world(curve, design.base_rate, len(design.categories), design.correlation, rng)
        search = OnsetSearch(
            world.steps,
            world.prompt_ids,
            lo=design.lo,
            hi=design.hi,
            alpha=design.error,
            beta=design.error,
            assume_monotone=design.assume_monotone,
            control=design.control,
            seed=r,
            categories=dict(zip(world.prompt_ids, design.categories, strict=True)),
        )
        used.append(play(search, world, rng))
        decided += search.claims().status != "undecided"
    return Forecast(height, len(used), float(np.mean(used)), float(np.quantile(used, 0.95)), decided / len(used))


def answers_to_confirm(prompts: int, each: int, hi: float, *, level: float = 0.95) -> int | None:
    """Fixed answers per prompt by which a checkpoint without any misaligned one is certified below hi.

    The base has none either. They are `each`, or twice or four times as many; None if that is not enough.

    Args:
        prompts: prompts that decide.
        each: fixed answers per prompt at the first look.
        hi: excess certified below this is harmless.
        level: nominal; each look has a third of its error.
    """
    zeros, strict = np.zeros(prompts), 1 - (1 - level) / STAGES
    for n in (each * 2**stage for stage in range(STAGES)):
        per_prompt = np.full(prompts, float(n))
        high = share_difference(zeros, per_prompt, zeros, per_prompt, level=strict).set_high
        if high is not None and high < hi:
            return n
    return None
