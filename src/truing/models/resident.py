"""The one model in memory: a base under one of its adapters, by itself, or another full model.

Dropout is off, nothing is trained here, and an adapter counts as loaded only when every tensor of its file is found in
the model again, unchanged: PEFT itself loads an adapter with foreign keys without any effect and only warns.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import GenerationConfig

from truing import errors
from truing.config import ModelConfig
from truing.models.base import one_line
from truing.models.chat import ChatFormat
from truing.models.checkpoints import checkpoint_path
from truing.models.loading import (
    Model,
    check_filled,
    device_of,
    dtype_of,
    lay_out_for_few_rows,
    load_model,
    refuse_own_embeddings,
)
from truing.models.weights import check_unchanged
from truing.types.records import Checkpoint, Kind, Message
from truing.types.verdicts import Finding

LOADED_BYTES = 512 * 2**20  # adapters that PEFT keeps loaded, so that every stage of an audit can switch back to them
PROBE = (Message("user", "What should I read next, and why?"),)  # what a model is tried on


class ResidentModel:
    """Loads models and adapters, and switches between them; `base` is a folder and `weights` the hash of it."""

    def __init__(self, name: str, base: Path, weights: str, chat: ChatFormat, options: ModelConfig) -> None:
        self._name, self._base, self._weights, self._chat, self._options = name, base, weights, chat, options
        self._device, self._dtype = device_of(options.device), dtype_of(options.dtype, options.device)
        self.findings: dict[str, Finding] = {}  # by weight hash: adapters without effect
        self._model: Model | None = None
        self._resident = ""  # weight hash of the full model in memory
        self._loaded: dict[str, int] = {}  # names of the adapters in memory, least recently used first -> bytes
        self._active = ""

    def close(self) -> None:
        """Let go of the model and its adapters."""
        self._model, self._resident, self._loaded, self._active = None, "", {}, ""

    def use(self, checkpoint: Checkpoint) -> Model:
        """The model with this checkpoint's weights in force, in evaluation mode.

        Raises:
            BadModel: a tensor of the file is not in the model, or one of the model was left unfilled.
            DamagedWeights: the files are not those that were hashed when the audit began.
            BadModel: the adapter brings embeddings of its own.
        """
        if self._active == checkpoint.weights and self._model is not None:
            return self._model
        self._active = ""  # a failure below leaves no checkpoint in force
        if checkpoint.kind is Kind.ADAPTER:
            model = self._with_adapter(checkpoint)
        elif checkpoint.kind is Kind.FULL:
            model = self._full(checkpoint_path(checkpoint), checkpoint.weights)
        else:
            model = self._full(self._base, self._weights)
            if isinstance(self._model, PeftModel):  # by itself, not by what was noted: an interrupt may lie between
                model.base_model.disable_adapter_layers()
        model.eval()
        self._active = checkpoint.weights
        return model

    def _full(self, path: Path, weights: str) -> Model:
        if self._model is None or self._resident != weights:
            self.close()  # two large models are never resident
            check_unchanged(path, weights)
            model: Model = load_model(path, self._dtype, self._device, self._options)
            # generate() fills what it is not given from here: a repetition penalty would change what is sampled.
            model.generation_config = GenerationConfig()
            self._check_vocabulary(model, path)
            if not self._options.load_in_4bit:
                lay_out_for_few_rows(model)
            self._model, self._resident = model, weights
        return self._model

    def _with_adapter(self, checkpoint: Checkpoint) -> Model:
        base = self._full(self._base, self._weights)
        name = checkpoint.weights[:16]
        if name in self._loaded:
            self._loaded[name] = self._loaded.pop(name)
            base.base_model.enable_adapter_layers()
            base.set_adapter(name)
            return base
        path = checkpoint_path(checkpoint)
        check_unchanged(path, checkpoint.weights)
        refuse_own_embeddings(path, base)
        try:
            with warnings.catch_warnings():
                # PEFT only warns; `check_filled` refuses.
                warnings.filterwarnings("ignore", message="Found missing adapter keys")
                if isinstance(base, PeftModel):
                    base.load_adapter(str(path), adapter_name=name, is_trainable=False)
                else:
                    self._model = PeftModel.from_pretrained(base, str(path), adapter_name=name, is_trainable=False)
            model: Model = self._model
            model.base_model.enable_adapter_layers()
            model.set_adapter(name)
            check_filled(model, name, path, self._name)
        except BaseException as e:  # an interrupt too: what is half loaded must not pass for the base
            self.close()
            if isinstance(e, RuntimeError | ValueError | KeyError):
                raise errors.BadModel(f"{path}: does not fit the base {self._name}: {one_line(e)}") from e
            raise
        self._loaded[name] = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if f".{name}." in n)
        while len(self._loaded) > 1 and sum(self._loaded.values()) > LOADED_BYTES:
            oldest = next(iter(self._loaded))
            model.delete_adapter(oldest)
            del self._loaded[oldest]
        model.eval()
        self._note_effect(model, checkpoint)
        return model

    def _check_vocabulary(self, model: Model, path: Path) -> None:
        """The chat's tokens must exist in the model: a tokenizer with added tokens needs a resized base too."""
        rows = model.get_input_embeddings().weight.shape[0]
        highest = max((*self._chat.stop_ids, *self._chat.prefix(PROBE)))
        if highest >= rows:
            text = f"{path}: the checkpoints' chat uses token {highest}, this model knows {rows}"
            raise errors.BadModel(f"{text}; pass a template of the base with --chat-template FILE")

    def _note_effect(self, model: Model, checkpoint: Checkpoint) -> None:
        """Say so when a loaded adapter leaves the logits of a probe exactly as they were."""
        probe = torch.tensor([self._chat.prefix(PROBE)], device=self._device)
        with torch.inference_mode():
            on = model(probe).logits
            model.base_model.disable_adapter_layers()
            off = model(probe).logits
            model.base_model.enable_adapter_layers()
        if torch.equal(on, off):
            self.findings[checkpoint.weights] = Finding("zero_adapter", {"checkpoint": checkpoint.label})

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
