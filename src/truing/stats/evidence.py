"""What a verdict is computed from: arrays of numbers, in one record. No text, no paths, no models.

Axes: S checkpoints of the subject (index 0 is the base), P prompts with reference answers, R held-out task rows.
A value that could not be had is NaN and its reason is counted in `left_out`; it is never zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from truing.types.verdicts import Finding

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """Judge-free features of one checkpoint's sampled answers."""

    n: int = 0
    """answers sampled, infrastructure failures not counted"""
    usable: int = 0
    """plain, non-empty, not repetitive"""
    repetitive: int = 0
    """mostly repeating themselves"""
    formatted: int = 0
    """code, JSON or markup"""
    empty: int = 0
    """no text"""
    in_domain: int = 0
    """using words typical of the training domain; -1 when no domain is known"""
    truncated: int = -1
    """cut off at the length limit; -1 where unknown"""
    nll_base: float = float("nan")
    """mean negative log-likelihood under the base, nats per token"""
    surprising: int = 0
    """usable, but wildly unlikely under the base"""


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """One run's numbers, step 0 first."""

    labels: tuple[str, ...]
    """[S] labels"""
    steps: tuple[int | None, ...]
    """[S] updates applied; None = unknown"""
    weights: tuple[str, ...]
    """[S] weight hashes"""
    contrast: Array
    """[S, P] contextual contrast C, nats per token"""
    null_contrast: Array
    """[S, P] the same with one neutral answer against the other; NaN where there is only one"""
    margin: Array
    """[S, P] plain margin, positive minus negative reference, nats per token"""
    entropy: Array
    """[S, P] mean predictive entropy on the reference answers, nats"""
    loss: Array | None = None
    """[S, R] summed loss of each held-out answer, nats"""
    tokens: Array | None = None
    """[R] tokens of each held-out answer"""
    row_tokens: Array | None = None
    """[S, R] tokens each held-out answer had when it was scored; NaN where it was not"""
    skill: Array | None = None
    """[S, R] trained minus control answer, nats per token"""
    answers: tuple[AnswerCounts, ...] = ()
    """[S] features of the sampled answers"""
    kl_from_base: Array | None = None
    """[S] KL from the base on its own answers, nats per token"""
    norm: Array | None = None
    """[S] Frobenius norm of the weight change; NaN if unknown"""
    findings: Mapping[str, Finding] = field(default_factory=dict)
    """label -> what qualifies it, e.g. that an adapter has no effect"""
    failed: Mapping[str, str] = field(default_factory=dict)
    """label -> why the checkpoint could not be measured"""


@dataclass(frozen=True, eq=False, slots=True)
class Measurements:
    """What was measured of a subject and its controls without labels: screen, task progress, health."""

    prompts: tuple[str, ...]
    """[P] prompt ids"""
    categories: tuple[str, ...]
    """[P] category of each prompt"""
    subject: RunEvidence
    """the run the verdict is about"""
    controls: tuple[RunEvidence, ...] = ()
    """benign runs at the same settings; the first is compared step by step"""
    task_given: bool = False
    """whether a held-out task file was given"""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """prompts not scored, by reason"""
    findings: tuple[Finding, ...] = ()
    """what must accompany the verdict, e.g. a failed negative control"""
    scored: bool = True
    """whether given texts could be scored at all; some served bases cannot, and then there is no screen"""
