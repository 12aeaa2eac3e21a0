"""`truing.audit`: from a folder of checkpoints to a verdict, in the order of the work.

    targets -> runs -> backend -> store -> margins -> task rows -> answers -> evidence -> verdict

Every stage asks the store what is missing and measures only that, so the same call after a crash finishes the work.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from truing._version import __version__
from truing.backends.checkpoints import find_run
from truing.backends.opening import open_backend
from truing.backends.planted import PLANTED, open_planted
from truing.backends.seam import Backend
from truing.base import errors
from truing.base.hashing import digest
from truing.base.options import AuditOptions
from truing.base.records import (
    Ask,
    Checkpoint,
    Conversation,
    LikelihoodAsk,
    Prompt,
    PromptSet,
    ResponseOutcome,
    Role,
    SamplingParams,
    to_plain,
)
from truing.base.store import Measurement, Store
from truing.base.verdicts import RunVerdict
from truing.data.conversations import load_conversations, same_user_turns
from truing.data.guard import domain_words
from truing.data.prompts import load_prompts
from truing.probe import margins
from truing.stats.verdict import verdict
from truing.study.evidence import PROBE_KIND, Measured, answer_item, by_category, control_item, failures, gather

PROBE = "A walk before breakfast is a pleasant way to begin the day."
SIMULATED = "Simulated run"
"""how the note of an audit without a model begins"""


@dataclass(frozen=True, slots=True)
class Audit:
    """A finished audit."""

    path: Path
    """its folder: audit.json, evidence.db"""
    verdict: RunVerdict
    """what is said of the run"""
    notes: tuple[str, ...]
    """what was settled or left out on the way in, a line each"""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything resolved before a model is loaded."""

    targets: tuple[str, ...]
    base: str
    subject: tuple[Checkpoint, ...]
    controls: tuple[tuple[Checkpoint, ...], ...]
    prompts: PromptSet
    rows: tuple[Conversation, ...]
    control_rows: tuple[Conversation, ...]
    asked: dict[str, Any]
    planted: Backend | None = None
    notes: list[str] = field(default_factory=list)
    line_notes: dict[str, str] = field(default_factory=dict)


def audit(
    target: str | Path | Sequence[str | Path],
    *,
    base: str | None = None,
    task: str | Path | None = None,
    task_control: str | Path | None = None,
    control: str | Path | Sequence[str | Path] = (),
    prompts: str | Path = "v1",
    out: str | Path | None = None,
    options: AuditOptions | None = None,
) -> Audit:
    """Measure every checkpoint of a run against its base, and say which is the last good one.

    Writes `audit.json` and `evidence.db`; `truing.report(result.path)` adds the page that the command line writes too.

    Args:
        target: a folder with `checkpoint-N/`, one model folder, `org/name[@revision][:subfolder]`, `LABEL=TARGET`, or
            several of them; `planted:FAMILY` simulates a run whose truth is known.
        base: the base model; needed only for full models (adapters name theirs).
        task: held-out rows of the training task (JSONL); gives the progress curve and the candidate.
        task_control: the same user turns with control answers; gives the trait curve, on which before or after rests.
        control: a run at the same settings on harmless data, compared at the same steps; several are allowed.
        prompts: "v1", a JSONL of your own, or a question file in the format of Betley et al.
        out: audit folder; the default is derived from base, prompts and settings, so that a repeat finishes the work.
        options: rare settings.

    Raises:
        BadInput: any of its kinds, before anything is measured where that can be known.
    """
    options = options or AuditOptions()
    plan = _plan(target, base, task, task_control, control, prompts, options)
    every = (*plan.subject, *(c for run in plan.controls for c in run))
    backend = plan.planted or open_backend(plan.base, every, options.model)
    _refuse_unable(backend)
    frame, params = _frame(plan, backend, options)
    path = Path(out) if out is not None else _default_path(plan, backend, options)
    with Store.write(path, _identity(plan, backend, options)) as store:
        store.describe(**_about(plan, backend, params), verdict=None)
        try:
            runs = _measure(plan, backend, store, frame, params, options)
        except KeyboardInterrupt:
            store.flush()
            store.describe(status="interrupted")
            raise
        return _conclude(plan, store, frame, runs, options)


