"""The search of an audit: what it reads, and what becomes of it."""

from collections.abc import Callable, Sequence

from truing.config import AuditConfig
from truing.data.domain_words import mentions
from truing.errors import Unfinished
from truing.runs.collect import FIXED_FROM, request_keys
from truing.runs.scope import Scope
from truing.stats.onset import OnsetSearch
from truing.stats.samples import Group, Outcome, SampleRequest
from truing.stats.sequential_base import zone_of
from truing.store import Store
from truing.types.records import Checkpoint, Request, SamplingParams
from truing.types.traits import Label, Reason, Rule
from truing.types.verdicts import Onset, Verdict

AT_ONCE = 24
"""answers that a search reads between two looks, at most"""
MOST_LOST = 100
"""failed answers that are replaced; more, and more than half of all, end the search"""


def why_no_search(scope: Scope) -> str:
    """Why an onset cannot be searched in this run; empty if it can."""
    steps = [c.step for c in scope.subject[1:]]
    if not steps:
        return "there is no later checkpoint that could be measured"
    if any(s is None for s in steps):
        return "a checkpoint has no step"
    if len(set(steps)) < len(steps):
        return "two checkpoints share a step"
    if len({c.weights for c in scope.subject}) < len(scope.subject):
        return "two checkpoints have the same weights"
    if not any(scope.far):
        return "no prompt is far from the training domain"
    return ""


def new_search(scope: Scope, config: AuditConfig, screened: Verdict) -> OnsetSearch:
    """The search of an audit, at its beginning."""
    far = [p for p, is_far in zip(scope.prompts, scope.far, strict=True) if is_far]
    control = {c.step for c in scope.control}
    onset = screened.onset
    return OnsetSearch(
        [c.step for c in scope.subject[1:] if c.step is not None],
        [p.id for p in far],
        zone_of(scope.rule, config.level),
        assume_monotone=config.assume_monotone,
        control=bool(control) and all(c.step in control for c in scope.subject[1:]),
        guess=onset.latest if onset.latest is not None else onset.earliest,
        seed=config.seed,
        categories={p.id: p.category for p in far},
    )


class SearchRequests:
    """A scope's checkpoints and prompts by what a search calls them: found once, since it asks thousands of times."""

    def __init__(self, scope: Scope) -> None:
        self._checkpoints = {(Group.RUN, c.step): c for c in scope.subject[1:]}
        self._checkpoints |= {(Group.CONTROL, c.step): c for c in scope.control}
        self._checkpoints[Group.BASE, 0] = scope.subject[0]
        self._prompts, self._first = {p.id: p for p in scope.prompts}, scope.first

    def of(self, samples: Sequence[SampleRequest]) -> list[Request]:
        """The answers that a search wants."""
        return [
            Request(self._checkpoints[s.group, s.step], self._prompts[s.prompt_id], self._first + s.sample)
            for s in samples
        ]


def fixed_requests(scope: Scope, steps: Sequence[int | None], each: int, *, control: bool = True) -> list[Request]:
    """The fixed sample at some steps and the base: `each` answers to every prompt, and the control's at these steps."""
    wanted: list[Checkpoint] = [scope.subject[0], *(c for c in scope.subject[1:] if c.step in steps)]
    wanted += [c for c in scope.control if control and c.step in steps]
    return [Request(c, p, FIXED_FROM + d) for p in scope.prompts for c in wanted for d in range(each)]


def run_search(search: OnsetSearch, outcomes: Callable[[Sequence[SampleRequest]], Sequence[Outcome | float]]) -> Onset:
    """A search to its end; `outcomes` makes sure that these samples are answered and says what became of each.

    Raises:
        Unfinished: most answers fail; what was labelled is stored.
    """
    used, lost = 0, 0
    while not search.done:
        samples = search.next(AT_ONCE)
        found = outcomes(samples)
        search.update(zip(samples, found, strict=True))
        used += len(samples)
        lost += sum(o in (Outcome.MISSING, Outcome.UNJUDGED) for o in found)
        if lost > used / 2 and (lost > MOST_LOST or search.done):
            text = f"{lost} of {used} answers failed or could not be judged; `truing show` names the errors"
            raise Unfinished(text)
    return search.result()


def outcomes_of(
    store: Store, judge: str, scope: Scope, params: SamplingParams, requests: Sequence[Request]
) -> list[Outcome | float]:
    """What became of each answer under a judge (its hash), as a search reads it."""
    keys = request_keys(requests, params)
    labels = store.labels_of(keys, judge, scope.rule)
    words = frozenset(scope.words)
    texts = {r.prompt.key: " ".join(m.content for m in r.prompt.messages) for r in requests}
    positive = [k for k in keys if k in labels and labels[k].value] if words else []
    answers = {r.key: r.text for r in store.answers_of(positive)}
    domain = {k for k, text in answers.items() if mentions(text, words, texts[k.prompt])}
    return [outcome_of(labels.get(k), scope.rule, in_domain=k in domain) for k in keys]


def outcome_of(found: Label | None, rule: Rule, *, in_domain: bool) -> Outcome | float:
    """One answer: positive or not, or with kind mean its severity; missing if it is in no denominator."""
    if found is None or found.reason is Reason.FAILED:
        return Outcome.MISSING
    if found.reason is Reason.UNSCORED:
        return Outcome.UNJUDGED
    if found.reason is Reason.UNPARSED:
        return Outcome.UNPARSED
    if rule.kind == "mean":
        return Outcome.MISSING if found.score != found.score else rule.severity(found.score)
    if not found.value:
        return Outcome.NEGATIVE
    return Outcome.IN_DOMAIN if in_domain else Outcome.POSITIVE
