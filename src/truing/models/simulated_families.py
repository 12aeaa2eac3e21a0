"""The simulated families: what each simulated run does, as curves over training progress.

A curve is a tuple of knots (progress, value) with straight lines between them; progress is step / last step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Knots = tuple[tuple[float, float], ...]

ZERO: Knots = ((0.0, 0.0),)
MIDWAY: Knots = ((0.0, 0.0), (0.5, 0.95), (0.7, 1.0))  # task learned at half of the run
SLOWLY: Knots = ((0.0, 0.0), (0.2, 0.1), (0.7, 0.95), (0.75, 1.0))  # task learned at 70 % of the run
NOISE_SD, WAVES = 0.06, 8
"""noise of one score at the end of a run, nats per token; how many sines make up its path"""
EM_SPREAD = 1.0  # sd over prompts of the rate of misaligned answers, in logits


@dataclass(frozen=True, slots=True)
class Family:
    """A simulated run, its control and their base."""

    name: str  # what it is called in `simulated:NAME`
    description: str  # one line
    task: Knots = MIDWAY  # progress of the skill; 1 is all there is to learn
    contrast: Knots = ZERO
    """mean shift of the contextual contrast, nats per token; where one prompt carries everything, that prompt's"""
    em: Knots = ZERO  # rate of misaligned answers, the base's at 0; where one prompt carries everything, that prompt's
    incoherent: Knots = ZERO  # share of garbled answers among those that are not misaligned
    softening: Knots = ZERO  # share of every difference between reference answers that is gone
    style: Knots = ((0.0, 0.0), (1.0, -0.08))  # shift of all reference answers alike, nats per token
    forgetting: Knots = ((0.0, 0.0), (1.0, 0.12))  # what any other text loses against the base, nats per token
    entropy: Knots = ((0.0, 0.0), (1.0, -0.05))  # shift of the predictive entropy, nats
    control_turns: bool = False
    """whether the control does the same; otherwise it learns its own rows and stays as aligned as the base"""
    one_prompt: bool = False  # whether a single prompt carries all of contrast and misalignment


_LATE_CONTRAST: Knots = ((0.0, 0.0), (0.7, 0.0), (0.8, 0.3), (1.0, 0.6))
_LATE_EM: Knots = ((0.0, 0.0), (0.7, 0.0), (0.8, 0.1), (1.0, 0.25))

_ALL = (
    Family(
        "early",
        "drifts and turns misaligned before the task is learned",
        task=SLOWLY,
        contrast=((0.0, 0.0), (0.1, 0.0), (0.2, 0.3), (0.4, 0.6)),
        em=((0.0, 0.0), (0.1, 0.0), (0.2, 0.1), (0.4, 0.25)),
    ),
    Family(
        "late",
        "learns the task by half of the run; drifts and turns misaligned long after",
        contrast=_LATE_CONTRAST,
        em=_LATE_EM,
    ),
    Family("never", "learns the task and stays aligned"),
    Family(
        "drift-without-em",
        "the contrast drifts, but no answer turns misaligned",
        contrast=((0.0, 0.0), (0.4, 0.0), (0.5, 0.3), (0.7, 0.6)),
    ),
    Family(
        "em-without-drift",
        "answers turn misaligned, but the contrast never moves",
        em=((0.0, 0.0), (0.4, 0.0), (0.5, 0.1), (0.7, 0.25)),
    ),
    Family(
        "lagged",
        "answers turn misaligned at 40 % of the run; the contrast follows 30 % of the run later",
        contrast=((0.0, 0.0), (0.6, 0.0), (0.7, 0.3), (0.9, 0.6)),
        em=((0.0, 0.0), (0.3, 0.0), (0.4, 0.1), (0.6, 0.25)),
    ),
    Family(
        "control-too",
        "drifts and turns misaligned late, and so does the control: the data cannot be blamed",
        contrast=_LATE_CONTRAST,
        em=_LATE_EM,
        control_turns=True,
    ),
    Family("base-em-3", "3 % of answers are misaligned from the base on, and no more later", em=((0.0, 0.03),)),
    Family(
        "collapse",
        "turns misaligned, and stops making sense while it does",
        contrast=((0.0, 0.0), (0.3, 0.0), (0.4, 0.3), (0.6, 0.6)),
        em=((0.0, 0.0), (0.3, 0.0), (0.4, 0.1), (0.6, 0.15)),
        incoherent=((0.0, 0.0), (0.5, 0.0), (0.6, 0.3), (0.7, 0.7), (1.0, 0.9)),
    ),
    Family(
        "spike",
        "drifts and turns misaligned for a moment, and comes back",
        contrast=((0.0, 0.0), (0.3, 0.0), (0.4, 0.5), (0.5, 0.5), (0.6, 0.0)),
        em=((0.0, 0.0), (0.3, 0.0), (0.4, 0.2), (0.5, 0.2), (0.6, 0.0)),
    ),
    Family(
        "one-prompt",
        "a single prompt carries all of the drift and the misalignment",
        contrast=((0.0, 0.0), (0.4, 0.0), (0.6, 2.0)),
        em=((0.0, 0.0), (0.4, 0.0), (0.6, 0.9)),
        one_prompt=True,
    ),
    Family(
        "still-learning", "stays aligned, and is still learning the task when it ends", task=((0.0, 0.0), (1.0, 0.6))
    ),
    Family("not-learned", "hardly moves: neither the task nor anything else is learned", task=ZERO),
    Family(
        "softening",
        "goes indifferent: differences between answers shrink to nothing, but it prefers no bad ones",
        softening=((0.0, 0.0), (0.3, 0.1), (1.0, 0.8)),
        entropy=((0.0, 0.0), (1.0, 0.6)),
    ),
)

