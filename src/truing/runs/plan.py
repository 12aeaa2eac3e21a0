"""`truing plan`: what an audit would cost and could show, before anything is spent: calls x price, hours, power.

Calls are counted, but for two numbers nobody knows beforehand: the answers a search takes, and how many need their
coherence asked. Tokens are estimates (four bytes of English to a token).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.config import AuditConfig, PlanConfig, configured
from truing.data.transforms import select_transforms
from truing.judges.check import check_requests
from truing.judges.registry import JudgeContext, open_judge
from truing.judges.rubrics import rendered_question, rubrics_for
from truing.models.client_address import parse_address
from truing.models.download import MODELS as ALIASES
from truing.models.limits import price_of
from truing.runs.calibrate import BASE_ANSWERS, DRIFT_ANSWERS, kind_of, reference_items
from truing.runs.checks import refuse_too_large
from truing.runs.judges import LabelSpec, calibration_set, rubrics_of
from truing.runs.resolve import Plan as AuditPlan
from truing.runs.resolve import resolve
from truing.runs.scope import Scope, far_prompts, samples_of
from truing.runs.search import why_no_search
from truing.runs.shares import RANDOM_COHERENCE
from truing.stats import power as powers
from truing.stats.power import Design, Power, answers_to_confirm, search_answers
from truing.stats.sequential_base import STAGES, zone_of
from truing.types.judging import Judge, Rubric, ScoreMethod
from truing.types.progress import Progress
from truing.types.records import Message, Prompt

if TYPE_CHECKING:
    from truing.models.pace import Pace

BYTES_PER_TOKEN = 4.0
CALLING_TOKENS = 8
"""tokens a chat call adds to its text"""
CHAT_TOKENS = 20
"""tokens that a chat template adds to a prompt"""
USUAL_TOKENS = 48
"""tokens under which most answers end where they may be longer"""
PAST_CUT = 0.1
"""share of answers assumed to score past the cut, where nothing is known yet"""
PROBES = 2
"""calls by which an endpoint's score method is found; one or two more where it gives no log-probabilities"""
UNPAID = ("local:", "replay:", "simulated:")
"""judges that cost no money"""
UNPRICED = "money unknown: give --prices FILE (a table per model: input, output, dollars per million tokens)"


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
    """checkpoints that answer: step 0, the run, any control"""
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
    local_hours: float | None = None
    """about how long this machine scores, samples and judges, by a moment of its arithmetic; None where nothing of it
    happens here, or the base is not on this machine"""
    notes: tuple[str, ...] = ()
    """what the figures rest on"""
    power: Power | None = None
    """what the fixed samples could show; None without labels, and for mean scores"""
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
    config: PlanConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Plan:
    """What `audit` with the same arguments would cost, and what its labelled answers could show.

    Loads no model, calls no judge and needs no key.

    Args:
        target: as `audit`.
        config: options; None for the defaults.
        progress: told how reading the weights goes on.
        options: fields of `PlanConfig`: those of an audit; rate, base_rate and correlation are assumed of the truth.

    Raises:
        BadInput: whatever would be wrong with the audit itself, or prices that do not name the judge.
    """
    config = configured(PlanConfig, config, options)
    asked = resolve(target, config, progress)
    return planned(asked, config, paces(asked.base, config))


def planned(asked: AuditPlan, config: PlanConfig, speeds: "tuple[Pace | None, Pace | None]") -> Plan:
    """What an audit that is settled would cost, on a machine of these speeds (see `paces`)."""
    refuse_too_large(asked)
    checkpoints, count = 1 + len(asked.subject) + _controls(asked), len(asked.prompts.prompts)
    references = sum(1 + (p.aligned is not None) + len(p.neutral) for p in asked.prompts.prompts if p.has_references)
    rows = (1 + len(asked.subject)) * len(asked.rows) * (2 if asked.control_rows else 1)
    health = checkpoints * min(config.answers, count)
    made = Plan(checkpoints, count, health, health * asked.sampling.max_tokens, checkpoints * references * 2 + rows)
    made = _Labels(replace(asked, config=config), config).plan(made) if asked.labels else made
    made = replace(made, notes=(*made.notes, *_row_notes(asked)))
    return replace(made, local_hours=_local_hours(asked, made, speeds))


