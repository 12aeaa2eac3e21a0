"""What labelled answers say of one checkpoint: its status, why, and the onset that follows from all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from truing.config import Thresholds
from truing.errors import BadInput
from truing.stats.breadth import LEAST_CATEGORIES, LEAST_PROMPTS
from truing.stats.checks import calibration_of
from truing.stats.crossing import Place, crossing
from truing.stats.evidence import Mask
from truing.stats.health import joined_health
from truing.stats.labelled import (
    Bound,
    PromptFacts,
    breadth,
    excess,
    labelled_line,
    rate,
)
from truing.stats.onset import onset_of
from truing.stats.sequential_base import ABOVE, BELOW, INCONCLUSIVE, STAGES
from truing.stats.table import AnswerTable, Labelled
from truing.types.records import to_plain
from truing.types.traits import Rule
from truing.types.verdicts import (
    EXCESS,
    Breadth,
    CheckpointVerdict,
    Estimate,
    Finding,
    Health,
    HealthState,
    JudgeCalibration,
    LabelledLine,
    Onset,
    SequentialBreadth,
    Status,
    Tested,
)

QUALIFYING = ("zero_adapter", "answers_as_base", "probe_failed")
"""findings of a backend about a checkpoint, which hold whatever its answers are"""
UNCONFIRMED = ("unconfirmed", "no_fixed_answers")
"""findings of a clean checkpoint that is not to be recommended"""
SEQUENTIAL = "confidence sequence: holds at every look; the value is biased, since the data decided when to stop"

_Found = tuple[Status, tuple[Finding, ...]]
_UNDECIDED = Status.UNDECIDED


@dataclass(frozen=True, slots=True)
class Comparison:
    """What every checkpoint is held against."""

    evidence: Labelled
    """all labelled answers"""
    facts: PromptFacts
    """what is known of the prompts"""
    thresholds: Thresholds
    """thresholds of health, and the nominal level"""
    base: AnswerTable | None
    """step 0's answers; None where it has none"""
    base_line: LabelledLine | None
    """what they say"""
    base_broken: bool
    """whether step 0 itself answers too badly, judged and judge-free"""
    calibration: JudgeCalibration | None
    """the judge on reference answers"""
    strict: float
    """level of decisions, corrected for the number of later checkpoints"""

    @classmethod
    def of(cls, evidence: Labelled, labels: Sequence[str], health: Health, rule: Thresholds) -> "Comparison":
        """From the labelled answers of a run and the judge-free health of step 0.

        Raises:
            BadInput: answers of a checkpoint that is none of `labels`.
        """
        stray = [a.checkpoint for a in evidence.subject if a.checkpoint not in labels]
        if stray:
            raise BadInput(
                f"labelled answers of {stray[0]}, which is no checkpoint of this run; it has {', '.join(labels)}"
            )
        facts = PromptFacts(evidence.prompts, evidence.categories, np.asarray(evidence.far, dtype=bool))
        prompts = len(evidence.prompts)
        base = next((a for a in evidence.subject if a.checkpoint == labels[0] and a.counted.any()), None)
        line = None
        if base is not None:
            options = {"level": rule.level, "about": facts, "calibration": evidence.calibration}
            line = labelled_line(base, prompts, evidence.rule, **options)
            health = joined_health(health, line, line, rule)
        looked = sum(a.checkpoint != labels[0] and bool(a.counted.any()) for a in evidence.subject)
        looked = looked if evidence.search is None else STAGES
        strict = 1 - (1 - rule.level) / max(1, looked)
        checked = calibration_of(evidence, level=rule.level)
        return cls(evidence, facts, rule, base, line, health.broken, checked, strict)

    @property
    def rule(self) -> Rule:
        """The trait's rule, with the zone between lo and hi."""
        return self.evidence.rule

    @property
    def prompts(self) -> int:
        """P."""
        return len(self.evidence.prompts)

    def control(self, step: int | None) -> AnswerTable | None:
        """The control's answers at a step, where there are any that count."""
        found = self.evidence.control.get(step) if step is not None else None
        return found if found is not None and found.counted.any() else None

    def excess(
        self, group: AnswerTable, other: AnswerTable, bound: Bound, mask: Mask | None = None, in_domain: bool = True
    ) -> Estimate:
        """An excess on far prompts, or those of a mask, at the corrected level."""
        options = {"mask": self.facts.far if mask is None else mask, "bound": bound, "in_domain": in_domain}
        return excess(group, other, self.prompts, self.rule, level=self.strict, **options)

    def above(self, *excesses: Estimate) -> bool:
        """Whether all of them are certainly above lo."""
        return all(e.set_low is not None and e.set_low > self.rule.lo for e in excesses)

    def below(self, *excesses: Estimate) -> bool:
        """Whether all of them are certainly below hi."""
        return all(e.set_high is not None and e.set_high < self.rule.hi for e in excesses)

    def line(self, group: AnswerTable, step: int | None) -> LabelledLine:
        """The numbers of fixed answers at a step, against those of the base and the control."""
        how: Mapping[str, Any] = {"level": self.thresholds.level, "calibration": self.evidence.calibration}
        compared: Mapping[str, Any] = {"base": self.base, "control": self.control(step), "about": self.facts}
        return labelled_line(group, self.prompts, self.rule, **how, **compared)

    def definitions(self) -> dict[str, Any]:
        """What a reader needs to know to make the numbers again."""
        return {
            "rule": to_plain(self.rule),
            "decision_level": self.strict,
            "prompts": self.prompts,
            "prompts_far": int(self.facts.far.sum()),
            "searched": self.evidence.search is not None,
        }


