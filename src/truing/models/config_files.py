"""The JSON files of a checkpoint folder that truing reads, each held to what is read of it.

A folder may come from anywhere: a field of another type would end far from here, in a sentence that says nothing. What
is not used passes as it is.
"""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from truing import files
from truing.errors import DamagedWeights

_REMEDY = "save or copy the checkpoint again"
LOG_LIMIT = 256 << 20
"""bytes of the largest trainer_state.json, which holds a line per logged step"""
MOST_STEPS = 10**15
T = TypeVar("T")

_Text = Annotated[str, Field(max_length=4096, pattern=r"\A[^\x00]*\z")]
_Name = Annotated[str, Field(max_length=255, pattern=r"\A[^/\x00]+\z")]
_Names = Annotated[list[_Text], Field(max_length=100_000)] | _Text | None
_Rank = Annotated[int, Field(ge=1, le=1 << 20)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class AdapterFile(_Strict):
    """adapter_config.json, as PEFT writes it."""

    base_model_name_or_path: _Text | None = None
    peft_type: _Text | None = None
    revision: _Text | None = None
    bias: _Text | None = None
    init_lora_weights: bool | _Text | None = None
    kasa_config: dict[str, Any] | None = None
    r: _Rank | None = None
    lora_alpha: _Number | None = None
    lora_dropout: _Number | None = None
    rank_pattern: dict[_Text, _Rank] | None = None
    alpha_pattern: dict[_Text, _Number] | None = None
    target_modules: _Names = None
    exclude_modules: _Names = None
    modules_to_save: _Names = None
    target_parameters: _Names = None
    layers_pattern: _Names = None
    layers_to_transform: list[int] | int | None = None
    layer_replication: Annotated[list[list[int]], Field(max_length=1000)] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None


class StateFile(_Strict):
    """trainer_state.json, as transformers writes it."""

    global_step: Annotated[int, Field(ge=0, le=MOST_STEPS)] | None = None
    best_model_checkpoint: _Text | None = None


class IndexFile(_Strict):
    """model.safetensors.index.json: tensor -> the shard it is in, a file of the same folder."""

    weight_map: Annotated[dict[str, _Name], Field(min_length=1)]


_KINDS: dict[str, TypeAdapter[Any]] = {
    "adapter_config.json": TypeAdapter(AdapterFile),
    "trainer_state.json": TypeAdapter(StateFile),
    "model.safetensors.index.json": TypeAdapter(IndexFile),
}


def read_config(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint, as it stands there.

    Raises:
        DamagedWeights: it is no regular file, no JSON, or holds a field of another type than its kind of file has.
    """
    log = path.name == "trainer_state.json"
    limit = LOG_LIMIT if log else files.CONFIG_LIMIT
    value = files.read_object(path, limit=limit, error=DamagedWeights, remedy=_REMEDY, nan=log)
    if path.name in _KINDS:
        try:
            checked(_KINDS[path.name], value)
        except ValueError as e:
            raise DamagedWeights(f"{path}: {e}; {_REMEDY}") from e
    return value


def checked(kind: TypeAdapter[T], value: Any) -> T:
    """A value as what it should be. Raises ValueError with its first problem, in a line: "field: what"."""
    try:
        return kind.validate_python(value)
    except ValidationError as e:
        first = e.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])):.80}: {first['msg'].lower():.200}") from e
