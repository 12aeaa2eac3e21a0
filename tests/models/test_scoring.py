"""Scores of texts with many adapters side by side, in token trees or row by row, are those of plain passes."""

import random

import pytest
import torch

from truing.models.engine.plain import score_plainly
from truing.models.engine.scoring import score_trees
from truing.models.engine.token_tree import Branch, batches, logits_at, pack, read, wanted_nodes
from zoo.families import SIDE_BY_SIDE, put_in_force, side_by_side, tiny, with_adapters

pytestmark = pytest.mark.torch


def texts(n=12, longest=30):
    """Texts of which some share their prompt, some the start of their completion; one is a beginning of another."""
    rng = random.Random(0)

    def tokens(least, most):
        return tuple(rng.randrange(250) for _ in range(rng.randint(least, most)))

    fronts, start = [tokens(1, longest) for _ in range(n // 3)], tokens(3, 3)
    out = [Branch(k, fronts[k % len(fronts)], (*(start if k % 2 else ()), *tokens(1, 9)), k % 3 == 0) for k in range(n)]
    return [*out, Branch(n, out[1].prefix, start[:1], True)]


def check(model, branches, found):
    """Totals and mean entropies are those of one ordinary forward pass for each."""
    found = {s.index: s for s in found}
    assert sorted(found) == [b.index for b in branches]
    for b in branches:
        ids = torch.tensor([[*b.prefix, *b.completion]])
        with torch.inference_mode():
            logp = model(ids).logits[0, len(b.prefix) - 1 : -1].double().log_softmax(-1)
        total = float(logp.gather(-1, ids[0, len(b.prefix) :, None]).sum())
        entropy = -float((logp.exp() * logp).sum(-1).mean()) if b.entropy else float("nan")
        assert found[b.index].total == pytest.approx(total, abs=1e-4 * len(b.completion))
        assert found[b.index].tokens == len(b.completion)
        assert found[b.index].entropy == pytest.approx(entropy, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
@pytest.mark.parametrize("row", [40, 400])
def test_trees_through_the_runner_score_as_plain_passes_do(name, row):
    model, branches = tiny(name), texts()
    check(model, branches, [s for _, s in score_trees(side_by_side(model), pack(branches, row), ("",))])


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("row", [40, 10_000, None])
def test_rows_through_the_model_score_as_plain_passes_do(name, row):
    """Trees of at most `row` nodes; None for every text by itself."""
    model, branches = tiny(name), texts()
    found = list(score_plainly(lambda: model, branches))
    if row:
        head, rows = model.get_output_embeddings(), batches(pack(branches, row), 3 * row)
        found = [s for b in rows for s in read(logits_at(model, head, b, wanted_nodes(b), tree=True), b)]
    check(model, branches, found)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("batch", [1, 10**6])
def test_adapters_side_by_side_score_as_peft_does_and_share_what_they_agree_on(name, batch):
    fields = {
        "one": {"r": 2, "target_modules": ["q_proj"], "layers_to_transform": [2]},
        "two": {"r": 4, "target_modules": ["down_proj", "v_proj"], "layers_to_transform": [2, 3]},
        "three": {"r": 1, "target_modules": ["up_proj"], "layers_to_transform": [3]},
    }
    model = with_adapters(name, fields, scale=1.0)
    adapted, trees, names, computed = side_by_side(model, fields), pack(texts(), 100), ("", *fields), [0] * 4
    assert adapted.lora.first_layer == 2
    hooks = [
        layer.register_forward_pre_hook(lambda _m, args, k=k: computed.__setitem__(k, computed[k] + args[0].shape[1]))
        for k, layer in enumerate(model.get_base_model().model.layers)
    ]
    found = {label: [] for label in names}
    for label, s in score_trees(adapted, trees, names, batch):
        found[label].append(s)
    for hook in hooks:
        hook.remove()
    nodes = sum(len(t.tokens) for t in trees)
    assert computed == [nodes, nodes, 4 * nodes, 4 * nodes]
    for label in names:
        check(put_in_force(model, label), texts(), found[label])
    assert len({round(sum(s.total for s in found[label]), 4) for label in names}) == 4


def test_shared_tokens_are_computed_once_and_see_their_ancestors_only():
    (row,) = pack([Branch(0, (1, 2), (3,)), Branch(1, (1, 2), (4, 5))], 100)
    assert (row.tokens, row.depths) == ([1, 2, 3, 4, 5], [0, 1, 2, 2, 3])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert row.ancestors().astype(int).tolist() == expected
    nodes = sum(len(r.tokens) for r in pack(texts(), 10_000))
    assert nodes == len({(b.prefix + b.completion)[:k] for b in texts() for k in range(1, 100)})
