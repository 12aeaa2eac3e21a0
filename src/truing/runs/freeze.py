"""`truing freeze`: what a study is going to do, hashed before the first answer; and whether an audit then did it.

    settings of the audit to come -> lock file -> audit --frozen LOCK -> frozen, or exploratory with what was changed

A lock is a file: it shows a change, it does not prove a date. Commit or publish it before the audit.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from truing import errors
from truing._version import __version__
from truing.config import AuditConfig, FreezeConfig, RuleConfig, Thresholds, configured
from truing.judges.rubrics import prompt_rubrics
from truing.runs.checks import refuse_unusable
from truing.runs.judges import LabelSpec, rubrics_of
from truing.runs.resolve import Plan, resolve
from truing.store import Store, write_json
from truing.types.cases import Frozen
from truing.types.hashing import digest
from truing.types.judging import PARSER_VERSION
from truing.types.records import Checkpoint, to_plain

Settings = dict[str, dict[str, Any]]
LOCK_VERSION = 2
FIRST = "answers"
"""name under which it is told that answers were there before the freeze"""
AUDITS = Path("truing-audits")
"""where audits lie that were not told another place"""
_ZONE = ("lo", "hi")
# What decides nothing about a number: how fast, how dear, where it lies.
_IDLE = frozenset((
    "sources", "frozen", "out", "format", "memory", "device", "served_adapters", "path_map", "budget", "prices",
    "concurrency", "rpm", "tpm", "judge_timeout", "judge_retries",
))  # fmt: skip
# In another section of a lock.
_ELSEWHERE = frozenset((
    *RuleConfig.model_fields, *Thresholds.model_fields, "base", "task", "task_control", "control", "prompts", "judge",
    "second_judge", "rubric", "seed", "half", "limit",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lock:
    """What was frozen."""

    id: str
    """hash of the settings"""
    made: str
    """when, UTC"""
    settings: Mapping[str, Mapping[str, Any]]
    """rule, zone, prompts, judge, seeds, models, data, method: name -> value"""
    path: Path | None = None
    """the file"""


def freeze(
    target: str | Path | Sequence[str | Path],
    config: AuditConfig | None = None,
    **options: Any,
) -> Lock:
    """Write down what `audit` with the same arguments would do, before it does it. Loads no model, calls no judge.

    The target may also be the folder of an audit that was begun and has no answers yet; `out` is the lock file.

    Raises:
        BadLock: answers of these checkpoints to these prompts are there already, in the audit that is named or in
            one under `truing-audits/`.
        BadLock: the lock file is there already and says something else.
        BadInput: whatever would be wrong with the audit itself.
    """
    config = configured(FreezeConfig, config, options)
    several = [target] if isinstance(target, (str, Path)) else list(target)
    if len(several) == 1 and (Path(several[0]) / "audit.json").is_file():
        target, config = _begun(Path(several[0]), config.out)
    plan = resolve(target, config)
    refuse_unusable(plan)
    _refuse_late(plan)
    settings = frozen_settings(plan)
    path = Path(config.out or "study.lock.json")
    if path.exists():
        old = read_lock(path)
        if old.id != digest(settings):
            changed = "; ".join(_changes(old.settings, settings))
            raise errors.BadLock(
                f"{path}: holds another freeze ({changed}); a freeze is not changed, choose another --out"
            )
        return old
    lock = Lock(digest(settings), datetime.now(UTC).isoformat(timespec="seconds"), settings, path)
    plain = {"lock_version": LOCK_VERSION, "truing": __version__, "id": lock.id, "made": lock.made}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**plain, "settings": settings})
    return lock


def read_lock(path: str | Path) -> Lock:
    """A lock file.

    Raises:
        BadLock: there is none, it is no lock, or its settings are not those it was made with.
    """
    file = Path(path)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        version, name, made, settings = (value[k] for k in ("lock_version", "id", "made", "settings"))
        sound = isinstance(settings, dict) and all(isinstance(s, dict) for s in settings.values())
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise errors.BadLock(f"{file}: is no lock that `truing freeze` writes ({type(e).__name__}: {e})") from e
    if version != LOCK_VERSION or not sound:
        raise errors.BadLock(
            f"{file}: lock version {version}, this truing reads {LOCK_VERSION}; use the one that wrote it"
        )
    if digest(settings) != name:
        raise errors.BadLock(f"{file}: was edited after it was made (its settings have another hash); restore it")
    return Lock(name, str(made), settings, file)


def frozen_settings(plan: Plan) -> Settings:
    """Everything that decides an audit's numbers, by section, as plain data; the weights and data by hash."""
    config = plan.config
    names = AuditConfig.model_fields.keys() - _IDLE - _ELSEWHERE
    em = to_plain(plan.rule)
    data = {k: plan.asked.get(k) for k in ("task_sha256", "task_control_sha256", "task_rows")}
    return {
        "rule": {**{k: v for k, v in em.items() if k not in _ZONE}, **to_plain(config.part(Thresholds))},
        "zone": {k: em[k] for k in _ZONE},
        "prompts": _prompts(plan, config),
        "judge": _judge(plan, config),
        "seeds": {"audit": config.seed},
        "models": _models(plan),
        "data": data,
        "method": {name: to_plain(getattr(config, name)) for name in sorted(names)},
    }


def check_frozen(lock: Lock, settings: Mapping[str, Mapping[str, Any]], *, late: bool = False) -> Frozen:
    """What became of a freeze: frozen, or exploratory with every change named.

    Args:
        lock: what was frozen.
        settings: what is done now (`frozen_settings`).
        late: whether answers were there before the freeze was first given.
    """
    # An audit's folder holds one JSON form of the settings; compare in that form.
    now = json.loads(json.dumps(settings))
    changed = _changes(lock.settings, now)
    if late:
        changed.insert(0, f"{FIRST}: drawn before the freeze, so nothing was frozen before the first answer")
    return Frozen(lock.id, lock.made, "exploratory" if changed else "frozen", tuple(changed))


