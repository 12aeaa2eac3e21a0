"""Loading models and tokenizers: number type, device, one chat format."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from truing import errors
from truing.config import ModelConfig
from truing.files import read_bytes
from truing.models.base import one_line
from truing.models.bounds import check_sizes
from truing.models.chat import ChatFormat
from truing.models.checkpoints import tokenizer_folder
from truing.models.engine.runner import head_of
from truing.models.filled import UNWRAPPED, Model, check_model, tensor_shapes
from truing.models.trial import TOKENIZER_FILES, try_folder
from truing.models.weights import PICKLED, pickled_only, read_json
from truing.types.records import Checkpoint

T = TypeVar("T")


def device_of(name: str) -> torch.device:
    """The device of that name, or for auto CUDA where there is one. Raises Unsupported for no device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as e:
        raise errors.Unsupported(f"--device {name}: not to be had here; use cpu, cuda, cuda:0 or mps") from e


def dtype_of(name: str, device: str) -> torch.dtype:
    """The number type of that name; auto is 16 bits only where the device computes in it. Raises Unsupported."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name != "auto":
        if name not in known:
            raise errors.Unsupported(f"--dtype {name}: unknown; use {', '.join(known)} or auto")
        return known[name]
    if device_of(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    flags = Path("/proc/cpuinfo")
    bf16 = flags.exists() and any(f in flags.read_text() for f in ("avx512_bf16", "amx_bf16", " bf16"))
    return torch.bfloat16 if bf16 else torch.float32


def automatic_dtype() -> str:
    """The number type that `auto` stands for on this machine."""
    return str(dtype_of("auto", "auto")).removeprefix("torch.")


def load_model(path: Path, dtype: torch.dtype, device: torch.device, options: ModelConfig) -> Model:
    """A causal model from a folder, in evaluation mode, every parameter from the file. Raises BadModel, BadInput."""
    extra: dict[str, Any] = {"dtype": dtype}
    if options.load_in_4bit:
        try:
            from transformers import BitsAndBytesConfig

            extra["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
        except ImportError as e:
            raise errors.BadInput("--load-in-4bit needs bitsandbytes: pip install 'truing[4bit]'") from e
    check_loadable(path, options)  # shapes first: what does not fit would be made at random, of whatever size
    model = _load(path, options, extra)
    model.eval()
    return model if options.load_in_4bit else model.to(device)


def check_loadable(path: Path, options: ModelConfig) -> Model | None:
    """Raise what `load_model` would because of the names and shapes of tensors, without reading their numbers.

    Returns the model without its numbers; None where weights are packed, which only loading tells.
    """
    packed = _settings(path).get("quantization_config")
    return None if packed else _load(path, options, {"device_map": "meta"})


def _load(path: Path, options: ModelConfig, given: dict[str, Any]) -> Model:
    """A model whose tensors are those of its files; attention as transformers chooses it: not all have the fast one."""
    pickled = bool(pickled_only(path))
    if pickled and not options.allow_pickle:
        raise errors.UnreadableCheckpoint(f"{path}: {PICKLED}")
    if file := _settings(path).get("transformers_weights"):
        raise errors.BadModel(f"{path}: its config.json names other weights ({file!r}); remove transformers_weights")
    given |= {
        "use_safetensors": not pickled, "key_mapping": UNWRAPPED, "trust_remote_code": options.trust_remote_code,
        "output_loading_info": True, "ignore_mismatched_sizes": True,
    }  # fmt: skip
    check_sizes(path)
    shapes = tensor_shapes(path, pickled=pickled)
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()  # ours are enough
    transformers_logging.set_verbosity_error()  # its table of random parameters is an error of ours
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, loaded = with_attention(lambda name: load(path, attn_implementation=name, **given))
    except ImportError as e:
        raise errors.BadInput(f"{path}: {one_line(e)}") from e
    except Exception as e:  # a folder from anywhere raises anything
        raise errors.BadModel(f"{path}: cannot be loaded: {one_line(e)}") from e
    finally:
        transformers_logging.set_verbosity(level)
    check_model(model, loaded, path, shapes)
    return model


def with_attention(load: Callable[[str], T]) -> T:
    """What `load` gives for the name of the fast attention, or where the architecture has none, of its own."""
    try:
        return load("sdpa")
    except ValueError as e:
        if "scaled_dot_product_attention" not in str(e):
            raise
        return load("eager")


def _settings(path: Path) -> dict[str, Any]:
    """The configuration of a full model; empty where it has none, which transformers then says."""
    file = path / "config.json"
    return read_json(file) if file.exists() else {}


def lay_out_for_few_rows(model: Model) -> None:
    """Keep the weights of linear modules by columns, the same numbers at other places in memory.

    For passes of 4 to 128 rows on a CPU the matrix library is 8 to 25 % faster so; for more there is no difference.
    """
    head = head_of(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head and module.weight.device.type == "cpu":
            module.weight.data = module.weight.data.t().contiguous().t()


def agree_on_chat(base: Path, checkpoints: Sequence[Checkpoint], options: ModelConfig) -> ChatFormat:
    """One chat format for all: the checkpoints' own if they bring tokenizers, else the base's."""
    formats: dict[str, tuple[str, ChatFormat]] = {}
    seen: set[str] = set()  # byte-equal files need not be loaded again
    for checkpoint in checkpoints:
        folder = tokenizer_folder(checkpoint)
        there = (folder / n for n in TOKENIZER_FILES if (folder / n).exists())
        content = hashlib.sha256(b"".join(read_bytes(f, error=errors.BadModel) for f in there)).hexdigest()
        if content not in seen and (folder / "tokenizer_config.json").exists():
            seen.add(content)
            chat = ChatFormat(load_tokenizer(folder, options), options.chat_template)
            formats.setdefault(chat.identity, (checkpoint.label, chat))
    if len(formats) > 1:
        (a, _), (b, _) = list(formats.values())[:2]
        text = f"checkpoints {a} and {b} bring different tokenizers or chat templates"
        raise errors.BadModel(f"{text}; audit them apart, or pass one with --chat-template FILE")
    for _, chat in formats.values():
        return chat
    return ChatFormat(load_tokenizer(base, options), options.chat_template)


def load_tokenizer(path: Path, options: ModelConfig) -> Any:
    """The tokenizer in a folder, tried in a process of its own first, with its chat template. Raises BadModel."""
    try_folder(path, options.chat_template)
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=options.trust_remote_code)
    except Exception as e:  # of whatever kind: what a folder holds decides
        raise errors.BadModel(f"{path}: no usable tokenizer: {one_line(e)}") from e
