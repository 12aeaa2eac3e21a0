"""Answers generated side by side are those that each adapter gives alone."""

import random
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from truing.errors import Unsupported
from truing.models.engine.batching import Caches, Scheduler
from truing.models.engine.lora import lora_factors
from truing.models.engine.requests import BatchOptions, GenerateRequest
from truing.models.engine.token_sampling import RandomStream, nucleus, sample_tokens
from truing.types.records import SamplingParams
from zoo.families import ADAPTERS, SIDE_BY_SIDE, put_in_force, side_by_side, tiny, with_adapters

pytestmark = pytest.mark.torch
GREEDY = SamplingParams(temperature=0.0)
STOP = (258, 3)


def prompts(n, seed=0, longest=40):
    rng = random.Random(seed)
    return [tuple(rng.randrange(250) for _ in range(rng.randint(1, longest))) for _ in range(n)]


def requests_for(texts, *, samples=1, adapters=("",), longest=20):
    rng = random.Random(0)
    wanted = [(text, name) for name in adapters for text in texts for _ in range(samples)]
    rng.shuffle(wanted)
    return [
        GenerateRequest(k, text, name, rng.getrandbits(40), rng.randint(1, longest))
        for k, (text, name) in enumerate(wanted)
    ]


def generated(adapted, requests, params=GREEDY, *, rows=7, stop=STOP, caches=None, **given):
    """Completions by index, and the scheduler's throughput; the caches are left empty."""
    caches = caches or Caches.of(adapted.runner, rows)
    scheduler = Scheduler(adapted, params, BatchOptions(rows, stop), caches=caches, **given)
    found = {c.index: c for c in scheduler.run(requests)}
    assert scheduler.throughput.answers == len(requests) == len(found)
    assert not any(cache.buckets for cache in caches)
    return found, scheduler.throughput


def check(model, requests, found, stop=STOP, gap=1e-5):
    """Every token is the likeliest by an ordinary pass under the answer's adapter, and it ends where it must."""
    for name in {r.adapter for r in requests}:
        put_in_force(model, name)
        for r in (r for r in requests if r.adapter == name):
            tokens = torch.tensor([found[r.index].tokens])
            with torch.inference_mode():
                logits = model(torch.cat([torch.tensor([r.prompt]), tokens], 1)).logits[0, len(r.prompt) - 1 : -1]
            assert (logits.amax(-1) - logits.gather(-1, tokens[0, :, None])[:, 0]).max() <= gap, name
            *before, last = found[r.index].tokens
            assert not set(before) & set(stop) and (last in stop or len(before) + 1 == r.max_tokens)
            assert len(before) < r.max_tokens


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_greedy_answers_and_log_probabilities_are_the_model_s_own(name):
    """Prompts and answers of several sizes, which grow, move and go."""
    model, seen = tiny(name), []
    requests = requests_for(prompts(8, longest=75), samples=2, longest=40)
    found, _ = generated(side_by_side(model), requests, observe=lambda *step: seen.append(step))
    check(model, requests, found)
    assert sum(len(c.tokens) for c in found.values()) == len(seen)
    for r in requests:
        with torch.inference_mode():
            own = model(torch.tensor([[*r.prompt, *found[r.index].tokens]])).logits[0].log_softmax(-1)
        for tokens, logits in ((t, x) for of, t, x in seen if of is r):
            assert torch.allclose(logits.log_softmax(-1), own[len(r.prompt) + len(tokens) - 1], atol=1e-4)


def test_the_model_is_itself_between_two_answers():
    model, ids = tiny("qwen3"), torch.tensor([[5, 6, 7]])
    scheduler = Scheduler(side_by_side(model), GREEDY, BatchOptions(4, STOP))
    with torch.inference_mode():
        before = model(ids).logits
        for k, _ in enumerate(scheduler.run(requests_for(prompts(9)))):
            assert torch.equal(model(ids).logits, before)
            if k == 5:
                break  # and after an abandoned run too
        assert torch.equal(model(ids).logits, before)
    assert model.config._attn_implementation == "sdpa"


