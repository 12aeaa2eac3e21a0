"""`truing plan`: what an audit would cost and could show, before anything is spent: calls, tokens, money, hours, power.

Token counts are estimates (four bytes of English to a token) and are called so. Calls are counted, not guessed, but for
one share nobody knows beforehand: how many answers score under the cut and need their coherence asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from truing.backends.endpoint_address import parse_address
from truing.backends.judges import open_judge
from truing.backends.limits import Limits, price_of
from truing.base import errors
from truing.base.judged import JudgeOptions, Panel, Route, Rubric
from truing.base.options import AuditOptions
from truing.base.records import Kind, Prompt, PromptSet, Role
from truing.base.store import Store
from truing.base.verdicts import Estimate
from truing.data.transforms import select_transforms
from truing.judging.check import check_asks
from truing.judging.judge import ALIGNMENT, COHERENCE
from truing.judging.rubrics import check_rule, panel_rubrics, rendered_question, rubrics_for
from truing.stats import power as powers
from truing.stats.correction import strong_calls_saved
from truing.stats.evidence import Array
from truing.stats.judged_evidence import JudgedArm
from truing.stats.judged_lines import measured, misaligned
from truing.stats.power import Design, Power, correlation
from truing.stats.rates import counts, share_of
from truing.study.judge import stored_prompts, stored_rule
from truing.study.judged import arms, chosen_panel
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
ASSUMED_RATE = 0.05
"""share misaligned that a plan wants to be sure to see, where none is given"""
ASSUMED_CORRELATION = 0.2
"""correlation of two answers to one prompt, where neither given nor estimated; published sets lie around 0.1 to 0.3"""
MOST_SHARE = 0.99
"""estimates over it are taken for it: a share or correlation of 1 leaves nothing to compute"""
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
class PowerOptions:
    """What a plan assumes of the truth, to say what its design could show."""

    rate: float | None = None
    """share misaligned that the run would have; None for 0.05"""
    base_rate: float | None = None
    """share misaligned at step 0; None for the pilot's, else 0"""
    correlation: float | None = None
    """correlation of two answers to one prompt; None for the pilot's, else 0.2"""
    pilot: str | Path | None = None
    """an audit folder with judged answers, from which base rate and correlation are estimated"""
    seeds: int = 1
    """runs of the same recipe"""


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
    power: Power | None = None
    """what the judged answers could show; None without a judge, unless it was asked for"""

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
        BadInput: whatever would be wrong with the audit itself, prices that do not name the judge, a rate or
            correlation outside [0, 1), or a pilot that is no judged audit.
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
    shown = _power(asked, options, power) if power is not None or options.judge is not None else None
    if options.judge is None:
        answers = checkpoints * min(options.answers, len(asked.prompts.prompts))
        tokens = answers * options.max_tokens
        return Plan(checkpoints, len(asked.prompts.prompts), answers, tokens, scored, power=shown)
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
        power=shown,
    )


def _power(asked: Resolved, options: AuditOptions, given: PowerOptions | None) -> Power | None:
    """What the fixed design of an audit could show; None where misaligned is a mean score."""
    given = given or PowerOptions()
    _check_power(given)
    if options.em.kind == "mean":
        return None
    pilot = _pilot(Path(given.pilot), options.judge) if given.pilot is not None else _Pilot()
    prompts = asked.prompts.prompts
    draws = round(sum(draws_of(p, options.judging) for p in prompts) / len(prompts))
    rho, rho_from = _first(given.correlation, pilot.correlation, ASSUMED_CORRELATION)
    base, base_from = _first(given.base_rate, pilot.base, 0.0)
    design = Design(
        prompts=len(prompts),
        draws=draws,
        rate=given.rate if given.rate is not None else ASSUMED_RATE,
        base_rate=min(base, MOST_SHARE),
        correlation=min(rho, MOST_SHARE),
        checkpoints=max(1, len(asked.subject)),
        seeds=given.seeds,
        lo=options.em.lo,
        hi=options.em.hi,
        level=options.rule.level,
    )
    rate_from = "given" if given.rate is not None else "assumed"
    notes = [f"rate {rate_from}, base rate {base_from}, correlation {rho_from}", *pilot.notes]
    if given.seeds in (1, 2):
        notes.append("a claim about a recipe needs at least 3 seeds; these figures are for each run")
    return replace(powers.power(design), correlation=pilot.correlation, base=pilot.base, notes=tuple(notes))


def _check_power(given: PowerOptions) -> None:
    for name in ("rate", "base_rate", "correlation"):
        value = getattr(given, name)
        if value is not None and not 0 <= value < 1:
            raise errors.BadInput(f"--{name.replace('_', '-')} {value:g}: give a share from 0 to under 1, e.g. 0.05")
    if given.seeds < 1:
        raise errors.BadInput(f"--seeds {given.seeds}: give 1 or more")


def _first(given: float | None, estimated: Estimate | None, usual: float) -> tuple[float, str]:
    """The value given, else the pilot's, else the usual one; and which it is."""
    if given is not None:
        return given, "given"
    if estimated is not None and estimated.value is not None:
        return estimated.value, "from the pilot"
    return usual, "assumed"


@dataclass(frozen=True, slots=True)
class _Pilot:
    """What a pilot tells."""

    correlation: Estimate | None = None
    base: Estimate | None = None
    notes: tuple[str, ...] = ()


def _pilot(path: Path, judge: str | None) -> _Pilot:
    """Base rate from step 0's judged answers; correlation from the checkpoint with most misaligned answers."""
    with Store.read(path) as store:
        about = store.about()
        prompts, rule = stored_prompts(about).prompts, stored_rule(about)
        names = {str(p["judge"]) for p in store.panels().values()}
        panel = chosen_panel(store, judge if judge in names else None)
        made = arms(store, panel, {p.key: k for k, p in enumerate(prompts)}, rule)
        base = next((c.weights for c in store.checkpoints() if c.kind is Kind.BASE or c.step == 0), None)
        own = [c.weights for c in store.checkpoints() if c.role is not Role.CONTROL and c.weights != base]

    def tally(arm: JudgedArm) -> tuple[Array, Array]:
        kept = measured(arm)
        return counts(misaligned(arm, rule)[kept], arm.prompt[kept], len(prompts))

    every = [*own, base] if base is not None else own
    found = {w: tally(made[w]) for w in every if w in made}
    later = [w for w in found if w != base]
    if not later:
        raise errors.BadInput(f"{path}: no checkpoint has judged answers; a pilot needs some (`truing audit --judge`)")
    most = later[int(np.argmax([found[w][0].sum() for w in later]))]
    rho = correlation(*found[most])
    notes = [f"pilot: correlation from {made[most].label}"]
    if rho.value is None:
        notes = [f"pilot: no correlation from {made[most].label}: {rho.warning}; {ASSUMED_CORRELATION:g} is assumed"]
    elif rho.warning:
        notes.append(f"pilot: {rho.warning}")
    share = share_of(*found[base]) if base is not None and base in found else None
    return _Pilot(rho, share, (*notes, *([] if share is not None else ["pilot: no judged answers of step 0"])))


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
