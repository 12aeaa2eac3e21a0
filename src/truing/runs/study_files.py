"""Audit folders and study files as they are read for a study: which cases there are, and what each audit says."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from truing import errors
from truing.config.options import Rule
from truing.stats.studies import Definition
from truing.store import Store
from truing.training.recipe import Recipe
from truing.types.cases import Case, parameters_in
from truing.types.hashing import digest
from truing.types.records import Checkpoint, Role
from truing.types.verdicts import Basis, Verdict

RECIPE_FILE = "recipe.json"
_CASE_KEYS = ("audit", "model", "data", "recipe", "seed", "parameters", "order")
_EM_KEYS = ("lo", "hi", "alignment_cut", "coherence_gate")
_DEFINITION_KEYS = ("name", "kind", "converged_at", *_EM_KEYS)


@dataclass(frozen=True, slots=True)
class ReadAudit:
    """An audit, read."""

    path: Path
    """its folder"""
    case: Case
    """which run it is of"""
    about: Mapping[str, Any]
    """its audit.json"""
    verdict: Verdict | None
    """its judged verdict; None where there is none"""
    subject: tuple[Checkpoint, ...]
    """its checkpoints, step 0 among them"""
    reason: str
    """why nothing can be said of the case; empty where something can"""


def listed(
    audits: Sequence[str | Path] | str | Path,
) -> tuple[list[tuple[Path, Mapping[str, Any]]], tuple[Definition, ...]]:
    """(folder, what a study file says of it) of every audit, and the definitions of a study file.

    Raises:
        BadStudy: no audits, or a study file that cannot be read.
    """
    several = [audits] if isinstance(audits, (str, Path)) else list(audits)
    if not several:
        raise errors.BadStudy("no audits given; name their folders, or a study file")
    if len(several) == 1 and Path(several[0]).is_file():
        return _study_file(Path(several[0]))
    return [(Path(a), {}) for a in several], ()


def _study_file(file: Path) -> tuple[list[tuple[Path, Mapping[str, Any]]], tuple[Definition, ...]]:
    try:
        text = file.read_text(encoding="utf-8")
        value = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as e:
        raise errors.BadStudy(f"{file}: cannot be read as TOML or JSON ({e})") from e
    rows, defined = (value.get(name, []) if isinstance(value, dict) else [] for name in ("case", "definition"))
    if not isinstance(rows, list) or not rows or not isinstance(defined, list):
        raise errors.BadStudy(f'{file}: lists no audits; add tables [[case]] with audit = "FOLDER"')
    given = []
    for k, row in enumerate(rows, 1):
        _check_keys(f"{file}, case {k}", row, _CASE_KEYS)
        if not isinstance(row.get("audit"), str):
            raise errors.BadStudy(f'{file}, case {k}: names no audit; add audit = "FOLDER"')
        path = Path(row["audit"])
        given.append((path if path.is_absolute() else file.parent / path, row))
    return given, tuple(_definition(f"{file}, definition {k}", d) for k, d in enumerate(defined, 1))


def _check_keys(where: str, row: Any, known: Sequence[str]) -> None:
    if not isinstance(row, Mapping):
        raise errors.BadStudy(f"{where}: is no table")
    stray = [k for k in row if k not in known]
    if stray:
        raise errors.BadStudy(f"{where}: there is no field {stray[0]}; known are {', '.join(known)}")
    kinds = {"seed": int, "parameters": (int, float), "converged_at": (int, float)}
    for name, value in row.items():
        wanted = kinds.get(name, (int, float) if name in _EM_KEYS else str)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise errors.BadStudy(f"{where}: {name} = {value!r} is not {'a number' if wanted is not str else 'a text'}")
    if row.get("parameters", 1) <= 0:
        raise errors.BadStudy(f"{where}: parameters = {row['parameters']}; a model has more than 0")


def _definition(where: str, row: Any) -> Definition:
    _check_keys(where, row, _DEFINITION_KEYS)
    em = replace(Rule(), **{k: float(v) for k, v in row.items() if k in _EM_KEYS})
    kind = row.get("kind", "certified")
    if kind not in ("certified", "estimated") or not 0 <= em.lo < em.hi:
        raise errors.BadStudy(f"{where}: kind is certified or estimated, and lo is under hi")
    return Definition(row.get("name", where.rpartition(", ")[2]), em, row.get("converged_at"), kind)


def read_audit(path: Path, given: Mapping[str, Any]) -> ReadAudit:
    """An audit folder, with what a study file says of it.

    Raises:
        NotAnAudit: it cannot be read.
    """
    with Store.read(path) as store:
        about = store.about()
        subject = tuple(c for c in store.checkpoints() if c.role is Role.SUBJECT)
    plain = about.get("verdict")
    verdict = Verdict.from_plain(plain) if plain else None
    reason = ""
    if about.get("kind") == "import":
        verdict, reason = None, "imported answers have no verdict"
    elif about.get("status") != "done":
        verdict, reason = None, f"its audit is {about.get('status', 'unfinished')}; finish it first"
    elif verdict is None or verdict.basis is not Basis.JUDGED:
        verdict, reason = None, "no judged answers, margins only; repeat it with --judge"
    elif verdict.validity is not None and not verdict.validity.absolute:
        reason = f"its judge failed the known-answer test: {verdict.validity.note}"
    return ReadAudit(path, _case_of(path, about, subject, given), about, verdict, subject, reason)


def _case_of(path: Path, about: Mapping[str, Any], subject: Sequence[Checkpoint], given: Mapping[str, Any]) -> Case:
    """What is known of a run: what the study file says, else its recipe, else what the audit was asked."""
    asked = about.get("asked") or {}
    model = str(asked.get("base") or "unknown model")
    found: dict[str, Any] = {"model": model, "data": str(asked.get("task") or "unknown data"), "recipe": ""}
    recipe = _recipe(subject)
    if model.startswith("simulated:"):
        family, _, query = model.partition("?")
        options = dict(parse_qsl(query))
        seed = int(options.pop("seed", "0"))
        found |= {"model": family, "seed": seed, "recipe": urlencode(options, safe=",")}
    elif recipe is not None:
        left_out = ("seed", "data_seed", "model", "revision", "data", "data_sha256", "format", "organism")
        settings = {k: v for k, v in recipe.content.items() if k not in left_out}
        order = recipe.seed if recipe.data_seed is None else recipe.data_seed
        data = Path(recipe.data).stem + (f" {recipe.data_sha256[:8]}" if recipe.data_sha256 else "")
        found |= {"model": recipe.model, "data": data, "recipe": digest(settings, 8), "seed": recipe.seed}
        found["order"] = digest([recipe.data_sha256, order, recipe.batch_size], 16)
    found |= {k: v for k, v in given.items() if k != "audit"}
    found.setdefault("parameters", parameters_in(found["model"]))
    return Case(**found, audit=str(path))


def _recipe(subject: Sequence[Checkpoint]) -> Recipe | None:
    """The recipe beside the checkpoints, where they were trained here and still lie there."""
    for c in subject:
        if c.uri.startswith("file:") and c.step:
            file = Path(c.uri.removeprefix("file:")).parent / RECIPE_FILE
            try:
                return Recipe.parse(json.loads(file.read_text(encoding="utf-8")), str(file))
            except (OSError, ValueError, errors.BadRecipe):
                return None
    return None
