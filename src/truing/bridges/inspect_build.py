"""The records of Inspect for the answers of one checkpoint. Importing this needs inspect_ai.

The scores are made by the function that the live task uses, and the rates by its metrics, so a log written from an
audit and a log of `inspect eval truing/em` read alike.
"""
# pyright: reportMissingImports=false

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalError,
    EvalLog,
    EvalPlan,
    EvalPlanStep,
    EvalSample,
    EvalSpec,
    EvalStats,
    HeadlineMetric,
    recompute_metrics,
    write_eval_log,
)
from inspect_ai.log._log import EvalMetricDefinition, EvalScorer  # not exported, but part of EvalSpec
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.scorer import Score as InspectScore

from truing._version import __version__
from truing.bridges.inspect_log import LogFrame, LogGroup
from truing.bridges.inspect_scores import METRICS, as_score
from truing.bridges.inspect_task import chat, prompt_metadata
from truing.store import StoredAnswer
from truing.types.hashing import digest
from truing.types.judging import Score
from truing.types.records import AnswerStatus, to_plain

TASK = "truing/em"
NO_QUESTION = "(a prompt that audit.json does not hold)"
NO_ANSWER = (AnswerStatus.FAILED, AnswerStatus.UNSUPPORTED)
_STOPS: dict[AnswerStatus, Any] = {
    AnswerStatus.TRUNCATED: "max_tokens",
    AnswerStatus.REFUSED_BY_API: "content_filter",
    AnswerStatus.FAILED: "unknown",
    AnswerStatus.UNSUPPORTED: "unknown",
}


def save(log: EvalLog, path: Path) -> None:
    """Write a log in Inspect's own format, whatever the file is called."""
    write_eval_log(log, path, format="eval")


def eval_log(group: LogGroup, frame: LogFrame) -> EvalLog:
    """The log of one checkpoint: its samples, and results computed by Inspect from our metrics."""
    model = _model(group)
    samples = [_sample(r, said, group, frame, model) for r, said in group.rows]
    usage = sum((s.output.usage for s in samples if s.output.usage), ModelUsage())
    at = frame.created.isoformat()
    log = EvalLog(
        status="success",
        eval=_spec(group, frame, model, samples),
        plan=EvalPlan(steps=[EvalPlanStep(solver="generate")], config=_config(group, frame)),
        stats=EvalStats(started_at=at, completed_at=at, model_usage={model: usage}),
        samples=samples,
    )
    recompute_metrics(log)
    return log


def _model(group: LogGroup) -> str:
    """What the log calls the model: the checkpoint and the beginning of its weight hash."""
    c = group.checkpoint
    name = group.label if c is None or c.run in ("subject", c.label) else f"{c.run}/{c.label}"
    return f"truing/{name}@{group.weights[:12]}"


def _spec(group: LogGroup, frame: LogFrame, model: str, samples: Sequence[EvalSample]) -> EvalSpec:
    c, asked = group.checkpoint, frame.about.get("prompts") or {}
    ids = list(dict.fromkeys(s.id for s in samples))
    own = digest([frame.id, group.weights, group.params, group.transform], 22)
    first = next(iter(group.scores), None)
    return EvalSpec(
        eval_id=own,
        run_id=frame.id,
        task_id=own,
        created=frame.created.isoformat(),
        task=TASK,
        task_version=1,
        task_registry_name=TASK,
        task_args={"prompts": asked.get("name")} | ({"transform": group.transform} if group.transform else {}),
        dataset=EvalDataset(name=f"{asked.get('name')} {asked.get('version')}", samples=len(ids), sample_ids=ids),
        model=model,
        model_generate_config=_config(group, frame),
        config=EvalConfig(epochs=max(s.epoch for s in samples)),
        packages={"truing": __version__, "inspect_ai": version("inspect_ai")},
        tags=[group.transform] if group.transform else None,
        metadata={
            "label": group.label,
            "weights": group.weights,
            "params": group.params,
            "transform": group.transform,
            **({"step": c.step, "run": c.run, "role": c.role.value, "kind": c.kind.value} if c else {}),
            "prompts_sha256": asked.get("sha256"),
            "rule": to_plain(frame.rule),
        },
        scorers=[_scorer(panel, frame) for panel in group.scores],
        headline_metric=HeadlineMetric(scorer=frame.scorers[first], metric="em") if first else None,
    )


def _scorer(panel: str, frame: LogFrame) -> EvalScorer:
    about = {k: v for k, v in frame.panels[panel].items() if k in ("judge", "model", "route", "rubrics", "parser")}
    metrics: Any = [EvalMetricDefinition(name=name) for name in METRICS]
    return EvalScorer(name=frame.scorers[panel], metrics=metrics, metadata={"panel": panel, **about})


def _config(group: LogGroup, frame: LogFrame) -> GenerateConfig:
    s = frame.sampling
    if s is None or s.key != group.params:
        return GenerateConfig()
    return GenerateConfig(max_tokens=s.max_tokens, temperature=s.temperature, top_p=s.top_p)


def _sample(r: StoredAnswer, said: list[Score], group: LogGroup, frame: LogFrame, model: str) -> EvalSample:
    prompt = frame.prompts.get(r.prompt)
    question = (
        chat(prompt.messages) if prompt else [ChatMessageUser(content="(a prompt that audit.json does not hold)")]
    )
    output = _output(r, model)
    messages: list[ChatMessage] = [*question, *(c.message for c in output.choices)]
    cluster = frame.clusters.get(r.prompt)
    sample = digest([*r.key], 22)
    for k, m in enumerate(messages):
        m.id = f"{sample}-{k}"  # not random, so that a repeat writes the same log
    return EvalSample(
        id=prompt.id if prompt else r.prompt,
        epoch=r.sample + 1,
        input=question,
        target="",
        messages=messages,
        output=output,
        scores=_scores(r, said, group, frame) or None,
        metadata={
            **(prompt_metadata(prompt) if prompt else {}),
            "key": r.prompt,
            **({"cluster": cluster} if cluster else {}),
            "outcome": r.outcome.value,
        },
        model_usage={model: output.usage} if output.usage else {},
        uuid=sample,
        error=_error(r),
    )


def _scores(r: StoredAnswer, said: list[Score], group: LogGroup, frame: LogFrame) -> dict[str, InspectScore]:
    scores = {}
    for panel, names in group.scores.items():
        plain = frame.panels[panel]
        about = {"judge": plain["judge"], "panel": panel, "route": plain["route"]}
        own = [j for j in said if j.judge_key == panel]
        chosen = group.random_coherence[panel]
        random = chosen is None or r.key in chosen
        scores[frame.scorers[panel]] = as_score(r, own, frame.rule, names=names, about=about, random_coherence=random)
    return scores


def _output(r: StoredAnswer, model: str) -> ModelOutput:
    """The answer. Tokens read are not stored, so they are given as 0."""
    usage = ModelUsage(output_tokens=r.tokens, total_tokens=r.tokens)
    if r.outcome in NO_ANSWER:
        return ModelOutput(model=model, usage=usage, error=r.error or r.outcome.value)
    message = ChatMessageAssistant(content=r.text, model=model, source="generate")
    choice = ChatCompletionChoice(message=message, stop_reason=_STOPS.get(r.outcome, "stop"))
    return ModelOutput(model=model, choices=[choice], usage=usage, error=r.error or None)


def _error(r: StoredAnswer) -> EvalError | None:
    """Inspect's mark of a sample that failed."""
    if r.outcome not in NO_ANSWER:
        return None
    return EvalError(message=f"{r.outcome.value}: {r.error}".strip(": "), traceback="", traceback_ansi="")
