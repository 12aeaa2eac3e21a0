"""`truing show AUDIT --sensitivity`: a stored verdict under other thresholds, without a model and without a judge.

Stored scores of the fixed samples are labelled again under each rule, and the same function makes the verdict.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from truing import errors
from truing.config.options import EmRule, VerdictRule
from truing.runs.judge import stored_prompts, stored_rule, stored_run
from truing.runs.judged_audit import group_of, judge_groups
from truing.runs.judging import Tell
from truing.stats.judged_checks import with_variants
from truing.stats.judged_evidence import AnswerTable, Fate, JudgedEvidence, KnownAnswers
from truing.stats.judged_verdict import judge_verdict
from truing.stats.sensitivity import Grid, Sensitivity, over_grid
from truing.store import Store
from truing.types.verdicts import Basis, JudgeValidity, RunVerdict

KNOWN = (
    "The judge's test on reference answers counts as under the stored cut and gate; variants as under the stored rule."
)
SEARCHED = (
    "A search decided this verdict. Here only the fixed samples count, which a few checkpoints have; "
    "`truing audit --exhaustive N` samples every checkpoint alike."
)
HIGHER = "Above the stored cut, answers whose coherence was never asked count both ways, so less is certain there."


def sensitivity(audit: str | Path, grid: Grid | None = None, *, progress: Tell | None = None) -> Sensitivity:
    """The stored verdict of an audit under a grid of thresholds; samples, judges and writes nothing.

    Args:
        audit: its folder.
        grid: thresholds to try; the default is wide. The stored ones are always among them.
        progress: called with (stage, done, total) as work goes on.

    Raises:
        NotAnAudit: no audit there. BadInput: it has no finished verdict that rests on judged answers.
    """
    grid = grid or Grid()
    with Store.read(Path(audit)) as store:
        about = store.about()
        if about.get("status") != "done" or not about.get("verdict") or not about.get("margin_verdict"):
            raise errors.BadInput(f"{audit}: has no finished verdict to vary; finish the audit first")
        verdict = RunVerdict.from_plain(about["verdict"])
        if verdict.basis is not Basis.JUDGED:
            raise errors.BadInput(f"{audit}: has no judged answers to label again; repeat it with --judge")
        stored, em = StoredAnswers(store, about, verdict), stored_rule(about)
        every, done = len(grid.rules(em)), count(1)

        def conclude(rule: EmRule) -> RunVerdict:
            if progress is not None:
                progress("thresholds", next(done), every)
            return stored.verdict_under(rule)

        notes = (SEARCHED,) if verdict.onset.errors else ()
        if em.kind == "threshold" and max(grid.cuts) > em.alignment_cut:
            notes = (*notes, HIGHER)
        notes = (*notes, KNOWN) if verdict.validity or verdict.variants else notes
        return over_grid(em, grid, conclude, notes)


@dataclass(frozen=True)
class StoredAnswers:
    """The judged answers of a finished audit, its fixed samples only, to be labelled under any rule."""

    store: Store
    """the audit, open"""
    about: Mapping[str, Any]
    """its audit.json"""
    verdict: RunVerdict
    """its verdict, which rests on judged answers"""
    tables: dict[float, dict[str, AnswerTable]] = field(default_factory=dict)
    """alignment cut -> weight hash -> answers: of a rule, only the cut decides what became of an answer"""

    def verdict_under(self, rule: EmRule) -> RunVerdict:
        """The verdict under another rule, from the same answers."""
        before, run = self.verdict, stored_run(self.store, self.about, stored_prompts(self.about).prompts)
        found = self._labelled(rule)
        evidence = JudgedEvidence(
            prompts=tuple(p.id for p in run.prompts),
            categories=tuple(p.category for p in run.prompts),
            far=np.array(run.far, dtype=bool),
            subject=tuple(group_of(found, c) for c in run.subject),
            control={c.step: group_of(found, c) for c in run.control if c.step is not None},
            judge=before.judge or "",
            panel=before.panel or "",
            known=_known(before.validity),
            under_moved=run.under_moved,
            caveats=run.caveats,
        )
        margins = RunVerdict.from_plain(self.about["margin_verdict"])
        thresholds = VerdictRule(**self.about["identity"].get("rule", {}))
        made = judge_verdict(margins, evidence, rule, thresholds, seed=run.seed)
        tried = any(c.checkpoint == made.recommended for c in before.variants)
        return with_variants(made, before.variants) if tried else made

    def _labelled(self, rule: EmRule) -> dict[str, AnswerTable]:
        cut, asked_under = rule.alignment_cut, stored_rule(self.about).alignment_cut
        if cut not in self.tables:
            run = stored_run(self.store, self.about, stored_prompts(self.about).prompts)
            made = judge_groups(self.store, self.verdict.panel or "", run, rule)
            if cut > asked_under:
                before = self._labelled(stored_rule(self.about))
                made = {weights: _both_ways(table, before[weights]) for weights, table in made.items()}
            self.tables[cut] = made
        return self.tables[cut]


def _both_ways(table: AnswerTable, asked: AnswerTable) -> AnswerTable:
    """Answers under a higher cut than coherence was asked under: what lacks it for that reason may be either."""
    unasked = (table.fate == Fate.UNJUDGED) & (asked.fate == Fate.JUDGED)
    return replace(table, fate=np.where(unasked, Fate.UNPARSED, table.fate).astype(np.int64))


def _known(validity: JudgeValidity | None) -> KnownAnswers | None:
    """The counts behind a stored test on reference answers."""
    if validity is None:
        return None
    pairs = {kind: (round((e.value or 0.0) * e.n), e.n) for kind, e in validity.by_category.items()}
    hits = validity.sensitivity
    return KnownAnswers((round((hits.value or 0.0) * hits.n), hits.n), pairs)
