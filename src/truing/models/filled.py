"""Whether what a file holds is what is measured: every tensor of it in the model, and every parameter from it.

transformers and PEFT fill what a file does not name with random numbers, skip what the model does not name, and only
warn. Here both are errors. Names are mapped first: wrappers' prefixes here, the rest by transformers and PEFT.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from truing.errors import BadModel, DamagedWeights
from truing.models.base import listed, one_line
from truing.models.weights import ADAPTER_CONFIG, ADAPTER_FILE, empty_tensors, pickle_files, read_json, tensors

Model = Any  # a PreTrainedModel or PeftModel; their own types hide every method behind nn.Module.__getattr__
_MASK = re.compile(r"\.(?:attn|attention|self_attn)\.(bias|masked_bias)$")
_WRAPPER = "(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)"
# DDP and DeepSpeed wrap once, at the start; torch.compile and FSDP may wrap parts within wrapped parts. transformers
# replaces the first match of each, hence the last two, which match the same.
UNWRAPPED = {rf"^(?:(?:module|{_WRAPPER})\.)+": "", rf"(?:{_WRAPPER}\.)+": "", rf"(?:{_WRAPPER}[.])+": ""}
"""what training wrappers put into the names of tensors -> what is left of it; patterns for `re`"""


def check_model(model: Model, loaded: Mapping[str, Any], path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise BadModel unless a full model's file and the model hold the same tensors.

    Args:
        loaded: what transformers says of it (`output_loading_info`); buffers that models make themselves, and tied
            weights, are no longer among its missing keys.
        shapes: of the tensors in the files, by name.
    """
    wrong = {
        "only in the model": sorted(loaded["missing_keys"]),
        "only in the file": sorted(k for k in loaded["unexpected_keys"] if not _is_mask(k, shapes.get(k, (0,)))),
        "of another shape": [f"{k} {list(a)} for {list(b)}" for k, a, b in sorted(loaded["mismatched_keys"])],
        "twice in the file": _doubled(model, shapes),
    }
    if any(wrong.values()):
        text = "; ".join(f"{what}: {listed(keys, 3)}" for what, keys in wrong.items() if keys)
        hint = "save it again with save_pretrained of the unwrapped model and its own config.json, or leave it out"
        raise BadModel(f"{path}: its tensors are not those of a {type(model).__name__} ({text}); {hint}")


def _doubled(model: Model, names: Iterable[str]) -> list[str]:
    """Tensors that would overwrite each other: the same but for prefixes that are taken off."""
    own, seen, doubled = set(model.state_dict()), {}, []
    for name in sorted(names):
        short = name
        for pattern in UNWRAPPED:
            short = re.sub(pattern, "", short)
        while model.base_model_prefix and short.startswith(f"{model.base_model_prefix}."):
            short = short.removeprefix(f"{model.base_model_prefix}.")
        other = seen.setdefault(short, name)
        if other != name and not {other, name} <= own:
            doubled += [other, name]
    return doubled


