"""A decoder run layer by layer, so that one pass can carry tokens of many answers, prompts and adapters.

    runner = ModelRunner(model)
    with runner.packed(), torch.inference_mode():
        hidden = runner.run(runner.embed(ids), positions, attention)     [1, T, d]: T tokens of any sequences, packed
        logits = runner.logits(hidden[:, wanted])

All modules are the model's own but attention, which is given: it knows which tokens belong together. A new architecture
is an entry in `_ROTARY`; the engine compares it with the model's own forward pass before it relies on it.

Shapes: T packed tokens, d hidden size, H query heads, KV key-value heads, h size of a head, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import AttentionInterface

from truing.errors import Unsupported

_ATTENTION = "truing_packed"
_MOVING_ROPE = ("dynamic", "longrope")  # rotary embeddings that change with the longest sequence of a batch


def inner_model(model: Any) -> Any:
    """The causal model itself, with or without PEFT around it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def head_of(model: Any) -> torch.nn.Module:
    """The module that makes logits. Raises Unsupported where there is none."""
    inner = inner_model(model)
    head = inner.get_output_embeddings()
    if head is None:
        raise Unsupported(f"{type(inner).__name__} has no language-model head; a causal model is needed")
    return head


class Attention(Protocol):
    """Attention over packed tokens."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        """q [T, H, h], k and v [T, KV, h] of one layer -> [T, H, h]; `window` is the most keys a token may look at."""
        ...


class ModelRunner:
    """Embedding, layers, norm and head of a causal language model, with or without PEFT around it.

    Raises:
        Unsupported: an architecture that is not known here, with its name.
    """

    def __init__(self, model: Any) -> None:
        inner = inner_model(model)
        self.config = inner.config.get_text_config()
        kind = self.config.model_type
        if inner.config is not self.config:
            raise Unsupported(f"{inner.config.model_type} models have more than a text part and are not batched here")
        if kind not in _ROTARY or inner.get_output_embeddings() is None:
            raise Unsupported(f"{kind} models are not among those batched here ({', '.join(sorted(_ROTARY))})")
        ropes = getattr(self.config, "rope_parameters", None) or {}
        types = {r.get("rope_type") for r in (ropes, *(v for v in ropes.values() if isinstance(v, dict)))}
        if moving := types.intersection(_MOVING_ROPE):
            raise Unsupported(f"rotary embeddings of type {moving.pop()} depend on the longest sequence of a batch")
        self._by_kind = _ROTARY[kind]
        self.depth: int = self.config.num_hidden_layers  # number of layers
        self._core: Any = None
        self.bind(model)
        self._kinds = list(getattr(self.config, "layer_types", None) or ["full_attention"] * self.depth)
        heads = self.config.num_attention_heads
        self.kv_heads: int = getattr(self.config, "num_key_value_heads", None) or heads  # key-value heads of a layer
        self.head_size: int = getattr(self.config, "head_dim", None) or self.config.hidden_size // heads  # of a head
        self.dtype, self.device = self._core.embed_tokens.weight.dtype, self._core.embed_tokens.weight.device

    def bind(self, model: Any) -> bool:
        """Use another object that holds the same weights; returns whether it is another one."""
        inner = inner_model(model)
        if inner.model is self._core:
            return False
        self._core, self._head = inner.model, inner.get_output_embeddings()
        self._layers = list(self._core.layers[: self.depth])
        self.config = inner.config.get_text_config()
        return True

    @contextmanager
    def packed(self) -> Iterator[None]:
        """Within the block the layers use the attention given to `run`."""
        before = self.config._attn_implementation
        self.config._attn_implementation = _ATTENTION
        try:
            yield
        finally:
            self.config._attn_implementation = before

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [T] -> hidden states [1, T, d]."""
        return self._core.embed_tokens(ids.unsqueeze(0))

    def run(
        self, hidden: torch.Tensor, at: torch.Tensor, attention: Attention, first: int = 0, last: int | None = None
    ) -> torch.Tensor:
        """Hidden states [1, T, d] at positions `at` [T] through layers `first` up to `last` (excluded)."""
        tokens = hidden, at.unsqueeze(0)
        one = None if self._by_kind else self._core.rotary_emb(*tokens)
        rotary = {kind: one or self._core.rotary_emb(*tokens, kind) for kind in set(self._kinds)}
        for k in range(first, self.depth if last is None else last):
            hidden = self._layers[k](
                hidden, attention_mask=None, position_embeddings=rotary[self._kinds[k]], packed=attention
            )
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [1, N, d] -> logits [N, V] in float32."""
        logits = self._head(self._core.norm(hidden))[0].float()
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: Any, **given: Any
) -> tuple[torch.Tensor, None]:
    """What transformers calls in place of its own attention; tensors come as [1, heads, T, h]."""
    if given.get("softcap") is not None:
        raise Unsupported("attention with capped scores is not batched")
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    out = given["packed"].attend(module.layer_idx, q, k, v, given["scaling"], given.get("sliding_window"))
    return out.unsqueeze(0), None


_ROTARY = {"gemma3_text": True, "llama": False, "mistral": False, "qwen2": False, "qwen3": False}
"""architectures that are known here -> whether each kind of layer has rotary embeddings of its own"""
AttentionInterface.register(_ATTENTION, _attention)
