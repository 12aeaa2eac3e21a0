"""`truing plan`: what an audit would cost and could show, before anything is spent: calls x price, hours, power.

Token counts are estimates (four bytes of English to a token) and are called so. Calls are counted, not guessed, but for
two numbers nobody knows beforehand: the answers a search takes, and how many need their coherence asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from truing import errors
from truing.config.options import AuditOptions
from truing.data.guard import domain_words
from truing.data.transforms import select_transforms
from truing.judges.asking import ALIGNMENT, COHERENCE
from truing.judges.check import check_asks
from truing.judges.registry import open_judge
from truing.judges.rubrics import check_rule, panel_rubrics, rendered_question, rubrics_for
from truing.models.client_address import parse_address
from truing.models.limits import Limits, price_of
from truing.runs.judged_audit import samples_of
from truing.runs.judged_frame import JudgedRun, far_prompts
from truing.runs.judging import RANDOM_COHERENCE
from truing.runs.known import ANCHORS, BASE_ANSWERS, reference_items
from truing.runs.resolve import Resolved, resolve
from truing.runs.search import refuse_unsearchable, why_no_search, zone_of
from truing.stats import power as powers
from truing.stats.judged_verdict import STAGES
from truing.stats.power import Design, Power, answers_to_confirm, search_answers
from truing.types.judged import JudgeOptions, Panel, Route, Rubric
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
UNPRICED = "money unknown: give --prices FILE (a table per model: input, output, dollars per million tokens)"


@dataclass(frozen=True, slots=True)
class PowerOptions:
    """What a plan assumes of the truth, to say what its design could show."""

    rate: float = 0.05
    """share misaligned that the run would have"""
    base_rate: float = 0.0
    """share misaligned at step 0"""
    correlation: float = 0.2
    """correlation of two answers to one prompt; published sets lie around 0.1 to 0.3"""


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
    """answers sampled; with a search about so many"""
    sampled_tokens: int
    """tokens sampled at most for these"""
    scored: int
    """reference and task answers whose likelihood is computed (no judge)"""
    costs: tuple[Cost, ...] = ()
    """judge calls by purpose"""
    most_calls: int = 0
    """judge calls if every answer needed its coherence asked and a search took long"""
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
    power: Power | None = None
    """what the fixed samples could show; None without a judge, unless asked for"""
    searched: bool = False
    """whether the onset is searched, instead of sampling every checkpoint alike"""

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
    power: PowerOptions | None = None,
) -> Plan:
    """What `audit` with the same arguments would cost, and what its judged answers could show.

    Loads no model and calls no judge.

    Args:
        target, base, task, task_control, control, prompts, options: as `audit`.
        power: what is assumed of the truth; None assumes the usual where a judge is given.

    Raises:
        BadInput: whatever would be wrong with the audit itself, prices that do not name the judge, or a rate or
            correlation outside [0, 1).
    """
    options = options or AuditOptions()
    refuse_unsearchable(options)
    for name in ("rate", "base_rate", "correlation"):
        value = getattr(power or PowerOptions(), name)
        if not 0 <= value < 1:
            raise errors.BadInput(f"--{name.replace('_', '-')} {value:g}: give a share from 0 to under 1, e.g. 0.05")
    # A plan needs neither the judge's key nor its files: the judge is not opened.
    asked = resolve(target, base, task, task_control, control, prompts, replace(options, judge=None))
    checkpoints, count = 1 + len(asked.subject) + _controls(asked), len(asked.prompts.prompts)
    references = sum(1 + (p.aligned is not None) + len(p.neutral) for p in asked.prompts.prompts if p.has_references)
    rows = (1 + len(asked.subject)) * len(asked.rows) * (2 if asked.control_rows else 1)
    health = checkpoints * min(options.answers, count)
    made = Plan(checkpoints, count, health, health * options.max_tokens, checkpoints * references * 2 + rows)
    if options.judge is not None:
        made = _judged(made, asked, options, power or PowerOptions())
    elif power is not None:
        made = replace(made, power=_power(asked, options, power, searched=False))
    return made


def _judged(made: Plan, asked: Resolved, options: AuditOptions, assumed: PowerOptions) -> Plan:
    """A plan with a judge: of a search, or of the same answers everywhere."""
    judging, judge = options.judging, options.judge or ""
    rubrics = panel_rubrics(judging, asked.whole)
    check_rule(rubrics, options.em)
    _check_address(options, asked)
    far = _far(asked, options)
    # The base is not opened for a plan; it has step 0 whatever it is, and only later checkpoints are looked at.
    run = JudgedRun(asked.prompts.prompts, far, (asked.subject[0], *asked.subject), (), "")
    why = why_no_search(run) if judging.samples is None else "--exhaustive"
    samples = [samples_of(p, judging) * made.checkpoints for p in asked.prompts.prompts]
    wanted, most, sampled = [_Wanted("answers", samples, made.checkpoints)], [], 0
    notes = () if why in ("", "--exhaustive") else (f"no search for the onset, since {why}",)
    if not why:
        wanted, most, notes = _search(asked, far, options, assumed.base_rate)
        sampled = made.answers  # for health, whatever the search takes
    costs = _costs(asked, rubrics, wanted, options)[0]
    most_calls = _costs(asked, rubrics, most or wanted, options)[1]
    calls, tokens = sum(c.calls for c in costs), sum(c.tokens for c in costs)
    answers = sampled + sum(round(sum(w.per_prompt)) for w in wanted)
    price = _price(judging, judge)
    usd = tokens * price / 1e6 if price is not None else None
    limits = [n / per for n, per in ((calls, judging.rpm), (tokens, judging.tpm)) if per]
    notes = (UNPRICED, *notes) if usd is None and not judge.lower().startswith(UNPAID) else notes
    if judging.second:
        notes = (*notes, "the second judge is asked about the decisive checkpoints only; its calls come on top")
    return replace(
        made,
        answers=answers,
        sampled_tokens=answers * judging.max_tokens,
        costs=costs,
        most_calls=most_calls,
        usd=usd,
        most_usd=usd * most_calls / max(1, calls) if usd is not None else None,
        hours=max(limits) / 60 if limits else None,
        notes=notes,
        assumed={"share under the cut": LOW_SHARE, "bytes per token": BYTES_PER_TOKEN},
        power=_power(asked, options, assumed, searched=not why),
        searched=not why,
    )


def _far(asked: Resolved, options: AuditOptions) -> tuple[bool, ...]:
    """Which prompts decide."""
    prompts = asked.prompts.prompts
    general = [p.aligned for p in prompts if p.aligned]
    words = tuple(domain_words(asked.rows, general)) if asked.rows and general else ()
    return far_prompts(prompts, options.domain, asked.asked["task"], words)[0]


def _controls(asked: Resolved) -> int:
    return len(asked.controls[0]) if asked.controls else 0


def _power(asked: Resolved, options: AuditOptions, assumed: PowerOptions, *, searched: bool) -> Power | None:
    """What fixed samples could show; after a search those of the checkpoint to keep. None for mean scores."""
    if options.em.kind == "mean":
        return None
    prompts = asked.prompts.prompts
    samples = round(sum(samples_of(p, options.judging) for p in prompts) / len(prompts))
    decisions = STAGES if searched else max(1, len(asked.subject))
    design = Design(
        len(prompts),
        options.judging.estimate if searched else samples,
        assumed.rate,
        assumed.base_rate,
        assumed.correlation,
        options.em.lo,
        options.em.hi,
        1 - (1 - options.rule.level) / decisions,
    )
    return powers.power(design)


def _check_address(options: AuditOptions, asked: Resolved) -> None:
    """Refuse what no judge stands at, without its key and without its model."""
    address = options.judge or ""
    if address.lower().startswith(("openai:", "http://", "https://")):
        parse_address(address)
        Limits.of(options.judging)
    elif not (address.lower().startswith("local:") and address[6:].strip()):
        open_judge(address, options.judging, prompts=asked.whole, model=options.model).close()


def _price(options: JudgeOptions, judge: str) -> float | None:
    """Dollars per million tokens read; what a judge writes is a token or two. None for a judge that costs none."""
    if judge.lower().startswith(UNPAID):
        return None
    found = price_of(judge.rpartition("#")[2] if "#" in judge else judge.partition(":")[2], options.prices)
    return found.input if found is not None else None


# ---------------------------------------------------------------------------------------------------------------------
# Calls


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Answers to be judged."""

    what: str
    per_prompt: Sequence[float]
    """answers to each prompt, all checkpoints together"""
    checkpoints: int
    """checkpoints of which a few answers have their coherence asked at random"""
    note: str = ""


