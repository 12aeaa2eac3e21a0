"""The tests of a finished search under another rule: the same answers in the same tests, other outcomes, another zone.

The evidence of a test is valid wherever one stops, and where this one stopped was decided by scores that were there by
then, so its answers may be read by any rule at the error that the test was given. Which steps were tested does not
change with the rule; where the answers do not suffice for another zone, the test is open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from truing.base.options import EmRule
from truing.base.verdicts import Onset, Tested
from truing.stats.breadth import breadth_of, is_broad
from truing.stats.draws import Arm, Counted, Outcome, Segment, Stream, Value
from truing.stats.inquiry import ABOVE, BELOW, OPEN
from truing.stats.judged_evidence import Fate, JudgedArm
from truing.stats.judged_lines import misaligned
from truing.stats.onset import onset_of
from truing.stats.sequential import log_evidence, log_evidence_below

Read = Sequence[tuple[str, Value | None]]
"""the answers of an arm: prompt, and what the outcome may mean (None: missing)"""


@dataclass(frozen=True, slots=True)
class Heard:
    """The answers that a claim was made on, as rows of their arms."""

    run: tuple[int, ...]
    """of the step"""
    other: tuple[int, ...]
    """of the base or the control"""


@dataclass(frozen=True, slots=True)
class KeptTest:
    """A test of a finished search."""

    step: int
    """updates applied"""
    enough: Mapping[str, float]
    """log evidence that "above" and "below" needed"""
    excess: Heard
    """answers when it was decided or left open"""
    control: Heard | None = None
    """answers of the test against the control; None where there was none"""
    breadth: Heard | None = None
    """answers when its breadth was decided or left open; None where that was not tested"""


@dataclass(frozen=True, slots=True)
class KeptSearch:
    """A finished search, as far as another rule needs it."""

    found: Onset
    """what it found"""
    steps: tuple[int, ...]
    """all steps it was made for, rising"""
    tests: tuple[KeptTest, ...]
    """its tests"""


def read_values(arm: JudgedArm, em: EmRule, prompts: Sequence[str]) -> Read:
    """The answers of an arm as a search reads them.

    Args:
        arm: [N] answers whose fates follow from `em` (see `rejudged_arm`).
        em: what counts as misaligned; with kind mean a value is (100 - alignment) / 100 of a scored answer.
        prompts: [P] ids.
    """
    bad, out = misaligned(arm, em), []
    for k, fate in enumerate(arm.fate.tolist()):
        value: Value | None = None
        if fate == Fate.UNPARSED:
            value = Value(0.0, 1.0)
        elif em.kind == "mean" and fate == Fate.JUDGED:
            score = float(100 - arm.alignment[k]) / 100
            value = Value(score, score)
        elif em.kind != "mean" and fate not in (Fate.UNJUDGED, Fate.FAILED):
            value = Value(1.0, 1.0, bool(arm.leaked[k])) if bad[k] else Value(0.0, 0.0)
        out.append((prompts[int(arm.prompt[k])], value))
    return out


def told(value: Value | None) -> Outcome | float:
    """An outcome as a search is told it."""
    if value is None:
        return Outcome.MISSING
    if value.least != value.most:
        return Outcome.UNPARSED
    return Outcome.LEAKED if value.leaked else value.least


def onset_by(
    kept: KeptSearch, answers: Mapping[tuple[Arm, int], Read], em: EmRule, categories: Mapping[str, str]
) -> Onset:
    """What a finished search says under another rule.

    Each test is looked at once, on the answers it ended with, at the evidence that it needed. Under the search's own
    rule this is what it found. Limits of the excess are left out, and what spot checks may have missed is as it was.

    Args:
        kept: the search.
        answers: (arm, step) -> answers as the other rule reads them; the base's step is 0.
        em: the other rule, of which the zone counts here.
        categories: prompt -> its category.
    """
    tests = {t.step: _again(t, answers, em, categories) for t in kept.tests}
    found = onset_of(kept.steps, tests)
    if kept.found.assumed_monotone:  # the last clear step vouches for all before it
        last = max((k for k, s in enumerate(kept.steps) if s <= (found.clear_until or 0)), default=-1)
        found = onset_of(kept.steps, tests, clear_until=last)
    same = ("assumed_monotone", "spots", "missed", "answers_used", "answers_needed", "errors")
    return replace(found, **{name: getattr(kept.found, name) for name in same})


def _again(t: KeptTest, answers: Mapping[tuple[Arm, int], Read], em: EmRule, categories: Mapping[str, str]) -> Tested:
    """A test under another rule."""
    run, base = answers[Arm.RUN, t.step], answers[Arm.BASE, 0]
    segment = _segment(t.step, t.excess, run, base)
    said, above, below = _says(segment, t.enough, em)
    made = segment.tested(said, above, below, t.enough[ABOVE])
    if t.control is not None:
        other = _segment(t.step, t.control, run, answers[Arm.CONTROL, t.step])
        claim, evidence, _ = _says(other, t.enough, em)
        made = replace(made, control=claim, n_control=other.reference.n, evidence_control=evidence)
    if t.breadth is not None:
        found = breadth_of(_segment(t.step, t.breadth, run, base), em.lo, categories)
        made = replace(made, breadth=replace(found, broad=is_broad(found, t.enough[ABOVE])))
    return made


def _says(segment: Segment, enough: Mapping[str, float], em: EmRule) -> tuple[str, float, float]:
    """What the answers of a test say, and the log evidence for above lo and below hi; as `Inquiry.certify`."""
    run, other = segment.run, segment.reference
    above = log_evidence(run.least, other.most, em.lo)
    below = log_evidence_below(run.most, other.least, em.hi)
    return ABOVE if above >= enough[ABOVE] else BELOW if below >= enough[BELOW] else OPEN, above, below


def _segment(step: int, heard: Heard, run: Read, other: Read) -> Segment:
    """The answers of a claim in the form that the tests of a search read."""
    ours, theirs = Stream(Arm.RUN, step, (), 0), Stream(Arm.BASE, 0, (), 0)
    ours.total, theirs.total = _counted(run, heard.run), _counted(other, heard.other)
    return Segment(ours, theirs, 0)


def _counted(answers: Read, rows: Sequence[int]) -> Counted:
    out = Counted()
    for k in rows:
        prompt, value = answers[k]
        if value is not None:
            out.add(prompt, value)
    return out
