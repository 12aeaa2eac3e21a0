"""`truing plan`: what an audit would cost and could show, before anything is spent: calls, tokens, money, hours, power.

Token counts are estimates (four bytes of English to a token) and are called so. Calls are counted, not guessed, but for
one share nobody knows beforehand: how many answers score under the cut and need their coherence asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from truing import errors
from truing.config import AuditConfig, PlanConfig, configured
from truing.judges.registry import open_judge
from truing.judges.rubrics import check_rule, judge_rubrics
from truing.models.client_address import parse_address
from truing.models.limits import Limits
from truing.runs.judge import stored_prompts, stored_rule
from truing.runs.plan_costs import BYTES_PER_TOKEN, LOW_SHARE, UNPAID, Cost, Wanted, costs, hours, price
from truing.runs.plan_search import SearchPlan, plan_search, searched_run
from truing.runs.resolve import Resolved, resolve
from truing.runs.rule import rubric_of, rule_of
from truing.runs.search import refuse_unsearchable, why_no_search
from truing.runs.stages import samples_of
from truing.runs.tables import chosen_panel, groups
from truing.stats import power as powers
from truing.stats.correction import strong_calls_saved
from truing.stats.evidence import Array
from truing.stats.forecast import HEIGHT
from truing.stats.labelled import measured, misaligned
from truing.stats.power import Design, Power, correlation
from truing.stats.rates import counts, share_of
from truing.stats.status import STAGES
from truing.stats.table import AnswerTable
from truing.store import Store
from truing.types.records import Kind, PromptSet, Role
from truing.types.verdicts import Estimate

ASSUMED_ERRORS = (0.02, 0.9, 0.01)
"""rate, sensitivity and false positives assumed where a plan says what a strong judge on a share would save"""
ASSUMED_RATE = 0.05
"""share misaligned that a plan wants to be sure to see, where none is given"""
ASSUMED_CORRELATION = 0.2
"""correlation of two answers to one prompt, where neither given nor estimated; published sets lie around 0.1 to 0.3"""
UNPRICED = "money unknown: give --prices FILE (a table per model: input, output, dollars per million tokens)"
MOST_SHARE = 0.99
"""estimates over it are taken for it: a share or correlation of 1 leaves nothing to compute"""


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
    """judge calls if every answer needed its coherence asked; with a search, in 95 % of those simulated"""
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
    """what the judged answers (after a search, the fixed ones) could show; None without a judge, unless asked for"""
    search: SearchPlan | None = None
    """what a search for the onset is expected to ask; None where every checkpoint gets the same answers"""

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
    config: AuditConfig | None = None,
    **options: Any,
) -> Plan:
    """What `audit` with the same arguments would cost, and what its judged answers could show.

    Loads no model and calls no judge.

    Args:
        target: as `audit`.
        config: options; None for the defaults.
        options: fields of `PlanConfig`: those of `audit`, and rate, base_rate, correlation, pilot, seeds, share.

    Raises:
        BadInput: whatever would be wrong with the audit itself, prices that do not name the judge, a rate or
            correlation outside [0, 1), or a pilot that is no judged audit.
    """
    config = configured(PlanConfig, config, options)
    refuse_unsearchable(config)
    # A plan needs neither the judge's key nor its files: the judge is not opened.
    asked = resolve(target, config.but(judge=None))
    first = asked.controls[0] if asked.controls else ()
    checkpoints, count = 1 + len(asked.subject) + len(first), len(asked.prompts.prompts)
    references = sum(1 + (p.aligned is not None) + len(p.neutral) for p in asked.prompts.prompts if p.has_references)
    rows = (1 + len(asked.subject)) * len(asked.rows) * (2 if asked.control_rows else 1)
    scored = checkpoints * references * 2 + rows
    if config.judge is None:
        given = (config.rate, config.base_rate, config.correlation, config.pilot, config.seeds)
        wanted = any(x is not None for x in given)
        shown = _power(_assumed(asked, config, False), config) if wanted else None
        health = checkpoints * min(config.answers, count)
        return Plan(checkpoints, count, health, health * config.max_tokens, scored, power=shown)
    return _judged(asked, config, checkpoints, scored)


def _judged(asked: Resolved, config: PlanConfig, checkpoints: int, scored: int) -> Plan:
    """A plan with a judge: of a search, or of the same answers everywhere."""
    prompts = asked.prompts.prompts
    assert config.judge is not None
    rubrics = judge_rubrics(asked.whole, *rubric_of(config))
    check_rule(rubrics, rule_of(config))
    _check_address(config, asked.whole)
    run, notes = searched_run(asked, config), _notes(config)
    why = why_no_search(run) if config.samples is None else "--samples"
    assumed = _assumed(asked, config, not why)
    each = [float(samples_of(p, config.samples) * checkpoints) for p in prompts]
    search, wanted, sampled = None, [Wanted("answers", each, checkpoints)], 0
    if not why:
        d = assumed.design
        search = plan_search(run, config, height=assumed.height, base_rate=d.base_rate, correlation=d.correlation)
        wanted, notes = search.wanted(), (*notes, *search.notes)
        sampled = checkpoints * min(config.answers, len(prompts))  # for health, whatever the search asks
    elif config.samples is None:
        notes = (*notes, f"no search for the onset, since {why}: the same number of answers at every checkpoint")
    made, most = costs(asked, rubrics, wanted, config)
    longest = costs(asked, rubrics, search.wanted(most=True), config) if search is not None else (made, most)
    calls, tokens = sum(c.calls for c in made), sum(c.tokens for c in made)
    answers = sampled + sum(w.answers for w in wanted)
    per_million = price(config.prices, config.judge)
    usd = tokens * per_million / 1e6 if per_million is not None else None
    if usd is None and not config.judge.lower().startswith(UNPAID):
        notes = (
            "money unknown: give --prices FILE (a table per model: input, output, dollars per million tokens)",
            *notes,
        )
    return Plan(
        checkpoints=checkpoints,
        prompts=len(prompts),
        answers=answers,
        sampled_tokens=answers * config.judged_tokens,
        scored=scored,
        costs=made,
        most_calls=longest[1],
        usd=usd,
        most_usd=usd * (longest[1] / calls if calls else 1.0) if usd is not None else None,
        hours=hours(calls, tokens, config),
        notes=notes,
        assumed={"share under the cut": LOW_SHARE, "bytes per token": BYTES_PER_TOKEN},
        power=_power(assumed, config),
        search=search,
    )


@dataclass(frozen=True, slots=True)
class _Assumed:
    """What is assumed of the truth, and where it comes from."""

    design: Design
    """the fixed design it is assumed for"""
    height: float
    """excess at the end of a run that turns"""
    pilot: "_Pilot"
    """what a pilot tells"""
    notes: tuple[str, ...]
    """where the numbers come from"""


def _assumed(asked: Resolved, config: PlanConfig, searched: bool) -> _Assumed:
    """The fixed design of an audit; after a search, that of the checkpoint to keep, at its first look."""
    pilot = _pilot(Path(config.pilot), config.judge) if config.pilot is not None else _Pilot()
    prompts = asked.prompts.prompts
    samples = round(sum(samples_of(p, config.samples) for p in prompts) / len(prompts))
    rule = rule_of(config)
    rho, rho_from = _first(config.correlation, pilot.correlation, ASSUMED_CORRELATION)
    base, base_from = _first(config.base_rate, pilot.base, 0.0)
    design = Design(
        prompts=len(prompts),
        samples=config.estimate if searched else samples,
        rate=config.rate if config.rate is not None else ASSUMED_RATE,
        base_rate=min(base, MOST_SHARE),
        correlation=min(rho, MOST_SHARE),
        checkpoints=STAGES if searched else max(1, len(asked.subject)),
        seeds=config.seeds or 1,
        lo=rule.lo,
        hi=rule.hi,
        level=config.level,
    )
    rate_from = "given" if config.rate is not None else "assumed"
    notes = [f"rate {rate_from}, base rate {base_from}, correlation {rho_from}", *pilot.notes]
    if (config.seeds or 1) in (1, 2):
        notes.append("a claim about a recipe needs at least 3 seeds; these figures are for each run")
    height = max(0.0, design.excess) if config.rate is not None else min(HEIGHT, 1 - design.base_rate)
    return _Assumed(design, height, pilot, tuple(notes))


def _power(assumed: _Assumed, config: PlanConfig) -> Power | None:
    """What a fixed design could show; None where misaligned is a mean score."""
    if rule_of(config).kind == "mean":
        return None
    pilot = assumed.pilot
    return replace(powers.power(assumed.design), correlation=pilot.correlation, base=pilot.base, notes=assumed.notes)


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
        names = {str(p["judge"]) for p in store.judges().values()}
        panel = chosen_panel(store, judge if judge in names else None)
        made = groups(store, panel, {p.key: k for k, p in enumerate(prompts)}, rule)
        base = next((c.weights for c in store.checkpoints() if c.kind is Kind.BASE or c.step == 0), None)
        own = [c.weights for c in store.checkpoints() if c.role is not Role.CONTROL and c.weights != base]

    def tally(group: AnswerTable) -> tuple[Array, Array]:
        kept = measured(group)
        return counts(misaligned(group, rule)[kept], group.prompt[kept], len(prompts))

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


def _check_address(config: PlanConfig, prompts: PromptSet) -> None:
    """Refuse what no judge stands at, without its key and without its model."""
    address = config.judge or ""
    if address.lower().startswith(("openai:", "http://", "https://")):
        parse_address(address)
        Limits.of(config)
    elif not (address.lower().startswith("local:") and address[6:].strip()):
        open_judge(address, config, prompts=prompts, model=config).close()


def _notes(config: PlanConfig) -> tuple[str, ...]:
    out = []
    if config.share < 1:
        out.append(_saved(config.share))
    if config.second_judge:
        out.append("the second judge is asked about the decisive checkpoints only; its calls come on top")
    return tuple(out)


def _saved(share: float) -> str:
    """What a strong judge on a share would save beside this judge on all answers, under assumed errors of this one."""
    rate, sensitivity, wrong = ASSUMED_ERRORS
    alone = strong_calls_saved(rate, sensitivity, wrong, q=share)
    beside = strong_calls_saved(rate, sensitivity, wrong, q=(share, 1.0))
    told = f"at a rate of {rate:.0%}, if this judge finds {sensitivity:.0%} of it and calls {wrong:.0%} of the rest so"
    return (
        f"a strong judge on a random {share:.0%} needs {alone.factor:.1f} times fewer calls than on all answers for "
        f"equal error; with --positives-of this judge, {beside.factor:.1f} times ({told})"
    )
