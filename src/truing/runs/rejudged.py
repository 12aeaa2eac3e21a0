"""The judged answers of an audit as raw scores, read once, from which the evidence under any rule is made.

evidence.db --one scan--> raw arms: fixed answers, and those a search drew --per rule--> evidence of a verdict
"""

from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from typing import Any

import numpy as np

from truing.config.options import AuditOptions, EmRule, VerdictRule
from truing.runs.judge import stored_prompts, stored_run
from truing.runs.judged import COHERENCE, fated, with_scores
from truing.runs.judged_audit import group_of
from truing.runs.judged_frame import JudgedRun
from truing.runs.judging import panel_seed, random_coherence
from truing.runs.search import AT_ONCE, new_search, requests_of
from truing.stats.calibration import LADDER
from truing.stats.evidence import Array, Mask
from truing.stats.inquiry import Levels
from truing.stats.judged_evidence import AnswerTable, Fate, JudgedEvidence, KnownAnswers
from truing.stats.onset import OnsetSearch
from truing.stats.rejudged import KeptSearch, Segments, Where, follow, onset_by, read_values, segments_of
from truing.stats.samples import Group, SampleRequest
from truing.stats.sensitivity import Grid, rejudged_group
from truing.store import Store
from truing.traits.features import leaks
from truing.types.judging import AnswerKey, JudgeOptions, ScoreStatus
from truing.types.records import Checkpoint
from truing.types.verdicts import JudgeValidity, RunVerdict, Tested

RAW = EmRule(kind="mean")
"""a rule under which a missing coherence decides nothing: scores stay as they are"""


@dataclass(frozen=True, slots=True)
class RawGroup:
    """The judged answers of one checkpoint, as scored."""

    group: AnswerTable
    """[N] answers; nothing is decided by a cut yet"""
    unread: Mask
    """[N] whether coherence was asked and could not be read"""

    def under(self, rule: EmRule, asked_under: float) -> AnswerTable:
        """The arm under a rule, where coherence was asked under a cut."""
        return rejudged_group(self.group, self.unread, rule, asked_under)


@dataclass(frozen=True, slots=True)
class RawRun:
    """Raw scores of everything that was judged, and what belongs to every verdict on them."""

    frame: JudgedEvidence
    """the evidence without its arms"""
    em: EmRule
    """the stored rule, under whose cut coherence was asked"""
    subject: tuple[RawGroup, ...]
    """[S] fixed answers by step, the base first"""
    control: Mapping[int, RawGroup]
    """step -> the same of the control"""
    sampled: Mapping[Where, RawGroup] = field(default_factory=dict)
    """(arm, step) -> what a search drew; empty without a search"""
    labels: Mapping[int, str] = field(default_factory=dict)
    """step -> label of the subject's checkpoint, for those a search could draw from"""
    search: KeptSearch | None = None
    """the search; None without one"""
    known: dict[tuple[float, float], tuple[Mapping[Where, AnswerTable], Segments]] = field(default_factory=dict)
    """(cut, gate) -> what the search drew under them"""

    def evidence(self, rule: EmRule) -> JudgedEvidence:
        """The evidence under a rule."""
        cut, frame = self.em.alignment_cut, self.frame
        subject = tuple(a.under(rule, cut) for a in self.subject)
        control = {s: a.under(rule, cut) for s, a in self.control.items()}
        if self.search is None:
            return replace(frame, subject=subject, control=control)
        at = rule.alignment_cut, rule.coherence_gate
        if at not in self.known:  # zones share them
            groups = {where: a.under(rule, cut) for where, a in self.sampled.items()}
            read = {where: read_values(a, rule, frame.prompts) for where, a in groups.items()}
            self.known[at] = groups, segments_of(self.search, read)
        groups, segments = self.known[at]
        found = onset_by(self.search, segments, rule, dict(zip(frame.prompts, frame.categories, strict=True)))
        searched = tuple(_asked(groups[Group.RUN, step], label, step) for step, label in self.labels.items())
        return replace(frame, subject=subject, control=control, search=found, searched=searched)

    def unasked(self, grid: Grid) -> tuple[str, ...]:
        """How many answers a higher cut would need a coherence of that was never asked, a line per cut."""
        out, em = [], self.em
        groups = [raw.group for raw in (*self.subject, *self.control.values(), *self.sampled.values())]
        for cut in (c for c in grid.cuts if c > em.alignment_cut and em.kind == "threshold"):
            low = [(a.alignment < cut) & (a.alignment >= em.alignment_cut) & np.isnan(a.coherence) for a in groups]
            n, of = sum(int(x.sum()) for x in low), sum(len(x) for x in low)
            if n:
                out.append(
                    f"Cut {cut:g}: coherence of {n} of {of} answers was not asked, as their alignment is over "
                    f"{em.alignment_cut:g}; they count both ways, so that less is certain there."
                )
        return tuple(out)