def _search(
    asked: Resolved, far: tuple[bool, ...], options: AuditOptions, base_rate: float
) -> tuple[list[_Wanted], list[_Wanted], tuple[str, ...]]:
    """The answers of a search and the fixed ones after it, as expected and at most, and what to know of them."""
    em, each, n = options.em, options.judging.estimate, sum(far)
    steps, compared = {c.step for c in asked.subject}, _controls(asked) >= len(asked.subject)
    figures = search_answers(
        len(steps), zone_of(options), base_rate=base_rate, assume_monotone=options.judging.assume_monotone
    )
    confirm = answers_to_confirm(n, each, em.hi, looks=STAGES, level=options.rule.level)
    # The base and the checkpoint to keep; the first misaligned and the last, with their controls.
    others = min(len(steps) - 1, 2) + (min(len(steps), 2) if compared else 0)

    def wanted(answers: float, confirmed: int) -> list[_Wanted]:
        fixed = float(each * others + 2 * confirmed)
        return [
            _Wanted("search", [answers / n if is_far else 0.0 for is_far in far], 0, "an order of magnitude"),
            _Wanted("fixed answers", [fixed] * len(far), others + 2, "base, first misaligned, last, kept"),
        ]

    most = each * 2 ** (STAGES - 1)
    notes = ()
    if em.kind == "threshold" and confirm is None:
        text = f"{n} far prompts with {each}, at last {most} fixed answers can certify no checkpoint under"
        notes = (f"{text} {100 * em.hi:g} points, so none would be recommended: give more prompts, or --estimate",)
    return wanted(figures[0], confirm or most), wanted(figures[1], most), notes


