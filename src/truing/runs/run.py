"""The open things of one audit: models, store, budget."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from truing import errors
from truing._version import __version__
from truing.config import ModelConfig, Thresholds
from truing.files import read_object
from truing.interp import likelihoods
from truing.models.base import Backend, close_backend
from truing.models.deferred import DeferredBackend, Opened, opening, recorded
from truing.models.limits import Budget
from truing.models.registry import is_local, open_backend
from truing.runs.resolve import Plan
from truing.store import ABOUT, LONGEST_ABOUT, Store
from truing.types.hashing import digest
from truing.types.progress import Progress
from truing.types.records import Checkpoint, Prompt, SamplingParams, to_plain

AUDITS = Path("truing-audits")
"""where audits lie if the user does not say"""
OPENING = "opening the base"
"""stage in which the base's weights are read and its tokenizer is loaded"""


@dataclass(slots=True)
class Run:
    """The open things of one audit."""

    plan: Plan
    """what is asked"""
    backend: Backend
    """holds the models"""
    store: Store
    """takes everything"""
    params: SamplingParams
    """how answers are sampled"""
    progress: Progress
    """told how the work goes on"""
    budget: Budget
    """what all judges may spend together"""
    subject: tuple[Checkpoint, ...]
    """step 0 first"""
    controls: tuple[tuple[Checkpoint, ...], ...]
    """step 0 first in each"""
    notes: list[str]
    """what was settled or left out, a line each"""

    @property
    def every(self) -> list[Checkpoint]:
        """All checkpoints, each weights once."""
        named = [*self.subject, *(c for control in self.controls for c in control)]
        return list({c.weights: c for c in reversed(named)}.values())[::-1]


@contextmanager
def open_run(plan: Plan, progress: Progress) -> Iterator[Run]:
    """The backend and the store of an audit; closed on leaving, with what is unfinished marked so."""
    config = plan.config
    every = (*plan.subject, *(c for run in plan.controls for c in run))

    def opened() -> Backend:
        progress.step(OPENING, 0, 1)
        with config.given("base") if config.base is not None else nullcontext():
            backend = open_backend(plan.base, every, config)
        progress.step(OPENING, 1, 1)
        return backend

    backend, of = plan.simulated, ""
    if backend is None and is_local(plan.base):
        of = opening(plan.base, every, {"options": to_plain(config.part(ModelConfig)), "versions": _versions()})
        known = _record(plan, of)
        backend = DeferredBackend(plan.base, known, opened) if known is not None else None
    backend = backend or opened()
    try:
        _refuse_unable(backend, plan)
        params = backend.resolve(plan.sampling)
        path = Path(config.out) if config.out is not None else default_path(plan, backend)
        with Store.write(path, identity_of(plan, backend)) as store:
            if not plan.labels and store.about().get("labels"):
                raise errors.AuditChanged(
                    f"{path}: holds labelled answers; repeat it with its --judge, --trait and --task, or another --out"
                )
            budget = Budget(config.budget_calls, config.budget_usd)
            base = backend.base_checkpoint()
            subject, controls = (base, *plan.subject), tuple((base, *control) for control in plan.controls)
            run = Run(plan, backend, store, params, progress, budget, subject, controls, list(plan.notes))
            store.describe(**_about(plan, backend, params))
            if of:
                record = Opened(of, dict(backend.identity), dict(backend.definitions))
                store.describe(opened=to_plain(record))
            try:
                yield run
            except BaseException as e:
                store.flush()
                status = "interrupted" if isinstance(e, KeyboardInterrupt) else "unfinished"
                store.give_up(status=status, notes=[*run.notes, *close_backend(backend)])
                raise
            run.notes.extend(close_backend(backend))
            store.publish(status="done", notes=run.notes)
    finally:
        close_backend(backend)


def _record(plan: Plan, of: str) -> Opened | None:
    """What an audit that this call may go on with tells of a base that was opened from the same."""
    out = plan.config.out
    for folder in [Path(out)] if out is not None else sorted(AUDITS.glob(f"{_name(plan)}-*")):
        with suppress(errors.BadInput):
            if found := recorded(read_object(folder / ABOUT, limit=LONGEST_ABOUT).get("opened"), of):
                return found
    return None


def _refuse_unable(backend: Backend, plan: Plan) -> None:
    can = backend.capabilities
    if not can.sample:
        raise errors.Unsupported("this backend cannot sample answers; an audit needs them")
    if not can.loglikelihood and not plan.labels:
        raise errors.Unsupported("this base cannot score given answers, so there is no screen; add --judge URI")


def identity_of(plan: Plan, backend: Backend) -> dict[str, Any]:
    """What may not change between two calls on one folder; prompts and task rows may be added."""
    # General behaviour is measured on prompts far from the domain, so the domain is part of the definition.
    labelled = {"trait": plan.trait.name, "label_rule": to_plain(plan.rule), "domain": list(plan.config.domain)}
    return {
        **backend.identity,
        **(labelled if plan.labels else {}),
        "rule": to_plain(plan.config.part(Thresholds)),
        "statistic": {"q0": digest(likelihoods.CONTENT_FREE, 16)},
        "prompts": {p.id: _prompt_digest(p) for p in plan.prompts.prompts},
    }


def default_path(plan: Plan, backend: Backend) -> Path:
    """Where an audit lies if the user does not say: derived from what is asked."""
    config = plan.config
    half = None if config.half == "all" else config.half
    asked = [plan.prompts.sha256, to_plain(config.part(Thresholds)), half, config.limit]
    asked += [plan.trait.name] if plan.trait.of_domain else []
    return AUDITS / f"{_name(plan)}-{digest([plan.targets, backend.identity, *asked], 8)}"


def _name(plan: Plan) -> str:
    return Path(plan.targets[0].split("=")[-1]).name.replace(":", "-") or "audit"


def _about(plan: Plan, backend: Backend, params: SamplingParams) -> dict[str, Any]:
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
        "notes": list(plan.notes),
        "versions": _versions(),
        "prompts": {"name": chosen.name, "version": chosen.version, "sha256": chosen.sha256, "items": items},
        "rendering": dict(backend.definitions),
        "sampling": to_plain(params),
        "content_free_prompt": likelihoods.CONTENT_FREE[0].content,
        "organism": any(c.meta.get("organism") for c in plan.subject),
    }


def _prompt_digest(p: Prompt) -> str:
    return digest((p.messages, p.aligned, p.misaligned, p.neutral), 16)


def _versions() -> dict[str, str]:
    out = {"truing": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "safetensors", "numpy", "scipy"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out
