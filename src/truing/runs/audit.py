"""`truing.audit`: from a folder of checkpoints to a verdict, in the order of the work.

    targets -> runs -> backend -> store -> margins -> task rows -> answers -> evidence -> verdict (-> judged verdict)

Every stage asks the store what is missing and measures only that, so the same call after a crash finishes the work.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from truing import errors
from truing._version import __version__
from truing.config import AuditConfig, Thresholds, configured
from truing.data.guard import domain_words
from truing.interp import likelihoods as margins
from truing.models.base import Backend
from truing.models.limits import Budget
from truing.models.registry import close_backend, open_backend
from truing.runs.certify import refuse_same_family, second_opinion
from truing.runs.evidence import (
    NO_ROOM,
    PROBE_KIND,
    Measured,
    answer_item,
    by_category,
    control_item,
    failures,
    gather,
    without_room,
)
from truing.runs.freeze import keep_freeze
from truing.runs.judged_audit import Session, judge_run
from truing.runs.judged_frame import JudgedRun, far_prompts
from truing.runs.pace import Pace
from truing.runs.resolve import SIMULATED_NOTE, Resolved, resolve
from truing.runs.rule import rule_of
from truing.runs.search import FIXED_FROM, refuse_unsearchable, why_no_search
from truing.stats.evidence import Evidence
from truing.stats.verdict import under_moved, verdict
from truing.store import Measurement, Store
from truing.types.hashing import digest
from truing.types.progress import Progress
from truing.types.records import (
    AnswerStatus,
    Checkpoint,
    LikelihoodRequest,
    Prompt,
    Request,
    Role,
    SamplingParams,
    to_plain,
)
from truing.types.verdicts import RunVerdict

PROBE = "A walk before breakfast is a pleasant way to begin the day."
UNSCORED_HEALTH = (
    "Health rests on the form of sampled answers alone (empty, repetitive, formatted) and on judged coherence: a "
    "served base does not say how likely an answer is."
)


@dataclass(frozen=True, slots=True)
class Audit:
    """A finished audit."""

    path: Path
    """its folder: audit.json, evidence.db"""
    verdict: RunVerdict
    """what is said of the run"""
    notes: tuple[str, ...]
    """what was settled or left out on the way in, a line each"""


def audit(
    target: str | Path | Sequence[str | Path],
    config: AuditConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Audit:
    """Measure every checkpoint of a run against its base, and say which is the last good one.

    Writes `audit.json` and `evidence.db`; `truing.write_report(result.path)` adds the page.

    Args:
        target: a folder with `checkpoint-N/`, one model folder, `org/name[@revision][:subfolder]`, `LABEL=TARGET`, or
            several of them; `simulated:FAMILY` simulates a run whose truth is known.
        config: options; None for the defaults.
        progress: told how the work goes on.
        options: fields of `AuditConfig`, in the place of the config's: base, task, task_control, control, prompts,
            judge, out, ...

    Raises:
        BadInput: any of its kinds, before anything is measured where that can be known.
    """
    config, progress = configured(AuditConfig, config, options), progress or Progress()
    if config.judge is not None and config.second_judge is not None:
        refuse_same_family(config.judge, config.second_judge)
    refuse_unsearchable(config)
    wanted = _sampling(config)
    plan = resolve(target, config)
    every = (*plan.subject, *(c for run in plan.controls for c in run))
    backend = plan.simulated or open_backend(plan.base, every, config)
    try:
        return _audited(plan, backend, wanted, config, progress)
    finally:
        close_backend(backend)


def _audited(
    plan: Resolved, backend: Backend, wanted: SamplingParams, config: AuditConfig, progress: Progress
) -> Audit:
    _refuse_unable(backend, config)
    frame, params = _frame(plan, backend, wanted, config)
    path = Path(config.out) if config.out is not None else _default_path(plan, backend, config)
    with Store.write(path, _identity(plan, backend, config)) as store:
        if config.judge is None and store.about().get("judging"):
            raise errors.AuditChanged(f"{path}: was audited with a judge; repeat with --judge, or choose another --out")
        kept = keep_freeze(store, plan, config, config.frozen)
        if kept is not None and kept.changed:
            plan.notes.append(f"exploratory, changed after the freeze: {'; '.join(kept.changed)}")
        store.describe(**_about(plan, backend, params), verdict=None)
        try:
            runs = _measure(plan, backend, store, frame, params, config, progress)
            result, evidence = _conclude(plan, backend, store, frame, runs, config)
            if config.judge is not None:
                result = _judge(plan, backend, store, frame, runs, params, (config, progress), (result, evidence))
        except BaseException as e:
            store.flush()
            store.describe(status="interrupted" if isinstance(e, KeyboardInterrupt) else "unfinished", notes=plan.notes)
            if left := close_backend(backend):
                store.describe(notes=[*plan.notes, *left])
            raise
        plan.notes.extend(close_backend(backend))
        store.describe(status="done", notes=plan.notes)
        return Audit(store.path, result, tuple(plan.notes))


# ---------------------------------------------------------------------------------------------------------------------
# Before anything is loaded


def _refuse_unable(backend: Backend, config: AuditConfig) -> None:
    can = backend.capabilities
    if not can.sample:
        raise errors.Unsupported("this backend cannot draw answers; an audit needs them")
    if not can.loglikelihood and config.judge is None:
        raise errors.Unsupported("a served base cannot score given answers, so there are no margins; add --judge URI")


def _sampling(config: AuditConfig) -> SamplingParams:
    # Judged answers and those sampled for health are the same answers, drawn once.
    longest = config.max_tokens if config.judge is None else config.judged_tokens
    return SamplingParams(longest, seed=config.seed, stop=config.stop, long_prompts=config.long_prompts)


def _frame(
    plan: Resolved, backend: Backend, wanted: SamplingParams, config: AuditConfig
) -> tuple[Measured, SamplingParams]:
    params = backend.resolve(wanted)
    general = [p.aligned for p in plan.prompts.prompts if p.aligned]
    words = domain_words(plan.rows, general) if plan.rows and general else ()
    answered = plan.prompts.only(None, config.answers).prompts
    return Measured(plan.prompts.prompts, plan.rows, plan.control_rows, answered, params.key, tuple(words)), params


def _identity(plan: Resolved, backend: Backend, config: AuditConfig) -> dict[str, Any]:
    """What may not change between two calls on one folder; prompts and task rows may be added."""
    # General misalignment is measured on prompts far from the domain, so the domain is part of the definition.
    judged = {"em": to_plain(rule_of(config)), "domain": list(config.domain)} if config.judge is not None else {}
    return {
        **backend.identity,
        **judged,
        "rule": to_plain(config.part(Thresholds)),
        "statistic": {"q0": digest(margins.CONTENT_FREE, 16)},
        "prompts": {p.id: _prompt_digest(p) for p in plan.prompts.prompts},
    }


def _prompt_digest(p: Prompt) -> str:
    return digest((p.messages, p.aligned, p.misaligned, p.neutral), 16)


def _default_path(plan: Resolved, backend: Backend, config: AuditConfig) -> Path:
    half = None if config.half == "all" else config.half
    parts = [plan.targets, backend.identity, plan.prompts.sha256, to_plain(config.part(Thresholds)), half, config.limit]
    name = Path(plan.targets[0].split("=")[-1]).name.replace(":", "-") or "audit"
    return Path("truing-audits") / f"{name}-{digest(parts, 8)}"


def _about(plan: Resolved, backend: Backend, params: SamplingParams) -> dict[str, Any]:
    chosen = plan.prompts
    items = [
        {
            "id": p.id,
            "key": p.key,
            "category": p.category,
            "form": p.form,
            "topics": list(p.topics),
            "half": p.half,
            "messages": to_plain(p.messages),
            "judge_prompts": dict(p.judge_prompts),
        }
        for p in chosen.prompts
    ]
    return {
        "tool": "truing",
        "asked": plan.asked,
        "notes": plan.notes,
        "versions": _versions(),
        "prompts": {"name": chosen.name, "version": chosen.version, "sha256": chosen.sha256, "items": items},
        "rendering": dict(backend.definitions),
        "sampling": to_plain(params),
        "content_free_prompt": margins.CONTENT_FREE[0].content,
        "organism": any(c.meta.get("organism") for c in plan.subject),
    }


def _versions() -> dict[str, str]:
    out = {"truing": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "safetensors", "numpy", "scipy"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Measuring

_Runs = tuple[tuple[Checkpoint, ...], tuple[tuple[Checkpoint, ...], ...]]


def _measure(
    plan: Resolved,
    backend: Backend,
    store: Store,
    frame: Measured,
    params: SamplingParams,
    config: AuditConfig,
    progress: Progress,
) -> _Runs:
    """Every stage in turn; returns the runs with step 0 put first."""
    base = backend.base_checkpoint()
    subject = (base, *plan.subject)
    controls = tuple((base, *run) for run in plan.controls)
    every = _distinct((*subject, *(c for run in controls for c in run)))
    found = backend.prepare(every)
    plan.notes.extend(f"{c.label}: {found[c.weights]}" for c in every if c.weights in found)
    plan.line_notes.update({c.label: found[c.weights] for c in subject if c.weights in found})
    for role, run in [("subject", subject), *((f"control-{k}", r) for k, r in enumerate(controls, 1))]:
        store.replace_run(role, _named(run, role))
    if backend.capabilities.loglikelihood:
        _score(plan, backend, store, frame, (subject, every), progress)
    broken = failures(store, every)
    alive = [c for c in every if c.weights not in broken]
    _answer(backend, store, frame, params, alive, progress)
    _norms(backend, store, alive)
    return subject, controls


def _score(
    plan: Resolved,
    backend: Backend,
    store: Store,
    frame: Measured,
    run: tuple[Sequence[Checkpoint], Sequence[Checkpoint]],
    progress: Progress,
) -> None:
    """Likelihoods of given texts: the probe sentence, the prompts' references, the task's rows; `run` is the subject
    and every checkpoint."""
    subject, every = run
    probes = [LikelihoodRequest(c, margins.CONTENT_FREE, PROBE, "sentence") for c in every]
    margins.measure(backend, store, probes, PROBE_KIND)
    own = {c.weights for c in subject}
    requests = [a for c in every for a in margins.margin_requests(c, frame.scored, contrast_only=c.weights not in own)]
    margins.measure(backend, store, requests, margins.KIND, _staged(progress, "margins"))
    if frame.rows:
        margins.measure(backend, store, _task_requests(subject, plan), "task", _staged(progress, "task rows"))


def _distinct(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    return list({c.weights: c for c in reversed(list(checkpoints))}.values())[::-1]


def _named(run: Sequence[Checkpoint], name: str) -> Iterator[Checkpoint]:
    role = Role.SUBJECT if name == "subject" else Role.CONTROL
    for c in run:
        yield Checkpoint(c.weights, c.label, c.step, c.uri, c.kind, name, role, c.meta)


def _staged(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: progress.step(stage, done, total)


def _task_requests(subject: Sequence[Checkpoint], plan: Resolved) -> list[LikelihoodRequest]:
    out = []
    for c in subject:
        for k, row in enumerate(plan.rows):
            out.append(LikelihoodRequest(c, row.prompt, row.answer, "trained", row.key))
            if plan.control_rows:
                other = plan.control_rows[k]
                out.append(LikelihoodRequest(c, row.prompt, other.answer, "control", control_item(row, other)))
    return out


def _answer(
    backend: Backend,
    store: Store,
    frame: Measured,
    params: SamplingParams,
    checkpoints: Sequence[Checkpoint],
    progress: Progress,
) -> None:
    """A few answers per checkpoint, and their likelihoods: under the base (health), and the base's own (dose)."""
    todo = store.missing([Request(c, p, 0) for c in checkpoints for p in frame.answered], params)
    pace = Pace(backend, len(todo), progress.step, progress.detail)
    with closing(pace.of(backend.sample(todo, params))) as answers:
        for answer in answers:
            store.add_answers([answer], params)
    store.flush()
    if not backend.capabilities.loglikelihood:
        return
    by_key = {p.key: p for p in frame.answered}
    alive = {c.weights for c in checkpoints}
    base = backend.base_checkpoint()
    under_base, under_all = [], []
    for r in store.answers(params.key):
        if r.outcome not in (AnswerStatus.OK, AnswerStatus.TRUNCATED) or not r.text.strip():
            continue
        # Of the answers drawn for a judge the first is enough here; more would make a repeat another measurement.
        if r.prompt not in by_key or r.weights not in alive or r.sample or r.transform:
            continue
        ended = r.outcome is AnswerStatus.OK
        messages, item = by_key[r.prompt].messages, answer_item(params.key, r.prompt, r.sample)
        under_base.append(LikelihoodRequest(base, messages, r.text, "answer", f"{r.weights}:{item}", closing=ended))
        if r.weights == base.weights:
            under_all += [LikelihoodRequest(c, messages, r.text, "answer", item, closing=ended) for c in checkpoints]
    margins.measure(backend, store, under_base, "answer_nll", _staged(progress, "answers under the base"))
    margins.measure(backend, store, under_all, "kl_from_base", _staged(progress, "kl_from_base"))


