"""What labelled answers say of one checkpoint: its status, why, and the onset that follows from all of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from truing.config import Thresholds
from truing.errors import BadInput
from truing.stats.breadth import LEAST_CATEGORIES, LEAST_PROMPTS
from truing.stats.checks import calibration_of
from truing.stats.evidence import Mask
from truing.stats.labelled import (
    Bound,
    PromptFacts,
    breadth,
    excess,
    joined_health,
    labelled_line,
    prompt_facts,
    rate,
)
from truing.stats.onset import onset_of
from truing.stats.sequential_base import ABOVE, BELOW, INCONCLUSIVE
from truing.stats.table import AnswerTable, Labelled
from truing.types.records import to_plain
from truing.types.traits import Rule
from truing.types.verdicts import (
    EXCESS,
    CheckpointVerdict,
    Estimate,
    Finding,
    Health,
    HealthState,
    JudgeCalibration,
    LabelledLine,
    Onset,
    Status,
    Tested,
)

STAGES = 3
"""how often a checkpoint that a search calls clean may be looked at on fixed answers, each at a third of the error"""
QUALIFYING = ("zero_adapter", "answers_as_base", "probe_failed")
"""findings of a backend about a checkpoint, which hold whatever its answers are"""
UNCONFIRMED = ("unconfirmed", "no_fixed_answers")
"""findings of a clean checkpoint that is not to be recommended"""
SEQUENTIAL = "confidence sequence: holds at every look; the value is biased, since the data decided when to stop"

_Found = tuple[Status, tuple[Finding, ...]]


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
    base_state: HealthState
    """health of step 0, judged and judge-free"""
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
        facts, prompts = prompt_facts(evidence), len(evidence.prompts)
        base = next((a for a in evidence.subject if a.checkpoint == labels[0] and a.counted.any()), None)
        line = None
        if base is not None:
            options = {"level": rule.level, "about": facts, "calibration": evidence.calibration}
            line = labelled_line(base, prompts, evidence.rule, **options)
        looked = sum(a.checkpoint != labels[0] and bool(a.counted.any()) for a in evidence.subject)
        looked = looked if evidence.search is None else STAGES
        strict = 1 - (1 - rule.level) / max(1, looked)
        state = (joined_health(health, line, line, rule) if line is not None else health).state
        checked = calibration_of(evidence, level=rule.level)
        return cls(evidence, facts, rule, base, line, state, checked, strict)

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

    def over(self, group: AnswerTable, other: AnswerTable) -> "Excess":
        """An excess on far prompts at the corrected level."""
        options = {"level": self.strict, "mask": self.facts.far}
        least, most, plain = (
            excess(group, other, self.prompts, self.rule, bound=b, **options)
            for b in (Bound.LEAST, Bound.MOST, Bound.PLAIN)
        )
        return Excess(plain, least, most, self.rule)

    def line(self, c: CheckpointVerdict, group: AnswerTable) -> LabelledLine:
        """The numbers of fixed answers of a checkpoint."""
        options: Mapping[str, Any] = {
            "level": self.thresholds.level,
            "base": self.base,
            "control": self.control(c.step),
            "about": self.facts,
            "calibration": self.evidence.calibration,
        }
        return labelled_line(group, self.prompts, self.rule, **options)

    def definitions(self) -> dict[str, Any]:
        """What a reader needs to know to make the numbers again."""
        return {
            "rule": to_plain(self.rule),
            "decision_level": self.strict,
            "prompts": self.prompts,
            "prompts_far": int(self.facts.far.sum()),
            "searched": self.evidence.search is not None,
        }


@dataclass(frozen=True, slots=True)
class Excess:
    """An excess at the corrected level: as it is, and at both extremes of the unparsed answers."""

    plain: Estimate
    """unparsed answers count as negative"""
    least: Estimate
    """only the other side's are positive"""
    most: Estimate
    """only this side's are positive"""
    rule: Rule
    """the zone"""

    @property
    def above(self) -> bool:
        """Whether it is certainly above lo."""
        return all(e.set_low is not None and e.set_low > self.rule.lo for e in (self.plain, self.least))

    @property
    def below(self) -> bool:
        """Whether it is certainly below hi."""
        return all(e.set_high is not None and e.set_high < self.rule.hi for e in (self.plain, self.most))


