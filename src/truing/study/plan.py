"""`truing plan`: what an audit would cost, before anything is spent: answers, judge calls, tokens, money, hours.

Token counts are estimates (four bytes of English to a token) and are called so. Calls are counted, not guessed, but for
one share nobody knows beforehand: how many answers score under the cut and need their coherence asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from truing.backends.endpoint_address import parse_address
from truing.backends.judges import open_judge
from truing.backends.limits import Limits, price_of
from truing.base.judged import JudgeOptions, Panel, Route, Rubric
from truing.base.options import AuditOptions
from truing.base.records import Prompt, PromptSet
from truing.data.transforms import select_transforms
from truing.judging.check import check_asks
from truing.judging.judge import ALIGNMENT, COHERENCE
from truing.judging.rubrics import check_rule, panel_rubrics, rendered_question, rubrics_for
from truing.stats.correction import strong_calls_saved
from truing.study.judged_audit import draws_of, judged_asks
from truing.study.judging import RANDOM_COHERENCE
from truing.study.known import ANCHORS, BASE_ANSWERS, reference_items
from truing.study.resolve import Resolved, resolve

BYTES_PER_TOKEN = 4.0
CALLING_TOKENS = 8
"""tokens a chat call adds to its text"""
ASSUMED_ERRORS = (0.02, 0.9, 0.01)
"""rate, sensitivity and false positives assumed where a plan says what a strong judge on a share would save"""
LOW_SHARE = 0.1
"""share of answers assumed to score under the cut, where nothing is known yet"""
PROBES = 2
"""calls by which an endpoint's route is found; one or two more where it gives no log-probabilities"""
UNPAID = ("local:", "replay:", "planted:")
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
class Plan:
    """What an audit would do and cost."""

    checkpoints: int
    """models that answer: step 0, the run, the control"""
    prompts: int
    """prompts each is asked"""
    answers: int
    """answers sampled"""
    sampled_tokens: int
    """tokens sampled at most"""
    scored: int
    """reference and task answers whose likelihood is computed (no judge)"""
    costs: tuple[Cost, ...] = ()
    """judge calls by purpose"""
    most_calls: int = 0
    """judge calls if every answer needed its coherence asked"""
    usd: float | None = None
    """expected money for the judge; None without prices"""
    most_usd: float | None = None
    """the same at `most_calls`"""
    hours: float | None = None
    """least time under the rate limits given; None without limits"""
    notes: tuple[str, ...] = ()
    """what the figures rest on"""
    assumed: Mapping[str, float] = field(default_factory=dict)
    """every assumption, with its value"""

    @property
    def calls(self) -> int:
        """Judge calls expected."""
        return sum(c.calls for c in self.costs)

    @property
    def tokens(self) -> int:
        """Judge tokens expected."""
        return sum(c.tokens for c in self.costs)


