"""Weight files on disk, read without torch: which they are, whether they are whole, what they hold, and their hash.

A safetensors file is 8 bytes of header length, a JSON header (name -> dtype, shape, offsets) and the tensors' bytes.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from truing.errors import DamagedWeights, UnreadableCheckpoint
from truing.files import is_file, parse_json
from truing.models.cache import remembered
from truing.models.config_files import checked, read_config
from truing.types.hashing import digest, file_digest
from truing.types.records import Kind

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
MODEL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_PATTERNS = ("adapter_model*.bin", "pytorch_model*.bin", "model*.bin")

PICKLED = (
    "weights exist only as a pickle, which can run code when loaded; "
    "save them as safetensors, or pass --allow-pickle if you trust the source"
)
_CHUNK = 4 << 20
_HEADER_LIMIT = 32 << 20  # a header takes about 120 bytes a tensor
# Fields of adapter_config.json that say where an adapter came from or how it was trained, not what it computes.
_NOT_FUNCTION = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}
    | {"init_lora_weights", "init_weights", "corda_config", "eva_config", "loftq_config", "lora_ga_config"}
    | {"lora_dropout", "megatron_config", "megatron_core", "runtime_config", "ephemeral_gpu_offload"}
)
_SETS = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")


class HalfWritten(DamagedWeights):
    """A checkpoint whose configuration is there and whose weights are not (yet)."""


_Size = Annotated[int, Field(ge=0, lt=1 << 62)]


class _Entry(BaseModel):
    """One tensor in a safetensors header."""

    model_config = ConfigDict(strict=True)

    dtype: Annotated[str, Field(max_length=16)]
    shape: list[_Size]
    data_offsets: Annotated[list[_Size], Field(min_length=2, max_length=2)]


def _without_metadata(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "__metadata__"} if isinstance(value, dict) else value


_HEADER = TypeAdapter(Annotated[dict[str, _Entry], BeforeValidator(_without_metadata)])
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8}
_BITS |= {f"{kind}{bits}": bits for kind in "FIU" for bits in (16, 32, 64)} | {"BF16": 16, "C64": 64}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a safetensors file, by its header."""

    file: Path  # the file
    name: str  # key in the file
    dtype: str  # safetensors' name of the number type, e.g. BF16
    shape: tuple[int, ...]  # dimensions
    start: int  # first byte, counted from the start of the file
    size: int  # length in bytes


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a configuration of a checkpoint; DamagedWeights if it is none (see `read_config`)."""
    return read_config(path)


def header(file: Path) -> list[Tensor]:
    """All tensors of a safetensors file, in file order. Raises DamagedWeights if it is truncated or no such file."""
    remedy = "copy it again, or remove this checkpoint"
    _refuse_no_file(file)
    with open(file, "rb") as f:
        size, length = os.fstat(f.fileno()).st_size, int.from_bytes(f.read(8), "little")
        if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
            raise DamagedWeights(f"{file}: no whole safetensors header in its {size:,} bytes; {remedy}")
        raw = f.read(length)
    try:
        entries = checked(_HEADER, parse_json(raw))
    except ValueError as e:
        raise DamagedWeights(f"{file}: not readable as safetensors ({e}); {remedy}") from e
    found = []
    for name, e in entries.items():
        start, end = e.data_offsets
        found.append(Tensor(file, name, e.dtype, tuple(e.shape), 8 + length + start, end - start))
    found.sort(key=lambda t: (t.start, t.size))
    end = max((t.start + t.size for t in found), default=0)
    if end != size:
        state = "truncated" if size < end else "longer than its header says" if found else "holds no tensors"
        raise DamagedWeights(f"{file}: {state} ({size:,} bytes instead of {end:,}); {remedy}")
    at = 8 + length
    for t in found:
        bits = _BITS.get(t.dtype)
        if t.start != at or (bits is not None and prod(t.shape) * bits != 8 * t.size):
            raise DamagedWeights(f"{file}: tensor {t.name:.80} is not where or what its header says; {remedy}")
        at += t.size
    return found


def _refuse_no_file(file: Path) -> None:
    """Raise DamagedWeights unless there is a regular file, or a link to one: a pipe or a device has no end."""
    if not is_file(file):
        what = "is no regular file" if os.path.lexists(file) else "is missing"
        raise DamagedWeights(f"{file}: {what}; copy it again, or remove this checkpoint")


def sharded_state(path: Path) -> str | None:
    """The command that converts DeepSpeed or FSDP shards found in a folder; None if there are none."""
    names = sorted(p.name for p in path.iterdir())
    inner = [f.name for n in names if n.startswith("global_step") and (path / n).is_dir() for f in (path / n).iterdir()]
    deepspeed = any(n.startswith("mp_rank_") or n.endswith("_optim_states.pt") for n in (*names, *inner))
    if deepspeed or "zero_to_fp32.py" in names:
        return f"DeepSpeed shards, convert them with: python {path}/zero_to_fp32.py {path} OUT --safe_serialization"
    if any(n.startswith("model_world_size_") for n in names):
        command = "python -m verl.model_merger merge --backend fsdp"
        return f"verl's shards, merge them with: {command} --local_dir {path} --target_dir {path}/huggingface"
    fsdp = [path / n for n in names if n.startswith("pytorch_model_fsdp_")]
    if fsdp or any(n.endswith(".distcp") for n in names):
        return f"FSDP shards, convert them with: accelerate merge-weights {(*fsdp, path)[0]} OUT"
    return None


def classify(path: Path, allow_pickle: bool = False) -> Kind | None:
    """What kind of weights a folder holds; None if it holds no model at all.

    Raises HalfWritten (configuration without weights), UnreadableCheckpoint. Training state beside
    the weights (optimizer.pt, training_args.bin, ...) is not looked at.
    """
    adapter, config = (path / ADAPTER_CONFIG).exists(), (path / "config.json").exists()
    if adapter and (path / ADAPTER_FILE).exists():
        return Kind.ADAPTER
    full = not adapter and ((path / MODEL_FILE).exists() or (path / INDEX_FILE).exists())
    if full and config:
        return Kind.FULL
    if full:
        raise HalfWritten(f"{path}: has weights but no config.json; save or copy the checkpoint again")
    if command := sharded_state(path):
        raise UnreadableCheckpoint(f"{path}: holds only {command}")
    if pickles := pickle_files(path):
        if not allow_pickle:
            raise UnreadableCheckpoint(f"{pickles[0]}: {PICKLED}")
        return Kind.ADAPTER if adapter else Kind.FULL
    if adapter or config or any(path.glob("*.safetensors")):
        wanted = ADAPTER_FILE if adapter else f"{MODEL_FILE} (or {INDEX_FILE})"
        raise HalfWritten(f"{path}: has a part of a model but no {wanted}; wait until it is saved, or copy it again")
    return None


def pickle_files(path: Path) -> list[Path]:
    """Pickled weights in a folder, sorted by name; regular files alone."""
    return sorted({file for pattern in PICKLE_PATTERNS for file in path.glob(pattern) if is_file(file)})


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that make up the weights of a folder; every shard named by an index must exist."""
    for name in (ADAPTER_FILE, MODEL_FILE):
        if (path / name).exists() and (name == MODEL_FILE or (path / ADAPTER_CONFIG).exists()):
            return [path / name]
    if not (path / INDEX_FILE).exists():
        return sorted(path.glob("*.safetensors"))
    shards: dict[str, str] = read_json(path / INDEX_FILE)["weight_map"]
    files = sorted({path / name for name in shards.values()})
    for file in files:
        if not file.exists():
            raise DamagedWeights(f"{file}: named in {INDEX_FILE} but missing; copy it, or remove this checkpoint")
    return files


