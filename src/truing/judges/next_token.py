"""What a model would answer on a scale: next-token probabilities at the nodes of digit trees, many prompts at once.

    read_packed(model, scales)   prompts that begin alike merged into token trees, many in one forward pass
    read_plain(model, scales)    one prompt at a time and its numbers on copies of the cache

Both give the same numbers; the second is for architectures that do not allow the mask of a tree.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from truing.errors import Unsupported
from truing.judges.digits import Ids, NumberTree
from truing.models.engine import token_tree as packing
from truing.models.loading import Model, head_of

ROW_TOKENS = 512
"""up to this many tokens a row takes prompts that share little; the cost of attention grows with the row"""
_LOGITS_AT_ONCE = 128
_CHAINS_AT_ONCE = 16


class Scale(NamedTuple):
    """A prompt whose answer is a candidate of a tree."""

    prefix: Ids
    """tokens up to the answer"""
    tree: NumberTree
    """what may be answered"""


Reading = list[dict[str, float]]
"""per prompt, in the order given: candidate -> probability"""
_Node = tuple[int, int]
"""which prompt, and which node of its tree"""


@dataclass(slots=True)
class _Row(packing.Row):
    """A token tree with the positions whose next tokens are wanted."""

    wanted: list[tuple[_Node, int]] = field(default_factory=list)


class _Chances:
    """Next-token probabilities at the nodes of all trees, filled in as they come."""

    def __init__(self, scales: Sequence[Scale]) -> None:
        self._scales = scales
        self._found = [np.full((len(s.tree.paths), len(s.tree.tokens)), np.nan) for s in scales]

    def add(self, logits: torch.Tensor, nodes: Sequence[_Node]) -> None:
        """Logits [N, V] at N nodes: probabilities over the whole vocabulary in float32, kept in float64."""
        for start in range(0, len(nodes), _LOGITS_AT_ONCE):
            chance = logits[start : start + _LOGITS_AT_ONCE].float().softmax(-1)
            prompts, at = np.array(nodes[start : start + _LOGITS_AT_ONCE]).T
            for prompt in set(prompts.tolist()):
                rows = np.flatnonzero(prompts == prompt)
                tokens = torch.tensor(self._scales[prompt].tree.tokens, device=logits.device)
                self._found[prompt][at[rows]] = chance[rows.tolist()][:, tokens].double().cpu().numpy()

    def reading(self) -> Reading:
        """Once all nodes are filled in."""
        return [s.tree.read(found) for s, found in zip(self._scales, self._found, strict=True)]


@torch.inference_mode()
def read_packed(model: Model, scales: Sequence[Scale], *, batch_tokens: int) -> Reading:
    """By token trees: what prompts have in common is computed once."""
    chances = _Chances(scales)
    for batch in packing.batches(_rows(scales), batch_tokens):
        wanted = [(b, node, at) for b, row in enumerate(batch) if isinstance(row, _Row) for node, at in row.wanted]
        logits = packing.logits_at(model, head_of(model), batch, [(b, at) for b, _, at in wanted], tree=True)
        chances.add(logits, [node for _, node, _ in wanted])
    return chances.reading()


@torch.inference_mode()
def read_plain(model: Model, scales: Sequence[Scale]) -> Reading:
    """One prompt at a time: its tokens once, then every number on a copy of the cache, with the model's own masks.

    Raises:
        Unsupported: the architecture keeps a state that cannot be copied per number.
    """
    chances = _Chances(scales)
    device = next(model.parameters()).device
    for k, (prefix, tree) in enumerate(scales):
        with packing.head_only_at(head_of(model), torch.tensor([len(prefix) - 1], device=device)):
            out = model(input_ids=torch.tensor([prefix], device=device), use_cache=True)
        chances.add(out.logits[0], [(k, 0)])
        cache = out.past_key_values
        if tree.paths[1:] and not hasattr(cache, "batch_repeat_interleave"):
            raise Unsupported(f"{type(model).__name__} keeps a state that cannot be branched; take another judge")
        inner = {path[:n] for path in tree.paths for n in range(len(path))}
        chains = [path for path in tree.paths if path and path not in inner]  # every node but the first lies on one
        for start in range(0, len(chains), _CHAINS_AT_ONCE):
            some = chains[start : start + _CHAINS_AT_ONCE]
            logits, nodes = _branched(model, copy.deepcopy(cache), some, tree)
            chances.add(logits, [(k, node) for node in nodes])
    return chances.reading()


def _rows(scales: Sequence[Scale]) -> list[_Row]:
    """Prompts in token trees, sorted so that those which begin alike are neighbours.

    A row takes what shares half of its tokens with it (two rubrics about one answer), and else up to `ROW_TOKENS`.
    """
    rows, row = [], _Row()
    for k, scale in sorted(enumerate(scales), key=lambda item: item[1].prefix):
        new = row.new_nodes(scale.prefix)
        if row.tokens and len(row.tokens) + new > ROW_TOKENS and new > len(scale.prefix) // 2:
            rows.append(row)
            row = _Row()
        for node, path in enumerate(scale.tree.paths):
            row.wanted.append(((k, node), row.walk((*scale.prefix, *path))[-1]))
    return sorted([*rows, row], key=lambda r: len(r.tokens))


def _branched(model: Model, cache: object, chains: Sequence[Ids], tree: NumberTree) -> tuple[torch.Tensor, list[int]]:
    """Logits [N, V] of what follows the N nodes on these chains, and the nodes, given the prompt's cache (used up)."""
    cache.batch_repeat_interleave(len(chains))  # type: ignore[attr-defined]
    width = max(map(len, chains))
    # Padded on the right, where nothing that is read attends to it.
    ids = torch.tensor([[*chain, *[chain[-1]] * (width - len(chain))] for chain in chains])
    index = {path: node for node, path in enumerate(tree.paths)}
    places: dict[int, int] = {}
    for row, chain in enumerate(chains):
        for n in range(1, len(chain) + 1):
            if (node := index.get(chain[:n])) is not None:
                places.setdefault(node, row * width + n - 1)
    device = next(model.parameters()).device
    at = torch.tensor(list(places.values()), device=device)
    with packing.head_only_at(head_of(model), at):
        return model(input_ids=ids.to(device), past_key_values=cache, use_cache=True).logits[0], list(places)