def plan(
    target: str | Path | Sequence[str | Path],
    *,
    base: str | None = None,
    task: str | Path | None = None,
    task_control: str | Path | None = None,
    control: str | Path | Sequence[str | Path] = (),
    prompts: str | Path = "v1",
    options: AuditOptions | None = None,
) -> Plan:
    """What `audit` with the same arguments would cost. Loads no model and calls no judge.

    Raises:
        BadInput: whatever would be wrong with the audit itself, or prices that do not name the judge.
    """
    options = options or AuditOptions()
    # A plan needs neither the judge's key nor its files: the judge is not opened.
    asked = resolve(target, base, task, task_control, control, prompts, replace(options, judge=None))
    judging = options.judging
    first = asked.controls[0] if asked.controls else ()
    checkpoints = 1 + len(asked.subject) + len(first)
    references = sum(1 + (p.aligned is not None) + len(p.odd) for p in asked.prompts.prompts if p.has_references)
    rows = (1 + len(asked.subject)) * len(asked.rows) * (2 if asked.control_rows else 1)
    scored = checkpoints * references * 2 + rows
    if options.judge is None:
        answers = checkpoints * min(options.answers, len(asked.prompts.prompts))
        return Plan(checkpoints, len(asked.prompts.prompts), answers, answers * options.max_tokens, scored)
    base_checkpoint = asked.subject[0]
    answers = len(judged_asks([base_checkpoint], asked.prompts.prompts, judging)) * checkpoints
    rubrics = panel_rubrics(judging, asked.whole)
    check_rule(rubrics, options.em)
    _check_address(options, asked.whole)
    costs, most = _costs(asked, rubrics, checkpoints, options)
    calls, tokens = sum(c.calls for c in costs), sum(c.tokens for c in costs)
    price = _price(judging, options.judge)
    scale = most / calls if calls else 1.0
    usd = tokens * price / 1e6 if price is not None else None
    return Plan(
        checkpoints=checkpoints,
        prompts=len(asked.prompts.prompts),
        answers=answers,
        sampled_tokens=answers * judging.max_tokens,
        scored=scored,
        costs=costs,
        most_calls=most,
        usd=usd,
        most_usd=usd * scale if usd is not None else None,
        hours=_hours(calls, tokens, judging),
        notes=_notes(options, usd),
        assumed={"share under the cut": LOW_SHARE, "bytes per token": BYTES_PER_TOKEN},
    )


def _check_address(options: AuditOptions, prompts: PromptSet) -> None:
    """Refuse what no judge stands at, without its key and without its model."""
    address = options.judge or ""
    if address.lower().startswith(("openai:", "http://", "https://")):
        parse_address(address)
        Limits.of(options.judging)
    elif not (address.lower().startswith("local:") and address[6:].strip()):
        open_judge(address, options.judging, prompts=prompts, model=options.model).close()


def _costs(
    asked: Resolved, rubrics: tuple[Rubric, ...], checkpoints: int, options: AuditOptions
) -> tuple[tuple[Cost, ...], int]:
    """Judge calls by purpose, and how many there are if every answer needs its coherence asked."""
    judging, address = options.judging, (options.judge or "").lower()
    lazy = judging.lazy and options.em.kind == "threshold"
    panel = Panel(options.judge or "", rubrics, Route.LOGPROBS)
    at_once, later = _Counted(), _Counted()
    for p in asked.prompts.prompts:
        for r in rubrics_for(panel, p):
            n = draws_of(p, judging) * checkpoints
            (later if lazy and r.names == (COHERENCE,) else at_once).add(n, _tokens(r, p, judging.max_tokens))
    costs, most = [Cost("answers", at_once.calls, at_once.tokens)], at_once.calls + later.calls
    if later.calls:
        each = later.calls // checkpoints
        n = min(later.calls, checkpoints * min(RANDOM_COHERENCE, each) + round(LOW_SHARE * later.calls))
        note = f"{RANDOM_COHERENCE} per checkpoint, and {LOW_SHARE:.0%} of answers assumed under the cut"
        costs.append(Cost("coherence", n, round(n * later.tokens / later.calls), note))
    if judging.cues:
        n = len(select_transforms(judging.cues)) * 3 * sum(draws_of(p, judging) for p in asked.prompts.prompts)
        note = "step 0, the control and the recommended checkpoint; none without a recommendation"
        costs.append(Cost("cues", n, round(n * at_once.tokens / max(1, at_once.calls)), note))
        most += 2 * n
    if address.startswith("replay:"):
        return tuple(costs), most  # a record takes no test
    tests = _sanity(rubrics, judging, address)
    more = 0
    if judging.validity:
        known, more = _known(panel, asked.whole.prompts, options)
        tests += known
    return (*costs, *tests), most + more + sum(c.calls for c in tests)


