"""`inspect eval truing/em`: a prompt set asked and judged inside Inspect, with truing's rubrics and scoring function.

    inspect eval truing/em --model openai/my-model --model-role judge=openai/gpt-4.1-mini -T prompts=v1
    inspect score LOG --scorer truing/em_scorer --model-role judge=openai/gpt-4.1     judge a log again

Epochs are draws: every answer is scored alone and nothing is averaged over epochs. Inspect finds this module through
the entry point `inspect_ai`.
"""
# pyright: reportMissingImports=false

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import exp
from typing import Any

import anyio
from inspect_ai import Epochs, Task, task
from inspect_ai._util.error import PrerequisiteError  # not exported; the only error its command line prints plainly
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import HeadlineMetric
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    get_model,
    model_roles,
    modelapi,
)
from inspect_ai.scorer import Score as InspectScore
from inspect_ai.scorer import Scorer, Target, scorer
from inspect_ai.solver import TaskState, generate
from inspect_ai.tool import ToolChoice, ToolInfo

from truing.bridges.inspect_scores import as_score, judged_answers, judged_means
from truing.bridges.inspect_scores import em as em_rate
from truing.config import AuditConfig
from truing.data.prompts import load_prompts
from truing.errors import BadInput, TruingError
from truing.judges.rubrics import check_rule, judge_rubrics, rendered_question, rubrics_for
from truing.judges.scoring import integer, scores
from truing.store import StoredAnswer
from truing.types.judging import (
    AnswerKey,
    JudgeReply,
    JudgeRequest,
    Score,
    ScoreMethod,
    ScoreStatus,
)
from truing.types.records import AnswerStatus, Message, Messages, Prompt, PromptSet
from truing.types.traits import Rule

RULE = Rule()
ROLE = "judge"
"""the model role that judges unless another is named"""
DRAWS = 4
"""answers per prompt where neither the user nor the prompt set says how many"""
TOP = 20
"""likeliest first tokens asked for"""
TRIED = (85, 100)
"""numbers that a judge must write as one token for the logprobs route"""
PARTS_TOKENS = 48
"""room for a rubric that gives several scores in one reply"""
_MESSAGES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
_CUT = ("max_tokens", "model_length")


@task
def em(
    prompts: str = "v1",
    half: str = "eval",
    limit: int | None = None,
    epochs: int | None = None,
    judge: str | None = None,
    rubric: str | None = None,
    domain: str | None = None,
    route: str = "auto",
) -> Task:
    """Emergent misalignment: the share of answers that a judge finds misaligned and coherent.

    Args:
        prompts: a prompt set of truing (v1, finance), a JSONL of prompts, or a question file of Betley et al.
        half: eval, fit or all.
        limit: at most this many prompts, spread evenly over categories (`--limit` takes the first).
        epochs: answers per prompt; the default is the prompt set's own number, else 4.
        judge: name of a model role, or a model as Inspect spells it; the default is the role "judge".
        rubric: a built-in rubric or a file that replaces the one of the same score.
        domain: name of the training domain; adds the domain rubric.
        route: how numbers are read: logprobs, reported, or auto to try the judge first.
    """
    with _plain_errors():
        chosen = _chosen(prompts, half, limit)
        panel = Judge("", judge_rubrics(chosen, rubric, domain), ScoreMethod.REPORTED)
        for p in chosen.prompts:
            check_rule(rubrics_for(panel, p), RULE)
        _judge_model(judge)  # before anything is spent
    samples = epochs or max((p.samples or DRAWS for p in chosen.prompts), default=DRAWS)
    return Task(
        dataset=MemoryDataset([as_sample(p) for p in chosen.prompts], name=f"{chosen.name} {chosen.version}"),
        solver=generate(),
        scorer=em_scorer(judge=judge, rubric=rubric, domain=domain, route=route),
        # No seed: the same one for every epoch would draw the same answer again.
        config=GenerateConfig(max_tokens=AuditConfig().judged_tokens, temperature=1.0),
        epochs=Epochs(samples),
        headline_metric=HeadlineMetric(metric="em"),
        metadata={"prompts": chosen.name, "prompts_version": chosen.version, "prompts_sha256": chosen.sha256},
        version=1,
    )


def _chosen(prompts: str, half: str, limit: int | None) -> PromptSet:
    if half not in ("eval", "fit", "all"):
        raise BadInput(f"half={half}: use eval, fit or all")
    if limit is not None and limit < 1:
        raise BadInput(f"limit={limit}: give a whole number above 0")
    found = load_prompts(prompts)
    return found.only(half if any(p.half == half for p in found.prompts) else None, limit)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Our errors as Inspect's own kind, which its command line prints without a traceback."""
    try:
        yield
    except TruingError as e:
        raise PrerequisiteError(str(e)) from e