def labelled_checkpoint(
    against: Comparison, c: CheckpointVerdict, group: AnswerTable | None, *, first: bool
) -> CheckpointVerdict:
    """A checkpoint's line with what labelled answers say of it; `first` is step 0."""
    c = replace(c, screen=c.status)
    searched = against.evidence.search is not None and not first
    read = next((a for a in against.evidence.searched if a.checkpoint == c.label and a.counted.any()), None)
    read = read if searched else None
    fixed = group if group is not None and group.counted.any() else None
    if c.status is Status.FAILED or (read is None and fixed is None):
        status = Status.FAILED if c.status is Status.FAILED else Status.UNTESTED
        why = _not_requested(against.evidence.search, c, None) if searched else (Finding("no_labelled_answers"),)
        return replace(c, status=status, findings=(*_lasting(c), *(why if status is Status.UNTESTED else ())))
    line = _line(against, c, fixed, read, first=first)
    health = joined_health(c.health, line, against.base_line, against.thresholds)
    if not first and against.base_state in (HealthState.COLLAPSED, HealthState.UNFIT_BASE):
        health = replace(health, state=HealthState.UNFIT_BASE, note="step 0 itself answers too badly")
    if searched:
        status, notes = _searched_status(against, c, (read, fixed), health)
    else:
        assert fixed is not None
        status, notes = _fixed_status(against, fixed, against.control(c.step), health, first=first)
    if not first and c.step in against.evidence.under_moved:
        notes = (Finding("control_under_moved_here"), *notes)
    return replace(c, status=status, health=health, labelled=line, findings=(*_lasting(c), *notes))


def _lasting(c: CheckpointVerdict) -> tuple[Finding, ...]:
    """What is said of a checkpoint whatever its labels: not what the screen says."""
    return tuple(f for f in c.findings if f.code in ("failed", "artefact", *QUALIFYING))


def _line(
    against: Comparison, c: CheckpointVerdict, fixed: AnswerTable | None, read: AnswerTable | None, *, first: bool
) -> LabelledLine:
    """Numbers from fixed answers where there are any, else of what a search read, without fixed intervals."""
    if first and against.base_line is not None:
        return against.base_line
    if fixed is not None:
        return against.line(c, fixed)
    assert read is not None
    search = against.evidence.search
    t = next((t for t in search.tested if t.step == c.step), None) if search is not None else None
    return sequential_line(read, against.prompts, against.rule, t, level=against.thresholds.level)


# ---------------------------------------------------------------------------------------------------------------------
# Fixed answers


def _fixed_status(
    against: Comparison, group: AnswerTable, control: AnswerTable | None, health: Health, *, first: bool
) -> _Found:
    """The status of a checkpoint with fixed answers, and why."""
    barred = _barred(against, health)
    if barred is not None:
        return barred
    if not against.facts.far.any():
        return Status.UNDECIDED, (Finding("no_far_prompts"),)
    if first:
        return _reference(against, group)
    if against.base is None:
        return Status.UNDECIDED, (Finding("no_base_answers"),)
    over_base = against.over(group, against.base)
    if over_base.plain.value is None:
        return Status.UNDECIDED, (Finding("no_pairs"),)
    if over_base.above:
        return _above(against, group, control)
    if over_base.below:
        return Status.CLEAN, ()
    return Status.UNDECIDED, (_why_undecided(against, over_base),)


def _barred(against: Comparison, health: Health) -> _Found | None:
    """What keeps any label from counting: a broken model, or a judge that cannot tell."""
    if health.broken:
        return Status.UNDECIDED, (Finding("broken", {"state": health.state.value, "note": health.note}),)
    if against.calibration is not None and not against.calibration.passed:
        return Status.UNDECIDED, (Finding("judge_failed_calibration", {"why": against.calibration.note}),)
    return None