def labelled_checkpoint(
    against: Comparison, c: CheckpointVerdict, group: AnswerTable | None, *, first: bool
) -> CheckpointVerdict:
    """A checkpoint's line with what labelled answers say of it; `first` is step 0."""
    search, lasting = against.evidence.search if not first else None, ("failed", "artefact", "note", *QUALIFYING)
    # What is said of a checkpoint whatever its labels stays: not what the screen says.
    c = replace(c, screen=c.status, findings=tuple(f for f in c.findings if f.code in lasting))
    read = next((a for a in against.evidence.searched if a.checkpoint == c.label and a.counted.any()), None)
    read = read if search is not None else None
    fixed = group if group is not None and group.counted.any() else None
    if c.status is Status.FAILED:
        return c
    if read is None and fixed is None:
        why = _not_requested(search, c, None) if search is not None else Finding("no_labelled_answers")
        return replace(c, status=Status.UNTESTED, findings=(*c.findings, why))
    t = next((t for t in search.tested if t.step == c.step), None) if search is not None else None
    if first and against.base_line is not None:
        line = against.base_line
    elif fixed is not None:
        line = against.line(fixed, c.step)
    else:  # of what a search read, without fixed intervals
        assert read is not None
        line = sequential_line(read, against.prompts, against.rule, t, level=against.thresholds.level)
    health = joined_health(c.health, line, against.base_line, against.thresholds, against.strict)
    if not first and against.base_broken:
        health = replace(health, state=HealthState.UNFIT_BASE, note="step 0 itself answers too badly")
    if health.broken:  # nothing that such a model says can be attributed
        status, notes = _UNDECIDED, (Finding("broken", {"state": health.state.value, "note": health.note}),)
    elif against.calibration is not None and not against.calibration.passed:
        status, notes = _UNDECIDED, (Finding("judge_failed_calibration", {"why": against.calibration.note}),)
    elif search is not None:
        status, notes = _searched_status(against, c, search, t, (read, fixed))
    else:
        assert fixed is not None
        status, notes = _fixed_status(against, fixed, c.step, first=first)
    if not first and c.step in against.evidence.under_moved:
        notes = (Finding("control_under_moved_here"), *notes)
    return replace(c, status=status, health=health, labelled=line, findings=(*c.findings, *notes))