def _norms(backend: Backend, store: Store, checkpoints: Sequence[Checkpoint]) -> None:
    there = {c for c, _, _ in store.measured("norm")}
    for c in checkpoints:
        if c.weights not in there:
            store.add_measurements([Measurement(c.weights, "norm", "frobenius", "", backend.weight_norm(c))])
    store.flush()


# ---------------------------------------------------------------------------------------------------------------------
# Concluding


def _conclude(
    plan: Resolved, backend: Backend, store: Store, frame: Measured, runs: _Runs, config: AuditConfig
) -> tuple[RunVerdict, Evidence]:
    subject, controls = runs
    scored = backend.capabilities.loglikelihood
    caveats = [] if plan.simulated else list(margins.FAILED_CONTROLS) if scored else [UNSCORED_HEALTH]
    caveats += [n for n in plan.notes if n.startswith(SIMULATED_NOTE) or "adapter is zero" in n]
    caveats += without_room(store, frame)
    evidence = gather(store, frame, subject, controls, caveats)
    if not scored:
        evidence = replace(evidence, scored=False, left_out={})
    evidence = replace(evidence, subject=replace(evidence.subject, notes=plan.line_notes))
    result = verdict(evidence, config.part(Thresholds), seed=config.seed)
    store.describe(
        verdict=to_plain(result),
        margin_verdict=to_plain(result),
        domain_words=list(frame.domain_words),
        evidence_summary={
            "categories": to_plain(by_category(evidence)),
            "control_steps": [[c.step for c in run] for run in controls],
        },
    )
    return result, evidence