def _reference(against: Comparison, group: AnswerTable) -> _Found:
    """Step 0: its excess is zero by definition, so only its own share can call it clean."""
    own = rate(group, against.prompts, against.rule, level=against.strict, mask=against.facts.far, unparsed=True)
    if own.set_high is not None and own.set_high < against.rule.hi:
        return Status.CLEAN, ()
    return Status.UNDECIDED, (Finding("reference_rate", {"high": own.set_high}),)


def _above(against: Comparison, group: AnswerTable, control: AnswerTable | None) -> _Found:
    """Which kind of excess it is, when the excess over step 0 is certainly above lo."""
    narrow, domain = _narrow(against, group), _in_domain(against, group)
    reasons = tuple(f for f in (narrow, domain) if f is not None)
    if control is not None and not (over := against.over(group, control)).above:
        return Status.NOT_ATTRIBUTABLE, (Finding("not_beyond_control", _ends(over.least)), *reasons)
    alone = () if control is not None else (Finding("cause_not_tested"),)
    if narrow is not None:
        return Status.LOCALISED, (*alone, *reasons)
    if domain is not None:
        return Status.IN_DOMAIN_ONLY, (*alone, domain)
    return Status.PRESENT, alone


def _narrow(against: Comparison, group: AnswerTable) -> Finding | None:
    """Why the excess is not broad; None if it is."""
    found = breadth(group, against.base, against.prompts, against.rule, against.facts, level=against.strict)
    if found is None:  # only unparsed answers could make it: then `least` was not above lo
        return Finding("no_positive_far")
    if found.prompts < LEAST_PROMPTS or found.categories < LEAST_CATEGORIES:
        return _few(found.prompts, found.categories, found.named)
    top = against.evidence.prompts.index(found.top_prompt) if found.top_prompt is not None else 0
    rest = against.facts.far & (np.arange(against.prompts) != top)
    left = _least(against, group, rest)
    if left.set_low is not None and left.set_low > against.rule.lo:
        return None
    return Finding("top_prompt", {"prompt": found.top_prompt, **_ends(left)})


def _few(prompts: int, categories: int, named: Sequence[str]) -> Finding:
    params = {"prompts": prompts, "categories": categories, "named": list(named)}
    return Finding("few_prompts", {**params, "least_prompts": LEAST_PROMPTS, "least_categories": LEAST_CATEGORIES})


def _in_domain(against: Comparison, group: AnswerTable) -> Finding | None:
    """Why the excess is the training domain's; None if it is not."""
    left = _least(against, group, against.facts.far, in_domain=False)
    if left.set_low is not None and left.set_low > against.rule.lo:
        return None
    return Finding("in_domain_only", _ends(left))


def _least(against: Comparison, group: AnswerTable, mask: Mask, in_domain: bool = True) -> Estimate:
    assert against.base is not None
    options = {"level": against.strict, "mask": mask, "bound": Bound.LEAST, "in_domain": in_domain}
    return excess(group, against.base, against.prompts, against.rule, **options)


def _why_undecided(against: Comparison, e: Excess) -> Finding:
    """Which number is missing for a decision."""
    rule, plain = against.rule, e.plain
    if plain.set_low is None or plain.set_high is None:
        return Finding("no_interval", {"value": plain.value, "why": plain.warning or plain.method})
    if plain.set_low > rule.lo or plain.set_high < rule.hi:
        return Finding("unparsed_decide", {"low": e.least.set_low, "high": e.most.set_high})
    corrected = None if against.strict == against.thresholds.level else against.strict
    return Finding("in_zone", {**_ends(plain), "level": corrected})


def _ends(e: Estimate) -> dict[str, float | None]:
    return {"value": e.value, "low": e.set_low, "high": e.set_high}


# ---------------------------------------------------------------------------------------------------------------------
# Answers that a search read


