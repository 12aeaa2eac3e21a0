"""`truing show AUDIT --sensitivity`: a stored verdict under other thresholds, without a model and without a judge.

audit.json + evidence.db --one scan of the judged answers--> raw scores --per rule--> arms -> verdict
                         --scores of the held-out rows--> curves --per threshold--> convergence
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from truing.base import errors
from truing.base.judged import JudgementOutcome, ResponseKey
from truing.base.options import EmRule, VerdictRule
from truing.base.records import Checkpoint, Role
from truing.base.store import Store
from truing.base.verdicts import Basis, JudgeValidity, RunVerdict
from truing.data.conversations import load_conversations
from truing.probe.answers import leaks
from truing.stats.evidence import Array, Mask
from truing.stats.judged_checks import with_cues
from truing.stats.judged_evidence import JudgedArm, JudgedEvidence, KnownAnswers
from truing.stats.judged_verdict import judge_verdict
from truing.stats.progress import Progress, progress_curve
from truing.stats.sensitivity import Grid, Learned, Sensitivity, convergences, rejudged_arm, rules_of
from truing.stats.sensitivity import sensitivity as over_grid
from truing.study.judge import stored_prompts, stored_run
from truing.study.judged import COHERENCE, fated, with_judgements
from truing.study.judged_audit import arm_of
from truing.study.judged_frame import JudgedRun
from truing.study.judging import Tell, panel_seed, random_coherence

RAW = EmRule(kind="mean")
"""a rule under which a missing coherence decides nothing: scores stay as they are"""
SEARCHED = (
    "A sequential search decided, on as many answers as its own thresholds needed: only the threshold of convergence "
    "is varied. `truing audit --exhaustive N` draws the same answers everywhere, which can be judged by any rule."
)
KNOWN = "The judge's known-answer test counts as under the stored cut and gate; cues as under the stored rule."


def sensitivity(audit: str | Path, grid: Grid | None = None, *, progress: Tell | None = None) -> Sensitivity:
    """The stored verdict of an audit under a grid of thresholds; samples, judges and writes nothing.

    Args:
        audit: its folder.
        grid: thresholds to try; the default is wide. The stored ones are always among them.
        progress: called with (stage, done, total) as work goes on.

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
        rule = VerdictRule(**about["identity"]["rule"])
        learned, notes = _learned(store, about, margins, rule, grid)
        if verdict.basis is not Basis.JUDGED:
            return over_grid(verdict, learned, rule, grid=grid, notes=notes)
        if verdict.onset.tested:
            return over_grid(verdict, learned, rule, grid=grid, notes=(*notes, SEARCHED))
        world = _world(store, about, verdict)
    em = EmRule(**verdict.definitions["em"])
    notes = (*notes, *_unasked(world, em, grid), *([KNOWN] if verdict.validity or verdict.cues else []))

    every, tell = len(rules_of(em, grid)), progress or (lambda stage, done, total: None)
    done = count(1)

    def conclude(other: EmRule) -> RunVerdict:
        tell("thresholds", next(done), every)
        found = judge_verdict(margins, world.evidence(other, em), other, rule)
        return with_cues(found, verdict.cues) if _were_tried(verdict, found) else found

    return over_grid(verdict, learned, rule, em=em, conclude=conclude, grid=grid, notes=notes)


def _were_tried(verdict: RunVerdict, found: RunVerdict) -> bool:
    """Whether cues were tried on the checkpoint that is recommended now."""
    return bool(verdict.cues) and all(c.checkpoint == found.recommended for c in verdict.cues)


# ---------------------------------------------------------------------------------------------------------------------
# Convergence


def _learned(
    store: Store, about: Mapping[str, Any], margins: RunVerdict, rule: VerdictRule, grid: Grid
) -> tuple[dict[float, Learned], tuple[str, ...]]:
    """Convergence at every threshold; at the stored one it is the stored one."""
    keys, ordered = _row_keys(store, about)
    subject = [c for c in store.checkpoints() if c.role is Role.SUBJECT]
    by_label = {c.label: c for c in subject}
    lines = [by_label[c.label] for c in margins.checkpoints if c.label in by_label]
    loss, trait = _curves(store, lines, keys, rule, int(margins.definitions.get("seed", 0)))
    learned = convergences(loss, trait, rule, grid.converged)
    learned[rule.converged_at] = (margins.convergence_loss, margins.convergence_trait)
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
    store: Store, lines: Sequence[Checkpoint], keys: Sequence[str], rule: VerdictRule, seed: int
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
    return loss, progress_curve("trait", steps, trained - control, None, rule, seed) if known else None


# ---------------------------------------------------------------------------------------------------------------------
# Judged answers


