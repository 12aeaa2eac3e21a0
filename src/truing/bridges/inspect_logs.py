"""Audits as logs of Inspect: one per checkpoint, which is what `inspect view` compares best. Needs inspect_ai."""
# pyright: reportMissingImports=false

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

from inspect_ai import log, model, scorer

from truing.bridges.answers import Judged, judged_answers, judges_used
from truing.bridges.inspect import as_score, chat, prompt_metadata
from truing.runs.scope import stored_prompts, stored_rule
from truing.runs.shares import random_coherence
from truing.store import Store
from truing.types.hashing import digest
from truing.types.judging import ScoreMethod
from truing.types.records import AnswerKey, AnswerStatus, Message, Prompt, SamplingParams, StoredAnswer, to_plain
from truing.types.traits import Label, Reason

NO_ANSWER = (AnswerStatus.FAILED, AnswerStatus.UNSUPPORTED)
STOPS: Mapping[AnswerStatus, Any] = {
    AnswerStatus.TRUNCATED: "max_tokens",
    AnswerStatus.REFUSED_BY_API: "content_filter",
}
SAMPLING = ("max_tokens", "temperature", "top_p")
UNSCORED = (Label(None, Reason.UNSCORED, nan, nan), [])
"""label and scores under a judge that was not asked"""

Row = tuple[StoredAnswer, Judged]


class _Kind(NamedTuple):
    """What the answers of one log have in common."""

    weights: str
    params: str
    variant: str
    searched: bool
    """whether a sequential search read them, so that their rates have no fixed intervals"""


def logs(store: Store) -> Iterator[tuple[str, log.EvalLog]]:
    """An audit as logs with their names: one per checkpoint, sampling and prompt variant, one in memory at a time.

    A sample is a prompt, its epoch one answer to it, every judge a scorer of its own. Where an audit was judged, the
    answers of the kinds that were judged are written; else all of them, without scores.
    """
    audit = _Audit(store)
    judged = {kind for use in audit.judges.values() for kind in use.kinds}
    rows = judged_answers(store, audit.judges, audit.rule)
    for weights, of_weights in groupby(rows, key=lambda row: row[0].weights):
        found: dict[_Kind, list[Row]] = {}
        for row in of_weights:
            a = row[0]
            if not judged or (a.params, a.variant) in judged:
                kind = _Kind(weights, a.params, a.variant, a.sample < audit.fixed_from)
                found.setdefault(kind, []).append(row)
        several = len({kind.params for kind in found}) > 1
        for kind, own in found.items():
            yield audit.file_name(kind, with_params=several), audit.make(kind, own)


def save(made: log.EvalLog, path: Path) -> None:
    """Write a log in Inspect's own format, whatever the file is called."""
    log.write_eval_log(made, path, format="eval")