def _searched_status(
    against: Comparison,
    c: CheckpointVerdict,
    answers: tuple[AnswerTable | None, AnswerTable | None],
    health: Health,
) -> _Found:
    """The status of a step under a search, and why; `answers` are those the search read, and fixed ones."""
    search, (read, fixed) = against.evidence.search, answers
    assert search is not None
    barred = _barred(against, health)
    if barred is not None:
        return barred
    t = next((t for t in search.tested if t.step == c.step), None)
    if fixed is not None and (t is None or t.claim == INCONCLUSIVE or untested_breadth(t)):
        found = _fixed_status(against, fixed, against.control(c.step), health, first=False)
        if t is None or t.claim == INCONCLUSIVE or found[0] in EXCESS:
            return found
    if t is None:
        return Status.UNTESTED, _not_requested(search, c, read)
    if untested_breadth(t):
        return Status.NOT_ATTRIBUTABLE, (_certified(t), Finding("breadth_tested_at", {"step": search.latest}))
    status, notes = tested_status(t)
    if status is Status.CLEAN and _contradicted(against, fixed):
        return Status.UNDECIDED, (*notes, Finding("contradicted"))
    if status is Status.CLEAN and not _confirmed(against, fixed):
        notes = (*notes, Finding(UNCONFIRMED[0] if fixed is not None else UNCONFIRMED[1]))
    return status, notes


def tested_status(t: Tested) -> _Found:
    """The status of a step that a search tested, and why."""
    if t.claim == BELOW:
        return Status.CLEAN, (_certified(t),)
    if t.claim != ABOVE:
        return Status.UNDECIDED, (Finding("left_inconclusive", {**_counts(t), "low": t.low, "high": t.high}),)
    narrow = _narrow_test(t)
    if t.control and t.control != ABOVE:
        found = (_certified(t), Finding("control_not_exceeded", {"n": t.n_control}))
        return Status.NOT_ATTRIBUTABLE, (*found, *(narrow[1:] if narrow else ()))
    why = (_certified(t), *(() if t.control else (Finding("cause_not_tested"),)))
    if narrow:
        return narrow[0], (*why, narrow[1])
    return Status.PRESENT, why


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
    bare = {name: _bare(getattr(line, name)) for name in ("rate", "rate_coherent", "score", "coherent")}
    return replace(line, **bare, excess_base=found, breadth=None, corrected=None, searched=True)


def _narrow_test(t: Tested) -> tuple[Status, Finding] | None:
    """Status and reason where the trait is not shown to be broad; None where it is."""
    b = t.breadth
    if b is None or b.broad:
        return None
    if b.prompts < LEAST_PROMPTS or b.categories < LEAST_CATEGORIES:
        return Status.LOCALISED, _few(b.prompts, b.categories, b.named)
    if b.evidence_without_few < t.enough <= b.evidence_without_top:
        return Status.LOCALISED, Finding("top_few", {"named": list(b.named), "n": b.n_run})
    if b.evidence_without_top < t.enough:
        return Status.LOCALISED, Finding("top_prompt_tested", {"prompt": b.top_prompt, "n": b.n_run})
    return Status.IN_DOMAIN_ONLY, Finding("in_domain_only")


def _confirmed(against: Comparison, fixed: AnswerTable | None) -> bool:
    """Whether fixed answers, sampled after the search, certify a checkpoint under hi by themselves."""
    return fixed is not None and against.base is not None and against.over(fixed, against.base).below


def _contradicted(against: Comparison, fixed: AnswerTable | None) -> bool:
    """Whether fixed answers lie certainly above hi where a search certified a checkpoint under it."""
    if fixed is None or against.base is None:
        return False
    low = against.over(fixed, against.base).least.set_low
    return low is not None and low > against.rule.hi


def _not_requested(search: Onset | None, c: CheckpointVerdict, read: AnswerTable | None) -> tuple[Finding, ...]:
    """What is said of a step that no test stands for."""
    n = int(read.counted.sum()) if read is not None else 0
    if search is not None and c.step in search.spots:
        return (Finding("spot_checked", {"n": n}),)
    return (Finding("looked_at", {"n": n}) if n else Finding("not_requested"),)


def _certified(t: Tested) -> Finding:
    return Finding("certified_above" if t.claim == ABOVE else "certified_below", _counts(t))


def _counts(t: Tested) -> dict[str, Any]:
    return {"rate": t.rate_run, "n": t.n_run, "n_base": t.n_reference}


