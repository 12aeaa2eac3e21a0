"""`truing plan`: what an audit would cost, before anything is spent: answers, judge calls, tokens, money, hours.

Token counts are estimates (four bytes of English to a token) and are called so. Calls are counted, not guessed, but for
one share nobody knows beforehand: how many answers score under the cut and need their coherence asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from truing.backends.limits import price_of
from truing.base.judged import JudgeOptions, Rubric
from truing.base.options import AuditOptions
from truing.base.records import Prompt
from truing.judging.check import check_asks
from truing.judging.rubrics import panel_rubrics, prompt_rubrics, rendered_question
from truing.study.judged_audit import judged_asks
from truing.study.judging import RANDOM_COHERENCE
from truing.study.known import ANCHORS, BASE_ANSWERS, reference_items
from truing.study.resolve import resolve

BYTES_PER_TOKEN = 4.0
CALLING_TOKENS = 8
"""tokens a chat call adds to its text"""
LOW_SHARE = 0.1
"""share of answers assumed to score under the cut, where nothing is known yet"""


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
    asked = resolve(target, base, task, task_control, control, prompts, options)
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
    costs, most = _costs(asked.prompts.prompts, asked.whole.prompts, rubrics, answers, checkpoints, options)
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


def _costs(
    prompts: Sequence[Prompt],
    whole: Sequence[Prompt],
    rubrics: tuple[Rubric, ...],
    answers: int,
    checkpoints: int,
    options: AuditOptions,
) -> tuple[tuple[Cost, ...], int]:
    judging = options.judging
    lazy = judging.lazy and options.em.kind == "threshold" and any(r.names == ("coherence",) for r in rubrics)
    own = bool(prompts and prompts[0].judge_prompts)
    asked = prompt_rubrics(prompts[0]) or rubrics if own else rubrics
    each = [_tokens(r, prompts, judging.max_tokens) for r in asked]
    always = [k for k, r in enumerate(asked) if not (lazy and r.names == ("coherence",))]
    coherence = [k for k in range(len(asked)) if k not in always]
    costs = [Cost("answers", answers * len(always), answers * sum(each[k] for k in always))]
    most = answers * len(asked)
    if coherence:
        n = min(answers, checkpoints * RANDOM_COHERENCE + round(LOW_SHARE * answers))
        note = f"{RANDOM_COHERENCE} per checkpoint, and {LOW_SHARE:.0%} of answers assumed under the cut"
        costs.append(Cost("coherence", n, n * sum(each[k] for k in coherence), note))
    check = len(check_asks(rubrics)) if judging.check else 0
    if check:
        costs.append(Cost("sanity check", check + 2, (check + 2) * _mean(each)))
    if judging.validity:
        known = len(reference_items(whole))
        if known:
            note = f"kept per judge and prompt set; up to {BASE_ANSWERS} base answers are among those above"
            costs.append(Cost("known-answer test", known, known * each[0], note))
            costs.append(Cost("anchors, start and end", 2 * min(ANCHORS, known), 2 * min(ANCHORS, known) * each[0]))
            most += known
    return tuple(costs), most + sum(c.calls for c in costs if c.what in ("sanity check", "anchors, start and end"))


def _mean(values: Sequence[int]) -> int:
    return round(sum(values) / len(values))


def _tokens(rubric: Rubric, prompts: Sequence[Prompt], longest: int) -> int:
    """Tokens of one call: rubric, question, an answer half as long as allowed, and what the judge writes."""
    question = sum(len(rendered_question(p.messages, rubric).encode()) for p in prompts) / max(1, len(prompts))
    return round((len(rubric.text.encode()) + question) / BYTES_PER_TOKEN + longest / 2 + CALLING_TOKENS)


def _price(options: JudgeOptions, judge: str) -> float | None:
    """Dollars per million tokens read; what a judge writes is a token or two."""
    price = price_of(judge.rpartition("#")[2] if "#" in judge else judge.partition(":")[2], options.prices)
    return price.input if price is not None else None


def _hours(calls: int, tokens: int, options: JudgeOptions) -> float | None:
    limits = [n / per for n, per in ((calls, options.rpm), (tokens, options.tpm)) if per]
    return max(limits) / 60 if limits else None


def _notes(options: AuditOptions, usd: float | None) -> tuple[str, ...]:
    out = []
    if usd is None and options.judge is not None and not options.judge.startswith(("local:", "replay:", "planted:")):
        out.append("money unknown: give --prices FILE (a table per model: input, output, dollars per million tokens)")
    if options.judging.second:
        out.append("the second judge is asked about the decisive checkpoints only; its calls come on top")
    if options.judging.cues:
        out.append("cues are asked at step 0, the control and the recommended checkpoint; their calls come on top")
    return tuple(out)