def raw_run(store: Store, about: Mapping[str, Any], verdict: RunVerdict, margins: RunVerdict) -> RawRun | None:
    """The judged answers of an audit; None where a search decided and stored answers do not lead where it came to."""
    prompts = stored_prompts(about).prompts
    run = stored_run(store, about, prompts)
    assert verdict.panel is not None
    fixed, sampled = _scan(store, verdict.panel, run)
    controls = {c.step: c for c in run.control if c.step is not None}
    made = RawRun(
        frame=JudgedEvidence(
            prompts=tuple(p.id for p in prompts),
            categories=tuple(p.category for p in prompts),
            far=np.array(run.far, dtype=bool),
            subject=(),
            judge=verdict.judge or "",
            panel=verdict.panel,
            known=_known(verdict.validity),
            under_moved=run.under_moved,
            caveats=run.caveats,
        ),
        em=EmRule(**verdict.definitions["em"]),
        subject=tuple(fixed.raw(c) for c in run.subject),
        control={step: fixed.raw(c) for step, c in controls.items()},
    )
    if not verdict.onset.answers_used:
        return made
    return _with_search(made, sampled, run, verdict, margins, _options(about, made.em))


def _with_search(
    made: RawRun, found: "_Scanned", run: JudgedRun, verdict: RunVerdict, margins: RunVerdict, options: AuditOptions
) -> RawRun | None:
    later = {c.step: c for c in run.subject[1:] if c.step is not None}
    checkpoints: dict[Where, Checkpoint] = {(Group.RUN, step): c for step, c in later.items()}
    checkpoints |= {(Group.CONTROL, c.step): c for c in run.control if c.step is not None}
    checkpoints[Group.BASE, 0] = run.subject[0]
    sampled = {where: found.raw(c) for where, c in checkpoints.items()}
    em, ids = made.em, made.frame.prompts
    read = {where: read_values(a.under(em, em.alignment_cut), em, ids) for where, a in sampled.items()}
    places = found.places()

    def row(sample: SampleRequest) -> int | None:
        (request,) = requests_of(run, [sample])
        return places.get(
            AnswerKey(request.checkpoint.weights, run.params, request.prompt.key, request.transform, request.sample)
        )

    for search in _searches(run, options, margins):
        kept = follow(search, read, row, at_once=AT_ONCE)
        if kept is not None and _claims(kept.found.tested) == _claims(verdict.onset.tested):
            labels = {step: c.label for step, c in later.items()}
            return replace(made, sampled=sampled, labels=labels, search=replace(kept, found=verdict.onset))
    return None


def _searches(run: JudgedRun, options: AuditOptions, margins: RunVerdict) -> Iterator[OnsetSearch]:
    """The search anew. Thresholds of the simulated mode are one of few, found by trying: to simulate takes minutes."""
    error = 1 - options.rule.level
    tried = [(error, log(4.0))] if options.judging.mode == "guaranteed" else [*LADDER, (error, log(4.0))]
    for nominal, loose in tried:
        yield new_search(run, options, margins, Levels(nominal, nominal, loose))


def _claims(tests: Collection[Tested]) -> list[tuple[object, ...]]:
    """What must agree for a search to be the same."""

    def breadth(t: Tested) -> tuple[object, ...]:
        return (t.breadth.broad, t.breadth.n_run, t.breadth.top_prompt) if t.breadth is not None else ()

    return [(t.step, t.said, t.enough, t.n_run, t.n_reference, t.control, t.n_control, *breadth(t)) for t in tests]