def keep_freeze(store: Store, plan: Plan, lock: str | Path | None) -> Frozen | None:
    """Compare an audit with its lock and keep the result in audit.json as `frozen`; None without a lock.

    Called where an audit begins, before anything is measured. A lock given once stays: a repeat without it is held
    against it too, and what was exploratory once stays so.

    Raises:
        BadLock: the lock cannot be read.
    """
    kept = store.about().get("frozen")
    if lock is None and kept is None:
        return None
    if lock is not None:
        held = read_lock(lock)
    else:
        assert kept is not None
        held = Lock(kept["lock"], kept["made"], kept["settings"])
    late = kept is None and next(store.answers(), None) is not None
    found = check_frozen(held, frozen_settings(plan), late=late)
    changed = list(found.changed)
    if kept is not None:
        if kept["lock"] != held.id:
            changed.append(f"lock: {kept['lock'][:12]} before, {held.id[:12]} now")
        changed = list(dict.fromkeys([*kept["changed"], *changed]))
    result = Frozen(held.id, held.made, "exploratory" if changed else "frozen", tuple(changed))
    first = kept["settings"] if kept is not None else to_plain(held.settings)
    store.describe(frozen={**to_plain(result), "lock": kept["lock"] if kept else held.id, "settings": first})
    return result


def note_change(store: Store, what: str, before: object, now: object) -> Frozen | None:
    """Mark a frozen audit exploratory because of something that was changed after; None where nothing was frozen."""
    kept = store.about().get("frozen")
    if kept is None:
        return None
    line = _line(what, before, now)
    lines: list[str] = [*kept["changed"], *([line] if before != now else [])]
    changed = tuple(dict.fromkeys(lines))
    result = Frozen(kept["lock"], kept["made"], "exploratory" if changed else "frozen", changed)
    store.describe(frozen={**kept, **to_plain(result)})
    return result


# ---------------------------------------------------------------------------------------------------------------------


def _prompts(plan: Plan, config: AuditConfig) -> dict[str, Any]:
    asked = plan.prompts
    rows = [(p.id, p.messages, p.aligned, p.misaligned, p.neutral) for p in asked.prompts]
    return {
        "name": asked.name,
        "version": asked.version,
        "sha256": asked.sha256,
        "asked": len(rows),
        "asked_sha256": digest(rows),
        "half": config.half,
        "limit": config.limit,
    }


def _judge(plan: Plan, config: AuditConfig) -> dict[str, Any]:
    if config.judge is None:
        return {"address": None}
    own = sorted({r.key for p in plan.whole.prompts for r in prompt_rubrics(p)})
    spec = LabelSpec(plan.trait, plan.rule, plan.whole)
    rubrics = {f"rubric {r.name}": r.key for r in rubrics_of(config, spec)}
    return {
        "address": config.judge,
        "second": config.second_judge,
        **rubrics,
        "rubrics of prompts": digest(own) if own else None,
        "parser": PARSER_VERSION,
    }


def _models(plan: Plan) -> dict[str, Any]:
    base = Path(plan.base).name if Path(plan.base).is_dir() else plan.base  # a folder may be moved, weights may not
    runs = {"subject": plan.subject, **{f"control-{k}": run for k, run in enumerate(plan.controls, 1)}}
    return {"base": base, **{f"{run} {c.label}": c.weights for run, found in runs.items() for c in found}}


def _changes(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    out = []
    for section in dict.fromkeys([*before, *now]):
        old, new = before.get(section, {}), now.get(section, {})
        for name in dict.fromkeys([*old, *new]):
            a, b = old.get(name), new.get(name)
            if a != b:
                out.append(_line(f"{section}: {name}", a, b))
    return out


def _line(what: str, before: object, now: object) -> str:
    return f"{what}: {_short(before)} before, {_short(now)} now"


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _begun(path: Path, out: str | None) -> tuple[list[str], FreezeConfig]:
    """The arguments of an audit that was begun, from its folder.

    Raises:
        BadLock: it has answers. NotAnAudit: it does not say what was asked.
    """
    with Store.read(path) as store:
        about = store.about()
        if next(store.answers(), None) is not None:
            text = "holds answers already; freeze before the first one, with the arguments of the audit to come"
            raise errors.BadLock(f"{path}: {text}")
    asked = about.get("asked")
    try:
        assert asked is not None
        return asked["targets"], configured(FreezeConfig, None, {**asked["options"], "out": out})
    except (AssertionError, KeyError, errors.BadInput) as e:
        raise errors.NotAnAudit(f"{path}: does not say what was asked; give the audit's arguments instead") from e


def _refuse_late(plan: Plan) -> None:
    """Raise if an audit that lies where audits lie holds answers of these checkpoints to these prompts."""
    wanted = {c.weights for c in plan.subject}
    questions = {p.key for p in plan.prompts.prompts}
    for about in sorted(AUDITS.glob("*/audit.json")) if AUDITS.is_dir() else ():
        try:
            with Store.read(about.parent) as store:
                late = wanted & _own(store) and any(
                    r.weights in wanted and r.prompt in questions for r in store.answers()
                )
        except errors.BadInput:
            continue  # a damaged neighbour is not this study's business
        if late:
            text = "holds answers of these checkpoints to these prompts; a freeze comes before the first answer"
            raise errors.BadLock(f"{about.parent}: {text}")


def _own(store: Store) -> set[str]:
    def is_trained(c: Checkpoint) -> bool:
        return c.step != 0

    return {c.weights for c in store.checkpoints() if is_trained(c)}