def _row_notes(asked: AuditPlan) -> list[str]:
    """Which task rows are left out or changed, as far as the file tells."""
    counts = {"left_out": "are not measured", "changed": "are measured otherwise than they stand in the file"}
    told = (
        (n, what, why) for key, what in counts.items() for why, n in asked.asked.get(f"task_rows_{key}", {}).items()
    )
    notes = [f"{n} task rows {what}: {why}" for n, what, why in told]
    if asked.rows and asked.simulated is None:
        notes.append("which task rows the template refuses or the context is too short for is known with the base open")
    return notes


def paces(base: str, config: AuditConfig) -> "tuple[Pace | None, Pace | None]":
    """How fast this machine is with the base and with the judge; None for what is elsewhere, or not a model."""
    judge = (config.judge or "").strip()
    names = (base, judge[6:] if judge.lower().startswith("local:") else "")
    here = [name if name in ALIASES or (name and Path(name).expanduser().is_dir()) else "" for name in names]
    if not any(here):
        return None, None
    from truing.models.pace import pace  # loads torch

    own, its = (pace(name, config) if name else None for name in here)
    return own, its


def _local_hours(asked: AuditPlan, made: Plan, speeds: "tuple[Pace | None, Pace | None]") -> float | None:
    own, its = speeds
    if own is None:
        return None
    rows = (*asked.rows, *asked.control_rows)
    turns = sum(len(m.content.encode()) for row in rows for m in (*row.prompt, Message("assistant", row.answer)))
    each = asked.sampling.max_tokens
    answers = made.checkpoints * min(asked.config.answers, made.prompts) * 2 * (each + CHAT_TOKENS)
    scored = made.checkpoints * text_tokens(asked.scored) + answers
    scored += (1 + len(asked.subject)) * turns / BYTES_PER_TOKEN
    # Few answers are as long as they may be where they may be long.
    seconds = own.seconds(scored, made.answers * min(each, max(USUAL_TOKENS, each / 2)))
    return (seconds + (made.tokens / its.scored if its is not None else 0)) / 3600


