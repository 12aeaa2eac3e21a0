"""Packed scoring equals the plain way: one sequence at a time, full logits."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from truing.models.engine import token_tree as packing

pytestmark = pytest.mark.torch

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 64, "query_pre_attn_scalar": 8},
    "mistral": {"sliding_window": None},
}


def tiny(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL, **ARCHITECTURES[kind])
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def sequences(n_prompts=5, seed=0):
    g = torch.Generator().manual_seed(seed)

    def sample(n):
        return tuple(torch.randint(1, 97, (n,), generator=g).tolist())

    system, out = sample(6), []
    for p in range(n_prompts):
        prefix = system + sample(3 + p)
        opening = sample(2)
        for k in range(4):
            # Some answers share an opening, one is a beginning of another, one prefix has a single answer.
            completion = opening + sample(k) if k < 3 else opening[:1]
            out.append(packing.Branch(len(out), prefix, completion, entropy=k % 2 == 0))
    out.append(packing.Branch(len(out), sample(4), sample(3), True))
    return out


def plainly(model, s):
    """The definition: nats of the completion, and the mean entropy of the predictions."""
    with torch.no_grad():
        logits = model(torch.tensor([s.prefix + s.completion])).logits[0].double()
    logp = logits.log_softmax(-1)[len(s.prefix) - 1 : -1]
    total = sum(float(logp[k, token]) for k, token in enumerate(s.completion))
    return total, float(-(logp.exp() * logp).sum(-1).mean())


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("row_tokens", [20, 60, 10_000])
def test_packed_scores_equal_plain_ones(kind, row_tokens):
    torch.set_num_threads(1)
    model, asked = tiny(kind), sequences()
    rows = packing.pack(asked, row_tokens)
    found = {}
    for batch in packing.batches(rows, 3 * row_tokens):
        for s in packing.score_rows(model, model.get_output_embeddings(), batch, tree=True):
            found[s.index] = s
    assert sorted(found) == [s.index for s in asked]
    for s in asked:
        total, entropy = plainly(model, s)
        assert found[s.index].total == pytest.approx(total, abs=1e-4)
        assert found[s.index].tokens == len(s.completion)
        if s.entropy:
            assert found[s.index].entropy == pytest.approx(entropy, abs=1e-4)
        else:
            assert found[s.index].entropy != found[s.index].entropy


def test_single_rows_equal_plain_ones():
    model, asked = tiny("llama"), sequences(3)
    for batch in packing.batches(packing.single_rows(asked), 50):
        for s in packing.score_rows(model, model.get_output_embeddings(), batch, tree=False):
            assert s.total == pytest.approx(plainly(model, asked[s.index])[0], abs=1e-4)


def test_shared_tokens_are_computed_once():
    asked = sequences(4)
    nodes = sum(len(r.tokens) for r in packing.pack(asked, 10_000))
    distinct = {(s.prefix + s.completion)[:k] for s in asked for k in range(1, len(s.prefix + s.completion) + 1)}
    assert nodes == len(distinct)
    assert nodes < sum(len(s.prefix) + len(s.completion) for s in asked) / 2


def test_the_mask_shows_ancestors_only():
    (row,) = packing.pack([packing.Branch(0, (1, 2), (3,)), packing.Branch(1, (1, 2), (4, 5))], 100)
    assert row.tokens == [1, 2, 3, 4, 5]
    assert row.depths == [0, 1, 2, 2, 3]
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert row.ancestors().astype(int).tolist() == expected


def test_the_head_is_the_model_s_own_again_afterwards():
    model = tiny("llama")
    ids = torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    with packing.head_only_at(model.get_output_embeddings(), torch.tensor([2])):
        inside = model(ids).logits
    assert inside.shape == (1, 1, 97)
    assert torch.allclose(inside[0, 0], before[0, 2], atol=1e-6)
    assert torch.equal(model(ids).logits, before)
    assert not model.get_output_embeddings()._forward_pre_hooks
