"""No model is larger than its files say: the numbers in a folder's configurations are held to its tensors.

A layer count or a rank from anywhere decides how much is built before a single tensor is compared.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from truing.errors import BadModel
from truing.models.weights import ADAPTER_CONFIG, Tensor, pickled_only, read_json, weight_files
from truing.models.weights import header as tensors_of

_COUNT = re.compile(
    r"(n|num)_.*(layer|block|depth|stage|expert|head|label|group|token|codebook)s?.*|(.*_)?(layers|depths?)"
)
_SIZE = re.compile(r".*(hidden|_size|_dim|_embd|_inner|width|ffn|d_model|d_ff|d_kv|intermediate).*")
_ANY = re.compile(r".*(theta|_ids?|_tokens?|seed|length|position|ctx|window|base|period|params)s?.*")
COUNTS, SIZES, OTHERS = 4096, 1 << 20, 1 << 31
"""what a count, a size and any other number may be whatever the tensors are"""


def check_sizes(folder: Path) -> None:
    """Raise BadModel where a configuration asks for more than the folder's tensors can fill; reads headers alone.

    DamagedWeights where a file is none.
    """
    model, adapter = folder / "config.json", folder / ADAPTER_CONFIG
    there = [file for file in (model, adapter) if file.exists()]
    if not there or pickled_only(folder):
        return
    tensors = [t for file in weight_files(folder) for t in tensors_of(file)]
    if model in there and adapter not in there:
        _check_model(model, tensors)
    if adapter in there:
        _check_adapter(adapter, tensors)


def _check_model(file: Path, tensors: list[Tensor]) -> None:
    largest = max((t.size for t in tensors), default=0)  # bytes, so no fewer than its numbers but for packed ones
    for name, value in _numbers(read_json(file)):
        count, size = _COUNT.fullmatch(name), _SIZE.fullmatch(name)
        most = max(COUNTS, len(tensors)) if count else max(SIZES, 2 * largest) if size else OTHERS
        if value > most and (count or size or not _ANY.fullmatch(name)):
            raise BadModel(
                f"{file}: {name} is {value:,}, more than a model of {len(tensors):,} tensors can have ({most:,}); "
                "put the config.json of these weights in its place"
            )


def _check_adapter(file: Path, tensors: list[Tensor]) -> None:
    config = read_json(file)
    down = [t.shape[0] for t in tensors if "lora_" in t.name and "_A" in t.name and t.shape]
    most = max(down or [size for t in tensors for size in t.shape], default=0)
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    repeated = sum(abs(b - a) for a, b in (pair for pair in config.get("layer_replication") or () if len(pair) == 2))
    largest = max((rank for rank in ranks if isinstance(rank, int)), default=0)
    if tensors and (largest > most or repeated > max(COUNTS, len(tensors))):
        what = f"rank {largest:,}" if largest > most else f"layer_replication makes {repeated:,} layers"
        raise BadModel(f"{file}: {what}, and its tensors go to {most:,}; put the configuration of these weights there")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number in a configuration with the name it lies under."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
        yield name, int(abs(value))