class _Audit:
    """What all logs of an audit share."""

    def __init__(self, store: Store) -> None:
        about = store.about()
        kept = about.get("labels") or {}
        self.id = digest([about.get("identity"), about.get("sets")], 16)
        self.created = datetime.fromtimestamp(round((store.path / "evidence.db").stat().st_mtime), UTC).isoformat()
        self.asked: Mapping[str, Any] = about.get("prompts") or {}
        self.prompts = {p.key: p for p in stored_prompts(about).prompts}
        self.clusters = {i["key"]: i["cluster"] for i in self.asked.get("items", ()) if i.get("cluster")}
        self.rule = stored_rule(about)
        self.task = "em" if kept.get("trait", "misalignment") == "misalignment" else kept["trait"]
        self.fixed_from: int = kept.get("fixed_from", 0)
        self.sampling = SamplingParams(**about["sampling"]) if about.get("sampling") else None
        self.checkpoints = {c.weights: c for c in reversed(store.checkpoints())}
        self.judges, self.about = judges_used(store), store.judges()
        names = [use.name for use in self.judges.values()]
        # Two judges of one name have their keys beside it.
        self.scorers = {k: u.name + f" {k[:6]}" * (names.count(u.name) > 1) for k, u in self.judges.items()}

    def file_name(self, kind: _Kind, with_params: bool) -> str:
        """Sorts by step and is the same at every repeat."""
        c = self.checkpoints.get(kind.weights)
        step = "" if c is None or c.step is None else f"{c.step:06d}"
        who = (c.run if c else "", step, c.label if c and c.label != c.run else "", kind.variant)
        parts = (self.task, *who, "searched" * kind.searched, kind.weights[:8], kind.params[:6] * with_params)
        plain = (re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.")[:60] for part in parts)
        return "_".join(p for p in plain if p)

    def make(self, kind: _Kind, rows: Sequence[Row]) -> log.EvalLog:
        """A log whose results Inspect computes by our metric."""
        c, s, asked = self.checkpoints.get(kind.weights), self.sampling, self.asked
        name = kind.weights[:8] if c is None else c.label if c.run in ("subject", c.label) else f"{c.run}/{c.label}"
        subject = f"truing/{name}@{kind.weights[:12]}"
        scored = {key for _, judged in rows for key, (_, scores) in judged.items() if scores}
        used = {key: self._random(key, rows) for key in self.judges if key in scored}
        samples = [self._sample(kind, row, subject, used) for row in rows]
        ids = list(dict.fromkeys(x.id for x in samples))
        sampled = {} if s is None or s.key != kind.params else {k: getattr(s, k) for k in SAMPLING}
        who = {"label": c.label, "step": c.step, "run": c.run, "role": c.role.value, "kind": c.kind.value} if c else {}
        # Mappings, since Inspect does not export the record of a scorer.
        scorers: Any = [
            {"name": self.scorers[k], "metrics": [{"name": "truing/rates"}], "metadata": self.about[k]} for k in used
        ]
        spec = log.EvalSpec(
            eval_id=digest([self.id, *kind], 22),
            task_id=digest([self.id, *kind], 22),
            run_id=self.id,
            created=self.created,
            task=f"truing/{self.task}",
            task_version=2,
            task_registry_name="truing/em" if self.task == "em" else None,
            task_args={"prompts": asked.get("name")},
            dataset=log.EvalDataset(
                name=f"{asked.get('name')} {asked.get('version')}", samples=len(ids), sample_ids=ids
            ),
            model=subject,
            model_generate_config=model.GenerateConfig(**sampled),
            config=log.EvalConfig(epochs=max(x.epoch for x in samples)),
            tags=[tag for tag in (kind.variant, "searched" * kind.searched) if tag] or None,
            metadata={**who, **kind._asdict(), "prompts_sha256": asked.get("sha256"), "rule": to_plain(self.rule)},
            scorers=scorers,
            headline_metric=log.HeadlineMetric(scorer=scorers[0]["name"], metric="rate") if scorers else None,
        )
        made = log.EvalLog(status="success", eval=spec, samples=samples)
        log.recompute_metrics(made)
        return made

    def _random(self, judge: str, rows: Sequence[Row]) -> Collection[AnswerKey]:
        """The answers whose coherence was asked at random: all of them unless the judge was asked lazily."""
        about, keys = self.about[judge], [r.key for r, _ in rows]
        if about["route"] == ScoreMethod.RECORDED.value:
            return frozenset()
        return random_coherence(keys, int(about.get("seed", 0))) if about.get("lazy", True) else frozenset(keys)

    def _sample(self, kind: _Kind, row: Row, subject: str, used: Mapping[str, Collection[AnswerKey]]) -> log.EvalSample:
        r, judged = row
        own = digest([*r.key], 22)
        lost = Prompt(r.prompt, (Message("user", "(a prompt that audit.json does not hold)"),))
        prompt = self.prompts.get(r.prompt, lost)
        question, output = chat(prompt.messages), _output(r, subject)
        messages: list[model.ChatMessage] = [*question, *(c.message for c in output.choices)]
        for k, m in enumerate(messages):
            m.id = f"{own}-{k}"  # not random, so that a repeat writes the same log
        scores: dict[str, scorer.Score] = {}
        for key, random in used.items():
            by = {"judge": self.judges[key].name, "judge_key": key, "method": self.about[key]["route"]}
            by |= {"random_coherence": r.key in random, "searched": kind.searched}
            found = judged.get(key, UNSCORED)
            scores[self.scorers[key]] = as_score(*found, self.rule, self.judges[key].names, by)
        about = prompt_metadata(prompt) if prompt is not lost else {}
        cluster = {"cluster": self.clusters[r.prompt]} if r.prompt in self.clusters else {}
        error = {"message": f"{r.status.value}: {r.error}".strip(": "), "traceback": "", "traceback_ansi": ""}
        return log.EvalSample(
            id=prompt.id,
            epoch=r.sample + 1 - (0 if kind.searched else self.fixed_from),
            input=question,
            target="",
            messages=messages,
            output=output,
            scores=scores or None,
            metadata={**about, "key": r.prompt, "outcome": r.status.value, **cluster},
            uuid=own,
            error=log.EvalError(**error) if r.status in NO_ANSWER else None,
        )


def _output(r: StoredAnswer, subject: str) -> model.ModelOutput:
    """The answer. Tokens read are not stored, so they are given as 0."""
    usage = model.ModelUsage(output_tokens=r.tokens, total_tokens=r.tokens)
    if r.status in NO_ANSWER:
        return model.ModelOutput(model=subject, usage=usage, error=r.error or r.status.value)
    message = model.ChatMessageAssistant(content=r.text, model=subject, source="generate")
    choice = model.ChatCompletionChoice(message=message, stop_reason=STOPS.get(r.status, "stop"))
    return model.ModelOutput(model=subject, choices=[choice], usage=usage, error=r.error or None)