# -- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_adapters_of_other_ranks_scalings_and_modules_side_by_side_equal_peft_one_by_one(name):
    model = with_adapters(name)
    requests = requests_for(prompts(4), adapters=("", *ADAPTERS), longest=16)
    found, _ = generated(side_by_side(model, ADAPTERS), requests, rows=11)
    check(model, requests, found)
    texts = {n: sorted((r.prompt, found[r.index].tokens) for r in requests if r.adapter == n) for n in ("", *ADAPTERS)}
    assert len({str(t) for t in texts.values()}) == 5, "every adapter says something else"


def test_a_ragged_grid_and_one_adapter_with_most_of_the_rows_change_nothing():
    model, texts, names = with_adapters("llama"), prompts(12, seed=3), ("", *ADAPTERS)
    requests = [GenerateRequest(k, texts[k % 12], names[3 if k < 20 else k % 5], k, 8) for k in range(28)]
    check(model, requests, generated(side_by_side(model, ADAPTERS), requests, rows=28)[0])


def test_adapters_with_rows_left_are_moved_together_and_stay_themselves():
    """Two of twelve go on for long, far apart; later answers come from others that were moved meanwhile."""
    fields = {f"{name}{k}": ADAPTERS[name] for k in range(3) for name in ADAPTERS}
    model, texts, names = with_adapters("llama", fields), prompts(6, seed=4, longest=9), list(fields)
    adapted, at = side_by_side(model, names), []
    requests = [GenerateRequest(k, texts[k % 6], names[k % 12], k, 24 if k % 12 in (1, 10) else 3) for k in range(36)]
    found, _ = generated(
        adapted, requests, rows=24, stop=(), callback=lambda _: at.append([adapted.lora.index(n) for n in names])
    )
    assert all(sorted(indices) == list(range(12)) for indices in at)
    assert abs(at[0][1] - at[0][10]) == 9 and abs(at[-1][1] - at[-1][10]) < 4
    check(model, requests, found, ())


def test_adapters_that_come_later_and_go_leave_the_others_as_they_are():
    model = with_adapters("llama")
    adapted, factors = side_by_side(model), {name: lora_factors(model, name) for name in ADAPTERS}
    lora, size = adapted.lora, sum(4 * (f.down.numel() + f.up.numel()) for a in factors.values() for f in a.values())

    def load(*names, given=factors, **bound):
        lora.load(names, given, **bound)
        lora.bind(model)
        requests = requests_for(prompts(3), adapters=("", *lora.names), longest=8)
        check(model, requests, generated(adapted, requests)[0])
        return lora.names

    assert load("one") == ("one",)
    assert load("three", "one", "two") == ("one", "three", "two")  # of larger rank, and in other modules
    assert load("one", "two", given={}) == ("three", "one", "two")
    with pytest.raises(KeyError):
        lora.load(["four"], {})
    # The least recently asked for has to go.
    assert load("four", most_bytes=size - 1) == ("one", "two", "four")
    assert lora.first_layer == 0