def pickled_only(path: Path) -> list[Path]:
    """The pickled weights of a folder that holds no others."""
    return [] if weight_files(path) else pickle_files(path)


def tensors(path: Path) -> list[Tensor]:
    """All tensors of a folder, sorted by name. Raises DamagedWeights if there are none, or two of one name."""
    found = sorted((t for file in weight_files(path) for t in header(file)), key=lambda t: t.name)
    if not found:
        raise DamagedWeights(f"{path}: holds no safetensors weights; save or copy the checkpoint again")
    for one, two in pairwise(found):
        if one.name == two.name:
            raise DamagedWeights(f"{two.file}: tensor {one.name} is also in {one.file.name}; save the checkpoint again")
    return found


def check_weights(path: Path) -> None:
    """Raise DamagedWeights unless every weight file of a folder is whole: reads headers and lengths only."""
    pickles = pickled_only(path)
    for file in pickles:
        if file.stat().st_size == 0:
            raise DamagedWeights(f"{file}: is empty; copy it again, or remove this checkpoint")
    if not pickles and (empty := empty_tensors(path, [(t.name, t.shape) for t in tensors(path)])):
        raise empty


def empty_tensors(path: Path, found: Sequence[tuple[str, tuple[int, ...]]]) -> DamagedWeights | None:
    """The error for weights whose tensors are without numbers, given their names and shapes; None if they have some.

    A full model may hold a few that are empty by design.
    """
    empty = [name for name, shape in found if 0 in shape]
    if not empty or (len(empty) * 2 < len(found) and not (path / ADAPTER_CONFIG).exists()):
        return None
    shards = any((p / "zero_to_fp32.py").exists() for p in (path, path.parent))
    recover = f"recover them: {sharded_state(path) or 'with zero_to_fp32.py'}" if shards else "train it again so"
    return DamagedWeights(
        f"{path}: {len(empty)} of {len(found)} tensors are empty ({empty[0]} and others): DeepSpeed ZeRO-3 saves "
        f"them so unless stage3_gather_16bit_weights_on_model_save is true; {recover}, or remove this checkpoint"
    )


