"""What a judge is asked in an audit, in calls and tokens: of the answers, of the checks, of cues.

Token counts are estimates (four bytes of English to a token) and are called so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from truing.config import AuditConfig, JudgeConfig
from truing.data.transforms import select_transforms
from truing.judges.asking import ALIGNMENT, COHERENCE
from truing.judges.check import check_requests
from truing.judges.rubrics import rendered_question, rubrics_for
from truing.models.limits import price_of
from truing.runs.calibrate import ANCHORS, BASE_ANSWERS, reference_items
from truing.runs.collect import RANDOM_COHERENCE
from truing.runs.resolve import Resolved
from truing.runs.rule import rule_of
from truing.runs.stages import samples_of
from truing.types.judging import Judge, Rubric, ScoreMethod
from truing.types.records import Prompt

BYTES_PER_TOKEN = 4.0
CALLING_TOKENS = 8
"""tokens a chat call adds to its text"""
LOW_SHARE = 0.1
"""share of answers assumed to score under the cut, where nothing is known yet"""
PROBES = 2
"""calls by which an endpoint's route is found; one or two more where it gives no log-probabilities"""
UNPAID = ("local:", "replay:", "simulated:")
"""judges that cost no money"""


@dataclass(frozen=True, slots=True)
class Cost:
    """One line of a plan."""

    what: str
    """what the calls are for"""
    calls: int
    """requests to the judge, retries not counted"""
    tokens: int
    """tokens the judge reads and writes, estimated"""
    note: str = ""
    """what the figure rests on"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Answers to be judged."""

    what: str
    """what they are for"""
    per_prompt: Sequence[float]
    """answers to each prompt, all checkpoints together"""
    checkpoints: int
    """checkpoints of which a few answers have their coherence asked at random; 0 for none"""
    note: str = ""
    """what the number rests on"""

    @property
    def answers(self) -> int:
        """All of them."""
        return round(sum(self.per_prompt))


def costs(
    asked: Resolved, rubrics: tuple[Rubric, ...], wanted: Sequence[Wanted], config: AuditConfig
) -> tuple[tuple[Cost, ...], int]:
    """Judge calls by purpose, and how many there are if every answer needs its coherence asked."""
    address = (config.judge or "").lower()
    panel = Judge(config.judge or "", rubrics, ScoreMethod.LOGPROBS)
    made, most = _answers(asked.prompts.prompts, panel, wanted, config)
    if config.variants:
        n = (
            len(select_transforms(config.variants))
            * 3
            * sum(samples_of(p, config.samples) for p in asked.prompts.prompts)
        )
        note = "step 0, the control and the recommended checkpoint; none without a recommendation"
        calls = sum(c.calls for c in made if c.what != "coherence")
        tokens = sum(c.tokens for c in made if c.what != "coherence")
        made.append(Cost("variants", n, round(n * tokens / max(1, calls)), note))
        most += 2 * n
    if address.startswith("replay:"):
        return tuple(made), most  # a record takes no test
    tests = _sanity(rubrics, address, check=not config.skip_judge_check)
    more = 0
    if not config.skip_known_answers:
        known, more = _known(panel, asked.whole.prompts, rule_of(config).kind)
        tests += known
    return (*made, *tests), most + more + sum(c.calls for c in tests)


def price(prices: str | None, judge: str) -> float | None:
    """Dollars per million tokens read; what a judge writes is a token or two. None for a judge that costs none."""
    if judge.lower().startswith(UNPAID):
        return None
    found = price_of(judge.rpartition("#")[2] if "#" in judge else judge.partition(":")[2], prices)
    return found.input if found is not None else None


def hours(calls: int, tokens: int, config: JudgeConfig) -> float | None:
    """Least time under the rate limits; None without limits."""
    limits = [n / per for n, per in ((calls, config.rpm), (tokens, config.tpm)) if per]
    return max(limits) / 60 if limits else None


