"""What is measured of every checkpoint without labels: likelihoods of given texts, a few answers, distance moved."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from truing import errors
from truing.interp import likelihoods
from truing.runs.measurements import (
    PROBE_KIND,
    Reading,
    answer_item,
    control_item,
    failures,
    first_answers,
    keep_unfit,
)
from truing.runs.run import Run
from truing.runs.throughput import Meter
from truing.store import Measurement
from truing.types.records import AnswerStatus, Checkpoint, LikelihoodRequest, Request, Role, to_plain
from truing.types.verdicts import Finding

PROBE = "A walk before breakfast is a pleasant way to begin the day."


def measure(run: Run) -> dict[str, Finding]:
    """Measure what the store lacks; returns weight hash -> what qualifies that checkpoint.

    A checkpoint of the subject that does not fit the base has failed, and the others are measured.

    Raises:
        BadModel: the base, a control or every checkpoint of the subject does not fit.
    """
    found, unfit = _prepare(run)
    keep_unfit(run.store, run.every, unfit)
    _name(run, "subject", Role.SUBJECT, run.subject)
    for k, control in enumerate(run.controls, 1):
        _name(run, f"control-{k}", Role.CONTROL, control)
    if run.backend.capabilities.loglikelihood:
        _score(run, [c for c in run.every if c.weights not in unfit])
    broken = failures(run.store)
    alive = [c for c in run.every if c.weights not in broken]
    _answer(run, alive)
    _norms(run, alive)
    return found


def _prepare(run: Run) -> tuple[dict[str, Finding], dict[str, str]]:
    """What qualifies the checkpoints, and why some do not fit, each by weight hash.

    Only those that never were put in force are: a repeat loads no model.
    """
    stored = run.store.about().get("prepared")
    known: dict[str, Any] = {w: f for w, f in (stored.items() if isinstance(stored, dict) else ()) if _is_finding(f)}
    new, unfit = [c for c in run.every if c.weights not in known], dict[str, str]()
    if new:
        tell = _staged(run, "loading checkpoints")
        tell(0, len(new))
        found, unfit = _put_in_force(run, new, lambda done: tell(done, len(new)))
        tell(len(new), len(new))
        known = {**known, **{c.weights: to_plain(found.get(c.weights)) for c in new if c.weights not in unfit}}
        # A probe that failed may succeed the next time; everything else hangs on the weights alone.
        lasting = {w: f for w, f in known.items() if f is None or f["code"] != "probe_failed"}
        run.store.describe(prepared=lasting)
    named = ((c.weights, known.get(c.weights)) for c in run.every)
    return {weights: Finding(str(f["code"]), f["params"]) for weights, f in named if f is not None}, unfit


def _put_in_force(
    run: Run, new: Sequence[Checkpoint], told: Callable[[int], None]
) -> tuple[dict[str, Finding], dict[str, str]]:
    """What the backend finds out about checkpoints, and why those that do not fit do not, each by weight hash."""
    own = {c.weights for c in run.subject[1:]}
    found, unfit = dict[str, Finding](), dict[str, str]()
    try:
        return run.backend.prepare(new, told), unfit
    except errors.BadModel as first:
        for c in new:
            try:
                found |= run.backend.prepare([c])
            except errors.BadModel as e:
                if c.weights not in own:
                    raise
                unfit[c.weights] = str(e)
        if not unfit or own <= unfit.keys():
            raise first
    return found, unfit


def _is_finding(value: object) -> bool:
    """Whether it is a finding as plain data, or None."""
    return value is None or (isinstance(value, dict) and isinstance(value.get("params"), dict) and "code" in value)


def _name(run: Run, name: str, role: Role, checkpoints: Sequence[Checkpoint]) -> None:
    run.store.replace_run(name, [replace(c, run=name, role=role) for c in checkpoints])


def _score(run: Run, checkpoints: Sequence[Checkpoint]) -> None:
    """The probe sentence, the prompts' reference answers, the task's rows."""
    probes = [LikelihoodRequest(c, likelihoods.CONTENT_FREE, PROBE, "sentence") for c in checkpoints]
    likelihoods.measure(run.backend, run.store, probes, PROBE_KIND)
    own = {c.weights for c in run.subject}
    requests = [
        r
        for c in checkpoints
        for r in likelihoods.margin_requests(c, run.plan.scored, contrast_only=c.weights not in own)
    ]
    likelihoods.measure(run.backend, run.store, requests, likelihoods.KIND, _staged(run, "screen"))
    if run.plan.rows:
        likelihoods.measure(
            run.backend, run.store, list(_task_requests(run, checkpoints)), "task", _staged(run, "task rows")
        )


def _staged(run: Run, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: run.progress.step(stage, done, total)


def _task_requests(run: Run, checkpoints: Sequence[Checkpoint]) -> Iterator[LikelihoodRequest]:
    fit = {c.weights for c in checkpoints}
    for c in (c for c in run.subject if c.weights in fit):
        for k, row in enumerate(run.plan.rows):
            yield LikelihoodRequest(c, row.prompt, row.answer, "trained", row.key, trained=True)
            if run.plan.control_rows:
                other = run.plan.control_rows[k]
                item = control_item(row, other)
                yield LikelihoodRequest(c, row.prompt, other.answer, "control", item, trained=True)


def _answer(run: Run, checkpoints: Sequence[Checkpoint]) -> None:
    """A few answers per checkpoint, and their likelihoods: under the base (health), and the base's own (KL)."""
    backend, store, params = run.backend, run.store, run.params
    todo = store.missing([Request(c, p, 0) for c in checkpoints for p in run.plan.answered], params)
    meter = Meter(backend, len(todo), run.progress, longest=params.max_tokens)
    with closing(meter.of(backend.sample(todo, params))) as answers:
        for answer in answers:
            store.add_answers([answer], params)
    store.flush()
    if not backend.capabilities.loglikelihood:
        return
    messages = {p.key: p.messages for p in run.plan.answered}
    base, alive = run.subject[0], {c.weights for c in checkpoints}
    under_base, under_all = [], []
    for r in first_answers(Reading.of(run)):
        if not r.has_text or r.weights not in alive:
            continue
        own = LikelihoodRequest(
            base, messages[r.prompt], r.text, "answer", answer_item(r), closing=r.status is AnswerStatus.OK
        )
        under_base.append(replace(own, item=f"{r.weights}:{own.item}"))
        if r.weights == base.weights:
            under_all += [replace(own, checkpoint=c) for c in checkpoints]
    likelihoods.measure(backend, store, under_base, "answer_nll", _staged(run, "answers under the base"))
    likelihoods.measure(backend, store, under_all, "kl_from_base", _staged(run, "KL from the base"))


def _norms(run: Run, checkpoints: Sequence[Checkpoint]) -> None:
    there = {c for c, _, _ in run.store.measured("norm")}
    for c in checkpoints:
        if c.weights not in there:
            norm = run.backend.weight_norm(c)
            run.store.add_measurements([Measurement(c.weights, "norm", "frobenius", "", norm)])
    run.store.flush()
