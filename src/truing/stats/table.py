"""Labelled answers as arrays: one entry per answer. No text, no judges, no models.

Axes: S checkpoints of the subject (index 0 is the base), P prompts, N answers of one checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from truing.stats.evidence import Array, Mask, Measurements
from truing.types.traits import LOST, SCORED, Reason, Rule
from truing.types.verdicts import Finding, Onset, Verdict

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AnswerTable:
    """The labelled answers of one checkpoint."""

    checkpoint: str
    """its label"""
    step: int | None
    """updates applied"""
    prompt: Index
    """[N] index of the prompt, 0..P-1"""
    label: Index
    """[N] 1 positive, 0 negative, -1 unusable"""
    reason: Index
    """[N] `Reason`: why"""
    score: Array
    """[N] the score that decides, in its rubric's scale; NaN unless the reason rests on one"""
    coherence: Array
    """[N] the gate's score; NaN where not asked or not read"""
    in_domain: Mask
    """[N] whether the answer talks about the training domain"""
    random_coherence: Mask
    """[N] whether coherence was asked at random, so that this answer tells the share of coherent answers"""

    @classmethod
    def empty(cls, checkpoint: str, step: int | None) -> "AnswerTable":
        """A checkpoint without answers."""
        index, number = np.array([], dtype=np.int64), np.array([], dtype=np.float64)
        flags = index.astype(bool)
        return cls(checkpoint, step, index, index, index, number, number, flags, flags)

    @property
    def positive(self) -> Mask:
        """[N] whether the label is positive."""
        return self.label == 1

    @property
    def counted(self) -> Mask:
        """[N] whether an answer is in the denominator: all but infrastructure failures."""
        return ~np.isin(self.reason, LOST)

    @property
    def scored(self) -> Mask:
        """[N] whether the label rests on a score."""
        return np.isin(self.reason, SCORED)

    def only(self, mask: Mask) -> "AnswerTable":
        """The answers of a mask [N]."""
        names = ("prompt", "label", "reason", "score", "coherence", "in_domain", "random_coherence")
        return replace(self, **{name: getattr(self, name)[mask] for name in names})

    def reasons(self) -> dict[str, int]:
        """Answers by reason, zeros included."""
        n = np.bincount(self.reason, minlength=len(Reason) + 1)
        return {r.word: int(n[r]) for r in Reason}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Counts of a judge's answers to the calibration set: reference answers of known quality."""

    positives: tuple[int, int]
    """(called positive, scored) of the positive reference answers"""
    negatives: Mapping[str, tuple[int, int]]
    """kind (aligned, neutral, base) -> (called positive, scored)"""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A subject's labelled answers, its control's where there is one, and what is known of prompts and judge."""

    prompts: tuple[str, ...]
    """[P] ids"""
    categories: tuple[str, ...]
    """[P] category of each"""
    far: Mask
    """[P] whether a prompt is far from the training domain; general behaviour is measured on these"""
    subject: tuple[AnswerTable, ...]
    """[S] by step, the base first"""
    control: Mapping[int, AnswerTable] = field(default_factory=dict)
    """step -> the control at that step"""
    judge: str = ""
    """name of the judge"""
    judge_key: str = ""
    """its hash"""
    calibration: Calibration | None = None
    """how it did on reference answers; None if it was not calibrated"""
    exact: bool = False
    """a deterministic scorer in the place of a judge: its labels need no calibration"""
    under_moved: frozenset[int] = frozenset()
    """steps at which the control moved less than half as far as the subject"""
    rule: Rule = field(default_factory=Rule)
    """how scores became labels, and the zone"""
    trait: str = "misalignment"
    """name of the trait"""
    findings: tuple[Finding, ...] = ()
    """what must accompany the verdict"""
    search: Onset | None = None
    """a sequential search that decided the statuses; `subject` and `control` then hold fixed answers beside it"""
    searched: tuple[AnswerTable, ...] = ()
    """the subject's answers that the search read, by step"""


@dataclass(frozen=True, slots=True)
class VariantGroups:
    """The answers under one prompt variant."""

    name: str
    """the variant"""
    kind: str
    """trigger or adversarial"""
    group: AnswerTable
    """the recommended checkpoint's answers under it"""
    base: AnswerTable
    """step 0's answers under the same variant"""
    control: AnswerTable | None = None
    """the control's at the same step under the same variant"""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a second judge or blind labels say of the direction."""

    agrees: bool
    """whether they see the same direction at every decisive checkpoint"""
    by: str
    """who, or what is missing"""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a verdict is made of."""

    measured: Measurements | None
    """screen, task progress and health; None where `screened` stands for it"""
    labelled: Labelled | None = None
    """labelled answers; None where only the screen speaks"""
    variants: tuple[VariantGroups, ...] = ()
    """the recommended checkpoint under prompt variants"""
    adversarial_veto: bool = False
    """whether adversarial variants veto too"""
    opinion: Opinion | None = None
    """a second judge, or blind labels"""
    screened: Verdict | None = None
    """the screen's verdict made before, e.g. as an audit keeps it"""


def certified(verdict: Verdict, opinion: Opinion | None) -> Verdict:
    """The verdict with what a second judge or blind labels say of its direction.

    Only a direction can be agreed on, so a verdict without one (no onset found, nor ruled out) stays uncertified.
    """
    if opinion is None:
        return verdict
    decided = verdict.onset.status in ("found", "never")
    by = opinion.by if decided or not opinion.agrees else f"nothing is decided that could be certified ({opinion.by})"
    return replace(verdict, certified=opinion.agrees and decided, certified_by=by)
