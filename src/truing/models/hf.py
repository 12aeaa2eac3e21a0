"""Models in this process: one base, loaded once, and the checkpoints of it, switched or reloaded.

    LocalBackend(base) .use(checkpoint) -> .loglikelihood(asks) / .sample(asks, params)

Dropout is off, nothing is trained here, and an adapter counts as loaded only when every tensor of its file is found in
the model again, unchanged: PEFT itself loads an adapter with foreign keys without any effect and only warns.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import GenerationConfig

from truing import errors
from truing.config import ModelConfig
from truing.models.checkpoints import checkpoint_path
from truing.models.download import resolve_model
from truing.models.engine.sessions import Sessions
from truing.models.loading import (
    Model,
    agree_on_chat,
    device_of,
    dtype_of,
    lay_out_for_few_rows,
    load_model,
)
from truing.models.weights import read_json, weights_hash
from truing.types.records import (
    Answer,
    Capabilities,
    Checkpoint,
    Kind,
    Likelihood,
    LikelihoodRequest,
    Message,
    Request,
    SamplingParams,
)

log = logging.getLogger(__name__)
ADAPTER_BYTES = 512 * 2**20
"""adapters kept in memory once loaded, so that every stage of an audit can switch back to them"""


class LocalBackend:
    """A base model on this machine and its checkpoints. Not thread-safe: one model, one owner."""

    capabilities = Capabilities(weights=True, loglikelihood=True, sample=True, train=True, checkpoints="any")

    def __init__(self, base: str, checkpoints: Sequence[Checkpoint] = (), options: ModelConfig | None = None) -> None:
        """Load the base and agree on one chat format.

        Args:
            base: alias, local path or hub id of the base model.
            checkpoints: what will be measured; their tokenizers and templates must all be equal and then apply to
                step 0 too.

        Raises:
            ModelUnavailable, NoChatTemplate, TemplateMismatch, MissingExtra (4 bit without bitsandbytes).
        """
        self.options = options or ModelConfig()
        self.base_name = base
        self.base_path = resolve_model(base)
        self.base_weights = weights_hash(self.base_path)
        self.device, self.dtype = device_of(self.options.device), dtype_of(self.options.dtype, self.options.device)
        self.chat = agree_on_chat(self.base_path, checkpoints, self.options)
        self._model: Model | None = None
        self._resident = ""  # weight hash of the full model in memory
        self._adapters: dict[str, int] = {}  # names of the adapters in memory, least recently used first -> bytes
        self._active = ""
        self.sessions = Sessions(self)
        """how answers are drawn and texts scored, and how fast"""
        self.notes: dict[str, str] = {}
        """weight hash -> a line worth showing, e.g. that an adapter has no effect"""

    @property
    def identity(self) -> dict[str, str]:
        """What must not change within one audit."""
        four_bit = ", 4 bit" if self.options.load_in_4bit else ""
        return {
            "base": self.base_weights,
            "chat": self.chat.identity,
            "dtype": str(self.dtype).removeprefix("torch.") + four_bit,
            "device": self.device.type,
        }

    @property
    def definitions(self) -> Mapping[str, str]:
        """What decides the rendering, in words."""
        return self.chat.definitions

    def base_checkpoint(self) -> Checkpoint:
        """Step 0."""
        return Checkpoint(self.base_weights, "base", 0, f"file:{self.base_path}", Kind.BASE)

    def resolve(self, params: SamplingParams) -> SamplingParams:
        """Parameters with dtype and device filled in."""
        return replace(params, dtype=self.identity["dtype"], device=self.identity["device"])

    # -- switching ----------------------------------------------------------------------------------------------------

    def use(self, checkpoint: Checkpoint) -> Model:
        """The model with this checkpoint's weights in force, in evaluation mode.

        Raises:
            AdapterMismatch: a tensor of the file is not in the model, or one of the model was left unfilled.
        """
        if self._active == checkpoint.weights and self._model is not None:
            return self._model
        self._active = ""  # a failure below leaves no checkpoint in force
        if checkpoint.kind is Kind.ADAPTER:
            model = self._with_adapter(checkpoint)
        elif checkpoint.kind is Kind.FULL:
            model = self._full(checkpoint_path(checkpoint), checkpoint.weights)
        else:
            model = self._full(self.base_path, self.base_weights)
            if isinstance(self._model, PeftModel):  # by itself, not by what was noted: an interrupt may lie between
                model.base_model.disable_adapter_layers()
        model.eval()
        self._active = checkpoint.weights
        return model

    def _full(self, path: Path, weights: str) -> Model:
        if self._model is None or self._resident != weights:
            self._model, self._adapters = None, {}  # two large models are never resident
            _check_unchanged(path, weights)
            model: Model = load_model(path, self.dtype, self.device, self.options)
            # generate() fills what it is not given from here: a repetition penalty would change what is sampled.
            model.generation_config = GenerationConfig()
            self._check_vocabulary(model, path)
            if not self.options.load_in_4bit:
                lay_out_for_few_rows(model)
            self._model, self._resident = model, weights
        return self._model

    def _with_adapter(self, checkpoint: Checkpoint) -> Model:
        base = self._full(self.base_path, self.base_weights)
        name = checkpoint.weights[:16]
        if name in self._adapters:
            self._adapters[name] = self._adapters.pop(name)
            base.base_model.enable_adapter_layers()
            base.set_adapter(name)
            return base
        path = checkpoint_path(checkpoint)
        _check_unchanged(path, checkpoint.weights)
        _refuse_own_embeddings(path, base)
        try:
            with warnings.catch_warnings():
                # PEFT only warns; `_check_filled` refuses.
                warnings.filterwarnings("ignore", message="Found missing adapter keys")
                model = self._put_in(base, path, name)
            model.base_model.enable_adapter_layers()
            model.set_adapter(name)
            _check_filled(model, name, path, self.base_name)
        except (RuntimeError, ValueError, KeyError) as e:
            self.close()
            reason = " ".join(str(e).split())[:300]
            raise errors.AdapterMismatch(f"{path}: does not fit the base {self.base_name}: {reason}") from e
        except BaseException:  # an interrupt too: what is half loaded must not pass for the base
            self.close()
            raise
        self._adapters[name] = sum(
            p.numel() * p.element_size() for n, p in model.named_parameters() if f".{name}." in n
        )
        while len(self._adapters) > 1 and sum(self._adapters.values()) > ADAPTER_BYTES:
            oldest = next(iter(self._adapters))
            model.delete_adapter(oldest)
            del self._adapters[oldest]
        model.eval()
        self._note_effect(model, checkpoint)
        return model

    def _check_vocabulary(self, model: Model, path: Path) -> None:
        """The chat's tokens must exist in the model: a tokenizer with added tokens needs a resized base too."""
        rows = model.get_input_embeddings().weight.shape[0]
        highest = max((*self.chat.stop_ids, *self.chat.prefix(_PROBE)))
        if highest >= rows:
            text = f"{path}: the checkpoints' chat uses token {highest}, this model knows {rows}"
            raise errors.TemplateMismatch(f"{text}; pass a template of the base with --chat-template FILE")

    def _put_in(self, base: Model, path: Path, name: str) -> Model:
        if not isinstance(base, PeftModel):
            self._model = PeftModel.from_pretrained(base, str(path), adapter_name=name, is_trainable=False)
            return self._model
        model: Model = base
        model.load_adapter(str(path), adapter_name=name, is_trainable=False)
        return model

    def _note_effect(self, model: Model, checkpoint: Checkpoint) -> None:
        """Say so when a loaded adapter leaves the logits of a probe batch exactly as they were."""
        probe = torch.tensor([self.chat.prefix(_PROBE)], device=self.device)
        with torch.inference_mode():
            on = model(probe).logits
            model.base_model.disable_adapter_layers()
            off = model(probe).logits
            model.base_model.enable_adapter_layers()
        if torch.equal(on, off):
            self.notes[checkpoint.weights] = "adapter is zero: its logits equal the base's"

    # -- what the model says ------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Iterable[LikelihoodRequest]) -> Iterator[Likelihood]:
        """Score completions, all checkpoints of the base side by side, texts with a common beginning packed.

        A prompt that the template cannot hold is `unsupported`; weights that yield NaN give `failed`.
        """
        yield from self.sessions.score(requests)

    def sample(self, requests: Iterable[Request], params: SamplingParams) -> Iterator[Answer]:
        """Draw answers, all checkpoints of the base side by side; each answer has a random stream of its own.

        Raises:
            PromptTooLong, TooLittleMemory, AdapterMismatch: see `truing.models.engine.sessions`.
        """
        yield from self.sessions.sample(requests, params)

    def weight_norm(self, checkpoint: Checkpoint) -> float | None:
        """Frobenius norm of the LoRA update, over all layers together; None for full models and other adapters."""
        if checkpoint.kind is Kind.BASE:
            return 0.0
        if checkpoint.kind is not Kind.ADAPTER:
            return None
        model, name, total = self.use(checkpoint), checkpoint.weights[:16], 0.0
        for module in model.modules():
            if isinstance(module, LoraLayer) and name in module.lora_A and name in module.lora_B:
                layer: Any = module
                a, b = (part[name].weight.detach().float() for part in (layer.lora_A, layer.lora_B))
                if a.dim() != 2:
                    return None
                # ||BA||^2 = trace((B'B)(AA')): rank x rank products only.
                total += module.scaling[name] ** 2 * float(((b.T @ b) * (a @ a.T)).sum())
        return total**0.5 if total == total else None

    def prepare(self, checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
        """Put every adapter in force once, so that one that does not fit is refused before any work; returns notes."""
        for checkpoint in checkpoints:
            if checkpoint.kind is Kind.ADAPTER:
                self.use(checkpoint)
        return dict(self.notes)

    def close(self) -> None:
        """Let go of the model."""
        self._model, self._resident, self._adapters, self._active = None, "", {}, ""


_PROBE = (Message("user", "What should I read next, and why?"),)


def _check_unchanged(path: Path, weights: str) -> None:
    """The files still hold what was hashed when the audit began: a run in progress overwrites its paths."""
    try:
        now = weights_hash(path)
    except OSError as e:
        raise errors.DamagedWeights(f"{path}: is gone since the audit began; restore it, or leave it out") from e
    if now != weights:
        raise errors.DamagedWeights(f"{path}: its weights changed since the audit began; repeat the command")


def _refuse_own_embeddings(path: Path, base: Model) -> None:
    """PEFT loads embeddings that lie beside an adapter into the base itself, where nothing takes them out again."""
    file = path / "adapter_model.safetensors"
    if not file.exists():
        return
    saved = read_json(path / "adapter_config.json").get("modules_to_save") or ()
    with safe_open(file, framework="pt") as stored:
        for key in stored.keys():  # noqa: SIM118 not a mapping
            if "lora_" in key or not _is_embedding(key) or any(name in key for name in saved):
                continue
            part = base.get_output_embeddings() if "lm_head" in key else base.get_input_embeddings()
            own, brought = getattr(part, "base_layer", part).weight, stored.get_tensor(key)
            if own.shape != brought.shape or not torch.equal(own.cpu(), brought.to(own.dtype)):
                text = (
                    f"{path}: brings its own embeddings ({key}), which would change the base for every other checkpoint"
                )
                raise errors.AlteredBase(f"{text}; merge it into a full model and audit that, with --base")


def _check_filled(model: Model, name: str, path: Path, base: str) -> None:
    """Every tensor of the file is in the model, equal, and none of the model's was left unfilled."""
    file = path / "adapter_model.safetensors"
    if not file.exists():
        return  # pickled weights the user allowed: PEFT read them, there is nothing safe to compare with
    stored = load_file(file)
    # lm_head or embeddings that PEFT saves beside the adapter are compared like all others.
    loaded = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    strangers = [k for k in stored if k not in loaded and not _is_embedding(k)]
    unfilled = [k for k in loaded if k not in stored]
    if strangers or unfilled:
        text = f"only in the file: {_few(strangers)}; only in the model: {_few(unfilled)}"
        hint = "they were made for another base or with other key names; convert the keys or give the right --base"
        raise errors.AdapterMismatch(f"{path}: adapter tensors do not reach {base} ({text}); {hint}")
    for key, value in stored.items():
        if key in loaded and not _equal(value, loaded[key]):
            raise errors.AdapterMismatch(f"{path}: tensor {key} was not loaded as stored")


def _is_embedding(key: str) -> bool:
    return "embed_tokens" in key or "lm_head" in key


def _few(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:3])
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown or "none"


def _equal(stored: torch.Tensor, loaded: torch.Tensor) -> bool:
    if stored.shape != loaded.shape:
        return False
    return torch.equal(stored.to(loaded.dtype).cpu().nan_to_num(), loaded.cpu().nan_to_num())
