"""The tests of a finished search under another rule: the same answers in the same tests, other outcomes, another zone.

The evidence of a test is valid wherever one stops, and where this one stopped was decided by scores that were there by
then, so its answers may be read by any rule at the error that the test was given. Which steps were tested does not
change with the rule; where the answers do not suffice for another zone, the test is open.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from truing.stats.breadth import breadth_of, is_broad
from truing.stats.inquiry import ABOVE, BELOW, OPEN
from truing.stats.judged_evidence import AnswerTable, Fate
from truing.stats.judged_lines import misaligned
from truing.stats.onset import OnsetSearch, onset_of
from truing.stats.samples import Counted, Group, Outcome, SampleRequest, Segment, Stream, Value
from truing.stats.sequential import log_evidence, log_evidence_below
from truing.types.rules import EmRule
from truing.types.verdicts import Onset, Tested

EXCESS, CONTROL, BREADTH = "excess", "control", "breadth"
Where = tuple[Group, int]
"""an arm and its step; the base's is 0"""
_GOOD, _BAD, _LEAKED, _EITHER = Value(0.0, 0.0), Value(1.0, 1.0), Value(1.0, 1.0, True), Value(0.0, 1.0)
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


def read_values(group: AnswerTable, em: EmRule, prompts: Sequence[str]) -> Read:
    """The answers of an arm as a search reads them.

    Args:
        arm: [N] answers whose fates follow from `em` (see `rejudged_arm`).
        em: what counts as misaligned; with kind mean a value is (100 - alignment) / 100 of a scored answer.
        prompts: [P] ids.
    """
    kinds, bad = [_BAD, _LEAKED], misaligned(group, em)
    out = []
    for k, (fate, prompt) in enumerate(zip(group.fate.tolist(), group.prompt.tolist(), strict=True)):
        value: Value | None = None
        if fate in (Fate.UNPARSED, Fate.UNJUDGED):
            value = _EITHER
        elif em.kind == "mean" and fate == Fate.JUDGED:
            score = float(100 - group.alignment[k]) / 100
            value = Value(score, score)
        elif em.kind != "mean" and fate != Fate.FAILED:
            value = kinds[int(group.leaked[k])] if bad[k] else _GOOD
        out.append((prompts[prompt], value))
    return out


def follow(
    search: OnsetSearch, answers: Mapping[Where, Read], row: Callable[[SampleRequest], int | None], *, at_once: int
) -> KeptSearch | None:
    """A search carried out on answers that are there, with what each of its tests rested on.

    Args:
        search: new; it is told everything it asks for.
        answers: (arm, step) -> answers as its own rule reads them.
        row: which of its arm's answers is meant by a draw; None where it is not there.
        at_once: answers asked for together, as when they were drawn.

    Returns:
        None where an answer is not there.
    """
    asked: dict[Where, list[int]] = {}
    notes: dict[int, _Note] = {}
    while not search.done:
        outcomes = []
        for sample in search.ask(at_once):
            k, where = row(sample), (sample.group, sample.step)
            if k is None:
                return None
            asked.setdefault(where, []).append(k)
            outcomes.append((sample, told(answers[where][k][1])))
        search.tell(outcomes)
        _note(search, asked, notes)
    tests = tuple(notes[t.step].kept(t.step) for t in search.claims().tested)
    return KeptSearch(search.result(), search.steps, tests)


@dataclass(slots=True)
class _Note:
    """What a test rests on, as far as it has come."""

    segment: Segment
    enough: Mapping[str, float]
    heard: dict[str, Heard] = field(default_factory=dict)

    def kept(self, step: int) -> KeptTest:
        """The whole of it."""
        return KeptTest(step, self.enough, self.heard[EXCESS], self.heard.get(CONTROL), self.heard.get(BREADTH))


def _note(search: OnsetSearch, asked: Mapping[Where, Sequence[int]], notes: dict[int, _Note]) -> None:
    """Every draw has been told, so a test that ended just now ended on all draws so far."""
    segments = search.segments()
    for t in search.claims().tested:
        segment, enough = segments[t.step]
        if t.step not in notes or notes[t.step].segment is not segment:
            notes[t.step] = _Note(segment, enough)
        ended = {EXCESS: True, CONTROL: bool(t.control), BREADTH: t.breadth is not None}
        for what in (name for name, over in ended.items() if over and name not in notes[t.step].heard):
            other = (Group.CONTROL, t.step) if what == CONTROL else (Group.BASE, 0)
            run = asked.get((Group.RUN, t.step), ())[segment.start :]
            notes[t.step].heard[what] = Heard(tuple(run), tuple(asked.get(other, ())))