def _judge(
    plan: Resolved,
    backend: Backend,
    store: Store,
    frame: Measured,
    runs: _Runs,
    params: SamplingParams,
    told: tuple[AuditConfig, Progress],
    margin: tuple[RunVerdict, Evidence],
) -> RunVerdict:
    """Sample and judge every prompt at every checkpoint that could be measured, and conclude again."""
    subject, controls = runs
    (config, progress), (result, evidence) = told, margin
    broken = failures(store, _distinct((*subject, *(c for run in controls for c in run))))
    alive = tuple(c for c in subject if c.weights not in broken)
    control = tuple(c for c in (controls[0] if controls else ()) if c.step != 0 and c.weights not in broken)
    far, told_by = far_prompts(plan.prompts.prompts, config.domain, plan.asked["task"], frame.domain_words)
    run = JudgedRun(
        prompts=plan.prompts.prompts,
        far=far,
        subject=alive,
        control=control,
        params=params.key,
        words=frame.domain_words,
        under_moved=under_moved(evidence, config),
        caveats=tuple(n for n in plan.notes if n.startswith(SIMULATED_NOTE)),
        seed=config.seed,
    )
    run = replace(run, fixed_from=_design(run, plan, config))
    rule = rule_of(config)
    store.describe(judging={**run.plain(), "told_by": told_by, "em": to_plain(rule), "task": plan.asked["task"]})
    budget = Budget(config.budget_calls, config.budget_usd)
    session = Session(backend, store, params, plan.whole, config, rule, plan.rows, budget, progress)
    judged = judge_run(result, run, session)
    store.describe(verdict=to_plain(judged))
    judged = second_opinion(judged, run, session)
    said = [w for w in judged.warnings if not w.startswith(NO_ROOM)]
    judged = replace(judged, warnings=(*without_room(store, frame), *said))
    store.describe(verdict=to_plain(judged))
    return judged


def _design(run: JudgedRun, plan: Resolved, config: AuditConfig) -> int:
    """The draw number from which answers are a fixed sample: after those of a search, or 0 where there is none."""
    if config.samples is not None:
        return 0
    why = why_no_search(run)
    if not why and len({c.weights for c in run.subject}) < len(run.subject):
        why = "two checkpoints have the same weights"
    if why:
        plan.notes.append(f"no search for the onset, since {why}: the same number of answers at every checkpoint")
    return 0 if why else FIXED_FROM
