"""Scoring given texts: token trees through the layers, all checkpoints of a base side by side.

    score_trees(trunk, stack, trees, places)     the base and its adapters; what they share is computed once
    PlainScorer(model)                           any causal model: trees by its own forward, or row by row

A tree (see `packing`) holds a prompt once, with all its completions. Below the first layer that any adapter changes the
tree is computed once for all places; above it, once per place, several places to a pass.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch.nn.functional import scaled_dot_product_attention

from truing.models.engine import token_tree as packing
from truing.models.engine.lora import AdapterStack
from truing.models.engine.runner import Trunk
from truing.models.loading import Model, head_of

log = logging.getLogger(__name__)
BATCH_TOKENS = 1024
"""tokens of a pass without a memory bound"""
ROW_TOKENS = 512
"""tokens of a tree"""


class _Tree:
    """Attention of `copies` equal token trees of L nodes each, one after the other: every node sees its ancestors."""

    def __init__(self, row: packing.Row, copies: int, device: torch.device) -> None:
        self._copies, self._length = copies, len(row.tokens)
        self._seen = torch.from_numpy(row.ancestors()).to(device)
        self._depths = torch.tensor(row.depths, device=device)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        """See `trunk.Reader`."""
        seen = self._seen
        if window is not None and int(self._depths.max()) >= window:
            seen = seen & (self._depths[:, None] - self._depths < window)
        one, two, three = (t.unflatten(0, (self._copies, self._length)).transpose(1, 2) for t in (q, k, v))
        out = scaled_dot_product_attention(
            one, two, three, attn_mask=seen, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2).flatten(0, 1)


def score_trees(
    trunk: Trunk,
    stack: AdapterStack | None,
    trees: Sequence[packing.Row],
    places: Sequence[int],
    *,
    shared: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    hold: Callable[[], object] = lambda: None,
) -> Iterator[tuple[int, packing.Scored]]:
    """Score every text of every tree at every place.

    Args:
        trunk: the base, with no adapter of its own in force.
        stack: its adapters; None for the model as it is.
        trees: from `packing.pack`.
        places: adapters of the stack, ascending; -1 for the base.
        shared: layers below which all places agree.
        batch_tokens: tokens of a pass, at least one copy of a tree.
        hold: called before every pass, to put the base in force: between two scores it may serve others.

    Yields:
        (place, score).
    """
    cut = shared if len(places) > 1 and shared < trunk.depth else 0
    for tree in trees:
        length = len(tree.tokens)
        wanted = sorted({n for _, nodes in tree.scored for n in nodes})
        at = torch.tensor(wanted, device=trunk.device)
        depths = torch.tensor(tree.depths, device=trunk.device)
        hold()
        with trunk.cut(), torch.inference_mode():
            lower = trunk.embed(torch.tensor(tree.tokens, device=trunk.device))
            lower = trunk.run(lower, depths, _Tree(tree, 1, trunk.device), 0, cut)
        step = max(1, batch_tokens // length)
        for start in range(0, len(places), step):
            some = places[start : start + step]
            hold()
            applied = stack.applied() if stack is not None else nullcontext()
            with trunk.cut(), applied, torch.inference_mode():
                if stack is not None:
                    tokens = [p for p in some for _ in range(length)]
                    stack.route(tokens, len(tokens))
                reader = _Tree(tree, len(some), trunk.device)
                hidden = trunk.run(lower.repeat(1, len(some), 1), depths.repeat(len(some)), reader, cut)
                scores = [
                    packing.read(
                        trunk.logits(part.index_select(1, at)), [tree], {(0, n): k for k, n in enumerate(wanted)}
                    )
                    for part in hidden.split(length, 1)
                ]
            for place, found in zip(some, scores, strict=True):
                for scored in found:
                    yield place, scored


class PlainScorer:
    """Scores with the forward pass of any causal language model."""

    def __init__(self, name: str, dtype: torch.dtype, *, trees: bool = True) -> None:
        """`trees`: whether token trees may be tried; where they differ from the plain way they are not used."""
        self._name, self._dtype = name, dtype
        self._tree: bool | None = None if trees else False  # whether this architecture agrees with tree attention

    def score(self, model: Model, branches: list[packing.Branch], batch_tokens: int) -> Iterator[packing.Scored]:
        """Score texts of one checkpoint, in force in `model`."""
        head = head_of(model)
        if self._tree is None:
            self._tree = self._agrees_with_tree(model, head, branches)  # None again if these weights cannot tell
        longest = max(len(b.prefix) + len(b.completion) for b in branches)
        window = getattr(model.config.get_text_config(), "sliding_window", None)
        tree = bool(self._tree) and not (window and longest >= window)
        rows = packing.pack(branches, ROW_TOKENS) if tree else packing.single_rows(branches)
        for batch in packing.batches(rows, batch_tokens):
            yield from packing.score_rows(model, head, batch, tree=tree)

    def _agrees_with_tree(self, model: Model, head: torch.nn.Module, branches: list[packing.Branch]) -> bool | None:
        """Whether packed scoring equals the plain way on a few branches here; None where NaN weights cannot tell."""
        few = sorted(branches, key=lambda b: len(b.prefix) + len(b.completion))[:3]
        try:
            packed = packing.score_rows(model, head, packing.pack(few, 10**9), tree=True)
        except (RuntimeError, ValueError, TypeError) as e:
            log.warning("packed scoring is not possible for %s (%s); scoring the plain way", self._name, e)
            return False
        plain = {s.index: s for s in packing.score_rows(model, head, packing.single_rows(few), tree=False)}
        limit = 1e-3 if self._dtype is torch.float32 else 0.05
        worst = max(abs(s.total - plain[s.index].total) / s.tokens for s in packed)
        if worst != worst:
            return None
        if worst <= limit:
            return True
        log.warning("packed scoring differs from plain by %.4f nats/token; scoring the plain way", worst)
        return False


def pass_tokens(model: Model, dtype: torch.dtype, memory: float | None) -> int:
    """Tokens of a pass under a bound on working memory, in GiB."""
    if memory is None:
        return BATCH_TOKENS
    config = model.config.get_text_config()
    # Logits of every node in the worst case, plus a dozen activations of the widest layer.
    width = max(getattr(config, "intermediate_size", 0) or 0, config.hidden_size)
    per_token = torch.finfo(dtype).bits // 8 * (config.vocab_size + 12 * width)
    return max(64, int(memory * 2**30 / per_token))
