"""audit.json as it is read: what its readers use, with the types they rely on. The rest passes as it is."""

from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from truing.types.records import SamplingParams
from truing.types.traits import Rule
from truing.types.verdicts import Verdict


def _fields_of(kind: type[Any]) -> Callable[[Any], Any]:
    names = {f.name for f in fields(kind)}

    def check(value: Any) -> Any:
        if isinstance(value, dict) and (unknown := sorted(set(value) - names)):
            raise ValueError(f"unknown field {unknown[0]!r:.40}")
        return value

    return check


_Step = Annotated[int, Field(ge=0, lt=1 << 63)]
_Rule = Annotated[Rule, BeforeValidator(_fields_of(Rule))]
_Sampling = Annotated[SamplingParams, BeforeValidator(_fields_of(SamplingParams))]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Turn(_Part):
    role: str
    content: str


class _Item(_Part):
    key: str
    id: str
    messages: list[_Turn]
    category: str | None = None
    cluster: str | None = None
    form: str = ""
    half: str = ""
    topics: list[str] = []
    judge_prompts: dict[str, str] | None = None


class _Prompts(_Part):
    name: str = ""
    version: str = ""
    sha256: str = ""
    items: list[_Item] = []


class _Asked(_Part):
    targets: list[str] = []
    base: str | None = None
    task: str | None = None
    trait: str = ""
    trait_source: str = ""
    trait_sha256: str = ""
    prompts_source: str | None = None
    options: dict[str, Any] = {}


class _Found(_Part):
    code: str
    params: dict[str, Any]


class _Labels(_Part):
    params: str | None = None
    control: str | None = None
    rule: _Rule | None = None
    far: dict[str, bool] | None = None
    subject: list[str] | None = None
    under_moved: list[_Step] | None = None
    findings: list[_Found] | None = None
    seed: int = 0
    fixed_from: int = 0
    first: int = 0
    words: list[str] | None = None
    trait: str = ""


class _Drawn(_Part):
    weight: float
    stratum: str


class _Frozen(_Part):
    lock: str
    made: str = ""
    settings: dict[str, dict[str, Any]] = {}
    status: str = ""
    changed: list[str] = []


class _Identity(_Part):
    rule: dict[str, Any] = {}
    sets: dict[str, Any] = {}


class AuditFile(_Part):
    """audit.json."""

    status: str
    kind: str | None = None
    identity: _Identity = _Identity()
    asked: _Asked | None = None
    prompts: _Prompts | None = None
    verdict: Verdict | None = None
    screened: Verdict | None = None
    lines: list[dict[str, Any]] | None = None
    notes: list[str] = []
    sets: list[str] = []
    rule: _Rule | None = None
    labels: _Labels | None = None
    sampling: _Sampling | None = None
    frozen: _Frozen | None = None
    evidence_summary: dict[str, Any] | None = None
    judge_moved: dict[str, tuple[float, int]] | None = None
    labelling: dict[str, _Drawn] | None = None
    versions: dict[str, Any] | None = None
    domain_words: list[str] | None = None
    organism: bool = False


def problem(value: Any) -> str:
    """What is wrong with the contents of audit.json, as "field: what"; empty where nothing is."""
    try:
        AuditFile.model_validate(value)
    except ValidationError as e:
        first = e.errors()[0]
        return f"{'.'.join(map(str, first['loc'])):.80}: {first['msg'].lower():.200}"
    return ""
