"""Loading models, tokenizers and adapters: number type, device, one chat format, and what an adapter brought."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from truing import errors
from truing.config import ModelConfig
from truing.files import read_bytes
from truing.models.base import listed, one_line
from truing.models.chat import ChatFormat
from truing.models.checkpoints import checkpoint_path
from truing.models.engine.runner import head_of
from truing.models.trial import TOKENIZER_FILES, try_folder
from truing.models.weights import ADAPTER_CONFIG, ADAPTER_FILE, read_json
from truing.types.records import Checkpoint

Model = Any  # a PreTrainedModel or PeftModel; their own types hide every method behind nn.Module.__getattr__


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
    """A causal model from a folder, in evaluation mode, safetensors only. Raises BadModel, BadInput."""
    extra: dict[str, Any] = {}
    if options.load_in_4bit:
        try:
            from transformers import BitsAndBytesConfig

            extra["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
        except ImportError as e:
            raise errors.BadInput("--load-in-4bit needs bitsandbytes: pip install 'truing[4bit]'") from e
    transformers_logging.disable_progress_bar()  # ours are enough
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation="sdpa", use_safetensors=True,
            trust_remote_code=options.trust_remote_code, **extra,
        )  # fmt: skip
    except ImportError as e:
        raise errors.BadInput(f"{path}: {one_line(e)}") from e
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise errors.BadModel(f"{path}: cannot be loaded: {one_line(e)}") from e
    model.eval()
    return model if options.load_in_4bit else model.to(device)


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
        folder = checkpoint_path(checkpoint)
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


def adapter_tensors(path: Path, base: Model) -> dict[str, torch.Tensor] | None:
    """The tensors of an adapter's file; None for pickled ones, which the user allowed and nothing here opens.

    PEFT loads embeddings that lie beside an adapter into the base itself, where nothing takes them out again. Raises
    BadModel for such.
    """
    file = path / ADAPTER_FILE
    if not file.exists():
        return None
    stored, saved = load_file(file), read_json(path / ADAPTER_CONFIG).get("modules_to_save") or ()
    for key, brought in stored.items():
        if "lora_" in key or not _is_embedding(key) or any(name in key for name in saved):
            continue
        part = base.get_output_embeddings() if "lm_head" in key else base.get_input_embeddings()
        if not _equal(brought, getattr(part, "base_layer", part).weight):
            raise errors.BadModel(
                f"{path}: brings its own embeddings ({key}), which would change the base for every other "
                "checkpoint; merge it into a full model and audit that, with --base"
            )
    return stored


def check_filled(model: Model, name: str, stored: dict[str, torch.Tensor] | None, path: Path, base: str) -> None:
    """Raise BadModel unless every stored tensor is in the model, equal, and none of the model's was left unfilled."""
    if stored is None:
        return
    # lm_head or embeddings that PEFT saves beside the adapter are compared like all others.
    loaded = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    strangers = [k for k in stored if k not in loaded and not _is_embedding(k)]
    unfilled = [k for k in loaded if k not in stored]
    if strangers or unfilled:
        text = f"only in the file: {listed(strangers, 3)}; only in the model: {listed(unfilled, 3)}"
        hint = "they were made for another base or with other key names; convert the keys or give the right --base"
        raise errors.BadModel(f"{path}: adapter tensors do not reach {base} ({text}); {hint}")
    for key in stored.keys() & loaded.keys():
        if not _equal(stored[key], loaded[key]):
            raise errors.BadModel(f"{path}: tensor {key} was not loaded as stored")


def _is_embedding(key: str) -> bool:
    return "embed_tokens" in key or "lm_head" in key


def _equal(stored: torch.Tensor, loaded: torch.Tensor) -> bool:
    if stored.shape != loaded.shape:
        return False
    return torch.equal(stored.to(loaded.dtype).nan_to_num(), loaded.cpu().nan_to_num())