def text_tokens(prompts: Sequence[Prompt]) -> float:
    """Tokens of these prompts with their reference answers, with and without the question; each beginning once."""
    total = 0.0
    for p in prompts:
        question = sum(len(m.content.encode()) for m in p.messages)
        answers = sum(len(a.encode()) for a in (p.aligned, p.misaligned, *p.neutral) if a)
        total += (question + 2 * answers) / BYTES_PER_TOKEN + 2 * CHAT_TOKENS
    return total


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Answers to be labelled."""

    what: str
    per_prompt: Sequence[float]
    """answers to each prompt, all checkpoints together"""
    checkpoints: int
    """checkpoints of which a few answers have their coherence asked at random"""
    note: str = ""


class _Labels:
    """A plan with labels: of a search, or of the same answers everywhere."""

    def __init__(self, asked: AuditPlan, config: PlanConfig) -> None:
        self.asked, self.config, self.rule, self.prompts = asked, config, asked.rule, asked.prompts.prompts
        self.address, self.spec = config.judge or "", LabelSpec(asked.trait, asked.rule, asked.whole)
        self.longest = asked.trait.decoding.get("max_tokens", config.judged_tokens)
        rubrics = rubrics_of(config, self.spec)
        self.judge = Judge("", rubrics, ScoreMethod.LOGPROBS, own_prompts=asked.trait.scorer is None)
        if config.samples is None:
            zone_of(self.rule, config.level).check()
        _check_address(self.address, asked, config)
        self.far = far_prompts(self.prompts, config.domain, asked.asked["task"], asked.words)[0]

    def plan(self, made: Plan) -> Plan:
        """The whole of it, from what it is without labels."""
        config, address = self.config, self.address
        # The base is not opened for a plan; it has step 0 whatever it is, and only later checkpoints are looked at.
        base = replace(self.asked.subject[0], weights="base", step=0)
        scope = Scope(self.prompts, self.far, (base, *self.asked.subject), (), "")
        why = why_no_search(scope) if config.samples is None else "a fixed number is asked for"
        if why:
            samples = [samples_of(p, config.samples) * made.checkpoints for p in self.prompts]
            wanted = most = [_Wanted("answers", samples, made.checkpoints)]
            notes = [f"no search for the onset, since {why}"] if config.samples is None else []
            answers = 0
        else:
            wanted, most, notes = self._search()
            answers = made.answers  # for health, whatever the search takes
        answers += sum(round(sum(w.per_prompt)) for w in wanted)
        made = replace(made, answers=answers, sampled_tokens=answers * self.longest, searched=not why)
        made = replace(made, power=self._power(searched=not why), notes=tuple(notes))
        if not address:
            return made
        made = replace(made, costs=self._costs(wanted)[0], most_calls=self._costs(most)[1])
        free = address.lower().startswith(UNPAID)
        model = address.rpartition("#")[2] if "#" in address else address.partition(":")[2]
        price = price_of(model, config.prices) if not free else None
        if price is None and not free:
            notes = [UNPRICED, *notes]
        if config.second_judge:
            notes.append("the second judge is asked about the decisive checkpoints only; its calls come on top")
        # What a judge writes is a token or two, so the price of what it reads is the whole.
        usd = made.tokens * price.input / 1e6 if price is not None else None
        limits = [n / per for n, per in ((made.calls, config.rpm), (made.tokens, config.tpm)) if per]
        return replace(
            made,
            usd=usd,
            most_usd=usd * made.most_calls / max(1, made.calls) if usd is not None else None,
            hours=max(limits) / 60 if limits else None,
            notes=tuple(notes),
        )

    def _power(self, *, searched: bool) -> Power | None:
        """What fixed samples could show; after a search those of the checkpoint to keep. None for mean scores."""
        config, rule = self.config, self.rule
        if rule.kind == "mean":
            return None
        samples = round(sum(samples_of(p, config.samples) for p in self.prompts) / len(self.prompts))
        decisions = STAGES if searched else max(1, len(self.asked.subject))
        level, each = 1 - (1 - config.level) / decisions, config.estimate if searched else samples
        truth = (config.rate, config.base_rate, config.correlation)
        return powers.power(Design(len(self.prompts), each, *truth, rule.lo, rule.hi, level))

    def _search(self) -> tuple[list[_Wanted], list[_Wanted], list[str]]:
        """The answers of a search and the fixed ones after it, as expected and at most, and what to know of them."""
        rule, config, n, each = self.rule, self.config, sum(self.far), self.config.estimate
        steps, compared = {c.step for c in self.asked.subject}, _controls(self.asked) >= len(self.asked.subject)
        about, cautious = search_answers(
            len(steps),
            zone_of(rule, config.level),
            base_rate=config.base_rate,
            assume_monotone=config.assume_monotone,
        )
        confirm = answers_to_confirm(n, each, rule.hi, looks=STAGES, level=config.level)
        # The base and the checkpoint to keep; the first certified above and the last, with their controls.
        others = min(len(steps) - 1, 2) + (min(len(steps), 2) if compared else 0)

        def wanted(answers: float, confirmed: int) -> list[_Wanted]:
            fixed = float(each * others + 2 * confirmed)
            return [
                _Wanted("search", [answers / n if far else 0.0 for far in self.far], 0, "an order of magnitude"),
                _Wanted("fixed answers", [fixed] * len(self.far), others + 2, "base, first above lo, last, kept"),
            ]

        most, notes = each * 2 ** (STAGES - 1), []
        if rule.kind == "threshold" and confirm is None:
            text = f"{n} far prompts with {each}, at last {most} fixed answers can certify no checkpoint under"
            notes = [f"{text} {100 * rule.hi:g} points, so none would be recommended: give more prompts, or --estimate"]
        return wanted(about, confirm or most), wanted(cautious, most), notes

    def _costs(self, wanted: Sequence[_Wanted]) -> tuple[tuple[Cost, ...], int]:
        """Judge calls by purpose, and how many there are if every answer needs its coherence asked."""
        config, gate = self.config, (self.rule.gate_score,)
        lazy = not config.every_coherence and self.rule.kind == "threshold"
        made, later, expected, tokens_later = [], 0.0, 0, 0.0
        for w in wanted:
            calls = tokens = own = 0.0
            for p, n in zip(self.prompts, w.per_prompt, strict=True):
                for r in rubrics_for(self.judge, p):
                    cost = n * _tokens(r, p, self.longest)
                    if lazy and r.names == gate:
                        own, tokens_later = own + n, tokens_later + cost
                    else:
                        calls, tokens = calls + n, tokens + cost
            made.append(Cost(w.what, round(calls), round(tokens), w.note))
            at_random = w.checkpoints * min(RANDOM_COHERENCE, round(own) // w.checkpoints) if w.checkpoints else 0
            later, expected = later + own, expected + min(round(own), at_random + round(PAST_CUT * own))
        calls, tokens = sum(c.calls for c in made), sum(c.tokens for c in made)
        if later:
            note = f"{RANDOM_COHERENCE} per checkpoint with fixed answers, and {PAST_CUT:.0%} assumed past the cut"
            made.append(Cost("coherence", expected, round(expected * tokens_later / later), note))
        n = len(select_transforms(config.variants)) * 3 if config.variants else 0
        if n:
            n *= sum(samples_of(p, config.samples) for p in self.prompts)
            note = "step 0, the control and the recommended checkpoint; none without a recommendation"
            made.append(Cost("variants", n, round(n * tokens / max(1, calls)), note))
        tests, more = self._tests()
        return (*made, *tests), calls + round(later) + 2 * n + sum(c.calls for c in tests) + more

    def _tests(self) -> tuple[list[Cost], int]:
        """Calls that try the judge, and how many more if all reference answers score past the cut."""
        address, made, more = self.address.lower(), [], 0
        if address.startswith("replay:"):
            return [], 0  # a record takes no test
        if not address.startswith(("simulated:", "local:")):
            made.append(Cost("how scores are read", PROBES, PROBES * 2 * CALLING_TOKENS))
        if not self.config.skip_judge_check and not address.startswith("simulated:"):  # which knows simulated answers
            requests = check_requests(self.judge.rubrics)
            tokens = sum(_bytes_to_tokens(r.messages[0].content) + CALLING_TOKENS for r in requests)
            made.append(Cost("judge check", len(requests), tokens))
        asked, repeated, rule = [], [], self.rule
        references = () if self.config.skip_calibration else calibration_set(self.spec).prompts
        for item in reference_items(references):
            answer, prompt = item
            for r in (r for r in rubrics_for(self.judge, prompt) if set(rule.names) & set(r.names)):
                cost = _tokens(r, prompt, 2 * _bytes_to_tokens(answer.text))
                if r.names != (rule.gate_score,) or rule.kind != "threshold" or kind_of(item) == "misaligned":
                    asked.append(cost)
                else:
                    more += 1
                if rule.score in r.names:
                    repeated.append(cost)
        if asked:
            note = f"kept per judge and prompt set; up to {BASE_ANSWERS} base answers are among those above"
            made.append(Cost("calibration", len(asked), sum(asked), note))
            n = 2 * min(DRIFT_ANSWERS, len(repeated))
            made.append(Cost("drift check, start and end", n, round(n * sum(repeated) / max(1, len(repeated)))))
        return made, more


def _controls(asked: AuditPlan) -> int:
    return len(asked.controls[0]) if asked.controls else 0


def _check_address(address: str, asked: AuditPlan, config: PlanConfig) -> None:
    """Refuse what no judge stands at, without its key and without its model."""
    if address.lower().startswith(("openai:", "http://", "https://")):
        parse_address(address)
    elif address and not (address.lower().startswith("local:") and address[6:].strip()):
        open_judge(address, JudgeContext(config, config, asked.whole)).close()


def _bytes_to_tokens(text: str) -> int:
    return round(len(text.encode()) / BYTES_PER_TOKEN)


def _tokens(rubric: Rubric, prompt: Prompt, longest: int) -> int:
    """Tokens of one call: rubric, question, an answer half as long as allowed, and what the judge writes."""
    text = rubric.text + rendered_question(prompt.messages, rubric)
    return round(_bytes_to_tokens(text) + longest / 2 + CALLING_TOKENS)