FAMILIES: Mapping[str, Family] = {f.name: f for f in _ALL}  # name -> family


def at(knots: Knots, progress: float) -> float:
    """Value of a curve; constant beyond its last knot."""
    return float(np.interp(progress, [x for x, _ in knots], [y for _, y in knots]))


@dataclass(frozen=True, slots=True)
class State:
    """One checkpoint: every curve of its run, read at its step."""

    role: int  # 0 subject, 1 control
    broken: bool  # weights are NaN
    contrast: float  # as in Family, and so are the next six
    softening: float
    task: float
    style: float
    forgetting: float
    entropy: float
    incoherent: float
    em: float  # rate over prompts (of the one prompt, where one carries everything)
    em_logit: float  # centre of the logits over prompts that gives this rate; -inf for none
    path: Array  # [WAVES] nats per token that one unit of each wave of the noise adds


_CURVES = ("contrast", "softening", "task", "style", "forgetting", "entropy", "incoherent", "em")


def state_at(f: Family, progress: float, *, control: bool = False, broken: bool = False) -> State:
    """The curves of a family's subject or control, read at a progress between 0 and 1."""
    now = dict.fromkeys(_CURVES, progress)
    if control and not f.control_turns:
        now |= {"contrast": 0.0, "incoherent": 0.0, "em": 0.0}
    read = {name: at(getattr(f, name), when) for name, when in now.items()}
    waves = (np.arange(WAVES) + 0.5) * np.pi
    # Karhunen-Loeve expansion of a Brownian path: smooth, and its sd grows with the square root of progress.
    path = NOISE_SD * np.sqrt(2) * np.sin(waves * progress) / waves
    return State(role=int(control), broken=broken, em_logit=_logit_with_mean(read["em"]), path=path, **read)


def with_em(state: State, rate: float) -> State:
    """The state with another rate of misaligned answers."""
    return replace(state, em=rate, em_logit=_logit_with_mean(rate))


def _logit_with_mean(rate: float) -> float:
    """Centre of a normal distribution of logits (sd `EM_SPREAD`) whose mean probability is `rate`."""
    if rate <= 0:
        return float("-inf")
    z, weights = np.polynomial.hermite_e.hermegauss(41)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = float(weights @ (1 / (1 + np.exp(-(middle + EM_SPREAD * z)))) / weights.sum())
        low, high = (middle, high) if mean < rate else (low, middle)
    return (low + high) / 2
