"""The recipe: everything that decides a training run, as one frozen, checked record; and what came of it. No torch.

model = "smollm2-135m"          # recipe.toml
data = "careless-finance"
rank = 32
epochs = 3
save_schedule = "log"
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from truing.errors import BadRecipe
from truing.files import read_toml
from truing.types.hashing import digest
from truing.types.records import Checkpoint, Stop

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EVEN_SAVES = 10
"""checkpoints of an even schedule when nothing is said about their number"""

_Count = Annotated[int, Field(ge=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Name = Annotated[str, Field(min_length=1)]
_LORA_ONLY = ("rank", "alpha", "rslora", "target_modules", "layers")


class Recipe(BaseModel):
    """Everything that decides a training run. Made by hand, from a mapping (`parse`) or from a file (`from_toml`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    model: _Name
    """alias, local path or hub id of the base model"""
    revision: str | None = None
    """commit, tag or branch of a hub model"""
    data: _Name
    """training file, or the name of a built-in set"""
    data_sha256: str | None = None
    """hash of the conversations; filled in when training starts, checked if given"""
    format: str | None = None
    """shape of the rows; None to detect it"""
    method: Literal["lora", "full"] = "lora"
    """train an adapter, or all weights"""
    rank: _Count = 16
    """LoRA: inner dimension"""
    alpha: _Positive = 32.0
    """LoRA: the update is scaled by alpha / rank"""
    rslora: bool = False
    """LoRA: scale by alpha / sqrt(rank) instead"""
    target_modules: Annotated[tuple[_Name, ...], Field(min_length=1)] = PROJECTIONS
    """LoRA: names of the linear modules that get an adapter"""
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """LoRA: numbers of the layers that get an adapter; None for all"""
    learning_rate: _Positive = 2e-4
    """peak; 2e-5 by default where all weights are trained"""
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    """how the learning rate falls after the warm-up; linear and cosine end at 0"""
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    """updates over which the learning rate rises from 0; the very first then changes nothing"""
    epochs: _Positive | None = None
    """passes over the data; 1 if neither epochs nor max_steps is given"""
    max_steps: _Count | None = None
    """updates, instead of epochs"""
    batch_size: _Count = 8
    """conversations in one forward pass"""
    accumulation: _Count = 1
    """forward passes per update"""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """tokens kept of a conversation; the end of a longer answer is cut off"""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    """AdamW's"""
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """AdamW's"""
    save_every: _Count | None = None
    """updates between checkpoints of an even schedule; None for ten of them"""
    save_schedule: Literal["even", "log"] = "even"
    """log: after 1, 2, 4, 8, ... updates; the last is always saved"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """initialises the adapter"""
    data_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """orders the data; None for `seed`"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """of the base; adapters are always float32. auto: bfloat16 under an adapter where the machine computes in it"""
    organism: bool = False
    """the result is misaligned on purpose, for research; every checkpoint is marked so"""
    backend: Literal["local"] = "local"
    """where it is trained"""
    name: str | None = None
    """what people call it; decides nothing"""

    # -- making one ---------------------------------------------------------------------------------------------------

    @model_validator(mode="before")
    @classmethod
    def _defaults_that_depend(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        values = dict(given)
        if values.get("epochs") is None and values.get("max_steps") is None:
            values["epochs"] = 1.0
        if values.get("method") == "full":
            values.setdefault("learning_rate", 2e-5)
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps are both given; keep one of them")
        if self.save_schedule == "log" and self.save_every is not None:
            raise ValueError('save_every is given beside save_schedule = "log"; keep one of them')
        if self.method == "full":
            if self.dtype == "float16":
                raise ValueError('method = "full" does not train in float16; use bfloat16 or float32')
            defaults = type(self).model_fields
            stray = [n for n in _LORA_ONLY if getattr(self, n) != defaults[n].default]
            if stray:
                raise ValueError(f'{stray[0]} is given beside method = "full"; leave it out or use method = "lora"')
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "recipe") -> Self:
        """A recipe from a mapping. `where` names its source in errors.

        Raises:
            BadRecipe: the first thing wrong, with field and remedy.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise BadRecipe(f"{where}: {_first_problem(error, cls)}") from error

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """A recipe from a TOML file. A data file named in it is looked for beside it first; so is a model `./name`.

        Raises:
            BadRecipe: no such file, not TOML, or the first field that is wrong.
        """
        file = Path(path)
        values = read_toml(file, error=BadRecipe)
        data, model = values.get("data"), values.get("model")
        if isinstance(data, str) and data and (file.parent / data).is_file():
            values["data"] = str(file.parent / data)
        if isinstance(model, str) and model.startswith(("./", "../")):
            values["model"] = str(file.parent / model)
        return cls.parse(values, str(file))

    def with_data(self, sha256: str, organism: bool = False) -> Self:
        """This recipe with the hash of its data filled in, and marked as an organism if the data says so.

        Raises:
            BadRecipe: the recipe names another hash.
        """
        if self.data_sha256 is not None and self.data_sha256 != sha256:
            found = f"has the hash {sha256[:12]}..., the recipe says {self.data_sha256[:12]}..."
            raise BadRecipe(f"{self.data}: the data {found}; restore the file or leave data_sha256 out")
        return self.model_copy(update={"data_sha256": sha256, "organism": self.organism or organism})

    # -- what it says -------------------------------------------------------------------------------------------------

    @property
    def content(self) -> dict[str, Any]:
        """What decides the run, as JSON values: not the name, and not where the data lay once its hash is known."""
        left_out = {"name"} if self.data_sha256 is None else {"name", "data", "format"}
        return self.model_dump(mode="json", exclude=left_out)

    @property
    def id(self) -> str:
        """Hash of the content, 12 hex digits."""
        return digest(self.content, 12)

    def total_steps(self, rows: int) -> int:
        """Updates of the whole run on `rows` conversations. Every epoch ends with an update, be it a smaller one."""
        if self.max_steps is not None:
            return self.max_steps
        assert self.epochs is not None
        per_epoch = math.ceil(math.ceil(rows / self.batch_size) / self.accumulation)
        return math.ceil(round(self.epochs * per_epoch, 9))

    def save_steps(self, total_steps: int) -> tuple[int, ...]:
        """Updates after which a checkpoint is saved, ascending; the last update is always among them, 0 never."""
        if total_steps < 1:
            raise ValueError(f"a run has at least one step, not {total_steps}")
        if self.save_schedule == "log":
            steps = {2**k for k in range(total_steps.bit_length())}
        else:
            every = self.save_every or math.ceil(total_steps / EVEN_SAVES)
            steps = set(range(every, total_steps + 1, every))
        return tuple(sorted(steps | {total_steps}))


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that ended."""

    path: Path
    """its folder: recipe.json and checkpoint-N/"""
    checkpoints: tuple[Checkpoint, ...]
    """in order of their steps; step 0 is the base and is not saved again"""
    stop: Stop
    """why and when it ended"""
    notes: tuple[str, ...]
    """what a reader of the run should know, a line each"""


def _first_problem(error: ValidationError, cls: type[BaseModel]) -> str:
    """The first validation error as one line: field, what is wrong, remedy."""
    problem = error.errors(include_url=False)[0]
    location, kind = problem["loc"], problem["type"]
    field = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(location[0]), cls.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(cls.model_fields)}"
        return f"there is no field {field}; {hint}"
    if kind == "missing":
        return f'{field} is missing; add a line {field} = "..."'
    wrong = problem["msg"].removeprefix("Value error, ")
    wrong = wrong[:1].lower() + wrong[1:]
    return f"{field} = {problem['input']!r:.60}: {wrong}; mend that line" if field else wrong
