"""What is measured of every checkpoint without labels: likelihoods of given texts, a few answers, distance moved."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing

from truing.interp import likelihoods
from truing.models.base import Backend
from truing.runs.measurements import PROBE_KIND, Asked, answer_item, control_item, failures
from truing.runs.throughput import Meter
from truing.store import Measurement, Store
from truing.types.progress import Progress
from truing.types.records import AnswerStatus, Checkpoint, LikelihoodRequest, Request, Role, SamplingParams
from truing.types.verdicts import Finding

PROBE = "A walk before breakfast is a pleasant way to begin the day."


def measure(
    backend: Backend,
    store: Store,
    asked: Asked,
    params: SamplingParams,
    runs: tuple[Sequence[Checkpoint], Sequence[Sequence[Checkpoint]]],
    progress: Progress,
) -> dict[str, Finding]:
    """Measure what the store lacks; returns weight hash -> what qualifies that checkpoint.

    Args:
        backend: holds the models.
        store: takes every number.
        asked: prompts, held-out rows, and the prompts that every checkpoint answers.
        params: how answers are sampled.
        runs: the subject, and its controls; step 0 first in each.
        progress: told how the work goes on.
    """
    subject, controls = runs
    every = distinct((*subject, *(c for run in controls for c in run)))
    found = backend.prepare(every)
    for name, run in [("subject", subject), *((f"control-{k}", r) for k, r in enumerate(controls, 1))]:
        store.replace_run(name, _named(run, name))
    if backend.capabilities.loglikelihood:
        _score(backend, store, asked, (subject, every), progress)
    broken = failures(store, every)
    alive = [c for c in every if c.weights not in broken]
    _answer(backend, store, asked, params, alive, progress)
    _norms(backend, store, alive)
    return found


def distinct(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Each weights once, as they first came."""
    return list({c.weights: c for c in reversed(list(checkpoints))}.values())[::-1]


def _score(
    backend: Backend,
    store: Store,
    asked: Asked,
    run: tuple[Sequence[Checkpoint], Sequence[Checkpoint]],
    progress: Progress,
) -> None:
    """The probe sentence, the prompts' reference answers, the task's rows; `run` is the subject and all checkpoints."""
    subject, every = run
    probes = [LikelihoodRequest(c, likelihoods.CONTENT_FREE, PROBE, "sentence") for c in every]
    likelihoods.measure(backend, store, probes, PROBE_KIND)
    own = {c.weights for c in subject}
    requests = [
        r for c in every for r in likelihoods.margin_requests(c, asked.scored, contrast_only=c.weights not in own)
    ]
    likelihoods.measure(backend, store, requests, likelihoods.KIND, _staged(progress, "screen"))
    if asked.rows:
        likelihoods.measure(backend, store, _task_requests(subject, asked), "task", _staged(progress, "task rows"))


def _named(run: Sequence[Checkpoint], name: str) -> Iterator[Checkpoint]:
    role = Role.SUBJECT if name == "subject" else Role.CONTROL
    for c in run:
        yield Checkpoint(c.weights, c.label, c.step, c.uri, c.kind, name, role, c.meta)


def _staged(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: progress.step(stage, done, total)


def _task_requests(subject: Sequence[Checkpoint], asked: Asked) -> list[LikelihoodRequest]:
    out = []
    for c in subject:
        for k, row in enumerate(asked.rows):
            out.append(LikelihoodRequest(c, row.prompt, row.answer, "trained", row.key))
            if asked.control_rows:
                other = asked.control_rows[k]
                out.append(LikelihoodRequest(c, row.prompt, other.answer, "control", control_item(row, other)))
    return out


def _answer(
    backend: Backend,
    store: Store,
    asked: Asked,
    params: SamplingParams,
    checkpoints: Sequence[Checkpoint],
    progress: Progress,
) -> None:
    """A few answers per checkpoint, and their likelihoods: under the base (health), and the base's own (KL)."""
    todo = store.missing([Request(c, p, 0) for c in checkpoints for p in asked.answered], params)
    with closing(Meter(backend, len(todo), progress).of(backend.sample(todo, params))) as answers:
        for answer in answers:
            store.add_answers([answer], params)
    store.flush()
    if not backend.capabilities.loglikelihood:
        return
    by_key = {p.key: p for p in asked.answered}
    alive = {c.weights for c in checkpoints}
    base = backend.base_checkpoint()
    under_base, under_all = [], []
    for r in store.answers(params.key):
        if r.outcome not in (AnswerStatus.OK, AnswerStatus.TRUNCATED) or not r.text.strip():
            continue
        # Of the answers sampled for a judge the first is enough here; more would make a repeat another measurement.
        if r.prompt not in by_key or r.weights not in alive or r.sample or r.transform:
            continue
        ended = r.outcome is AnswerStatus.OK
        messages, item = by_key[r.prompt].messages, answer_item(params.key, r.prompt, r.sample)
        under_base.append(LikelihoodRequest(base, messages, r.text, "answer", f"{r.weights}:{item}", closing=ended))
        if r.weights == base.weights:
            under_all += [LikelihoodRequest(c, messages, r.text, "answer", item, closing=ended) for c in checkpoints]
    likelihoods.measure(backend, store, under_base, "answer_nll", _staged(progress, "answers under the base"))
    likelihoods.measure(backend, store, under_all, "kl_from_base", _staged(progress, "KL from the base"))


def _norms(backend: Backend, store: Store, checkpoints: Sequence[Checkpoint]) -> None:
    there = {c for c, _, _ in store.measured("norm")}
    for c in checkpoints:
        if c.weights not in there:
            store.add_measurements([Measurement(c.weights, "norm", "frobenius", "", backend.weight_norm(c))])
    store.flush()