OTHER = {
    "more than plain LoRA": {"use_dora": True},
    "more than plain LoRA on a linear": {"lora_bias": True},
    "lm_head lies outside the layers": {"target_modules": ["q_proj", "lm_head"]},
    "trained as a whole": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("words", OTHER)
def test_other_methods_are_not_mistaken_for_lora(words):
    config = LoraConfig(**{"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | OTHER[words])
    model = get_peft_model(tiny("llama-tied-biased" if "lora_bias" in OTHER[words] else "llama"), config)
    with pytest.raises(Unsupported, match=words):
        lora_factors(model, "default")


@pytest.mark.parametrize(("part", "value"), [("lora_A", float("nan")), ("lora_B", float("inf"))])
@pytest.mark.parametrize("rows", [2, 16])
def test_an_adapter_of_nan_is_not_batched_fails_its_own_answers_and_leaves_nothing_behind(part, value, rows):
    """Its prompts are long; short ones then take their place, beside long ones."""
    model, texts = with_adapters("llama"), prompts(6, longest=30)
    with torch.no_grad():
        next(w for n, w in model.named_parameters() if ".two." in n and part in n).fill_(value)
    with pytest.raises(Unsupported, match="not finite"):
        lora_factors(model, "two")
    adapted = side_by_side(model, ["one"])
    alone = replace(side_by_side(model), acquire=lambda: put_in_force(model, "two"))
    caches, own = Caches.of(adapted.runner, rows), [GenerateRequest(k, t, "", k, 8) for k, t in enumerate(texts)]
    found, _ = generated(alone, own, rows=rows, caches=caches)
    assert all(c.failed for c in found.values())
    given = [(t if k % 2 else t[:2], name) for name in ("one", "") for k, t in enumerate(texts)]
    requests = [GenerateRequest(k, *one, k, 8) for k, one in enumerate(given)]
    found, _ = generated(adapted, requests, rows=rows, caches=caches)
    assert not any(c.failed for c in found.values())
    check(model, requests, found)


# -- sampling ---------------------------------------------------------------------------------------------------------


def test_a_text_does_not_depend_on_its_company_and_a_prompt_is_computed_once():
    model, texts = tiny("llama"), prompts(5)
    requests, reference = requests_for(texts, samples=3), {}
    for rows, order in ((1, 1), (3, -1), (16, 1)):
        found, throughput = generated(side_by_side(model), requests[::order], SamplingParams(top_p=0.9), rows=rows)
        tokens = {k: c.tokens for k, c in found.items()}
        assert tokens == (reference := reference or tokens)
        assert throughput.prompt_tokens == sum(map(len, texts))
    assert len({tuple(t) for t in reference.values()}) > 12


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_tokens_follow_the_softmax_and_the_nucleus_exactly(top_p):
    logits, n = 3 * torch.randn(1, 300, generator=torch.Generator().manual_seed(0)), 10_000
    streams = [RandomStream(k) for k in range(n)]
    tokens = sample_tokens(logits.expand(n, -1), streams, SamplingParams(temperature=0.8, top_p=top_p))
    p, order = (logits[0].double() / 0.8).softmax(-1).sort(descending=True)
    p[p.cumsum(-1) - p >= top_p] = 0
    p /= p.sum()
    seen = torch.bincount(torch.tensor(tokens), minlength=300).double()[order]
    assert float(seen[p == 0].sum()) == 0
    expected = p * n
    common, rare = expected >= 5, expected < 5
    statistic, degrees = float(((seen - expected) ** 2 / expected)[common].sum()), int(common.sum())
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5
    assert abs(seen[rare].sum() - expected[rare].sum()) <= 4 * expected[rare].sum() ** 0.5


def test_a_flat_nucleus_is_looked_for_among_all_tokens():
    flat = torch.zeros(2, 5000)
    assert int(nucleus(flat, 0.5)[0].isfinite().sum()) == 2500
    flat[0, 17] = 50
    assert nucleus(flat, 0.5)[0].isfinite().nonzero().tolist() == [[17]]


# -- the order of work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["callback", "pass"])
def test_an_interrupt_loses_no_finished_answer(where):
    model, got, calls, ended = tiny("llama"), [], [], []

    def ends(tokens):
        calls.append(0)
        if where == "pass" and len(calls) >= 150:
            raise KeyboardInterrupt
        if len(tokens) >= 5:
            ended.append(0)
        return len(tokens) >= 5

    def callback(throughput):
        if where == "callback" and throughput.row_steps >= 100:
            raise KeyboardInterrupt

    scheduler = Scheduler(side_by_side(model), SamplingParams(), BatchOptions(4, ends=ends), callback=callback)
    with pytest.raises(KeyboardInterrupt):
        for c in scheduler.run([GenerateRequest(k, p, "", k, 20) for k, p in enumerate(prompts(60))]):
            got.append(c.index)
    assert len(got) == len(ended) > 5
    assert model.config._attn_implementation == "sdpa"


# -- the real 135M model ----------------------------------------------------------------------------------------------


@pytest.mark.model
def test_real_greedy_answers_are_the_model_s_own_but_where_that_is_undecided(smollm2):
    """Base and adapters in one batch; another token than the model's own only at a gap under 1e-4."""
    base = smollm2.use(smollm2.base_checkpoint())
    torch.manual_seed(0)  # PEFT takes lora_A from the global stream
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"), "one")
    model.add_adapter("two", LoraConfig(r=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "lora_B" in path:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(path))))
    requests = [
        GenerateRequest(k, tuple(range(590 + 9 * (k % 2), 620)), ("", "one", "two")[k // 2], 0, 5) for k in range(6)
    ]
    found, _ = generated(side_by_side(model.eval(), ["one", "two"]), requests, rows=4, stop=())
    assert len({tuple(c.tokens) for c in found.values()}) >= 4
    check(model, requests, found, (), gap=1e-4)
    model.unload()
