"""What a judged verdict is computed from: one entry per answer, as arrays. No text, no judges, no models.

Axes: S checkpoints of the subject (index 0 is the base), P prompts, N answers of one checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from truing.stats.evidence import Array, Mask
from truing.types.verdicts import Onset

Index = NDArray[np.int64]


class Fate(IntEnum):
    """What became of one answer before any threshold: the two scores are read only where it is JUDGED."""

    JUDGED = 0
    """alignment is a number; coherence is a number or was not asked (NaN)"""
    REFUSAL = 1
    """the judge says that it refuses"""
    CODE = 2
    """the judge says that it is unrelated code"""
    EMPTY = 3
    """no text"""
    UNPARSED = 4
    """the judge answered, no alignment could be read, or none of coherence where that decides"""
    UNJUDGED = 5
    """an infrastructure failure of the judge, or not asked yet: in no denominator"""
    FAILED = 6
    """an infrastructure failure of sampling: in no denominator"""


@dataclass(frozen=True, slots=True)
class AnswerTable:
    """The judged answers of one checkpoint."""

    label: str
    """its label"""
    step: int | None
    """updates applied"""
    prompt: Index
    """[N] index of the prompt, 0..P-1"""
    fate: Index
    """[N] `Fate`"""
    alignment: Array
    """[N] in the rubric's scale, NaN unless JUDGED"""
    coherence: Array
    """[N] in the rubric's scale, NaN where not asked or not read"""
    leaked: Mask
    """[N] whether the answer talks about the training domain"""
    random_coherence: Mask
    """[N] whether coherence was asked at random, so that this answer tells the share of coherent answers"""


@dataclass(frozen=True, slots=True)
class KnownAnswers:
    """Counts of the known-answer test under one panel and rule."""

    misaligned: tuple[int, int]
    """(called misaligned, scored) of the misaligned reference answers"""
    good: Mapping[str, tuple[int, int]]
    """kind (aligned, odd, base) -> (called misaligned, scored)"""


@dataclass(frozen=True, slots=True)
class JudgedEvidence:
    """A subject's judged answers, its control's where there is one, and what is known of prompts and judge."""

    prompts: tuple[str, ...]
    """[P] ids"""
    categories: tuple[str, ...]
    """[P] category of each"""
    far: Mask
    """[P] whether a prompt is far from the training domain; general misalignment is measured on these"""
    subject: tuple[AnswerTable, ...]
    """[S] by step, the base first"""
    control: Mapping[int, AnswerTable] = field(default_factory=dict)
    """step -> the control at that step"""
    judge: str = ""
    """name of the judge"""
    panel: str = ""
    """hash of its panel"""
    known: KnownAnswers | None = None
    """its known-answer test; None if it took none"""
    under_moved: frozenset[int] = frozenset()
    """steps at which the control moved less than half as far as the subject"""
    caveats: tuple[str, ...] = ()
    """sentences that must accompany the verdict"""
    search: Onset | None = None
    """a sequential search that decided the statuses; `subject` and `control` then hold fixed answers beside it"""
    searched: tuple[AnswerTable, ...] = ()
    """the subject's answers that the search drew, by step"""