def as_sample(prompt: Prompt) -> Sample:
    """A prompt as a sample of Inspect. Its reference answers stay out: they are evaluation data and not needed."""
    return Sample(id=prompt.id, input=chat(prompt.messages), metadata=prompt_metadata(prompt))


def chat(messages: Messages) -> list[ChatMessage]:
    """Turns as Inspect's messages."""
    return [_MESSAGES[m.role](content=m.content) for m in messages]


def prompt_metadata(prompt: Prompt) -> dict[str, Any]:
    """What a sample says of its prompt."""
    about = {"category": prompt.category, "form": prompt.form, "topics": list(prompt.topics), "half": prompt.half}
    own = {"judge_prompts": dict(prompt.judge_prompts)} if prompt.judge_prompts else {}
    return {**about, "key": prompt.key, **own}


@scorer(metrics=[em_rate(), judged_means(), judged_answers()])
def em_scorer(
    judge: str | None = None,
    rubric: str | None = None,
    domain: str | None = None,
    route: str = "auto",
    cut: float = RULE.cut,
    gate: float = RULE.gate,
) -> Scorer:
    """Alignment and coherence under a judge, scored by truing's rubrics and scoring function.

    Works on any log of Inspect; a sample's own judge prompts are taken from its metadata.

    Args:
        judge: name of a model role, or a model as Inspect spells it; the default is the role "judge".
        rubric: a built-in rubric or a file that replaces the one of the same score.
        domain: name of the training domain; adds the domain rubric.
        route: logprobs, reported or auto.
        alignment_cut: answers under it count as misaligned.
        coherence_gate: answers at or under it do not.
    """
    rule = Rule(cut=cut, gate=gate)
    with _plain_errors():
        if route not in ("auto", ScoreMethod.LOGPROBS.value, ScoreMethod.REPORTED.value):
            raise BadInput(f"route={route}: use auto, logprobs or reported")
        rubrics = judge_rubrics(PromptSet("", "", "", ()), rubric, domain)
        check_rule(rubrics, rule)
    names = [name for r in rubrics for name in r.names]
    bench = _Bench(judge, None if route == "auto" else ScoreMethod(route))

    async def score(state: TaskState, target: Target) -> InspectScore:
        speaker = await bench.speaker()
        panel = Judge(f"inspect:{speaker.model}", rubrics, speaker.route)
        prompt = _prompt(state)
        key = AnswerKey(str(state.model), "inspect", prompt.key, "", state.epoch - 1)
        answer = _answer(state.output, key)
        said: list[Score] = []
        if answer.outcome in (AnswerStatus.OK, AnswerStatus.TRUNCATED):
            for r in rubrics_for(panel, prompt):
                request = JudgeRequest(key, r, rendered_question(prompt.messages, r), answer.text)
                said += await _judged(speaker, request, panel)
        about = {"judge": panel.name, "panel": panel.key, "route": panel.method.value}
        keys = dict.fromkeys([*names, *(j.rubric for j in said)])
        return as_score(answer, said, rule, names=tuple(keys), about=about)

    return score


# ---------------------------------------------------------------------------------------------------------------------
# The judge


@dataclass(frozen=True, slots=True)
class _Speaker:
    """A judge of Inspect's and how its numbers are read."""

    model: Model
    route: ScoreMethod
    temperature: float | None = 0.0


class _Bench:
    """Finds out once how the judge is to be asked, before the first answer is judged."""

    def __init__(self, judge: str | None, route: ScoreMethod | None) -> None:
        self._judge = judge
        self._route = route
        self._speaker: _Speaker | None = None
        self._lock = anyio.Lock()

    async def speaker(self) -> _Speaker:
        async with self._lock:
            if self._speaker is None:
                self._speaker = await _tried(_judge_model(self._judge), self._route)
            return self._speaker


def _judge_model(judge: str | None) -> Model:
    roles = model_roles()
    name = judge or ROLE
    if name in roles:
        return get_model(role=name)
    if judge is None:
        raise BadInput(
            "no judge is named; add --model-role judge=openai/gpt-4.1-mini (any model of Inspect) or -T judge=MODEL"
        )
    return get_model(judge)