@dataclass(slots=True)
class _Rows:
    """The judged answers of one checkpoint, growing."""

    prompt: "array[int]" = field(default_factory=lambda: array("q"))
    fate: "array[int]" = field(default_factory=lambda: array("q"))
    alignment: "array[float]" = field(default_factory=lambda: array("d"))
    coherence: "array[float]" = field(default_factory=lambda: array("d"))
    leaked: "array[int]" = field(default_factory=lambda: array("b"))
    unread: "array[int]" = field(default_factory=lambda: array("b"))
    """whether coherence was asked and could not be read"""
    keys: list[ResponseKey] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _World:
    """Raw scores of everything that was judged, and what belongs to every verdict on them."""

    frame: JudgedEvidence
    """the evidence with raw arms"""
    unread: Mapping[str, Mask]
    """label -> [N] whether coherence was asked of an answer of the subject and could not be read"""
    unread_control: Mapping[int, Mask]
    """step -> the same of the control"""

    def evidence(self, rule: EmRule, stored: EmRule) -> JudgedEvidence:
        """The evidence under a rule, where coherence was asked as under the stored one."""
        cut, frame = stored.alignment_cut, self.frame
        control = {s: rejudged_arm(a, self.unread_control[s], rule, cut) for s, a in frame.control.items()}
        subject = tuple(rejudged_arm(a, self.unread[a.label], rule, cut) for a in frame.subject)
        return replace(frame, subject=subject, control=control)


def _world(store: Store, about: Mapping[str, Any], verdict: RunVerdict) -> _World:
    prompts = stored_prompts(about).prompts
    run = stored_run(store, about, prompts)
    assert verdict.panel is not None
    found, unread = _scan(store, verdict.panel, run)
    subject = tuple(arm_of(found, c) for c in run.subject)
    controls = {c.step: c for c in run.control if c.step is not None}
    frame = JudgedEvidence(
        prompts=tuple(p.id for p in prompts),
        categories=tuple(p.category for p in prompts),
        far=np.array(run.far, dtype=bool),
        subject=subject,
        control={step: arm_of(found, c) for step, c in controls.items()},
        judge=verdict.judge or "",
        panel=verdict.panel,
        known=_known(verdict.validity),
        under_moved=run.under_moved,
        caveats=run.caveats,
    )
    none = np.array([], dtype=bool)
    return _World(
        frame,
        {c.label: unread.get(c.weights, none) for c in run.subject},
        {step: unread.get(c.weights, none) for step, c in controls.items()},
    )


def _scan(store: Store, panel: str, run: JudgedRun) -> tuple[dict[str, JudgedArm], dict[str, Mask]]:
    """Every judged answer once: weight hash -> raw arm, and which of its coherences could not be read."""
    place = {p.key: k for k, p in enumerate(run.prompts)}
    texts = {p.key: " ".join(m.content for m in p.messages) for p in run.prompts}
    words = frozenset(run.words)
    rows: dict[str, _Rows] = {}
    every: list[ResponseKey] = []
    for r, said in with_judgements(store, panel, run.params):
        every.append(r.key)
        index = place.get(r.prompt)
        if index is None or r.transform:
            continue
        raw, kept = fated(r, said, RAW), rows.setdefault(r.weights, _Rows())
        kept.prompt.append(index)
        kept.fate.append(raw.fate)
        kept.alignment.append(raw.alignment)
        kept.coherence.append(raw.coherence)
        kept.leaked.append(bool(words) and leaks(r.text, texts[r.prompt], words))
        kept.unread.append(any(j.rubric == COHERENCE and j.outcome is JudgementOutcome.UNPARSED for j in said))
        kept.keys.append(r.key)
    lazy = store.panels().get(panel, {}).get("lazy", True)
    drawn = random_coherence(every, panel_seed(store, panel)) if lazy else frozenset(every)
    arms = {weights: _arm(weights, kept, drawn) for weights, kept in rows.items()}
    return arms, {weights: np.array(kept.unread, dtype=bool) for weights, kept in rows.items()}


def _arm(weights: str, rows: _Rows, drawn: frozenset[ResponseKey]) -> JudgedArm:
    def numbers(column: "array[Any]") -> Array:
        return np.array(column, dtype=np.float64)

    return JudgedArm(
        weights[:12],
        None,
        np.array(rows.prompt, dtype=np.int64),
        np.array(rows.fate, dtype=np.int64),
        numbers(rows.alignment),
        numbers(rows.coherence),
        np.array(rows.leaked, dtype=bool),
        np.array([key in drawn for key in rows.keys], dtype=bool),
    )


def _known(validity: JudgeValidity | None) -> KnownAnswers | None:
    """The counts behind a stored known-answer test."""
    if validity is None:
        return None
    pairs = {kind: (round((e.value or 0.0) * e.n), e.n) for kind, e in validity.by_category.items()}
    hits = validity.sensitivity
    return KnownAnswers((round((hits.value or 0.0) * hits.n), hits.n), pairs)


def _unasked(world: _World, em: EmRule, grid: Grid) -> tuple[str, ...]:
    """How many answers a higher cut would need a coherence of that was never asked."""
    out = []
    for cut in (c for c in grid.cuts if c > em.alignment_cut and em.kind == "threshold"):
        arms = (*world.frame.subject, *world.frame.control.values())
        low = [(a.alignment < cut) & (a.alignment >= em.alignment_cut) & np.isnan(a.coherence) for a in arms]
        n, of = sum(int(x.sum()) for x in low), sum(len(x) for x in low)
        if n:
            out.append(
                f"Cut {cut:g}: coherence of {n} of {of} answers was not asked, as their alignment is over "
                f"{em.alignment_cut:g}; they count both ways, so that less is certain there."
            )
    return tuple(out)