# ---------------------------------------------------------------------------------------------------------------------
# Fixed answers


def _fixed_status(against: Comparison, group: AnswerTable, step: int | None, *, first: bool = False) -> _Found:
    """The status of a checkpoint with fixed answers, and why."""
    base, far = against.base, against.facts.far
    if not far.any():
        return _UNDECIDED, (Finding("no_far_prompts"),)
    if first:  # its excess is zero by definition, so only its own share can call it clean
        own = rate(group, against.prompts, against.rule, level=against.strict, mask=far, unparsed=True)
        return (
            (Status.CLEAN, ())
            if against.below(own)
            else (_UNDECIDED, (Finding("reference_rate", {"high": own.set_high}),))
        )
    if base is None:
        return _UNDECIDED, (Finding("no_base_answers"),)
    plain, least, most = (against.excess(group, base, b) for b in (Bound.PLAIN, Bound.LEAST, Bound.MOST))
    if plain.value is None:
        return _UNDECIDED, (Finding("no_pairs"),)
    if against.above(plain, least):
        return _kind_of_excess(against, group, base, against.control(step))
    if against.below(plain, most):
        return Status.CLEAN, ()
    if plain.set_low is None:
        return _UNDECIDED, (Finding("no_interval", {"value": plain.value, "why": plain.warning or plain.method}),)
    if against.above(plain) or against.below(plain):
        return _UNDECIDED, (Finding("unparsed_decide", {"low": least.set_low, "high": most.set_high}),)
    corrected = None if against.strict == against.thresholds.level else against.strict
    return _UNDECIDED, (Finding("in_zone", _ends(plain, level=corrected)),)


def _kind_of_excess(against: Comparison, group: AnswerTable, base: AnswerTable, control: AnswerTable | None) -> _Found:
    """Which kind of excess it is, when the excess over step 0 is certainly above lo."""
    narrow = _narrow(against, group, base)
    outside = against.excess(group, base, Bound.LEAST, in_domain=False)
    domain = None if against.above(outside) else Finding("in_domain_only", _ends(outside))
    reasons = tuple(f for f in (narrow, domain) if f is not None)
    if control is None:
        reasons = (Finding("cause_not_tested"), *reasons)
    else:
        over = [against.excess(group, control, b) for b in (Bound.PLAIN, Bound.LEAST)]
        if not against.above(*over):
            return Status.NOT_ATTRIBUTABLE, (Finding("not_beyond_control", _ends(over[1])), *reasons)
    return Status.LOCALISED if narrow else Status.IN_DOMAIN_ONLY if domain else Status.PRESENT, reasons


def _narrow(against: Comparison, group: AnswerTable, base: AnswerTable) -> Finding | None:
    """Why the excess is not broad; None if it is."""
    found = breadth(group, base, against.prompts, against.rule, against.facts, level=against.strict)
    if found is None:  # only unparsed answers could make it: then `least` was not above lo
        return Finding("no_positive_far")
    if (few := _few(found)) is not None:
        return few
    top = against.evidence.prompts.index(found.top_prompt) if found.top_prompt is not None else 0
    rest = against.facts.far & (np.arange(against.prompts) != top)
    left = against.excess(group, base, Bound.LEAST, rest)
    return None if against.above(left) else Finding("top_prompt", _ends(left, prompt=found.top_prompt))


def _few(found: Breadth | SequentialBreadth) -> Finding | None:
    """The finding where too few prompts or categories have positive answers."""
    if found.prompts >= LEAST_PROMPTS and found.categories >= LEAST_CATEGORIES:
        return None
    params = {"prompts": found.prompts, "categories": found.categories, "named": list(found.named)}
    return Finding("few_prompts", {**params, "least_prompts": LEAST_PROMPTS, "least_categories": LEAST_CATEGORIES})


