"""Audit folders and study files as they are read for a study: which cases there are, and what each audit says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from truing import errors, messages
from truing.files import is_file, read_json, read_object, read_toml
from truing.stats.studies import Definition
from truing.store import Store
from truing.training.recipe import Recipe
from truing.types.cases import Case, parameters_in
from truing.types.hashing import digest
from truing.types.records import Checkpoint, Role
from truing.types.traits import Rule
from truing.types.verdicts import Basis, Verdict

RECIPE_FILE = "recipe.json"
NO_SETTING = ("seed", "data_seed", "model", "revision", "data", "data_sha256", "format", "organism")
"""fields of a recipe in which seeds and models of one recipe differ"""


class CaseEntry(BaseModel):
    """A case of a study file; what it says stands for what the audit tells."""

    model_config = ConfigDict(extra="forbid", strict=True)

    audit: str
    model: str | None = None
    data: str | None = None
    recipe: str | None = None
    seed: int | None = None
    parameters: Annotated[float | None, Field(gt=0)] = None
    order: str | None = None


class DefinitionEntry(BaseModel):
    """A definition of a study file; what it leaves out is as in the audits."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    kind: Literal["certified", "estimated"] = "certified"
    converged_at: float | None = None
    lo: float | None = None
    hi: float | None = None
    cut: float | None = None
    gate: float | None = None

    def definition(self, rule: Rule) -> Definition:
        """The same with a rule that differs from the audits' in what is given."""
        own = replace(rule, **self.model_dump(include={"lo", "hi", "cut", "gate"}, exclude_none=True))
        own.check()
        return Definition(self.name, own, self.converged_at, self.kind)


class StudyFile(BaseModel):
    """A study file."""

    model_config = ConfigDict(extra="forbid")

    case: Annotated[list[CaseEntry], Field(min_length=1)]
    definition: list[DefinitionEntry] = Field(default_factory=list)


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
    """its verdict on labelled answers; None where there is none"""
    subject: tuple[Checkpoint, ...]
    """its checkpoints, step 0 among them"""
    reason: str
    """why nothing can be said of the case; empty where something can"""


def read_study(audits: Sequence[str | Path] | str | Path) -> tuple[list[ReadAudit], list[DefinitionEntry]]:
    """Every audit of a study, given as folders or as a study file; and the definitions of such a file.

    Raises:
        BadStudy: no audits, or a study file that cannot be read. NotAnAudit: an audit cannot be read.
    """
    several = [audits] if isinstance(audits, (str, Path)) else list(audits)
    if not several:
        raise errors.BadStudy("no audits given; name their folders, or a study file")
    if len(several) > 1 or not is_file(several[0]):
        return [read_audit(Path(a), {}) for a in several], []
    file = Path(several[0])
    found = _study_file(file)
    rows = [row.model_dump(exclude_none=True) for row in found.case]
    return [read_audit(file.parent / row["audit"], row) for row in rows], found.definition


def _study_file(file: Path) -> StudyFile:
    read = read_json if file.suffix == ".json" else read_toml
    try:
        return StudyFile.model_validate(read(file, error=errors.BadStudy))
    except ValidationError as e:
        first = e.errors()[0]
        where = " ".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
        raise errors.BadStudy(f"{file}: {where or 'the file'}: {first['msg'].lower()}") from e


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
        verdict, reason = None, f"its audit is {messages.state(about.get('status'))}"
    elif verdict is None or verdict.basis is not Basis.LABELLED:
        verdict, reason = None, "no labelled answers; repeat it with --judge"
    elif verdict.calibration is not None and not verdict.calibration.passed:
        reason = f"its judge failed its calibration: {verdict.calibration.note}"
    return ReadAudit(path, _case_of(path, about, subject, given), about, verdict, subject, reason)


def _case_of(path: Path, about: Mapping[str, Any], subject: Sequence[Checkpoint], given: Mapping[str, Any]) -> Case:
    """What is known of a run: what the study file says, else its recipe, else what the audit was asked."""
    asked = about.get("asked") or {}
    model = str(asked.get("base") or "unknown model")
    found: dict[str, Any] = {"model": model, "data": str(asked.get("task") or "unknown data"), "recipe": ""}
    if model.startswith("simulated:"):
        family, _, query = model.partition("?")
        options = dict(parse_qsl(query))
        seed = int(options.pop("seed", "0"))
        found |= {"model": family, "seed": seed, "recipe": urlencode(options, safe=",")}
    elif (recipe := _recipe(subject)) is not None:
        settings = {k: v for k, v in recipe.content.items() if k not in NO_SETTING}
        order = recipe.seed if recipe.data_seed is None else recipe.data_seed
        data = Path(recipe.data).stem + (f" {recipe.data_sha256[:8]}" if recipe.data_sha256 else "")
        found |= {"model": recipe.model, "data": data, "recipe": digest(settings, 8), "seed": recipe.seed}
        found["order"] = digest([recipe.data_sha256, order, recipe.batch_size], 16)
    found |= {**given, "audit": str(path)}
    found.setdefault("parameters", parameters_in(found["model"]))
    return Case(**found)


def _recipe(subject: Sequence[Checkpoint]) -> Recipe | None:
    """The recipe beside the checkpoints, where they were trained here and still lie there."""
    try:
        first = next(c.uri.removeprefix("file:") for c in subject if c.uri.startswith("file:") and c.step)
        file = Path(first).parent / RECIPE_FILE
        return Recipe.parse(read_object(file), str(file))
    except (StopIteration, errors.BadInput):
        return None