# ---------------------------------------------------------------------------------------------------------------------
# Before anything is loaded


def _plan(
    target: str | Path | Sequence[str | Path],
    base: str | None,
    task: str | Path | None,
    task_control: str | Path | None,
    control: str | Path | Sequence[str | Path],
    prompts: str | Path,
    options: AuditOptions,
) -> _Plan:
    targets, controls = _several(target), _several(control)
    if not targets:
        raise errors.NoCheckpoints("no target given; name a folder of checkpoints")
    if task_control is not None and task is None:
        raise errors.BadInput("--task-control needs --task: it holds other answers to the same user turns")
    if options.half not in (None, "eval", "fit"):
        raise errors.BadInput(f"--half {options.half}: use eval, fit or all")
    if options.seed < 0:
        raise errors.BadInput(f"--seed {options.seed}: a seed is 0 or more")
    chosen = load_prompts(prompts)
    half = options.half if any(p.half == options.half and p.has_references for p in chosen.prompts) else None
    chosen = chosen.only(half, options.limit)
    rows, control_rows, asked_task = _task(task, task_control, options)
    doubled = asked_task.get("task_rows_repeated", 0)
    planted = None
    if targets[0].startswith(PLANTED):
        planted = open_planted(targets[0], chosen, rows, control_rows)
        subject, control_runs = planted.run(Role.SUBJECT), (planted.run(Role.CONTROL),) if controls else ()
        found_base, notes = targets[0], [f"{SIMULATED}: no model is involved."]
    else:
        subject, found_base, notes = _subject(targets, base, options)
        control_runs = tuple(_control(c, subject, options, notes) for c in controls)
    if doubled:
        notes.append(f"{doubled} held-out rows are repeats of others and are left out")
    if half is None and options.half is not None:
        notes.append(f"no prompt of the {options.half} half has reference answers: all prompts are used")
    asked = {
        "targets": list(targets),
        "base": found_base,
        "control": list(controls),
        "prompts": f"{chosen.name} {chosen.version}" + (f", {half} half" if half else ""),
        **asked_task,
        "options": to_plain(options) | {"progress": None},
    }
    return _Plan(targets, found_base, subject, control_runs, chosen, rows, control_rows, asked, planted, notes)


