"""The one model in memory: a base under one of its adapters, by itself, or another full model.

Dropout is off, nothing is trained here, and weights count as loaded only when every tensor of their file is found in
the model again and no parameter is left unfilled (`filled.py`).
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import GenerationConfig

from truing import errors
from truing.config import ModelConfig
from truing.models.base import Told, nobody, one_line
from truing.models.checkpoints import checkpoint_path
from truing.models.download import resolve_model
from truing.models.engine.runner import inner_model
from truing.models.filled import Model, adapter_tensors, base_kept, check_filled, resized_copy
from truing.models.loading import (
    agree_on_chat,
    check_loadable,
    device_of,
    dtype_of,
    lay_out_for_few_rows,
    load_model,
)
from truing.models.trial import try_folder
from truing.models.weights import check_unchanged, embedding_rows, weights_hash
from truing.types.records import Checkpoint, Kind, Message
from truing.types.verdicts import Finding

LOADED_BYTES = 512 * 2**20  # adapters that PEFT keeps loaded, so that every stage of an audit can switch back to them
PROBE = (Message("user", "What should I read next, and why?"),)  # what a model is tried on


class ResidentModel:
    """Loads models and adapters, and switches between them. Not thread-safe: one model, one owner."""

    def __init__(self, base: str, checkpoints: Sequence[Checkpoint] = (), options: ModelConfig | None = None) -> None:
        """Agree on one chat format; the model is loaded when it is first needed.

        Args:
            base: alias, local path or hub id of the base model.
            checkpoints: what will be measured; their tokenizers and templates must all be equal and then apply to
                step 0 too.
            options: how models are held.

        Raises:
            BadModel, BadInput (4 bit without bitsandbytes).
        """
        self.options = options or ModelConfig()
        self._name, self._base = base, resolve_model(base)
        self._weights = weights_hash(self._base)
        self.device, self.dtype = device_of(self.options.device), dtype_of(self.options.dtype, self.options.device)
        self.chat = agree_on_chat(self._base, checkpoints, self.options)
        self._folders = [checkpoint_path(c) for c in checkpoints]
        self._findings: dict[str, Finding] = {}  # by weight hash: adapters without effect
        self._model: Model | None = None
        self._resident = ""  # weight hash of the full model in memory
        self._loaded: dict[str, int] = {}  # names of the adapters in memory, least recently used first -> bytes
        self._active = ""

    def _unload(self) -> None:
        self._model, self._resident, self._loaded, self._active = None, "", {}, ""

    def base_checkpoint(self) -> Checkpoint:
        """Step 0."""
        return Checkpoint(self._weights, "base", 0, f"file:{self._base}", Kind.BASE)

    def prepare(self, checkpoints: Sequence[Checkpoint], told: Told = nobody) -> dict[str, Finding]:
        """Put the base and every adapter in force once, and read full models' names.

        What does not fit is refused before any work: BadModel, DamagedWeights.
        """
        for done, checkpoint in enumerate(checkpoints, 1):
            path = checkpoint_path(checkpoint)
            if checkpoint.kind is not Kind.FULL:
                self.use(checkpoint)
            elif model := check_loadable(path, self.options):
                self._check_vocabulary(model, path)
            else:
                self.use(checkpoint)
            told(done)
        return dict(self._findings)

    def use(self, checkpoint: Checkpoint) -> Model:
        """The model with this checkpoint's weights in force, in evaluation mode.

        Raises:
            BadModel: a tensor of the file is not in the model, or one of the model was left unfilled; the vocabularies
                differ; the adapter brings embeddings of its own, or is of a kind that is not measured.
            DamagedWeights: the files are not those that were hashed when the audit began.
        """
        if self._active == checkpoint.weights and self._model is not None:
            return self._model
        self._active = ""  # a failure below leaves no checkpoint in force
        if checkpoint.kind is Kind.ADAPTER:
            model = self._with_adapter(checkpoint)
        else:
            model = self._full(checkpoint_path(checkpoint), checkpoint.weights)
            if isinstance(self._model, PeftModel):  # by itself, not by what was noted: an interrupt may lie between
                model.base_model.disable_adapter_layers()
        model.eval()
        self._active = checkpoint.weights
        return model

    def _full(self, path: Path, weights: str) -> Model:
        if self._model is None or self._resident != weights:
            self._unload()  # two large models are never resident
            check_unchanged(path, weights)
            model: Model = load_model(path, self.dtype, self.device, self.options)
            # generate() fills what it is not given from here: a repetition penalty would change what is sampled.
            model.generation_config = GenerationConfig()
            self._check_vocabulary(model, path)
            if not self.options.load_in_4bit:
                lay_out_for_few_rows(model)
            self._model, self._resident = model, weights
        return self._model

    def _check_vocabulary(self, model: Model, path: Path) -> None:
        """The chat's tokens must exist in the model: a tokenizer with added tokens needs a resized base too."""
        rows = model.get_input_embeddings().weight.shape[0]
        highest = max((*self.chat.stop_ids, *self.chat.prefix(PROBE)))
        if highest < rows:
            return
        wanted = max((highest + 1, *(embedding_rows(f) for f in self._folders)))
        why = f"{path}: the checkpoints' chat uses token {highest}"
        hint = resized_copy(rows, wanted) if path == self._base else f"this model has {rows:,}; leave it out"
        raise errors.BadModel(f"{why}; {hint}")

    def _with_adapter(self, checkpoint: Checkpoint) -> Model:
        base, name = self._full(self._base, self._weights), checkpoint.weights[:16]
        new = name not in self._loaded
        model = self._load(base, name, checkpoint) if new else base
        self._loaded[name] = self._loaded.pop(name)  # the latest comes last
        model.base_model.enable_adapter_layers()
        model.set_adapter(name)
        if new and not self._has_effect(model):
            self._findings[checkpoint.weights] = Finding("zero_adapter", {"checkpoint": checkpoint.label})
        return model

    def _load(self, base: Model, name: str, checkpoint: Checkpoint) -> Model:
        """The base with one more adapter in memory, and with as few of the others as the bound demands."""
        path = checkpoint_path(checkpoint)
        check_unchanged(path, checkpoint.weights)
        try_folder(path, self.options.chat_template)
        try:
            stored = adapter_tensors(path, inner_model(base))
            with warnings.catch_warnings(), base_kept(inner_model(base)):
                # PEFT only warns; `check_filled` refuses.
                warnings.filterwarnings("ignore", message="Found missing adapter keys")
                if isinstance(base, PeftModel):
                    base.load_adapter(str(path), adapter_name=name, is_trainable=False)
                else:
                    self._model = PeftModel.from_pretrained(base, str(path), adapter_name=name, is_trainable=False)
            model: Model = self._model
            if not hasattr(model.base_model, "enable_adapter_layers"):
                kind = model.peft_config[name].peft_type
                raise errors.BadModel(f"{path}: {kind} adapters cannot be switched off, so that they are not measured")
            check_filled(model, name, stored, path, self._name)
        except BaseException as e:  # an interrupt too: what is half loaded must not pass for the base
            self._unload()
            if isinstance(e, KeyError) and isinstance(base, PeftModel):
                # PEFT cannot load some kinds beside each other: an adapter without tokens of its own after one with.
                return self._load(self._full(self._base, self._weights), name, checkpoint)
            if isinstance(e, Exception) and not isinstance(e, errors.TruingError):
                raise errors.BadModel(f"{path}: does not fit the base {self._name}: {one_line(e)}") from e
            raise
        self._loaded[name] = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if f".{name}." in n)
        while len(self._loaded) > 1 and sum(self._loaded.values()) > LOADED_BYTES:
            oldest = next(iter(self._loaded))
            model.delete_adapter(oldest)
            del self._loaded[oldest]
        return model.eval()

    def _has_effect(self, model: Model) -> bool:
        """Whether the adapter in force changes any logit of a probe."""
        probe = torch.tensor([self.chat.prefix(PROBE)], device=self.device)
        with torch.inference_mode(), model.disable_adapter():
            off = model(probe).logits
        with torch.inference_mode():
            return not torch.equal(model(probe).logits, off)

    def weight_norm(self, checkpoint: Checkpoint) -> float | None:
        """Frobenius norm of the LoRA update, over all layers together; None for full models and other adapters."""
        if checkpoint.kind is not Kind.ADAPTER:
            return 0.0 if checkpoint.kind is Kind.BASE else None
        model, name, total = self.use(checkpoint), checkpoint.weights[:16], 0.0
        for module in model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper) and name in module._adapters:
                return None  # more than products of two matrices
            if isinstance(module, LoraLayer) and name in module.lora_A and name in module.lora_B:
                layer: Any = module
                a, b = (part[name].weight.detach().float() for part in (layer.lora_A, layer.lora_B))
                if a.dim() != 2 or isinstance(module, ParamWrapper):
                    return None
                # ||BA||^2 = trace((B'B)(AA')): rank x rank products only.
                total += module.scaling[name] ** 2 * float(((b.T @ b) * (a @ a.T)).sum())
        return total**0.5 if total == total else None