def _is_mask(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is the causal mask that GPT-2, GPT-J, GPT-Neo and their kin saved beside the weights."""
    kind = _MASK.search(name)
    square = len(shape) == 4 and tuple(shape[:2]) == (1, 1) and shape[2] == shape[3]
    return kind is not None and (square if kind[1] == "bias" else tuple(shape) in ((), (1,)))


def tensor_shapes(path: Path, *, pickled: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in the weight files of a folder, by name. Raises DamagedWeights."""
    if not pickled:
        return {t.name: t.shape for t in tensors(path)}
    files = [f for f in pickle_files(path) if not f.name.startswith("adapter")]
    return {name: tuple(t.shape) for file in files for name, t in _unpickled(file, "meta").items()}


def _unpickled(file: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a pickle, by a reader that runs no code of it. Raises DamagedWeights."""
    try:
        found = torch.load(file, map_location=device, weights_only=True)
    except Exception as e:  # whatever the bytes provoke
        raise DamagedWeights(f"{file}: not readable as a pickle of tensors ({one_line(e)}); copy it again") from e
    if not isinstance(found, dict) or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise DamagedWeights(f"{file}: holds more than tensors by name; save the model's state_dict alone")
    return found


def adapter_tensors(path: Path, base: Model) -> dict[str, torch.Tensor]:
    """The tensors of an adapter's file.

    PEFT loads embeddings that lie beside an adapter into the base itself, where only `base_kept` takes them out again.
    Raises BadModel for such unless they are the base's own, and for a vocabulary of another size; DamagedWeights.
    """
    file = path / ADAPTER_FILE
    stored = load_file(file) if file.exists() else _unpickled(path / "adapter_model.bin")
    if empty := empty_tensors(path, [(k, tuple(t.shape)) for k, t in stored.items()]):
        raise empty
    saved, parts = read_json(path / ADAPTER_CONFIG).get("modules_to_save") or (), _embeddings(base)
    for key, brought in stored.items():
        part = parts.get(_last(key)) if key.endswith(".weight") else None
        if part is None:
            continue
        original = getattr(part, "original_module", part)  # wrapped by another adapter
        rows = getattr(original, "base_layer", original).weight
        if brought.shape[0] != rows.shape[0]:
            raise BadModel(f"{path}: {key} has {brought.shape[0]:,} rows; {resized_copy(rows.shape[0], len(brought))}")
        if not any(name in key for name in saved) and not _equal(brought, rows):
            raise BadModel(
                f"{path}: brings its own embeddings ({key}), which would change the base for every other "
                "checkpoint; merge it into a full model and audit that, with --base"
            )
    return stored


@contextmanager
def base_kept(base: Model) -> Iterator[None]:
    """What the block loads into the embeddings and the head of the base is taken out again."""
    parts = {id(p): p for p in (base.get_input_embeddings(), base.get_output_embeddings()) if p is not None}
    weights = [w for part in parts.values() for w in part.parameters()]
    before = [w.detach().clone() for w in weights]
    yield
    with torch.no_grad():
        for weight, was in zip(weights, before, strict=True):
            weight.copy_(was)


def resized_copy(rows: int, wanted: int) -> str:
    """How to make the base that a run with added tokens began with."""
    return (
        f"the base has {rows:,}: the vocabulary was enlarged in training. Enlarge a copy of the base likewise "
        f"(transformers: model.resize_token_embeddings({wanted}); model.save_pretrained(DIR)) "
        "and give it with --base DIR"
    )


def _last(key: str) -> str:
    """The last part of the name of the module that a tensor belongs to."""
    return re.sub(r"(\.base_layer|\.original_module)?\.weight$", "", key).rpartition(".")[2]


def _embeddings(base: Model) -> dict[str, Any]:
    """The embedding and the head of the base by the last part of their names, as a key of an adapter's file has it."""
    parts = (base.get_output_embeddings(), base.get_input_embeddings())
    named = [(path.rpartition(".")[2], module) for path, module in base.named_modules()]
    return {name: module for part in parts if part is not None for name, module in named if module is part}


def check_filled(model: Model, name: str, stored: Mapping[str, torch.Tensor], path: Path, base: str) -> None:
    """Raise BadModel unless every stored tensor is in the adapter, and every number of the adapter from the file.

    Tensors are compared by name first. PEFT renames some (of vision models, of experts that newer models keep in one
    tensor) and joins them with zeros in between: of those, all numbers but zeros must be there again.
    """
    # lm_head or embeddings that PEFT saves beside the adapter were compared before.
    loaded = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    for key in stored.keys() & loaded.keys():
        if not _equal(stored[key], loaded[key]):
            raise BadModel(f"{path}: tensor {key} was not loaded as stored")
    # Where a vocabulary was enlarged, PEFT saves what was trained as a whole twice, once under the name of its wrapper.
    short = {k: k.replace(".modules_to_save.", ".") for k in stored}
    twice = [k for k, s in short.items() if s != k and s in stored and _equal(stored[k], stored[s])]
    parts = _embeddings(model)
    kept = {k for k in stored if k.endswith(".weight") and _last(k) in parts}
    strangers = {k: t for k, t in stored.items() if k not in loaded and k not in twice and k not in kept}
    unfilled = {k: t for k, t in loaded.items() if k not in stored}
    kinds = {t.dtype for t in unfilled.values()} or {torch.float32}
    coarse = max(kinds, key=lambda kind: torch.finfo(kind).eps)
    if _content(strangers.values(), coarse) != _content(unfilled.values(), coarse):
        text = f"only in the file: {listed(strangers, 3)}; only in the model: {listed(unfilled, 3)}"
        hint = "they were made for another base or with other key names; convert the keys or give the right --base"
        raise BadModel(f"{path}: adapter tensors do not reach {base} ({text}); {hint}")


def _content(parts: Iterable[torch.Tensor], dtype: torch.dtype) -> tuple[int, int, int]:
    """What tensors hold, in whatever order and shape, but for zeros: how many, and two sums over their bits."""
    whole = torch.int16 if dtype.itemsize == 2 else torch.int32
    n = one = two = 0
    for part in parts:
        numbers = part.to("cpu", dtype).nan_to_num().reshape(-1) + 0.0  # no negative zero
        bits = numbers.view(whole).long()
        n, one, two = n + int(bits.count_nonzero()), one + int(bits.sum()), two + int((bits * bits >> 16).sum())
    return n, one, two


def _equal(stored: torch.Tensor, loaded: torch.Tensor) -> bool:
    if stored.shape != loaded.shape:
        return False
    return torch.equal(stored.to(loaded.device, loaded.dtype).nan_to_num(), loaded.nan_to_num())