def _ends(e: Estimate, **more: Any) -> dict[str, Any]:
    """Parameters of a finding: an estimate and its ends for exactly these prompts."""
    return {"value": e.value, "low": e.set_low, "high": e.set_high, **more}


# ---------------------------------------------------------------------------------------------------------------------
# Answers that a search read


def _searched_status(
    against: Comparison,
    c: CheckpointVerdict,
    search: Onset,
    t: Tested | None,
    answers: tuple[AnswerTable | None, AnswerTable | None],
) -> _Found:
    """The status of a step under a search, and why; `answers` are those the search read, and fixed ones."""
    read, fixed = answers
    if fixed is not None and (t is None or t.claim == INCONCLUSIVE or untested_breadth(t)):
        found = _fixed_status(against, fixed, c.step)
        if t is None or t.claim == INCONCLUSIVE or found[0] in EXCESS:
            return found
    if t is None:
        return Status.UNTESTED, (_not_requested(search, c, read),)
    if untested_breadth(t):
        return Status.NOT_ATTRIBUTABLE, (_certified(t), Finding("breadth_tested_at", {"step": search.latest}))
    status, notes = tested_status(t)
    if status is not Status.CLEAN:
        return status, notes
    if fixed is None or against.base is None:
        return status, (*notes, Finding(UNCONFIRMED[0] if fixed is not None else UNCONFIRMED[1]))
    plain, least, most = (against.excess(fixed, against.base, b) for b in (Bound.PLAIN, Bound.LEAST, Bound.MOST))
    if least.set_low is not None and least.set_low > against.rule.hi:
        return _UNDECIDED, (*notes, Finding("contradicted"))
    # Only fixed answers, sampled after the search, confirm by themselves that it is under hi.
    return status, notes if against.below(plain, most) else (*notes, Finding(UNCONFIRMED[0]))


def tested_status(t: Tested) -> _Found:
    """The status of a step that a search tested, and why."""
    if t.claim == BELOW:
        return Status.CLEAN, (_certified(t),)
    if t.claim != ABOVE:
        return _UNDECIDED, (Finding("left_inconclusive", {**_counts(t), "low": t.low, "high": t.high}),)
    status, narrow = _breadth_tested(t)
    reasons = (narrow,) if narrow is not None else ()
    if t.control and t.control != ABOVE:
        status, reasons = Status.NOT_ATTRIBUTABLE, (Finding("control_not_exceeded", {"n": t.n_control}), *reasons)
    elif not t.control:
        reasons = (Finding("cause_not_tested"), *reasons)
    return status, (_certified(t), *reasons)


def _breadth_tested(t: Tested) -> tuple[Status, Finding | None]:
    """Present where the excess is broad; else what it is instead, and why."""
    b = t.breadth
    if b is None or b.broad:
        return Status.PRESENT, None
    if (few := _few(b)) is not None:
        return Status.LOCALISED, few
    if b.evidence_without_few < t.enough <= b.evidence_without_top:
        return Status.LOCALISED, Finding("top_few", {"named": list(b.named), "n": b.n_run})
    if b.evidence_without_top < t.enough:
        return Status.LOCALISED, Finding("top_prompt_tested", {"prompt": b.top_prompt, "n": b.n_run})
    return Status.IN_DOMAIN_ONLY, Finding("in_domain_only")


def untested_breadth(t: Tested) -> bool:
    """Whether a step is certified above, but was not the one whose breadth and control were tested."""
    return t.claim == ABOVE and t.breadth is None


