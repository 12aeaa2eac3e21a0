"""A stored search followed again, answer by answer, to know which answers each of its tests rested on."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log

from truing.base.judged import ResponseKey
from truing.base.options import AuditOptions
from truing.base.verdicts import Onset, RunVerdict, Tested
from truing.stats.calibration import LADDER
from truing.stats.draws import Arm, Segment
from truing.stats.inquiry import Levels
from truing.stats.onset import OnsetSearch
from truing.stats.rejudged import Heard, KeptSearch, KeptTest, Read, told
from truing.study.judged_frame import JudgedRun
from truing.study.search import AT_ONCE, _asks, _guess

Where = tuple[Arm, int]
"""an arm and its step; the base's is 0"""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The answers that a search drew, under its own rule."""

    rows: Mapping[ResponseKey, int]
    """answer -> its row in the arm of its checkpoint"""
    read: Mapping[Where, Read]
    """the rows of each arm, as the rule reads them"""


def follow(
    run: JudgedRun, drawn: Drawn, options: AuditOptions, margins: RunVerdict, stored: Onset
) -> KeptSearch | None:
    """The search that led to a stored onset; None where the stored answers do not lead there.

    Args:
        run: the frame of the audit.
        drawn: what the search drew.
        options: those of the audit: seed, rule, mode.
        margins: its margin verdict, which says where to begin.
        stored: what the search found.
    """
    for search in _candidates(run, options, margins):
        kept = _follow(search, run, drawn)
        if kept is not None and _claims(kept.found.tested) == _claims(stored.tested):
            return replace(kept, found=stored)
    return None


def _candidates(run: JudgedRun, options: AuditOptions, margins: RunVerdict) -> Iterator[OnsetSearch]:
    """The search anew. Thresholds of the simulated mode are one of few, found by trying: to simulate takes minutes."""
    if options.judging.mode == "guaranteed":
        yield _new_search(run, options, margins)
        return
    error = 1 - options.rule.level
    for nominal, loose in (*LADDER, (error, log(4.0))):
        yield _new_search(run, options, margins, levels=Levels(nominal, nominal, loose))


def _new_search(
    run: JudgedRun, options: AuditOptions, margins: RunVerdict, *, levels: Levels | None = None
) -> OnsetSearch:
    """The search of an audit, as `study.search` makes it."""
    far = [p for p, is_far in zip(run.prompts, run.far, strict=True) if is_far]
    control = {c.step for c in run.control}
    error = 1 - options.rule.level
    return OnsetSearch(
        [c.step for c in run.subject[1:] if c.step is not None],
        [p.id for p in far],
        lo=options.em.lo,
        hi=options.em.hi,
        alpha=error,
        beta=error,
        assume_monotone=options.judging.assume_monotone,
        control=bool(control) and all(c.step in control for c in run.subject[1:]),
        guess=_guess(margins),
        seed=options.seed,
        categories={p.id: p.category for p in far},
        levels=levels,
    )


def _follow(search: OnsetSearch, run: JudgedRun, drawn: Drawn) -> KeptSearch | None:
    """Tell a search what is stored, and note which answers each test rests on when it ends."""
    asked: dict[Where, list[int]] = {}
    notes: dict[int, _Note] = {}
    while not search.done:
        draws, outcomes = search.ask(AT_ONCE), []
        for d, ask in zip(draws, _asks(run, draws), strict=True):
            row = drawn.rows.get(ResponseKey(ask.checkpoint.weights, run.params, ask.prompt.key, "", d.draw))
            if row is None:
                return None
            asked.setdefault((d.arm, d.step), []).append(row)
            outcomes.append((d, told(drawn.read[d.arm, d.step][row][1])))
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
        return KeptTest(step, self.enough, self.heard["excess"], self.heard.get("control"), self.heard.get("breadth"))


def _note(search: OnsetSearch, asked: Mapping[Where, Sequence[int]], notes: dict[int, _Note]) -> None:
    """Every draw has been told, so a test that ended just now ended on all draws so far."""
    segments = search.segments()
    for t in search.claims().tested:
        segment, enough = segments[t.step]
        if t.step not in notes or notes[t.step].segment is not segment:
            notes[t.step] = _Note(segment, enough)
        heard = notes[t.step].heard
        run = tuple(asked.get((Arm.RUN, t.step), ())[segment.start :])
        base, control = tuple(asked.get((Arm.BASE, 0), ())), tuple(asked.get((Arm.CONTROL, t.step), ()))
        heard.setdefault("excess", Heard(run, base))
        if t.control:
            heard.setdefault("control", Heard(run, control))
        if t.breadth is not None:
            heard.setdefault("breadth", Heard(run, base))


def _claims(tests: Collection[Tested]) -> list[tuple[object, ...]]:
    """What must agree for a search to be the same."""

    def breadth(t: Tested) -> tuple[object, ...]:
        return (t.breadth.broad, t.breadth.n_run, t.breadth.top_prompt) if t.breadth is not None else ()

    return [(t.step, t.said, t.n_run, t.n_reference, t.control, t.n_control, *breadth(t)) for t in tests]
