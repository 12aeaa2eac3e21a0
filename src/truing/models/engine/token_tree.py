"""Scoring many completions in few forward passes: sequences that share a beginning are packed into one token tree.

A causal model's state at a token depends on its ancestors only. So the sequences `prefix + completion` of one
checkpoint are merged into tries (equal beginnings once: system text, question, common openings), each trie is laid out
as one row, and attention is masked to ancestors, with positions counted along the branch. The head runs only where a
completion token is predicted. The result equals scoring each sequence alone, at close to the FLOPs of the distinct
tokens. (Tree attention as in speculative decoding, Miao et al. 2024, arXiv 2305.09781.)

Shapes: B rows, L tree nodes per row, V vocabulary, N predicted positions of a batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

_AT_ONCE = 256  # positions whose logits are widened to float32 at a time


@dataclass(frozen=True, slots=True)
class Branch:
    """One completion under one prefix."""

    index: int  # the caller's number
    prefix: tuple[int, ...]  # tokens conditioned on, at least one
    completion: tuple[int, ...]  # tokens scored, at least one
    entropy: bool = False  # whether the mean predictive entropy is wanted
    adapter: str = ""  # name of the adapter that it is scored with; "" for the model as it is


@dataclass(frozen=True, slots=True)
class Scored:
    """A sequence's score."""

    index: int  # the caller's number
    total: float  # sum of log-probabilities, nats
    tokens: int  # tokens scored
    entropy: float  # mean predictive entropy, nats; NaN if not asked for


@dataclass(slots=True)
class Row:
    """One token tree, parents before children."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    scored: list[tuple[Branch, list[int]]] = field(default_factory=list)
    """each sequence with the nodes that predict its completion tokens"""

    def new_nodes(self, ids: Sequence[int]) -> int:
        """How many nodes adding `ids` would cost."""
        node = -1
        for k, token in enumerate(ids):
            nearest = self.children.get((node, token))
            if nearest is None:
                return len(ids) - k
            node = nearest
        return 0

    def walk(self, ids: Sequence[int]) -> list[int]:
        """The nodes of a sequence from the root on; those that are missing are made."""
        node, nodes = -1, []
        for token in ids:
            if (node, token) not in self.children:
                self.children[node, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(self.depths[node] + 1 if node >= 0 else 0)
            node = self.children[node, token]
            nodes.append(node)
        return nodes

    def add(self, sequence: Branch) -> None:
        """Merge a sequence into the tree."""
        nodes = self.walk((*sequence.prefix, *sequence.completion))
        self.scored.append((sequence, nodes[len(sequence.prefix) - 1 : -1]))

    def ancestors(self) -> NDArray[np.bool_]:
        """[L, L]: entry (i, j) is True when j is i or an ancestor of i."""
        seen = np.eye(len(self.tokens), dtype=bool)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                seen[i] |= seen[parent]
        return seen


def pack(sequences: Sequence[Branch], row_tokens: int) -> list[Row]:
    """Pack sequences into rows of at most `row_tokens` nodes (one longer sequence gets a row of its own).

    Sorted by prefix, so that neighbours share most; rows come back shortest first. With 0 every sequence is alone.
    """
    rows: list[Row] = []
    for s in sorted(sequences, key=lambda s: (s.prefix, s.completion)):
        if not rows or len(rows[-1].tokens) + rows[-1].new_nodes((*s.prefix, *s.completion)) > row_tokens:
            rows.append(Row())
        rows[-1].add(s)
    return sorted(rows, key=lambda r: len(r.tokens))


def batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Consecutive rows whose padded size stays within `batch_tokens`; at least one row each."""
    batch: list[Row] = []
    for row in rows:
        if batch and len(row.tokens) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@contextmanager
def head_only_at(head: torch.nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """Within the block the model's head sees only `positions` [N] of the flattened hidden states [B * L, d].

    A pre-hook rather than a copy of the head's arithmetic: whatever the architecture does after the head (scaling,
    soft-capping) still happens. Logits come out as [1, N, V].
    """

    def select(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1])[positions].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def logits_at(
    model: torch.nn.Module, head: torch.nn.Module, rows: Sequence[Row], wanted: Sequence[tuple[int, int]], *, tree: bool
) -> torch.Tensor:
    """[N, V] logits of what follows each wanted (row, node), by one forward pass over the rows.

    `tree=False`, for rows of one sequence each, uses the model's ordinary mask.
    """
    device = next(model.parameters()).device
    length = max(len(r.tokens) for r in rows)
    ids, depth, some = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(3))
    # Padding attends to itself, or its softmax would be over nothing.
    seen = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1, 1) if tree else some
    for b, row in enumerate(rows):
        n = len(row.tokens)
        ids[b, :n], depth[b, :n], some[b, :n] = torch.tensor(row.tokens), torch.tensor(row.depths), 1
        if tree:
            seen[b, 0, :n, :n] = torch.from_numpy(row.ancestors())
    inputs = {"input_ids": ids.to(device), "attention_mask": seen.to(device), "use_cache": False}
    if tree:
        inputs["position_ids"] = depth.to(device)
    positions = torch.tensor([b * length + n for b, n in wanted], device=device)
    with torch.inference_mode(), head_only_at(head, positions):
        return model(**inputs).logits[0]


def wanted_nodes(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Every (row, node) that predicts a token of a completion."""
    return sorted({(b, n) for b, row in enumerate(rows) for _, nodes in row.scored for n in nodes})


@torch.inference_mode()
def read(logits: torch.Tensor, rows: Sequence[Row]) -> list[Scored]:
    """Totals and entropies, in float32, from the logits [N, V] at the `wanted_nodes` of the rows."""
    where = {at: k for k, at in enumerate(wanted_nodes(rows))}
    found = [(s, [where[b, n] for n in nodes]) for b, row in enumerate(rows) for s, nodes in row.scored]
    some = any(s.entropy for s, _ in found)
    normalisers, entropies = [], []
    for part in logits.split(_AT_ONCE):
        chunk = part.float()
        z = chunk.logsumexp(-1)
        normalisers.append(z)
        entropies.append(z - ((chunk - z[:, None]).exp() * chunk).sum(-1) if some else torch.full_like(z, torch.nan))
    normaliser, entropy = torch.cat(normalisers), torch.cat(entropies).cpu()
    every = torch.tensor([k for _, at in found for k in at], device=logits.device)
    targets = torch.tensor([t for s, _ in found for t in s.completion], device=logits.device)
    chosen = (logits[every, targets].float() - normaliser[every]).cpu().double()
    totals = [float(own.sum()) for own in chosen.split([len(at) for _, at in found])]
    return [
        Scored(s.index, total, len(at), float(entropy[at].mean()) if s.entropy else float("nan"))
        for (s, at), total in zip(found, totals, strict=True)
    ]