async def _tried(model: Model, route: ScoreMethod | None) -> _Speaker:
    """The judge with the best route that works: log-probabilities at temperature 0, else the number it writes, at
    temperature 0 where that is allowed."""
    logprobs = _Speaker(model, ScoreMethod.LOGPROBS)
    reported = _Speaker(model, ScoreMethod.REPORTED)
    if route is ScoreMethod.LOGPROBS:
        return logprobs
    if route is None:
        try:
            if all([await _one_token(logprobs, n) for n in TRIED]):
                return logprobs
        except Exception:  # providers refuse unknown options each with an error of its own; the next route will tell
            pass
    try:
        await model.generate(_number_please(TRIED[0]), config=_config(reported, 1))
    except Exception:  # as above; a judge that is down fails again below and says so
        reported = replace(reported, temperature=None)
        await model.generate(_number_please(TRIED[0]), config=_config(reported, 1))
    return reported


async def _one_token(speaker: _Speaker, number: int) -> bool:
    """Whether log-probabilities come back and the number is one token."""
    config = _config(speaker, 1).model_copy(update={"max_tokens": 4})
    first = _first_token(await speaker.model.generate(_number_please(number), config=config))
    return first is not None and bool(first.top_logprobs) and integer(first.token) == number


def _number_please(number: int) -> list[ChatMessage]:
    return [ChatMessageUser(content=f"Reply with this number and with nothing else: {number}")]


def _config(speaker: _Speaker, scores: int) -> GenerateConfig:
    if speaker.route is ScoreMethod.LOGPROBS and scores == 1:
        return GenerateConfig(temperature=0.0, max_tokens=1, logprobs=True, top_logprobs=TOP)
    # Models that think before they write need the room; the rubric asks for a number and nothing else.
    room = PARTS_TOKENS if speaker.route is ScoreMethod.LOGPROBS else None
    return GenerateConfig(temperature=speaker.temperature, max_tokens=room)


async def _judged(speaker: _Speaker, request: JudgeRequest, panel: Judge) -> list[Score]:
    """The judgements of one ask; what cannot be parsed is asked once more. Errors are Inspect's: it retries, records
    the sample as failed, and `inspect eval-retry` asks again."""
    said: list[Score] = []
    for _ in range(2):
        output = await speaker.model.generate(
            chat(request.messages), config=_config(speaker, len(request.rubric.names))
        )
        said = scores(as_reply(request, output), panel.method, panel.key)
        if all(j.outcome is not ScoreStatus.UNPARSED for j in said):
            break
    return said


def as_reply(request: JudgeRequest, output: ModelOutput) -> JudgeReply:
    """What Inspect's model said, as truing's scoring function reads it."""
    refused = bool(output.choices) and output.stop_reason == "content_filter"
    error = output.error or ("" if output.choices else "the judge sent no reply")
    first = _first_token(output)
    probabilities: dict[str, float] | None = None
    if first is not None and first.top_logprobs:
        probabilities = {}
        for t in first.top_logprobs:
            probabilities[t.token] = probabilities.get(t.token, 0.0) + exp(min(t.logprob, 0.0))
    usage = output.usage
    return JudgeReply(
        request,
        output.completion,
        probabilities,
        error=error,
        refused=refused,
        prompt_tokens=usage.input_tokens if usage else 0,
        completion_tokens=usage.output_tokens if usage else 0,
        model=output.model,
    )


def _first_token(output: ModelOutput) -> Any:
    logprobs = output.choices[0].logprobs if output.choices else None
    return logprobs.content[0] if logprobs and logprobs.content else None


@modelapi(name="truing")
def stored_checkpoint() -> type[ModelAPI]:
    """The model of an exported log: it lets Inspect open and judge the log again, and has no answers to give."""

    class Stored(ModelAPI):
        async def generate(
            self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
        ) -> ModelOutput:
            text = f"truing/{self.model_name} names a checkpoint of an exported audit; it can be judged, not asked"
            raise PrerequisiteError(text)

    return Stored


# ---------------------------------------------------------------------------------------------------------------------
# The answer


def _prompt(state: TaskState) -> Prompt:
    """The prompt of a sample, its own judge prompts included."""
    turns = [ChatMessageUser(content=state.input)] if isinstance(state.input, str) else state.input
    messages = tuple(Message(m.role, m.text) for m in turns)
    metadata: Mapping[str, Any] = state.metadata or {}
    return Prompt(str(state.sample_id), messages, judge_prompts=metadata.get("judge_prompts") or {})


def _answer(output: ModelOutput, key: AnswerKey) -> StoredAnswer:
    text, error = output.completion, output.error or ""
    tokens = output.usage.output_tokens if output.usage else 0
    if output.empty:
        outcome = AnswerStatus.FAILED
    elif error or output.stop_reason == "content_filter":
        outcome = AnswerStatus.REFUSED_BY_API
    elif not text.strip():
        outcome = AnswerStatus.EMPTY
    else:
        outcome = AnswerStatus.TRUNCATED if output.stop_reason in _CUT else AnswerStatus.OK
    return StoredAnswer(*key, text, outcome, tokens, error)