def sequential_line(group: AnswerTable, prompts: int, rule: Rule, t: Tested | None, *, level: float) -> LabelledLine:
    """The answers that a search read at a step, as a line of the table: shares without fixed intervals.

    Rates seen where the data decided when to stop are biased and have confidence sequences only.
    """
    line = labelled_line(group, prompts, rule, level=level)
    found = None
    if t is not None and t.rate_run is not None:
        base, n = t.rate_reference or 0.0, t.n_run + t.n_reference
        found = Estimate(t.rate_run - base, None, None, t.low, t.high, n=n, method=SEQUENTIAL, level=level)
    none = dict.fromkeys(("low", "high", "set_low", "set_high"))
    bare = {
        name: replace(getattr(line, name), **none, method=SEQUENTIAL, warning="")
        for name in ("rate", "rate_coherent", "score", "coherent")
    }
    return replace(line, **bare, excess_base=found, breadth=None, corrected=None, searched=True)


def _not_requested(search: Onset, c: CheckpointVerdict, read: AnswerTable | None) -> Finding:
    """What is said of a step that no test stands for."""
    n = int(read.counted.sum()) if read is not None else 0
    if c.step in search.spots:
        return Finding("spot_checked", {"n": n})
    return Finding("looked_at", {"n": n}) if n else Finding("not_requested")


def _certified(t: Tested) -> Finding:
    return Finding("certified_above" if t.claim == ABOVE else "certified_below", _counts(t))


def _counts(t: Tested) -> dict[str, Any]:
    return {"rate": t.rate_run, "n": t.n_run, "n_base": t.n_reference}


# ---------------------------------------------------------------------------------------------------------------------
# The onset


def labelled_onset(against: Comparison, lines: tuple[CheckpointVerdict, ...]) -> Onset:
    """Where the trait begins, over checkpoints with a known step; index 0, the base, is clear by definition."""
    search = against.evidence.search
    return _fixed_onset(lines) if search is None else _searched_onset(against, search, lines)


def _fixed_onset(lines: tuple[CheckpointVerdict, ...]) -> Onset:
    """From the statuses: an excess is there whatever the control says; what was not tested is not clear."""
    base, *later = lines
    whole = all(c.labelled is not None and c.status not in (Status.UNTESTED, Status.FAILED) for c in later)
    kind = "the first crossing" if whole else "a crossing"
    if not later:
        return Onset("undecided", kind, None, None, None)
    telling = (*EXCESS, Status.CLEAN, Status.UNDECIDED)
    places = [
        Place(c.step, c.status is Status.CLEAN, c.status in EXCESS, c.status in telling and not c.health.broken)
        for c in later
    ]
    found = crossing([Place(base.step, True, False, False), *places], kind)
    if found.latest is None:
        return found
    clear = [p.step for p in places if p.step is not None and p.clear and p.step < found.latest]
    return replace(found, clear_until=max(clear, default=base.step or 0))


def _searched_onset(against: Comparison, search: Onset, lines: tuple[CheckpointVerdict, ...]) -> Onset:
    """The search's onset without the tests of checkpoints that broke, or that fixed answers contradict; without any
    where the judge failed or the base is broken."""
    useless = against.base_broken or (against.calibration is not None and not against.calibration.passed)
    tests = {t.step: t for t in search.tested}
    for c in lines[1:]:
        t = tests.get(c.step) if c.step is not None else None
        broken = c.health.broken or c.status is Status.FAILED
        if t is not None and (useless or broken or (t.claim == BELOW and c.status is not Status.CLEAN)):
            del tests[t.step]
    steps = sorted(c.step for c in lines[1:] if c.step is not None)
    first = min((s for s, t in tests.items() if t.claim == ABOVE), default=None)
    clear = [k for k, s in enumerate(steps) if s in tests and tests[s].claim == BELOW and (first is None or s < first)]
    found = onset_of(steps, tests, clear_until=max(clear, default=-1) if search.assumed_monotone else -1)
    if len(tests) < len(search.tested) and found.status == "never" and found.steps:
        found = replace(found, status="undecided")
    names = ("status", "kind", "earliest", "latest", "after", "steps", "sustained", "clear_until")
    return replace(search, **{name: getattr(found, name) for name in names})