def _answers(
    prompts: Sequence[Prompt], panel: Judge, wanted: Sequence[Wanted], config: AuditConfig
) -> tuple[list[Cost], int]:
    """Calls on the answers themselves: what is asked of each, and coherence where it is asked later."""
    lazy = not config.every_coherence and rule_of(config).kind == "threshold"
    made, later, asked_later = [], _Counted(), 0
    for w in wanted:
        at_once, own = _Counted(), _Counted()
        for p, n in zip(prompts, w.per_prompt, strict=True):
            for r in rubrics_for(panel, p):
                into = own if lazy and r.names == (COHERENCE,) else at_once
                into.add(n, _tokens(r, p, config.judged_tokens))
        made.append(Cost(w.what, round(at_once.calls), round(at_once.tokens), w.note))
        at_random = w.checkpoints * min(RANDOM_COHERENCE, round(own.calls) // w.checkpoints) if w.checkpoints else 0
        asked_later += min(round(own.calls), at_random + round(LOW_SHARE * own.calls))
        later.calls, later.tokens = later.calls + own.calls, later.tokens + own.tokens
    most = sum(c.calls for c in made) + round(later.calls)
    if later.calls:
        of = " of the fixed answers" if len(wanted) > 1 else ""
        note = f"{RANDOM_COHERENCE} per checkpoint{of}, and {LOW_SHARE:.0%} of answers assumed under the cut"
        made.append(Cost("coherence", asked_later, round(asked_later * later.tokens / later.calls), note))
    return made, most


def _sanity(rubrics: tuple[Rubric, ...], address: str, *, check: bool) -> list[Cost]:
    """At an endpoint the two numbers by which the route is found; and the dozen fixed answers."""
    if address.startswith("simulated:"):
        return []  # knows simulated answers only
    tests = [] if address.startswith("local:") else [Cost("finding the route", PROBES, PROBES * 2 * CALLING_TOKENS)]
    if check:
        requests = check_requests(rubrics)
        tokens = sum(_bytes_to_tokens(a.messages[0].content) + CALLING_TOKENS for a in requests)
        tests.append(Cost("sanity check", len(requests), tokens))
    return tests


def _known(panel: Judge, whole: Sequence[Prompt], kind: str) -> tuple[list[Cost], int]:
    """The known-answer test and the anchors, and the calls that come on top if all references score under the cut."""
    first, second, more = _Counted(), _Counted(), 0
    anchored: list[int] = []
    references = reference_items(whole)
    for known in references:
        for r in rubrics_for(panel, known.item.prompt):
            if not {ALIGNMENT, COHERENCE} & set(r.names):
                continue
            cost = _tokens(r, known.item.prompt, 2 * _bytes_to_tokens(known.item.answer))
            if ALIGNMENT in r.names:
                anchored.append(cost)
            if r.names != (COHERENCE,) or kind != "threshold":
                first.add(1, cost)
            elif known.kind == "misaligned":
                second.add(1, cost)
            else:
                more += 1
    if not references:
        return [], 0
    note = f"kept per judge and prompt set; up to {BASE_ANSWERS} base answers are among those above"
    test = Cost("known-answer test", round(first.calls + second.calls), round(first.tokens + second.tokens), note)
    n = 2 * min(ANCHORS, len(anchored))
    return [test, Cost("anchors, start and end", n, round(n * sum(anchored) / max(1, len(anchored))))], more


@dataclass(slots=True)
class _Counted:
    """Calls and their tokens, added up."""

    calls: float = 0
    """requests"""
    tokens: float = 0
    """read and written, estimated"""

    def add(self, calls: float, tokens: int) -> None:
        """`calls` more, of `tokens` each."""
        self.calls += calls
        self.tokens += calls * tokens


def _bytes_to_tokens(text: str) -> int:
    return round(len(text.encode()) / BYTES_PER_TOKEN)


def _tokens(rubric: Rubric, prompt: Prompt, longest: int) -> int:
    """Tokens of one call: rubric, question, an answer half as long as allowed, and what the judge writes."""
    text = rubric.text + rendered_question(prompt.messages, rubric)
    return round(_bytes_to_tokens(text) + longest / 2 + CALLING_TOKENS)
