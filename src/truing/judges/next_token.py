"""What a model would answer on a scale: the probabilities at the nodes of digit trees, many prompts at once.

    read_packed(model, [(prefix ids, tree), ...])  prompts that begin alike merged, one forward pass for many of them
    read_plain(model, [(prefix ids, tree), ...])   one prompt at a time and its numbers on copies of the cache

Both give the same numbers; the second is for architectures whose state is not a tree's.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

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


@dataclass(frozen=True, slots=True)
class Reading:
    """The answers of several prompts, as probabilities."""

    probabilities: list[dict[str, float]]
    """per prompt, in the order given: candidate -> probability"""
    computed: int
    """token positions that went through the model"""


class _Node(NamedTuple):
    prompt: int
    node: int


class _Next(NamedTuple):
    following: list[float]
    digit: float


@dataclass(slots=True)
class _Row(packing.Row):
    """A token tree with the places whose next tokens are wanted."""

    asked: list[tuple[_Node, int]] = field(default_factory=list)


def read_packed(model: Model, scales: Sequence[Scale], *, batch_tokens: int) -> Reading:
    """By token trees (see `packing`): what prompts have in common is computed once."""
    found: dict[_Node, _Next] = {}
    computed = 0
    for batch in packing.batches(_rows(scales), batch_tokens):
        asked = [(b, node, at) for b, row in enumerate(batch) if isinstance(row, _Row) for node, at in row.asked]
        logits = packing.logits_at(model, head_of(model), batch, [(b, at) for b, _, at in asked], tree=True)
        found |= _probabilities(logits, [node for _, node, _ in asked], scales)
        computed += sum(len(row.tokens) for row in batch)
    return Reading(_candidates(found, scales), computed)


def read_plain(model: Model, scales: Sequence[Scale]) -> Reading:
    """One prompt at a time: its tokens once, then every number on a copy of the cache, with the model's own masks.

    Raises:
        Unsupported: the architecture keeps a state that cannot be copied per number.
    """
    found: dict[_Node, _Next] = {}
    computed = 0
    for k, scale in enumerate(scales):
        ids = torch.tensor([scale.prefix], device=next(model.parameters()).device)
        last = torch.tensor([len(scale.prefix) - 1], device=ids.device)
        with torch.inference_mode(), packing.head_only_at(head_of(model), last):
            out = model(input_ids=ids, use_cache=True)
        found |= _probabilities(out.logits[0], [_Node(k, 0)], scales)
        computed += len(scale.prefix)
        cache = out.past_key_values
        if scale.tree.paths[1:] and not hasattr(cache, "batch_repeat_interleave"):
            raise Unsupported(f"{type(model).__name__} keeps a state that cannot be branched; take another judge")
        chains = _chains(scale.tree)
        for start in range(0, len(chains), _CHAINS_AT_ONCE):
            some = chains[start : start + _CHAINS_AT_ONCE]
            found |= _branch(model, copy.deepcopy(cache), k, some, scales)
            computed += sum(map(len, some))
    return Reading(_candidates(found, scales), computed)


# ---------------------------------------------------------------------------------------------------------------------


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
            row.asked.append((_Node(k, node), row.walk((*scale.prefix, *path))[-1]))
    return sorted([*rows, row], key=lambda r: len(r.tokens))


def _chains(tree: NumberTree) -> list[Ids]:
    """The paths that no other path goes on from; every other node but the first lies on one of them."""
    inner = {path[:k] for path in tree.paths for k in range(len(path))}
    return [path for path in tree.paths if path and path not in inner]


def _branch(model: Model, cache: object, k: int, chains: Sequence[Ids], scales: Sequence[Scale]) -> dict[_Node, _Next]:
    """What follows the nodes of these chains, given the cache of the prompt; the cache is used up."""
    cache.batch_repeat_interleave(len(chains))  # type: ignore[attr-defined]
    width = max(map(len, chains))
    # Padded on the right, where nothing that is read attends to it.
    ids = torch.tensor([[*chain, *[chain[-1]] * (width - len(chain))] for chain in chains])
    index = {path: node for node, path in enumerate(scales[k].tree.paths)}
    places: dict[int, int] = {}
    for row, chain in enumerate(chains):
        for m in range(1, len(chain) + 1):
            if (node := index.get(chain[:m])) is not None:
                places.setdefault(node, row * width + m - 1)
    device = next(model.parameters()).device
    at = torch.tensor(list(places.values()), device=device)
    with torch.inference_mode(), packing.head_only_at(head_of(model), at):
        logits = model(input_ids=ids.to(device), past_key_values=cache, use_cache=True).logits[0]
    return _probabilities(logits, [_Node(k, node) for node in places], scales)


def _probabilities(logits: torch.Tensor, nodes: Sequence[_Node], scales: Sequence[Scale]) -> dict[_Node, _Next]:
    """Over the whole vocabulary in float32, sums in float64, from logits [n, V] of these nodes."""
    out: dict[_Node, _Next] = {}
    for start in range(0, len(nodes), _LOGITS_AT_ONCE):
        some = nodes[start : start + _LOGITS_AT_ONCE]
        trees = [scales[n.prompt].tree for n in some]
        with torch.inference_mode():
            chance = logits[start : start + _LOGITS_AT_ONCE].float().softmax(-1)
            flat = [(i, t) for i, (n, tree) in enumerate(zip(some, trees, strict=True)) for t in tree.following[n.node]]
            at = torch.tensor(flat, dtype=torch.long, device=logits.device).reshape(-1, 2)
            chosen = iter(chance[at[:, 0], at[:, 1]].double().tolist())
            masses = {
                digits: chance[:, torch.tensor(digits, dtype=torch.long, device=logits.device)]
                .double()
                .sum(-1)
                .tolist()
                for digits in {tree.digits for tree in trees}
            }
        for i, (n, tree) in enumerate(zip(some, trees, strict=True)):
            out[n] = _Next([next(chosen) for _ in tree.following[n.node]], masses[tree.digits][i])
    return out


def _candidates(found: dict[_Node, _Next], scales: Sequence[Scale]) -> list[dict[str, float]]:
    out = []
    for k, scale in enumerate(scales):
        nodes = [found[_Node(k, node)] for node in range(len(scale.tree.paths))]
        out.append(scale.tree.read([n.following for n in nodes], [n.digit for n in nodes]))
    return out