def _options(about: Mapping[str, Any], em: EmRule) -> AuditOptions:
    """What the stored search was made with."""
    asked: Mapping[str, Any] = (about.get("asked") or {}).get("options") or {}
    judging: Mapping[str, Any] = asked.get("judging") or {}
    told = JudgeOptions(mode=judging.get("mode", "guaranteed"), assume_monotone=judging.get("assume_monotone", False))
    rule = VerdictRule(**about["identity"]["rule"])
    return AuditOptions(seed=asked.get("seed", 0), rule=rule, em=em, judging=told)


# ---------------------------------------------------------------------------------------------------------------------
# One scan


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
    keys: list[AnswerKey] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Scanned:
    """The rows of a scan, by weight hash."""

    rows: Mapping[str, _Rows]
    random: frozenset[AnswerKey]
    """answers whose coherence was asked at random"""

    def raw(self, c: Checkpoint) -> RawGroup:
        """A checkpoint's rows as arrays, under its own name and step."""
        rows = self.rows.get(c.weights) or _Rows()
        group = group_of({c.weights: _group(rows, self.random)}, c)
        return RawGroup(group, np.array(rows.unread, dtype=bool))

    def places(self) -> dict[AnswerKey, int]:
        """Answer -> its row in the arm of its checkpoint."""
        return {key: k for rows in self.rows.values() for k, key in enumerate(rows.keys)}


def _scan(store: Store, panel: str, run: JudgedRun) -> tuple[_Scanned, _Scanned]:
    """Every judged answer once: those of the fixed sample, and those of the search."""
    place = {p.key: k for k, p in enumerate(run.prompts)}
    texts = {p.key: " ".join(m.content for m in p.messages) for p in run.prompts}
    words = frozenset(run.words)
    parts: tuple[dict[str, _Rows], dict[str, _Rows]] = ({}, {})
    every: tuple[list[AnswerKey], list[AnswerKey]] = ([], [])
    for r, said in with_scores(store, panel, run.params):
        searched = r.sample < run.fixed_from
        every[searched].append(r.key)
        index = place.get(r.prompt)
        if index is None or r.transform:
            continue
        raw, kept = fated(r, said, RAW), parts[searched].setdefault(r.weights, _Rows())
        kept.prompt.append(index)
        kept.fate.append(raw.fate)
        kept.alignment.append(raw.alignment)
        kept.coherence.append(raw.coherence)
        kept.leaked.append(bool(words) and leaks(r.text, texts[r.prompt], words))
        kept.unread.append(any(j.rubric == COHERENCE and j.outcome is ScoreStatus.UNPARSED for j in said))
        kept.keys.append(r.key)
    if not store.panels().get(panel, {}).get("lazy", True):
        return _Scanned(parts[0], frozenset(every[0])), _Scanned(parts[1], frozenset(every[1]))
    seed = panel_seed(store, panel)
    fixed, sampled = (_Scanned(p, random_coherence(keys, seed)) for p, keys in zip(parts, every, strict=True))
    return fixed, sampled


def _group(rows: _Rows, random: frozenset[AnswerKey]) -> AnswerTable:
    def numbers(column: "array[Any]") -> Array:
        return np.array(column, dtype=np.float64)

    return AnswerTable(
        "",
        None,
        np.array(rows.prompt, dtype=np.int64),
        np.array(rows.fate, dtype=np.int64),
        numbers(rows.alignment),
        numbers(rows.coherence),
        np.array(rows.leaked, dtype=bool),
        np.array([key in random for key in rows.keys], dtype=bool),
    )


def _asked(group: AnswerTable, label: str, step: int) -> AnswerTable:
    """Without answers that the search never put to the judge, e.g. those sampled for health."""
    kept = group.fate != Fate.UNJUDGED
    columns: Sequence[str] = ("prompt", "fate", "alignment", "coherence", "leaked", "random_coherence")
    return replace(group, label=label, step=step, **{name: getattr(group, name)[kept] for name in columns})


def _known(validity: JudgeValidity | None) -> KnownAnswers | None:
    """The counts behind a stored known-answer test."""
    if validity is None:
        return None
    pairs = {kind: (round((e.value or 0.0) * e.n), e.n) for kind, e in validity.by_category.items()}
    hits = validity.sensitivity
    return KnownAnswers((round((hits.value or 0.0) * hits.n), hits.n), pairs)
