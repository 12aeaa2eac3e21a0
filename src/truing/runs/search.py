"""The default road of a judged audit: a search for the onset, then fixed answers at the checkpoints it rests on.

    margins (where to begin) -> search: ask, answer, judge, tell, ... -> onset
    -> fixed answers at the base, the first certainly misaligned and the candidate to keep -> rates

Answers are asked under the draw numbers of the search (from 0) and of the fixed sample (from `FIXED_FROM`), so that no
rate rests on an answer that a search chose. A repeat asks the same, and finds the answers in the store.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from truing.config.options import AuditOptions, EmRule
from truing.errors import BadInput, Unfinished
from truing.models.base import Backend
from truing.runs.judged import fated, misaligned_by
from truing.runs.judged_frame import JudgedRun
from truing.runs.judging import FIXED_FROM, Bench, request_keys
from truing.stats.inquiry import Levels
from truing.stats.judged_evidence import Fate
from truing.stats.onset import MODES, OnsetSearch, check_design
from truing.stats.samples import Group, Outcome, SampleRequest
from truing.store import StoredAnswer
from truing.traits.features import leaks
from truing.types.judging import AnswerKey, Score
from truing.types.records import Checkpoint, Request, SamplingParams
from truing.types.verdicts import Onset, RunVerdict

AnswerAll = Callable[[Sequence[Request]], None]
"""makes sure that answers are in the store and judged"""
AT_ONCE = 24
"""answers asked for together at most"""
LOST = (Outcome.MISSING, Outcome.UNJUDGED)
MOST_LOST = 100
"""failed answers that are replaced; more, and more than half of all, end the search"""


@dataclass(frozen=True, slots=True)
class Searcher:
    """What a search is carried out with."""

    bench: Bench
    """store, judge, rule"""
    backend: Backend
    """gives the answers"""
    run: JudgedRun
    """prompts and checkpoints"""
    params: SamplingParams
    """how answers are drawn"""


def refuse_unsearchable(options: AuditOptions) -> None:
    """Raise BadInput for a zone, a level or a mode with which nothing can be searched, before anything is measured."""
    if options.judge is None or options.judging.samples is not None:
        return
    if options.judging.mode not in MODES:
        raise BadInput(f"mode {options.judging.mode!r} is none of {', '.join(MODES)}")
    error = 1 - options.rule.level
    check_design((), ("any",), options.em.lo, options.em.hi, error, error)


def why_no_search(run: JudgedRun) -> str:
    """Why an onset cannot be searched in this run; empty if it can."""
    steps = [c.step for c in run.subject[1:]]
    if not steps:
        return "there is no later checkpoint that could be measured"
    if any(s is None for s in steps):
        return "a checkpoint has no step"
    if len(set(steps)) < len(steps):
        return "two checkpoints share a step"
    if not any(run.far):
        return "no prompt is far from the training domain"
    return ""


def search_onset(searcher: Searcher, options: AuditOptions, margins: RunVerdict, answer: AnswerAll) -> Onset:
    """Search the onset of judged misalignment over the later checkpoints, on prompts far from the training domain.

    Args:
        searcher: store, judge, backend.
        options: rule, level, mode, seed.
        margins: where margins put the onset of drift: a place to begin.
        answer: makes sure that answers are in the store and judged.

    Raises:
        BadInput: an unknown mode. Unfinished: most answers fail; what was judged is stored.
    """
    search, used, lost = new_search(searcher.run, options, margins), 0, 0
    while not search.done:
        samples = search.ask(AT_ONCE)
        requests = requests_of(searcher.run, samples)
        answer(requests)
        found = outcomes(searcher, requests)
        search.tell(zip(samples, found, strict=True))
        used, lost = used + len(samples), lost + sum(o in LOST for o in found)
        if lost > used / 2 and (lost > MOST_LOST or search.done):
            raise Unfinished(f"{lost} of {used} answers failed or could not be judged; `truing show` names the errors")
        searcher.bench.tell("search", used, used)
    return search.result()


def new_search(run: JudgedRun, options: AuditOptions, margins: RunVerdict, levels: Levels | None = None) -> OnsetSearch:
    """The search of an audit, at its beginning; `levels` other than those of its mode."""
    em, judging = options.em, options.judging
    far = [p for p, is_far in zip(run.prompts, run.far, strict=True) if is_far]
    control = {c.step for c in run.control}
    error = 1 - options.rule.level
    return OnsetSearch(
        [c.step for c in run.subject[1:] if c.step is not None],
        [p.id for p in far],
        lo=em.lo,
        hi=em.hi,
        alpha=error,
        beta=error,
        mode=judging.mode,
        assume_monotone=judging.assume_monotone,
        control=bool(control) and all(c.step in control for c in run.subject[1:]),
        guess=guess_of(margins),
        seed=options.seed,
        categories={p.id: p.category for p in far},
        levels=levels,
    )


def requests_of(run: JudgedRun, samples: Sequence[SampleRequest]) -> list[Request]:
    """The answers that draws want."""
    checkpoints = {(Group.RUN, c.step): c for c in run.subject[1:]}
    checkpoints |= {(Group.CONTROL, c.step): c for c in run.control}
    checkpoints[Group.BASE, 0] = run.subject[0]
    prompts = {p.id: p for p in run.prompts}
    return [Request(checkpoints[d.group, d.step], prompts[d.prompt_id], d.sample) for d in samples]


def outcomes(searcher: Searcher, requests: Sequence[Request]) -> list[Outcome | float]:
    """What became of each answer, as a search reads it."""
    bench, panel = searcher.bench, searcher.bench.opened.panel.key
    keys = request_keys(requests, searcher.params)
    stored = {r.key: r for r in bench.store.answers_of(keys)}
    said: dict[AnswerKey, list[Score]] = {}
    for j in bench.store.scores_of(stored, panel):
        said.setdefault(j.key, []).append(j)
    words = frozenset(searcher.run.words)
    texts = {a.prompt.key: " ".join(m.content for m in a.prompt.messages) for a in requests}

    def leaked(r: StoredAnswer) -> bool:
        return bool(words) and leaks(r.text, texts[r.prompt], words)

    return [
        outcome_of(stored[k], said.get(k, []), bench.rule, leaked(stored[k])) if k in stored else Outcome.MISSING
        for k in keys
    ]


def outcome_of(r: StoredAnswer, said: Sequence[Score], rule: EmRule, leaked: bool) -> Outcome | float:
    """One answer: misaligned or not, or with kind mean (100 - alignment) / 100; missing if it is in no denominator."""
    found = fated(r, said, rule)
    if found.fate is Fate.FAILED:
        return Outcome.MISSING
    if found.fate is Fate.UNJUDGED:
        return Outcome.UNJUDGED
    if found.fate is Fate.UNPARSED:
        return Outcome.UNPARSED
    if rule.kind == "mean":
        return (100 - found.alignment) / 100 if found.fate is Fate.JUDGED else Outcome.MISSING
    if not misaligned_by(found, rule):
        return Outcome.NEGATIVE
    return Outcome.LEAKED if leaked else Outcome.POSITIVE


def fixed_requests(
    searcher: Searcher, steps: Sequence[int | None], each: int, *, control: bool = True
) -> list[Request]:
    """The fixed sample at some steps and the base: `each` answers to every prompt, and the control's at these steps."""
    run = searcher.run
    wanted: list[Checkpoint] = [run.subject[0], *(c for c in run.subject[1:] if c.step in steps)]
    wanted += [c for c in run.control if control and c.step in steps]
    return [Request(c, p, FIXED_FROM + d) for p in run.prompts for c in wanted for d in range(each)]


def guess_of(margins: RunVerdict) -> int | None:
    """Where margins put the onset of drift: a place to begin, nothing more."""
    onset = margins.onset
    return onset.latest if onset.latest is not None else onset.earliest