def _bare(e: Estimate) -> Estimate:
    return replace(e, low=None, high=None, set_low=None, set_high=None, method=SEQUENTIAL, warning="")


# ---------------------------------------------------------------------------------------------------------------------
# The onset


def labelled_onset(against: Comparison, lines: tuple[CheckpointVerdict, ...]) -> Onset:
    """Where the trait begins, over checkpoints with a known step; index 0, the base, is clear by definition."""
    return _fixed_onset(lines) if against.evidence.search is None else _searched_onset(against, lines)


def _fixed_onset(lines: tuple[CheckpointVerdict, ...]) -> Onset:
    """Earliest: the first step that is not clean. Latest: the first that is certainly above lo, whatever the control
    says. Failed, broken and untested checkpoints are not clean, so they stay in the set. A checkpoint without a step
    cannot be placed, but the answer is never "never" unless it is clean too."""
    later = lines[1:]
    whole = all(c.labelled is not None and c.status not in (Status.UNTESTED, Status.FAILED) for c in later)
    kind = "the first crossing" if whole else "a crossing"
    placed = [(c.step, c) for c in later if c.step is not None]
    known = sorted(placed, key=lambda pair: pair[0])
    above = [step for step, c in known if c.status in EXCESS]
    unclear = [step for step, c in known if c.status is not Status.CLEAN]
    latest = above[0] if above else None
    if not unclear:
        never = bool(later) and all(c.status is Status.CLEAN for c in later)
        return Onset("never" if never else "undecided", kind, None, None, None)
    earliest = unclear[0]
    inside = tuple(dict.fromkeys(s for s, _ in known if s >= earliest and (latest is None or s <= latest)))
    before = [s for s, _ in known if s < earliest]
    telling = (*EXCESS, Status.CLEAN, Status.UNDECIDED)
    told = [c for s, c in known if latest is not None and s >= latest and c.status in telling and not c.health.broken]
    sustained = all(c.status in EXCESS for c in told) if latest is not None else None
    after = before[-1] if before else lines[0].step
    clear = [s for s, c in known if c.status is Status.CLEAN and (latest is None or s < latest)]
    until = max(clear, default=lines[0].step or 0) if latest is not None else None
    status = "found" if above else "undecided"
    return Onset(status, kind, earliest, latest, after, inside, sustained, clear_until=until)


def _searched_onset(against: Comparison, lines: tuple[CheckpointVerdict, ...]) -> Onset:
    """The search's onset, without the tests of checkpoints that broke; with none where the judge failed."""
    search, rated = against.evidence.search, against.calibration
    assert search is not None
    steps = sorted(c.step for c in lines[1:] if c.step is not None)
    tested = {t.step for t in search.tested}
    useless = (rated is not None and not rated.passed) or against.base_state in (
        HealthState.COLLAPSED,
        HealthState.UNFIT_BASE,
    )
    below = {t.step for t in search.tested if t.claim == BELOW}

    def is_void(c: CheckpointVerdict) -> bool:
        broken = c.health.broken or c.status is Status.FAILED
        return useless or broken or (c.step in below and c.status is not Status.CLEAN)

    void = {c.step for c in lines[1:] if c.step is not None and is_void(c)}
    return _without_void(search, steps, tested & void)


def _without_void(search: Onset, steps: Sequence[int], void: Collection[int]) -> Onset:
    """The onset of a search over all steps of the run, where the tests of the steps in `void` stand for nothing."""
    tests: Mapping[int, Tested] = {t.step: t for t in search.tested if t.step not in void}
    first = min((s for s, t in tests.items() if t.claim == ABOVE), default=None)
    clear = [k for k, s in enumerate(steps) if s in tests and tests[s].claim == BELOW and (first is None or s < first)]
    found = onset_of(steps, tests, clear_until=max(clear, default=-1) if search.assumed_monotone else -1)
    if void and found.status == "never" and found.steps:
        found = replace(found, status="undecided")
    names = ("status", "kind", "earliest", "latest", "after", "steps", "sustained", "clear_until")
    return replace(search, **{name: getattr(found, name) for name in names})
