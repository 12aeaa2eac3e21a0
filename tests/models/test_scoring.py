"""Scores of texts with many adapters side by side, in token trees or row by row, are those of plain passes."""

import random

import pytest
import torch

from truing.models.engine.lora import BatchedLora, lora_factors
from truing.models.engine.runner import ModelRunner
from truing.models.engine.scoring import score_trees
from truing.models.engine.token_tree import Branch, batches, head_only_at, pack, score_rows
from zoo.families import SIDE_BY_SIDE, put_in_force, tiny, with_adapters

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def texts(n=12, longest=30):
    """Texts of which some share their prompt, some the start of their completion; one is a beginning of another."""
    rng = random.Random(0)

    def tokens(least, most):
        return tuple(rng.randrange(250) for _ in range(rng.randint(least, most)))

    fronts, start = [tokens(1, longest) for _ in range(n // 3)], tokens(3, 3)
    out = [Branch(k, fronts[k % len(fronts)], (*(start if k % 2 else ()), *tokens(1, 9)), k % 3 == 0) for k in range(n)]
    return [*out, Branch(n, out[1].prefix, start[:1], True)]


def plain(model, branch):
    """Total and mean entropy by one ordinary forward pass."""
    ids = torch.tensor([[*branch.prefix, *branch.completion]])
    with torch.inference_mode():
        logp = model(ids).logits[0].double().log_softmax(-1)
    at = range(len(branch.prefix) - 1, ids.shape[1] - 1)
    total = sum(float(logp[k, ids[0, k + 1]]) for k in at)
    return total, -sum(float((logp[k].exp() * logp[k]).sum()) for k in at) / len(at)


def check(model, branches, found):
    assert sorted(found) == [b.index for b in branches]
    for b in branches:
        total, entropy = plain(model, b)
        assert found[b.index].total == pytest.approx(total, abs=1e-4 * len(b.completion))
        assert found[b.index].tokens == len(b.completion)
        if b.entropy:
            assert found[b.index].entropy == pytest.approx(entropy, abs=1e-4)
        else:
            assert found[b.index].entropy != found[b.index].entropy


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
@pytest.mark.parametrize("row", [40, 400])
def test_trees_through_the_runner_score_as_plain_passes_do(name, row):
    model, branches = tiny(name), texts()
    check(model, branches, {s.index: s for _, s in score_trees(ModelRunner(model), None, pack(branches, row), ("",))})


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("row", [40, 10_000, None])
def test_rows_through_the_model_score_as_plain_passes_do(name, row):
    """Trees of at most `row` nodes; None for every text by itself."""
    model, branches = tiny(name), texts()
    rows = pack(branches, row or 0)
    scores = [
        score_rows(model, model.get_output_embeddings(), b, tree=bool(row)) for b in batches(rows, 3 * (row or 50))
    ]
    check(model, branches, {s.index: s for batch in scores for s in batch})


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("batch", [1, 10**6])
def test_adapters_side_by_side_score_as_peft_does_and_share_what_they_agree_on(name, batch):
    fields = {
        "one": {"r": 2, "target_modules": ["q_proj"], "layers_to_transform": [2]},
        "two": {"r": 4, "target_modules": ["down_proj", "v_proj"], "layers_to_transform": [2, 3]},
        "three": {"r": 1, "target_modules": ["up_proj"], "layers_to_transform": [3]},
    }
    model, lora = with_adapters(name, fields, scale=1.0), BatchedLora(torch.float32, torch.device("cpu"))
    lora.load(list(fields), {label: lora_factors(model, label) for label in fields})
    lora.bind(model)
    assert lora.first_layer == 2
    put_in_force(model, "")
    trees, names, computed = pack(texts(), 100), ("", *fields), [0] * 4
    hooks = [
        layer.register_forward_pre_hook(lambda _m, args, k=k: computed.__setitem__(k, computed[k] + args[0].shape[1]))
        for k, layer in enumerate(model.get_base_model().model.layers)
    ]
    scored = score_trees(ModelRunner(model), lora, trees, names, shared_layers=2, batch_tokens=batch)
    found = {label: {} for label in names}
    for label, s in scored:
        found[label][s.index] = s
    for hook in hooks:
        hook.remove()
    nodes = sum(len(t.tokens) for t in trees)
    assert computed == [nodes, nodes, 4 * nodes, 4 * nodes]
    for label in names:
        put_in_force(model, label)
        check(model, texts(), found[label])
    assert len({round(found[label][0].total, 4) for label in names}) == 4


def test_shared_tokens_are_computed_once_and_see_their_ancestors_only():
    (row,) = pack([Branch(0, (1, 2), (3,)), Branch(1, (1, 2), (4, 5))], 100)
    assert (row.tokens, row.depths) == ([1, 2, 3, 4, 5], [0, 1, 2, 2, 3])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert row.ancestors().astype(int).tolist() == expected
    nodes = sum(len(r.tokens) for r in pack(texts(), 10_000))
    assert nodes == len({(b.prefix + b.completion)[:k] for b in texts() for k in range(1, 100)})


def test_the_head_is_the_model_s_own_again_afterwards():
    model, ids = tiny("llama"), torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    with head_only_at(model.get_output_embeddings(), torch.tensor([2])):
        inside = model(ids).logits
    assert inside.shape == (1, 1, 264)
    assert torch.allclose(inside[0, 0], before[0, 2], atol=1e-6)
    assert torch.equal(model(ids).logits, before)