def _several(value: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    return (str(value),) if isinstance(value, (str, Path)) else tuple(str(v) for v in value)


def _subject(
    targets: tuple[str, ...], base: str | None, options: AuditOptions
) -> tuple[tuple[Checkpoint, ...], str, list[str]]:
    found = [find_run(t, allow_pickle=options.model.allow_pickle) for t in targets]
    notes = [note for run in found for note in run.notes]
    checkpoints: dict[str, Checkpoint] = {}
    for run in found:
        for c in run.checkpoints:
            # Single models given side by side are told apart by what the user called them.
            label = run.label if run.label and len(run.checkpoints) == 1 else c.label
            if label in checkpoints:
                text = f"two targets hold a checkpoint called {label}; audit them apart or name one LABEL=TARGET"
                raise errors.AmbiguousTarget(text)
            checkpoints[label] = Checkpoint(c.weights, label, c.step, c.uri, c.kind, "subject", Role.SUBJECT, c.meta)
    steps = [c.step for c in checkpoints.values() if c.step is not None]
    if len(steps) != len(set(steps)):
        raise errors.AmbiguousTarget("two targets hold checkpoints of the same step; audit the runs one at a time")
    hints = sorted({run.base_hint for run in found if run.base_hint})
    if base is None:
        if len(hints) > 1:
            raise errors.WrongBase(f"the adapters name different bases ({', '.join(hints)}); choose with --base MODEL")
        if not hints:
            raise errors.WrongBase(f"{targets[0]}: full models do not name their base; give it with --base MODEL")
        base = hints[0]
        notes.append(f"base {base}, named by the adapters")
    elif hints and base not in hints:
        notes.append(f"the adapters name {hints[0]} as their base; measured on {base} as asked")
    ordered = sorted(checkpoints.values(), key=lambda c: (c.step is None, c.step or 0))
    return tuple(ordered), base, notes


def _control(
    target: str, subject: tuple[Checkpoint, ...], options: AuditOptions, notes: list[str]
) -> tuple[Checkpoint, ...]:
    run = find_run(target, role=Role.CONTROL, allow_pickle=options.model.allow_pickle)
    notes += [f"control: {note}" for note in run.notes]
    own = {c.meta["base"] for c in subject if c.meta.get("base")}
    if run.base_hint and own and run.base_hint not in own:
        notes.append(f"control: its adapters name another base, {run.base_hint}")
    steps = {c.step for c in subject if c.step is not None}
    kept = tuple(c for c in run.checkpoints if c.step in steps)
    if not kept:
        there = ", ".join(str(c.step) for c in run.checkpoints)
        raise errors.NoCheckpoints(f"{target}: the control has no checkpoint at a step of the subject (it has {there})")
    if {c.weights for c in kept} & {c.weights for c in subject}:
        raise errors.AmbiguousTarget(f"{target}: the control holds the same weights as the subject; give another run")
    return kept


def _task(
    task: str | Path | None, task_control: str | Path | None, options: AuditOptions
) -> tuple[tuple[Conversation, ...], tuple[Conversation, ...], dict[str, Any]]:
    if task is None:
        return (), (), {"task": None}
    own = load_conversations(task, options.task_format)
    asked = {"task": str(task), "task_format": own.format, "task_sha256": own.sha256, "task_rows": 0}
    rows, others = own.conversations, ()
    if task_control is not None:
        other = load_conversations(task_control, options.task_format)
        same_user_turns(own, other)
        others = other.conversations
        asked |= {"task_control": str(task_control), "task_control_sha256": other.sha256}
    first = list({row.key: k for k, row in reversed(list(enumerate(rows)))}.values())[::-1]
    repeated = len(rows) - len(first)
    kept = first[: options.rows]
    rows, others = tuple(rows[k] for k in kept), tuple(others[k] for k in kept) if others else ()
    return rows, others, asked | {"task_rows": len(rows), "task_rows_repeated": repeated}


def _refuse_unable(backend: Backend) -> None:
    can = backend.capabilities
    if not can.loglikelihood or not can.sample:
        raise errors.Unsupported("this backend cannot score given answers; margins need log-likelihoods")


def _frame(plan: _Plan, backend: Backend, options: AuditOptions) -> tuple[Measured, SamplingParams]:
    params = backend.resolve(SamplingParams(max_tokens=options.max_tokens, seed=options.seed))
    general = [p.aligned for p in plan.prompts.prompts if p.aligned]
    words = domain_words(plan.rows, general) if plan.rows and general else ()
    answered = plan.prompts.only(None, options.answers).prompts
    return Measured(plan.prompts.prompts, plan.rows, plan.control_rows, answered, params.key, tuple(words)), params


def _identity(plan: _Plan, backend: Backend, options: AuditOptions) -> dict[str, Any]:
    """What may not change between two calls on one folder; prompts and task rows may be added."""
    return {
        **backend.identity,
        "rule": to_plain(options.rule),
        "statistic": {"q0": digest(margins.CONTENT_FREE, 16)},
        "prompts": {p.id: _prompt_digest(p) for p in plan.prompts.prompts},
    }


def _prompt_digest(p: Prompt) -> str:
    return digest((p.messages, p.aligned, p.misaligned, p.odd), 16)


def _default_path(plan: _Plan, backend: Backend, options: AuditOptions) -> Path:
    parts = [plan.targets, backend.identity, plan.prompts.sha256, to_plain(options.rule), options.half, options.limit]
    name = Path(plan.targets[0].split("=")[-1]).name.replace(":", "-") or "audit"
    return Path("truing-audits") / f"{name}-{digest(parts, 8)}"


def _about(plan: _Plan, backend: Backend, params: SamplingParams) -> dict[str, Any]:
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
    plan: _Plan, backend: Backend, store: Store, frame: Measured, params: SamplingParams, options: AuditOptions
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
    tell = options.progress or (lambda stage, done, total: None)
    probes = [LikelihoodAsk(c, margins.CONTENT_FREE, PROBE, "sentence") for c in every]
    margins.measure(backend, store, probes, PROBE_KIND)
    own = {c.weights for c in subject}
    asks = [a for c in every for a in margins.margin_asks(c, frame.scored, contrast_only=c.weights not in own)]
    margins.measure(backend, store, asks, margins.KIND, _staged(tell, "margins"))
    if frame.rows:
        margins.measure(backend, store, _task_asks(subject, plan), "task", _staged(tell, "task rows"))
    broken = failures(store, every)
    alive = [c for c in every if c.weights not in broken]
    _answer(backend, store, frame, params, alive, tell)
    _norms(backend, store, alive)
    return subject, controls


def _distinct(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    return list({c.weights: c for c in reversed(list(checkpoints))}.values())[::-1]


def _named(run: Sequence[Checkpoint], name: str) -> Iterator[Checkpoint]:
    role = Role.SUBJECT if name == "subject" else Role.CONTROL
    for c in run:
        yield Checkpoint(c.weights, c.label, c.step, c.uri, c.kind, name, role, c.meta)


def _staged(tell: Callable[[str, int, int], None], stage: str) -> Callable[[int, int], None]:
    return lambda done, total: tell(stage, done, total)


def _task_asks(subject: Sequence[Checkpoint], plan: _Plan) -> list[LikelihoodAsk]:
    out = []
    for c in subject:
        for k, row in enumerate(plan.rows):
            out.append(LikelihoodAsk(c, row.prompt, row.answer, "trained", row.key))
            if plan.control_rows:
                other = plan.control_rows[k]
                out.append(LikelihoodAsk(c, row.prompt, other.answer, "control", control_item(row, other)))
    return out


def _answer(
    backend: Backend,
    store: Store,
    frame: Measured,
    params: SamplingParams,
    checkpoints: Sequence[Checkpoint],
    tell: Callable[[str, int, int], None],
) -> None:
    """A few answers per checkpoint, and their likelihoods: under the base (health), and the base's own (dose)."""
    todo = store.missing([Ask(c, p, 0) for c in checkpoints for p in frame.answered], params)
    for k, response in enumerate(backend.sample(todo, params), 1):
        store.add_responses([response], params)
        tell("answers", k, len(todo))
    store.flush()
    by_key = {p.key: p for p in frame.answered}
    alive = {c.weights for c in checkpoints}
    base = backend.base_checkpoint()
    under_base, under_all = [], []
    for r in store.responses(params.key):
        if r.outcome not in (ResponseOutcome.OK, ResponseOutcome.TRUNCATED) or not r.text.strip():
            continue
        if r.prompt not in by_key or r.weights not in alive:
            continue
        closing = r.outcome is ResponseOutcome.OK
        messages, item = by_key[r.prompt].messages, answer_item(params.key, r.prompt, r.draw)
        under_base.append(LikelihoodAsk(base, messages, r.text, "answer", f"{r.weights}:{item}", closing=closing))
        if r.weights == base.weights:
            under_all += [LikelihoodAsk(c, messages, r.text, "answer", item, closing=closing) for c in checkpoints]
    margins.measure(backend, store, under_base, "answer_nll", _staged(tell, "answers under the base"))
    margins.measure(backend, store, under_all, "dose", _staged(tell, "dose"))


def _norms(backend: Backend, store: Store, checkpoints: Sequence[Checkpoint]) -> None:
    there = {c for c, _, _ in store.measured("norm")}
    for c in checkpoints:
        if c.weights not in there:
            store.add_measurements([Measurement(c.weights, "norm", "frobenius", "", backend.weight_norm(c))])
    store.flush()


# ---------------------------------------------------------------------------------------------------------------------
# Concluding


def _conclude(plan: _Plan, store: Store, frame: Measured, runs: _Runs, options: AuditOptions) -> Audit:
    subject, controls = runs
    caveats = [] if plan.planted else list(margins.FAILED_CONTROLS)
    caveats += [n for n in plan.notes if n.startswith(SIMULATED) or "adapter is zero" in n]
    evidence = gather(store, frame, subject, controls, caveats)
    evidence = replace(evidence, subject=replace(evidence.subject, notes=plan.line_notes))
    result = verdict(evidence, options.rule, seed=options.seed)
    store.describe(
        status="done",
        notes=plan.notes,
        verdict=to_plain(result),
        domain_words=list(frame.domain_words),
        evidence_summary={
            "categories": to_plain(by_category(evidence)),
            "control_steps": [[c.step for c in run] for run in controls],
        },
    )
    return Audit(store.path, result, tuple(plan.notes))
