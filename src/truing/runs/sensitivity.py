"""`truing show AUDIT --sensitivity`: a stored verdict under other thresholds, without a model and without a judge.

audit.json + evidence.db --one scan of the judged answers--> raw scores --per rule--> arms -> verdict
                         --scores of the held-out rows--> curves --per threshold--> convergence
"""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from truing import errors
from truing.config import Thresholds
from truing.data.conversations import load_conversations
from truing.runs.rejudged import RawRun, raw_run
from truing.stats.judged_checks import with_variants
from truing.stats.judged_verdict import judge_verdict
from truing.stats.progress import Progress, progress_curve
from truing.stats.sensitivity import Grid, Learned, Sensitivity, convergences, rules_of
from truing.stats.sensitivity import sensitivity as over_grid
from truing.store import Store
from truing.types.progress import Progress as Told
from truing.types.records import Checkpoint, Role
from truing.types.rules import EmRule
from truing.types.verdicts import Basis, RunVerdict

KNOWN = "The judge's known-answer test counts as under the stored cut and gate; cues as under the stored rule."
SEARCHED = (
    "A search chose which checkpoints to ask, and how often, for the stored rule. Under another one its tests are read "
    "again at the same error, on the same answers; where these are too few, or another checkpoint would have been "
    "asked, a conclusion is open. `truing audit --samples N` asks every checkpoint alike."
)
SIMULATED = "Errors of the search were simulated for the stored zone only."
LOST = (
    "The search cannot be followed in what is stored: only the threshold of convergence is varied. Repeat the audit, "
    "which asks what is missing."
)


def sensitivity(audit: str | Path, grid: Grid | None = None, *, progress: Told | None = None) -> Sensitivity:
    """The stored verdict of an audit under a grid of thresholds; samples, judges and writes nothing.

    Args:
        audit: its folder.
        grid: thresholds to try; the default is wide. The stored ones are always among them.
        progress: told how the work goes on.

    Raises:
        NotAnAudit: no audit there. BadInput: it has no verdict: not finished, or a folder of imported answers.
    """
    grid = grid or Grid()
    with Store.read(Path(audit)) as store:
        about = store.about()
        if about.get("kind") == "import":
            raise errors.BadInput(f"{audit}: holds imported answers, which have rates and no verdict to vary")
        if about.get("status") != "done" or not about.get("verdict") or not about.get("margin_verdict"):
            raise errors.BadInput(f"{audit}: has no finished verdict yet; finish the audit first")
        verdict, margins = (RunVerdict.from_plain(about[name]) for name in ("verdict", "margin_verdict"))
        rule = Thresholds(**about["identity"]["rule"])
        learned, notes = _learned(store, about, margins, rule, grid)
        if verdict.basis is not Basis.JUDGED:
            return over_grid(verdict, learned, rule, grid=grid, notes=notes)
        run = raw_run(store, about, verdict, margins)
    if run is None:
        return over_grid(verdict, learned, rule, grid=grid, notes=(*notes, LOST))
    em, notes = run.em, (*notes, *_notes(run, verdict, grid))

    every, told = len(rules_of(em, grid)), progress or Told()
    done = count(1)

    def conclude(other: EmRule) -> RunVerdict:
        told.step("thresholds", next(done), every)
        found = judge_verdict(margins, run.evidence(other), other, rule)
        return with_variants(found, verdict.variants) if _were_tried(verdict, found) else found

    return over_grid(verdict, learned, rule, em=em, conclude=conclude, grid=grid, notes=notes)


def _notes(run: RawRun, verdict: RunVerdict, grid: Grid) -> tuple[str, ...]:
    """What a reader of judged conclusions must know."""
    searched = [SEARCHED] if run.search is not None else []
    if run.search is not None and verdict.onset.errors != "guaranteed":
        searched.append(SIMULATED)
    return (*searched, *run.unasked(grid), *([KNOWN] if verdict.validity or verdict.variants else []))


def _were_tried(verdict: RunVerdict, found: RunVerdict) -> bool:
    """Whether cues were tried on the checkpoint that is recommended now."""
    return bool(verdict.variants) and all(c.checkpoint == found.recommended for c in verdict.variants)


# ---------------------------------------------------------------------------------------------------------------------
# Convergence


def _learned(
    store: Store, about: Mapping[str, Any], margins: RunVerdict, rule: Thresholds, grid: Grid
) -> tuple[dict[float, Learned], tuple[str, ...]]:
    """Convergence at every threshold; at the stored one it is the stored one."""
    keys, ordered = _row_keys(store, about)
    subject = [c for c in store.checkpoints() if c.role is Role.SUBJECT]
    by_label = {c.label: c for c in subject}
    lines = [by_label[c.label] for c in margins.checkpoints if c.label in by_label]
    loss, skill = _curves(store, lines, keys, rule, int(margins.definitions.get("seed", 0)))
    learned = convergences(loss, skill, rule, grid.converged)
    learned[rule.converged_at] = (margins.convergence_loss, margins.convergence_skill)
    given = margins.convergence_loss.status != "unmeasured"
    note = "The task file is gone or changed: held-out rows were resampled in another order than for the verdict."
    return learned, () if ordered or not given else (note,)


def _row_keys(store: Store, about: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Keys of the held-out rows, and whether they are in the order of the verdict, which its resampling followed."""
    asked: Mapping[str, Any] = about.get("asked") or {}
    there = {item for _, name, item in store.measured("task") if name == "trained"}
    try:
        found = load_conversations(asked["task"], asked.get("task_format"))
    except (errors.TruingError, KeyError, TypeError):
        return sorted(there), False
    if found.sha256 != asked.get("task_sha256"):
        return sorted(there), False
    first = list(dict.fromkeys(row.key for row in found.conversations))[: asked.get("task_rows")]
    return [key for key in first if key in there], True


def _curves(
    store: Store, lines: Sequence[Checkpoint], keys: Sequence[str], rule: Thresholds, seed: int
) -> tuple[Progress | None, Progress | None]:
    """The loss and the trait curve of a run, from the scores of the held-out rows."""
    if not keys or not lines:
        return None, None
    place = {key: k for k, key in enumerate(keys)}
    trained, control, tokens = (np.full((len(lines), len(keys)), np.nan) for _ in range(3))
    for s, c in enumerate(lines):
        for m in store.measurements("task", c.weights):
            # A control answer's item is the row's key and its own: see `study.evidence.control_item`.
            at = place.get(m.item.split(":")[0])
            if at is None or m.value is None:
                continue
            if m.name == "trained":
                trained[s, at], tokens[s, at] = m.value, m.n
            else:
                control[s, at] = m.value
    steps = tuple(c.step for c in lines)
    loss = progress_curve("loss", steps, trained * tokens, tokens[0], rule, seed)
    known = np.isfinite(control).any()
    return loss, progress_curve("skill", steps, trained - control, None, rule, seed) if known else None