def _sanity(rubrics: tuple[Rubric, ...], judging: JudgeOptions, address: str) -> list[Cost]:
    """At an endpoint the two numbers by which the route is found; and the dozen fixed answers."""
    if address.startswith("planted:"):
        return []  # knows simulated answers only
    tests = [] if address.startswith("local:") else [Cost("finding the route", PROBES, PROBES * 2 * CALLING_TOKENS)]
    if judging.check:
        asks = check_asks(rubrics)
        tokens = sum(_bytes_to_tokens(a.messages[0].content) + CALLING_TOKENS for a in asks)
        tests.append(Cost("sanity check", len(asks), tokens))
    return tests


def _known(panel: Panel, whole: Sequence[Prompt], options: AuditOptions) -> tuple[list[Cost], int]:
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
            if r.names != (COHERENCE,) or options.em.kind != "threshold":
                first.add(1, cost)
            elif known.kind == "misaligned":
                second.add(1, cost)
            else:
                more += 1
    if not references:
        return [], 0
    note = f"kept per judge and prompt set; up to {BASE_ANSWERS} base answers are among those above"
    test = Cost("known-answer test", first.calls + second.calls, first.tokens + second.tokens, note)
    n = 2 * min(ANCHORS, len(anchored))
    return [test, Cost("anchors, start and end", n, round(n * sum(anchored) / max(1, len(anchored))))], more


@dataclass(slots=True)
class _Counted:
    """Calls and their tokens, added up."""

    calls: int = 0
    """requests"""
    tokens: int = 0
    """read and written, estimated"""

    def add(self, calls: int, tokens: int) -> None:
        """`calls` more, of `tokens` each."""
        self.calls += calls
        self.tokens += calls * tokens


def _bytes_to_tokens(text: str) -> int:
    return round(len(text.encode()) / BYTES_PER_TOKEN)


def _tokens(rubric: Rubric, prompt: Prompt, longest: int) -> int:
    """Tokens of one call: rubric, question, an answer half as long as allowed, and what the judge writes."""
    text = rubric.text + rendered_question(prompt.messages, rubric)
    return round(_bytes_to_tokens(text) + longest / 2 + CALLING_TOKENS)


def _price(options: JudgeOptions, judge: str) -> float | None:
    """Dollars per million tokens read; what a judge writes is a token or two. None for a judge that costs none."""
    if judge.lower().startswith(UNPAID):
        return None
    price = price_of(judge.rpartition("#")[2] if "#" in judge else judge.partition(":")[2], options.prices)
    return price.input if price is not None else None


def _hours(calls: int, tokens: int, options: JudgeOptions) -> float | None:
    limits = [n / per for n, per in ((calls, options.rpm), (tokens, options.tpm)) if per]
    return max(limits) / 60 if limits else None


def _notes(options: AuditOptions, usd: float | None) -> tuple[str, ...]:
    out = []
    if usd is None and options.judge is not None and not options.judge.lower().startswith(UNPAID):
        out.append("money unknown: give --prices FILE (a table per model: input, output, dollars per million tokens)")
    if options.judging.share < 1:
        out.append(_saved(options))
    if options.judging.second:
        out.append("the second judge is asked about the decisive checkpoints only; its calls come on top")
    return tuple(out)


def _saved(options: AuditOptions) -> str:
    """What a strong judge on a share would save beside this judge on all answers, under assumed errors of this one."""
    share = options.judging.share
    rate, sensitivity, wrong = ASSUMED_ERRORS
    alone = strong_calls_saved(rate, sensitivity, wrong, q=share)
    beside = strong_calls_saved(rate, sensitivity, wrong, q=(share, 1.0))
    told = f"at a rate of {rate:.0%}, if this judge finds {sensitivity:.0%} of it and calls {wrong:.0%} of the rest so"
    return (
        f"a strong judge on a random {share:.0%} needs {alone.factor:.1f} times fewer calls than on all answers for "
        f"equal error; with --positives-of this judge, {beside.factor:.1f} times ({told})"
    )
