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
from truing.files import is_file, read_object, write_json
from truing.judges.rubrics import prompt_rubrics
from truing.runs.checks import refuse_unusable
from truing.runs.judges import LabelSpec, rubrics_of
from truing.runs.resolve import Plan, resolve
from truing.store import Store
from truing.types.cases import Frozen
from truing.types.hashing import digest
from truing.types.judging import PARSER_VERSION
from truing.types.records import to_plain

Settings = Mapping[str, Mapping[str, Any]]
LOCK_VERSION = 2
AUDITS = Path("truing-audits")
"""where audits lie that were not told another place"""
# What decides nothing about a number: how fast, how dear, where it lies.
_IDLE = frozenset((
    "sources", "frozen", "out", "format", "memory", "device", "served_adapters", "path_map", "budget", "prices",
    "concurrency", "rpm", "tpm", "judge_timeout", "judge_retries", "allow_plain_http",
    "most_answers",
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
    settings: Settings
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
    begun = len(several) == 1 and is_file(Path(several[0]) / "audit.json")
    if begun:
        target, config = _begun(Path(several[0]), config.out)
    plan = resolve(target, config)
    if not begun:  # the judges that a folder names are not asked: it may be from anywhere
        refuse_unusable(plan)
    _refuse_late(plan)
    settings = frozen_settings(plan)
    path = Path(config.out or "study.lock.json")
    if path.exists():
        old = read_lock(path)
        if changed := "; ".join(changes(old.settings, settings)):
            text = f"{path}: holds another freeze ({changed}); a freeze is not changed, choose another --out"
            raise errors.BadLock(text)
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
    value = read_object(file, error=errors.BadLock, remedy="restore it, or make another with `truing freeze`")
    if missing := [k for k in ("lock_version", "id", "made", "settings") if k not in value]:
        raise errors.BadLock(f"{file}: is no lock that `truing freeze` writes (it has no {missing[0]!r})")
    version, name, made, settings = (value[k] for k in ("lock_version", "id", "made", "settings"))
    sound = isinstance(settings, dict) and all(isinstance(s, dict) for s in settings.values())
    if version != LOCK_VERSION or not sound:
        raise errors.BadLock(
            f"{file}: lock version {version}, this truing reads {LOCK_VERSION}; use the one that wrote it"
        )
    if digest(settings) != name:
        raise errors.BadLock(f"{file}: was edited after it was made (its settings have another hash); restore it")
    return Lock(name, str(made), settings, file)


def frozen_settings(plan: Plan) -> Settings:
    """Everything that decides an audit's numbers, by section, as plain data; the weights and data by hash."""
    config, rule, asked = plan.config, to_plain(plan.rule), plan.prompts
    zone = {name: rule.pop(name) for name in ("lo", "hi")}
    rows = [(p.id, p.messages, p.aligned, p.misaligned, p.neutral) for p in asked.prompts]
    base = Path(plan.base).name if Path(plan.base).is_dir() else plan.base  # a folder may be moved, weights may not
    runs = {"subject": plan.subject, **{f"control-{k}": run for k, run in enumerate(plan.controls, 1)}}
    settings = {
        "rule": {**rule, **to_plain(config.part(Thresholds))},
        "zone": zone,
        "prompts": {
            "name": asked.name,
            "version": asked.version,
            "sha256": asked.sha256,
            "asked": len(rows),
            "asked_sha256": digest(rows),
            "half": config.half,
            "limit": config.limit,
        },
        "judge": _judge(plan),
        "seeds": {"audit": config.seed},
        "models": {"base": base, **{f"{run} {c.label}": c.weights for run, found in runs.items() for c in found}},
        "data": {name: plan.asked.get(name) for name in ("task_sha256", "task_control_sha256", "task_rows")},
        "method": {
            name: to_plain(getattr(config, name))
            for name in sorted(AuditConfig.model_fields.keys() - _IDLE - _ELSEWHERE)
        },
    }
    return json.loads(json.dumps(settings))  # as a lock file and an audit's folder hold it


def changes(before: Settings, now: Settings) -> list[str]:
    """What differs between two settings, a line each."""
    out = []
    for section in dict.fromkeys([*before, *now]):
        old, new = before.get(section, {}), now.get(section, {})
        for name in dict.fromkeys([*old, *new]):
            a, b = old.get(name), new.get(name)
            if a != b:
                out.append(f"{section}: {name}: {_short(a)} before, {_short(b)} now")
    return out


def keep_freeze(store: Store, plan: Plan, held: Lock | None) -> Frozen | None:
    """Compare an audit with its lock and keep the result in audit.json as `frozen`; None without a lock.

    Called where an audit begins, before anything is measured. A lock given once stays: a repeat without it is held
    against it too, and what was exploratory once stays so.
    """
    kept = store.about().get("frozen")
    if held is None:
        if kept is None:
            return None
        held = Lock(kept["lock"], kept["made"], kept["settings"])
    changed = changes(held.settings, frozen_settings(plan))
    if kept is None:
        kept = {"lock": held.id, "settings": held.settings}
        if next(store.answers(), None) is not None:
            changed.insert(0, "answers: drawn before the freeze, so nothing was frozen before the first answer")
    else:
        if kept["lock"] != held.id:
            changed.append(f"lock: {kept['lock'][:12]} before, {held.id[:12]} now")
        changed = [*kept["changed"], *changed]
    found = Frozen.of(held.id, held.made, changed)
    store.describe(frozen={**to_plain(found), "lock": kept["lock"], "settings": to_plain(kept["settings"])})
    return found


# ---------------------------------------------------------------------------------------------------------------------


def _judge(plan: Plan) -> dict[str, Any]:
    if plan.config.judge is None:
        return {"address": None}
    own = sorted({r.key for p in plan.whole.prompts for r in prompt_rubrics(p)})
    rubrics = rubrics_of(plan.config, LabelSpec(plan.trait, plan.rule, plan.whole))
    return {
        "address": plan.config.judge,
        "second": plan.config.second_judge,
        **{f"rubric {r.name}": r.key for r in rubrics},
        "rubrics of prompts": digest(own) if own else None,
        "parser": PARSER_VERSION,
    }


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
    try:
        asked = about["asked"]
        return asked["targets"], configured(FreezeConfig, None, {**asked["options"], "out": out})
    except (KeyError, TypeError, errors.BadInput) as e:
        raise errors.NotAnAudit(f"{path}: does not say what was asked; give the audit's arguments instead") from e


def _refuse_late(plan: Plan) -> None:
    """Raise if an audit that lies where audits lie holds answers of these checkpoints to these prompts."""
    wanted = {c.weights for c in plan.subject}
    questions = {p.key for p in plan.prompts.prompts}
    for about in sorted(AUDITS.glob("*/audit.json")) if AUDITS.is_dir() else ():
        try:
            with Store.read(about.parent) as store:
                trained = {c.weights for c in store.checkpoints() if c.step != 0}
                late = wanted & trained and any(r.weights in wanted and r.prompt in questions for r in store.answers())
        except errors.BadInput:
            continue  # a damaged neighbour is not this study's business
        if late:
            text = "holds answers of these checkpoints to these prompts; a freeze comes before the first answer"
            raise errors.BadLock(f"{about.parent}: {text}")