def embedding_rows(path: Path) -> int:
    """How many tokens a checkpoint's own embeddings or head know; 0 if it holds none."""
    names = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight")
    found = [] if pickled_only(path) else tensors(path)
    return max((t.shape[0] for t in found if t.name.endswith(names) and t.shape), default=0)


def weights_size(path: Path) -> int:
    """Bytes that `weights_hash` reads; 0 for what it would refuse."""
    try:
        return sum(file.stat().st_size for file in weight_files(path) or pickle_files(path))
    except (OSError, DamagedWeights):
        return 0


def weights_hash(path: Path, read: Callable[[int], object] = lambda _: None) -> str:
    """Hash (32 hex digits) of a model or adapter: names, number types, shapes and bytes of all its tensors.

    Independent of how the tensors are split into files, of their order and of metadata. For an adapter also over the
    fields of its configuration that change what it computes (rank, alpha, target modules, ...). Pickled weights are
    never opened: the bytes of their files are hashed. Large files are read once as long as nobody touches them
    (`cache.remembered`); `read` is told of every so many bytes.
    """
    config = path / ADAPTER_CONFIG

    def make() -> str:
        content: list[Any] = [(file.name, file_digest(file)) for file in pickled_only(path)]
        content = content or [(t.name, t.dtype, t.shape, _bytes_digest(t, read)) for t in tensors(path)]
        return digest([content, adapter_function(read_json(config)) if config.exists() else None], 32)

    beside = [file for file in (config, path / INDEX_FILE) if file.exists()]
    return remembered([*(weight_files(path) or pickle_files(path)), *beside], "weights", make)


def check_unchanged(path: Path, weights: str) -> None:
    """Raise DamagedWeights unless the files still hold what was hashed: a run in progress overwrites its paths."""
    try:
        now = weights_hash(path)
    except OSError as e:
        raise DamagedWeights(f"{path}: is gone since the audit began; restore it, or leave it out") from e
    if now != weights:
        raise DamagedWeights(f"{path}: its weights changed since the audit began; repeat the command")


def adapter_function(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of an adapter's configuration that change what it computes, in one canonical form.

    Unset fields are left out, so that a library version which adds fields does not change the hash.
    """
    kept = {k: v for k, v in config.items() if k not in _NOT_FUNCTION and v not in (None, False, [], {}, "none")}
    kept |= {k: sorted(kept[k]) for k in _SETS if isinstance(kept.get(k), list)}
    return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in kept.items()}


def _bytes_digest(tensor: Tensor, read: Callable[[int], object]) -> str:
    state, left = hashlib.sha256(), tensor.size
    with open(tensor.file, "rb") as f:
        f.seek(tensor.start)
        while left:
            data = f.read(min(left, _CHUNK))
            if not data:
                raise DamagedWeights(f"{tensor.file}: ended while it was read; is it still being written?")
            left -= len(data)
            state.update(data)
            read(len(data))
    return state.hexdigest()
