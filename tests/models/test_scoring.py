"""Scores of texts at many checkpoints side by side are those of each checkpoint alone."""

import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from truing.models.engine.lora import AdapterStack, first_layer, lora_factors
from truing.models.engine.runner import Trunk
from truing.models.engine.scoring import score_trees
from truing.models.engine.token_tree import Branch, pack
from zoo.families import SIDE_BY_SIDE, tiny

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def texts(n=12, seed=0, longest=30):
    """Texts of which some share their prompt, some their prompt and the start of their completion."""
    rng = random.Random(seed)
    fronts = [tuple(rng.randrange(250) for _ in range(rng.randint(1, longest))) for _ in range(n // 3)]
    start = tuple(rng.randrange(250) for _ in range(3))
    return [
        Branch(k, fronts[k % len(fronts)], (*(start if k % 2 else ()), *(rng.randrange(250) for _ in range(rng.randint(1, 9)))), k % 3 == 0)  # noqa: E501
        for k in range(n)
    ]  # fmt: skip


def plain(model, branch):
    """Total and mean entropy by one ordinary forward pass."""
    ids = torch.tensor([[*branch.prefix, *branch.completion]])
    with torch.inference_mode():
        logp = model(ids).logits[0].log_softmax(-1)
    at = range(len(branch.prefix) - 1, ids.shape[1] - 1)
    total = sum(float(logp[k, ids[0, k + 1]]) for k in at)
    entropy = -sum(float((logp[k].exp() * logp[k]).sum()) for k in at) / len(at)
    return total, entropy


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
@pytest.mark.parametrize("row", [40, 400])
def test_trees_score_as_plain_passes_do(name, row):
    model, branches = tiny(name), texts()
    found = {s.index: s for _, s in score_trees(Trunk(model), None, pack(branches, row), (-1,))}
    assert sorted(found) == [b.index for b in branches]
    for b in branches:
        total, entropy = plain(model, b)
        assert found[b.index].total == pytest.approx(total, abs=1e-4 * len(b.completion))
        assert found[b.index].tokens == len(b.completion)
        if b.entropy:
            assert found[b.index].entropy == pytest.approx(entropy, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("batch", [1, 10**6])
def test_adapters_side_by_side_score_as_peft_does_and_share_what_they_agree_on(name, batch):
    labels = ("one", "two", "three")
    model: Any = get_peft_model(tiny(name), LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[2]), "one")
    model.add_adapter("two", LoraConfig(r=4, target_modules=["down_proj", "v_proj"], layers_to_transform=[2, 3]))
    model.add_adapter("three", LoraConfig(r=1, target_modules=["up_proj"], layers_to_transform=[3]))
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "lora_B" in path:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(path))))
    model.eval()
    stack = AdapterStack([lora_factors(model, label) for label in labels], torch.float32)
    cut = first_layer([lora_factors(model, label) for label in labels], 4)
    assert cut == 2
    model.base_model.disable_adapter_layers()
    trunk, trees, computed = Trunk(model), pack(texts(), 100), [0] * 4
    hooks = [
        layer.register_forward_pre_hook(lambda _m, args, k=k: computed.__setitem__(k, computed[k] + args[0].shape[1]))
        for k, layer in enumerate(trunk._layers)
    ]
    places = (-1, 0, 1, 2)
    found = {(p, s.index): s for p, s in score_trees(trunk, stack, trees, places, shared=cut, batch_tokens=batch)}
    for hook in hooks:
        hook.remove()
    nodes = sum(len(t.tokens) for t in trees)
    assert computed == [nodes, nodes, 4 * nodes, 4 * nodes]
    totals = set()
    for place in places:
        if place >= 0:
            model.base_model.enable_adapter_layers()
            model.set_adapter(labels[place])
        for b in texts():
            assert found[place, b.index].total == pytest.approx(plain(model, b)[0], abs=1e-4 * len(b.completion))
        totals.add(round(found[place, 0].total, 4))
    assert len(totals) == 4
