"""Scoring given texts: token trees through the layers, all adapters of a base side by side.

A tree (see `token_tree`) holds a prompt once, with all its completions. Below the first layer that any adapter changes
the tree is computed once for all; above it, once per adapter, several adapters to a pass.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from truing.models.engine.lora import AdaptedModel
from truing.models.engine.token_tree import Row, Scored, read, wanted_nodes

BATCH_TOKENS = 1024  # tokens of a pass without a memory bound
ROW_TOKENS = 512  # tokens of a tree


class _TreeAttention:
    """Attention of `copies` equal token trees of L nodes each, one after the other: every node sees its ancestors."""

    def __init__(self, row: Row, copies: int, device: torch.device) -> None:
        self._copies, self._length = copies, len(row.tokens)
        self._seen = torch.from_numpy(row.ancestors()).to(device)
        self._depths = torch.tensor(row.depths, device=device)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        """See `runner.Attention`."""
        seen = self._seen
        if window is not None:
            seen = seen & (self._depths[:, None] - self._depths < window)
        one, two, three = (t.unflatten(0, (self._copies, self._length)).transpose(1, 2) for t in (q, k, v))
        out = scaled_dot_product_attention(
            one, two, three, attn_mask=seen, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2).flatten(0, 1)


def score_trees(
    model: AdaptedModel, trees: Sequence[Row], adapters: Sequence[str], batch_tokens: int = BATCH_TOKENS
) -> Iterator[tuple[str, Scored]]:
    """Score every text of every tree with every adapter ("" for the base): (adapter, score).

    The model is put in force for every pass: between two scores it may serve others. A pass takes at least one copy of
    a tree, and up to `batch_tokens`.
    """
    runner, lora = model.runner, model.lora
    cut = min(lora.first_layer or 0, runner.depth) if len(adapters) > 1 else 0
    for tree in trees:
        length = len(tree.tokens)
        at = torch.tensor([n for _, n in wanted_nodes([tree])], device=runner.device)
        depths = torch.tensor(tree.depths, device=runner.device)
        with model.in_force():
            lower = runner.embed(torch.tensor(tree.tokens, device=runner.device))
            lower = runner.run(lower, depths, _TreeAttention(tree, 1, runner.device), 0, cut)
        step = max(1, batch_tokens // length)
        for start in range(0, len(adapters), step):
            some = sorted(adapters[start : start + step], key=lora.index)
            with model.in_force():
                lora.route([name for name in some for _ in range(length)], len(some) * length)
                attention = _TreeAttention(tree, len(some), runner.device)
                hidden = runner.run(lower.repeat(1, len(some), 1), depths.repeat(len(some)), attention, cut)
                scores = [read(runner.logits(part.index_select(1, at)), [tree]) for part in hidden.split(length, 1)]
            for name, found in zip(some, scores, strict=True):
                for scored in found:
                    yield name, scored


def pass_tokens(model: Any, dtype: torch.dtype, memory: float | None) -> int:
    """Tokens of a pass under a bound on working memory, in GiB."""
    if memory is None:
        return BATCH_TOKENS
    config = model.config.get_text_config()
    # Logits of every node in the worst case, plus a dozen activations of the widest layer.
    width = max(getattr(config, "intermediate_size", 0) or 0, config.hidden_size)
    return max(64, int(memory * 2**30 / (dtype.itemsize * (config.vocab_size + 12 * width))))