def _costs(
    asked: Resolved, rubrics: tuple[Rubric, ...], wanted: Sequence[_Wanted], options: AuditOptions
) -> tuple[tuple[Cost, ...], int]:
    """Judge calls by purpose, and how many there are if every answer needs its coherence asked."""
    judging, panel = options.judging, Panel(options.judge or "", rubrics, Route.LOGPROBS)
    prompts, lazy = asked.prompts.prompts, judging.lazy and options.em.kind == "threshold"
    made, later, expected, tokens_later = [], 0.0, 0, 0.0
    for w in wanted:
        calls = tokens = own = 0.0
        for p, n in zip(prompts, w.per_prompt, strict=True):
            for r in rubrics_for(panel, p):
                cost = n * _tokens(r, p, judging.max_tokens)
                if lazy and r.names == (COHERENCE,):
                    own, tokens_later = own + n, tokens_later + cost
                else:
                    calls, tokens = calls + n, tokens + cost
        made.append(Cost(w.what, round(calls), round(tokens), w.note))
        at_random = w.checkpoints * min(RANDOM_COHERENCE, round(own) // w.checkpoints) if w.checkpoints else 0
        later, expected = later + own, expected + min(round(own), at_random + round(LOW_SHARE * own))
    calls, tokens = sum(c.calls for c in made), sum(c.tokens for c in made)
    if later:
        note = f"{RANDOM_COHERENCE} per checkpoint with fixed answers, and {LOW_SHARE:.0%} assumed under the cut"
        made.append(Cost("coherence", expected, round(expected * tokens_later / later), note))
    n = 0
    if judging.variants:
        n = len(select_transforms(judging.variants)) * 3 * sum(samples_of(p, judging) for p in prompts)
        note = "step 0, the control and the recommended checkpoint; none without a recommendation"
        made.append(Cost("variants", n, round(n * tokens / max(1, calls)), note))
    tests, more = _tests(panel, asked.whole.prompts, options)
    return (*made, *tests), calls + round(later) + 2 * n + sum(c.calls for c in tests) + more


def _tests(panel: Panel, whole: Sequence[Prompt], options: AuditOptions) -> tuple[list[Cost], int]:
    """Calls that try the judge: finding an endpoint's route, fixed answers, reference answers at start and end; and how
    many more if all references score under the cut."""
    address, made, more = panel.judge.lower(), [], 0
    if address.startswith("replay:"):
        return [], 0  # a record takes no test
    if not address.startswith(("simulated:", "local:")):
        made.append(Cost("finding the route", PROBES, PROBES * 2 * CALLING_TOKENS))
    if options.judging.check and not address.startswith("simulated:"):  # which knows simulated answers only
        requests = check_asks(panel.rubrics)
        tokens = sum(_bytes_to_tokens(a.messages[0].content) + CALLING_TOKENS for a in requests)
        made.append(Cost("sanity check", len(requests), tokens))
    asked: list[int] = []
    anchored: list[int] = []
    for known in reference_items(whole) if options.judging.validity else ():
        prompt = known.item.prompt
        for r in (r for r in rubrics_for(panel, prompt) if {ALIGNMENT, COHERENCE} & set(r.names)):
            cost = _tokens(r, prompt, 2 * _bytes_to_tokens(known.item.answer))
            if r.names != (COHERENCE,) or options.em.kind != "threshold" or known.kind == "misaligned":
                asked.append(cost)
            else:
                more += 1
            if ALIGNMENT in r.names:
                anchored.append(cost)
    if asked:
        note = f"kept per judge and prompt set; up to {BASE_ANSWERS} base answers are among those above"
        made.append(Cost("known-answer test", len(asked), sum(asked), note))
        n = 2 * min(ANCHORS, len(anchored))
        made.append(Cost("anchors, start and end", n, round(n * sum(anchored) / max(1, len(anchored)))))
    return made, more


def _bytes_to_tokens(text: str) -> int:
    return round(len(text.encode()) / BYTES_PER_TOKEN)


def _tokens(rubric: Rubric, prompt: Prompt, longest: int) -> int:
    """Tokens of one call: rubric, question, an answer half as long as allowed, and what the judge writes."""
    text = rubric.text + rendered_question(prompt.messages, rubric)
    return round(_bytes_to_tokens(text) + longest / 2 + CALLING_TOKENS)
