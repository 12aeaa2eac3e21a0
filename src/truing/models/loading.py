"""Loading models and tokenizers: number type, device, one chat format for a base and its checkpoints."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from truing import errors
from truing.config import ModelConfig
from truing.models.chat import ChatFormat
from truing.models.checkpoints import checkpoint_path
from truing.types.records import Checkpoint

Model = Any
"""a PreTrainedModel or PeftModel; their own types hide every method behind nn.Module.__getattr__"""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "vocab.json")


def device_of(name: str) -> torch.device:
    """The device of that name, or for auto CUDA where there is one. Raises Unsupported for no device."""
    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as e:
            raise errors.Unsupported(f"--device {name}: not to be had here; use cpu, cuda, cuda:0 or mps") from e
        return device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_of(name: str, device: str) -> torch.dtype:
    """The number type of that name; auto is 16 bits only where the device computes in it. Raises Unsupported."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name != "auto":
        if name not in known:
            raise errors.Unsupported(f"--dtype {name}: unknown; use {', '.join(known)} or auto")
        return known[name]
    if device_of(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if _cpu_has_bf16() else torch.float32


def automatic_dtype() -> str:
    """The number type that `auto` stands for on this machine."""
    return str(dtype_of("auto", "auto")).removeprefix("torch.")


def _cpu_has_bf16() -> bool:
    flags = Path("/proc/cpuinfo")
    return flags.exists() and any(f in flags.read_text() for f in ("avx512_bf16", "amx_bf16", " bf16"))


def load_model(path: Path, dtype: torch.dtype, device: torch.device, options: ModelConfig) -> Model:
    """A causal model from a folder, in evaluation mode, safetensors only. Raises ModelUnavailable, MissingExtra."""
    extra: dict[str, Any] = {}
    if options.load_in_4bit:
        try:
            from transformers import BitsAndBytesConfig

            extra["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
        except ImportError as e:
            raise errors.MissingExtra("--load-in-4bit needs bitsandbytes: pip install 'truing[4bit]'") from e
    transformers_logging.disable_progress_bar()  # ours are enough
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=options.trust_remote_code,
            **extra,
        )
    except ImportError as e:
        raise errors.MissingExtra(f"{path}: {' '.join(str(e).split())[:200]}") from e
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise errors.ModelUnavailable(f"{path}: cannot be loaded: {' '.join(str(e).split())[:300]}") from e
    model.eval()
    return model if options.load_in_4bit else model.to(device)


def head_of(model: Model) -> torch.nn.Module:
    """The module that makes logits, with or without PEFT around the model. Raises Unsupported where there is none."""
    inner: Model = model.get_base_model() if isinstance(model, PeftModel) else model
    head = inner.get_output_embeddings()
    if head is None:
        raise errors.Unsupported(f"{type(inner).__name__} has no language-model head; a causal model is needed")
    return head


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
    seen: dict[str, str] = {}
    for checkpoint in checkpoints:
        folder = checkpoint_path(checkpoint)
        files = [f for f in (folder / n for n in _TOKENIZER_FILES) if f.exists()]
        if not files or not (folder / "tokenizer_config.json").exists():
            continue
        content = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
        if content in seen:
            continue  # byte-equal files: no need to load them again
        chat = ChatFormat(load_tokenizer(folder, options), options.chat_template)
        seen[content] = chat.identity
        formats.setdefault(chat.identity, (checkpoint.label, chat))
    if len(formats) > 1:
        (a, _), (b, _) = list(formats.values())[:2]
        text = f"checkpoints {a} and {b} bring different tokenizers or chat templates"
        raise errors.TemplateMismatch(f"{text}; audit them apart, or pass one with --chat-template FILE")
    if formats:
        return next(iter(formats.values()))[1]
    return ChatFormat(load_tokenizer(base, options), options.chat_template)


def load_tokenizer(path: Path, options: ModelConfig) -> Any:
    """The tokenizer in a folder. Raises ModelUnavailable."""
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=options.trust_remote_code)
    except (OSError, ValueError, KeyError) as e:
        raise errors.ModelUnavailable(f"{path}: no usable tokenizer: {' '.join(str(e).split())[:200]}") from e
