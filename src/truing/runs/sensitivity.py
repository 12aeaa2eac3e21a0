"""A stored verdict under other thresholds: stored scores of the fixed samples, labelled under each rule."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from truing import errors
from truing.config import Thresholds
from truing.runs.scope import Scope, stored_prompts, stored_scope
from truing.runs.tables import labelled_of
from truing.stats.decide import decide, with_earlier_variants
from truing.stats.sensitivity import Sensitivity, grid, over_grid
from truing.stats.table import AnswerTable, Calibration, Evidence, Labelled
from truing.store import Store
from truing.types.progress import Progress
from truing.types.traits import Reason, Rule
from truing.types.verdicts import Basis, JudgeCalibration, Verdict

STORED = "The judge's calibration and the variants count as under the stored cut and gate."
SEARCHED = (
    "A search decided this verdict. Here only the fixed samples count, which a few checkpoints have; "
    "`truing audit --samples N` samples every checkpoint alike."
)
UNASKED = "Past the stored cut, answers whose coherence was never asked count both ways, so less is certain there."


def sensitivity(audit: str | Path, *, progress: Progress | None = None) -> Sensitivity:
    """The stored verdict of an audit under a grid of thresholds; samples, judges and writes nothing.

    Args:
        audit: its folder.
        progress: told how the work goes on.

    Raises:
        NotAnAudit: no audit there. BadInput: it has no finished verdict that rests on labelled answers.
    """
    told = progress or Progress()
    with Store.read(Path(audit)) as store:
        about = store.about()
        if about.get("status") != "done" or not about.get("verdict") or not about.get("screened"):
            raise errors.BadInput(f"{audit}: has no finished verdict to vary; finish the audit first")
        verdict = Verdict.from_plain(about["verdict"])
        if verdict.basis is not Basis.LABELLED:
            raise errors.BadInput(f"{audit}: has no labelled answers to label again; repeat it with --judge")
        stored = StoredAnswers.of(store, about, verdict)
        rule, done = stored.scope.rule, count(1)
        every = len(grid(rule))

        def conclude(other: Rule) -> Verdict:
            told.step("thresholds", next(done), every)
            return stored.verdict_under(other)

        lazy = store.judges()[stored.judge].get("lazy", True) and rule.gate_score is not None
        told_with = {
            SEARCHED: bool(verdict.onset.errors),
            UNASKED: lazy and rule.kind == "threshold",
            STORED: verdict.calibration is not None or bool(verdict.variants),
        }
        return over_grid(rule, conclude, tuple(note for note, holds in told_with.items() if holds))


@dataclass(frozen=True)
class StoredAnswers:
    """The labelled answers of a finished audit, its fixed samples only, to be labelled under any rule."""

    store: Store
    """the audit, open"""
    verdict: Verdict
    """its verdict"""
    screened: Verdict
    """that of the screen alone"""
    scope: Scope
    """which answers count"""
    thresholds: Thresholds
    """all but the rule"""
    made: dict[str, Labelled] = field(default_factory=dict)
    """rule key -> labelled answers; lo and hi are no part of that key"""

    @classmethod
    def of(cls, store: Store, about: Mapping[str, Any], verdict: Verdict) -> "StoredAnswers":
        """Those that audit.json (`about`) speaks of."""
        scope = stored_scope(store, about, stored_prompts(about).prompts)
        thresholds = Thresholds(**about["identity"].get("rule", {}))
        return cls(store, verdict, Verdict.from_plain(about["screened"]), scope, thresholds)

    @property
    def judge(self) -> str:
        """Hash of the judge that the verdict rests on."""
        return self.verdict.judge_key or ""

    def verdict_under(self, rule: Rule) -> Verdict:
        """The verdict under another rule, from the same answers."""
        labelled = replace(self._labelled(rule), rule=rule)
        made = decide(Evidence(None, labelled, screened=self.screened), self.thresholds)
        return with_earlier_variants(made, self.verdict)

    def _labelled(self, rule: Rule) -> Labelled:
        if rule.key not in self.made:
            scope = replace(self.scope, rule=rule)
            found = labelled_of(self.store, self.judge, scope, _counts(self.verdict.calibration))
            if rule.key != self.scope.rule.key:
                before = self._labelled(self.scope.rule)
                subject = zip(found.subject, before.subject, strict=True)
                control = {step: _both_ways(table, before.control[step]) for step, table in found.control.items()}
                found = replace(found, subject=tuple(_both_ways(*pair) for pair in subject), control=control)
            self.made[rule.key] = found
        return self.made[rule.key]


def _both_ways(table: AnswerTable, asked: AnswerTable) -> AnswerTable:
    """Answers past a cut, but not past the one under which coherence was asked: without it they may be either."""
    unasked = (table.reason == Reason.UNSCORED) & (asked.reason != Reason.UNSCORED)
    return replace(table, reason=np.where(unasked, Reason.UNPARSED, table.reason).astype(np.int64))


def _counts(found: JudgeCalibration | None) -> Calibration | None:
    """The counts behind a stored calibration."""
    if found is None:
        return None
    kinds = {kind: (round((e.value or 0.0) * e.n), e.n) for kind, e in found.by_category.items()}
    hits = found.sensitivity
    return Calibration((round((hits.value or 0.0) * hits.n), hits.n), kinds)