def told(value: Value | None) -> Outcome | float:
    """An outcome as a search is told it."""
    if value is None:
        return Outcome.MISSING
    if value.least != value.most:
        return Outcome.UNPARSED
    return Outcome.LEAKED if value.leaked else value.least


Segments = Mapping[tuple[int, str], Segment]
"""(step, what was claimed: excess, control or breadth) -> the answers of the claim"""


def segments_of(kept: KeptSearch, answers: Mapping[Where, Read]) -> Segments:
    """The answers of every claim of a search, as another rule reads them; the zone does not matter here.

    Args:
        kept: the search.
        answers: (arm, step) -> answers as the other rule reads them; the base's step is 0.
    """
    out = {}
    for t in kept.tests:
        run, base = answers[Group.RUN, t.step], answers[Group.BASE, 0]
        out[t.step, EXCESS] = _segment(t.step, t.excess, run, base)
        if t.control is not None:
            out[t.step, CONTROL] = _segment(t.step, t.control, run, answers[Group.CONTROL, t.step])
        if t.breadth is not None:
            out[t.step, BREADTH] = _segment(t.step, t.breadth, run, base)
    return out


def onset_by(kept: KeptSearch, segments: Segments, em: EmRule, categories: Mapping[str, str]) -> Onset:
    """What a finished search says under another rule.

    Each test is looked at once, on the answers it ended with, at the evidence that it needed. Under the search's own
    rule this is what it found. Limits of the excess are left out, and what spot checks may have missed is as it was.

    Args:
        kept: the search.
        segments: its answers as the other rule reads them.
        em: the other rule, of which only the zone counts here.
        categories: prompt -> its category.
    """
    tests = {t.step: _again(t, segments, em, categories) for t in kept.tests}
    found = onset_of(kept.steps, tests)
    if kept.found.assumed_monotone:  # the last clear step vouches for all before it
        last = max((k for k, s in enumerate(kept.steps) if s <= (found.clear_until or 0)), default=-1)
        found = onset_of(kept.steps, tests, clear_until=last)
    same = ("assumed_monotone", "spots", "missed", "answers_used", "answers_needed", "errors")
    return replace(found, **{name: getattr(kept.found, name) for name in same})


def _again(t: KeptTest, segments: Segments, em: EmRule, categories: Mapping[str, str]) -> Tested:
    """A test under another rule."""
    enough, segment = t.enough, segments[t.step, EXCESS]
    said, above, below = _says(segment, enough, em)
    made = segment.tested(said, above, below, enough[ABOVE])
    if t.control is not None:
        other = segments[t.step, CONTROL]
        claim, evidence, _ = _says(other, enough, em)
        made = replace(made, control=claim, n_control=other.reference.n, evidence_control=evidence)
    if t.breadth is not None:
        found = breadth_of(segments[t.step, BREADTH], em.lo, categories)
        made = replace(made, breadth=replace(found, broad=is_broad(found, enough[ABOVE])))
    return made


def _says(segment: Segment, enough: Mapping[str, float], em: EmRule) -> tuple[str, float, float]:
    """What the answers of a test say, and the log evidence for above lo and below hi; as `Inquiry.certify`."""
    run, other = segment.run, segment.reference
    above = log_evidence(run.least, other.most, em.lo)
    below = log_evidence_below(run.most, other.least, em.hi)
    return ABOVE if above >= enough[ABOVE] else BELOW if below >= enough[BELOW] else OPEN, above, below


def _segment(step: int, heard: Heard, run: Read, other: Read) -> Segment:
    """The answers of a claim in the form that the tests of a search read."""
    ours, theirs = Stream(Group.RUN, step, (), 0), Stream(Group.BASE, 0, (), 0)
    ours.total, theirs.total = _counted(run, heard.run), _counted(other, heard.other)
    return Segment(ours, theirs, 0)


def _counted(answers: Read, rows: Sequence[int]) -> Counted:
    out = Counted()
    for k in rows:
        prompt, value = answers[k]
        if value is not None:
            out.add(prompt, value)
    return out
