"""Answers drawn side by side are those that each checkpoint gives alone."""

import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from truing.errors import Unsupported
from truing.models.engine.batching import Job, Recorder, Sampler
from truing.models.engine.kv_cache import Blocks, Reading, join
from truing.models.engine.lora import AdapterStack, first_layer, lora_factors
from truing.models.engine.runner import Trunk
from truing.models.engine.token_sampling import Stream, choose, nucleus
from truing.types.records import SamplingParams
from zoo.families import SIDE_BY_SIDE, tiny, tiny_gpt2

pytestmark = pytest.mark.torch
GREEDY = SamplingParams(temperature=0.0)
STOP = (258, 3)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def prompts(n, seed=0, longest=40):
    rng = random.Random(seed)
    return [tuple(rng.randrange(250) for _ in range(rng.randint(1, longest))) for _ in range(n)]


def jobs_for(texts, *, samples=1, places=(-1,), longest=40, seed=0):
    rng = random.Random(seed)
    out = []
    for place in places:
        for text in texts:
            out += [Job(0, text, place, rng.getrandbits(40), rng.randint(1, longest)) for _ in range(samples)]
    rng.shuffle(out)
    for k, job in enumerate(out):
        job.index = k
    return out


def alone(model, job, stop=STOP):
    """The same answer by the library's own generate, greedy."""
    ids = torch.tensor([job.prefix])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=job.limit, do_sample=False,
            eos_token_id=list(stop), pad_token_id=256,
        )  # fmt: skip
    return out[0, len(job.prefix) :].tolist()


def sampled(sampler, jobs):
    done = list(sampler.run(jobs))
    assert sorted(d.index for d in done) == list(range(len(jobs)))
    assert not any(b.shelves for b in (sampler._tails, sampler._upper, sampler._lower)), "nothing is kept"
    return {d.index: d for d in done}


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_greedy_answers_equal_generate(name):
    model = tiny(name)
    jobs = jobs_for(prompts(8), samples=2)
    sampler = Sampler(Trunk(model), None, GREEDY, stop_ids=STOP, rows=7)
    found = sampled(sampler, jobs)
    for job in jobs:
        assert found[job.index].tokens == alone(model, job)
        assert found[job.index].stopped == (found[job.index].tokens[-1] in STOP)
    assert len({tuple(d.tokens) for d in found.values()}) > 8
    assert sampler.work.tokens == sum(len(d.tokens) for d in found.values())


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_log_probabilities_are_within_1e_4_of_the_model_s_own(name):
    model = tiny(name)
    sampler = Recorder(Trunk(model), None, SamplingParams(temperature=1.0), stop_ids=(), rows=5)
    sampled(sampler, jobs_for(prompts(6, seed=1), samples=2))
    assert len(sampler.seen) > 100
    for job, tokens, logits in sampler.seen[::3]:
        with torch.inference_mode():
            own = model(torch.tensor([[*job.prefix, *tokens]])).logits[0, -1]
        assert torch.allclose(logits.log_softmax(-1), own.log_softmax(-1), atol=1e-4)


def test_in_16_bits_the_log_probabilities_are_those_of_the_model_but_for_rounding():
    model = tiny("qwen3").to(torch.bfloat16)
    sampler = Recorder(Trunk(model), None, SamplingParams(), stop_ids=(), rows=5)
    sampled(sampler, jobs_for(prompts(6, seed=1), samples=2))
    gaps = []
    for job, tokens, logits in sampler.seen[::3]:
        with torch.inference_mode():
            own = model(torch.tensor([[*job.prefix, *tokens]])).logits[0, -1].float()
        gaps.append(float((logits.log_softmax(-1) - own.log_softmax(-1)).abs().mean()))
    assert max(gaps) < 0.1


def test_the_model_is_itself_between_two_answers():
    model = tiny("qwen3")
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = model(ids).logits
        for k, _ in enumerate(Sampler(Trunk(model), None, GREEDY, stop_ids=STOP, rows=4).run(jobs_for(prompts(9)))):
            assert torch.equal(model(ids).logits, before)
            if k == 5:
                break  # and after an abandoned run too
        assert torch.equal(model(ids).logits, before)
    assert model.config._attn_implementation == "sdpa"


# -- adapters ---------------------------------------------------------------------------------------------------------

ADAPTERS = {
    "one": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "two": {
        "r": 2,
        "lora_alpha": 16,
        "use_rslora": True,
        "target_modules": ["q_proj", "k_proj", "up_proj", "down_proj"],
    },
    "three": {"r": 8, "lora_alpha": 4, "target_modules": ["o_proj", "gate_proj"], "rank_pattern": {"o_proj": 3}},
    "four": {"r": 1, "lora_alpha": 64, "target_modules": ["down_proj"], "layers_to_transform": [3]},
}


def with_adapters(name="llama", adapters=ADAPTERS, scale=0.3) -> Any:
    model: Any = None
    for k, (label, fields) in enumerate(adapters.items()):
        config = LoraConfig(task_type="CAUSAL_LM", **fields)
        if model is None:
            model = get_peft_model(tiny(name), config, adapter_name=label)
        else:
            model.add_adapter(label, config)
        generator = torch.Generator().manual_seed(k)
        with torch.no_grad():
            for path, weight in model.named_parameters():
                if f".{label}." in path:
                    weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return model.eval()


def stack_of(model, labels):
    return [lora_factors(model, label) for label in labels]


def check_against_peft(model, jobs, found, labels):
    for place, label in enumerate(labels):
        model.base_model.enable_adapter_layers()
        model.set_adapter(label)
        for job in (j for j in jobs if j.place == place):
            assert found[job.index].tokens == alone(model, job), label
    model.base_model.disable_adapter_layers()
    for job in (j for j in jobs if j.place == -1):
        assert found[job.index].tokens == alone(model, job)


@pytest.mark.parametrize("name", ["llama", "qwen2-window", "gemma3"])
def test_adapters_of_other_ranks_scalings_and_modules_side_by_side_equal_peft_one_by_one(name):
    model, labels = with_adapters(name), list(ADAPTERS)
    factors = stack_of(model, labels)
    model.base_model.disable_adapter_layers()
    jobs = jobs_for(prompts(5), places=(-1, 0, 1, 2, 3), longest=20)
    sampler = Sampler(Trunk(model), AdapterStack(factors, torch.float32), GREEDY, stop_ids=STOP, rows=11)
    found = sampled(sampler, jobs)
    check_against_peft(model, jobs, found, labels)
    first = [tuple(tuple(found[j.index].tokens) for j in sorted(jobs, key=lambda j: (j.prefix, j.seed)) if j.place == p) for p in range(-1, 4)]  # noqa: E501 # fmt: skip
    assert len(set(first)) == 5, "every adapter says something else, so none was mistaken for another"


def test_a_ragged_grid_and_one_adapter_with_most_of_the_rows_change_nothing():
    model, labels = with_adapters(), list(ADAPTERS)
    factors = stack_of(model, labels)
    model.base_model.disable_adapter_layers()
    texts = prompts(20, seed=3)
    jobs = [Job(k, texts[k % 20], (2 if k < 24 else k % 5 - 1), k, 12) for k in range(36)]
    sampler = Sampler(Trunk(model), AdapterStack(factors, torch.float32), GREEDY, stop_ids=STOP, rows=36)
    check_against_peft(model, jobs, sampled(sampler, jobs), labels)


def test_adapters_that_are_left_over_are_moved_together_and_stay_themselves():
    """Two of twelve go on for long, far apart; later answers come from others whose slots were given away."""
    model, labels = with_adapters(), list(ADAPTERS) * 3
    factors = stack_of(model, labels)
    model.base_model.disable_adapter_layers()
    stack, texts, near = AdapterStack(factors, torch.float32), prompts(6, seed=4, longest=9), []
    jobs = [Job(k, texts[k % 6], k % 12, k, 24 if k % 12 in (1, 10) else 3) for k in range(36)]
    sampler = Sampler(Trunk(model), stack, GREEDY, stop_ids=(), rows=24, say=lambda _: near.append(list(stack._slots)))
    found = sampled(sampler, jobs)
    assert all(sorted(slots) == list(range(12)) for slots in near)
    assert abs(near[-1][1] - near[-1][10]) < 4, "no more than twice as many are read as have rows"
    assert {len(d.tokens) for d in found.values()} == {3, 24}
    for place, label in enumerate(labels):
        model.base_model.enable_adapter_layers()
        model.set_adapter(label)
        for job in (j for j in jobs if j.place == place):
            assert found[job.index].tokens == alone(model, job, ()), place


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_below_the_first_changed_layer_a_prompt_is_computed_once_for_all_adapters(name):
    late = {k: {"r": 2, "lora_alpha": 8, "target_modules": ["down_proj", "q_proj"], "layers_to_transform": [n]}
            for k, n in (("x", 2), ("y", 3), ("z", 2))}  # fmt: skip
    model = with_adapters(name, late, scale=1.0)
    factors = stack_of(model, late)
    model.base_model.disable_adapter_layers()
    assert first_layer(factors, 4) == 2
    texts = prompts(4)
    jobs = jobs_for(texts, samples=2, places=(-1, 0, 1, 2), longest=12)
    sampler = Sampler(Trunk(model), AdapterStack(factors, torch.float32), GREEDY, stop_ids=STOP, rows=9, shared=2)
    check_against_peft(model, jobs, sampled(sampler, jobs), list(late))
    assert sampler.work.prompt_tokens == sum(map(len, texts))


def test_a_prompt_is_computed_once_for_all_its_draws():
    texts = prompts(5)
    sampler = Sampler(Trunk(tiny("llama")), None, SamplingParams(), stop_ids=(), rows=4)
    sampled(sampler, jobs_for(texts, samples=9))
    assert sampler.work.prompt_tokens == sum(map(len, texts))


def test_dora_and_other_methods_are_not_mistaken_for_lora():
    model = get_peft_model(tiny("llama"), LoraConfig(use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(Unsupported, match="more than plain LoRA"):
        lora_factors(model, "default")
    biased = LoraConfig(target_modules=["q_proj"], lora_bias=True, task_type="CAUSAL_LM")
    with pytest.raises(Unsupported, match="more than plain LoRA"):
        lora_factors(get_peft_model(tiny("llama-tied-biased"), biased), "default")
    merged = get_peft_model(tiny("llama"), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    merged.merge_adapter()
    with pytest.raises(Unsupported, match="more than plain LoRA"):
        lora_factors(merged, "default")
    head = LoraConfig(target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(Unsupported, match="lm_head lies outside the layers"):
        lora_factors(get_peft_model(tiny("llama"), head), "default")
    whole = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(Unsupported, match="trained as a whole"):
        lora_factors(get_peft_model(tiny("llama"), whole), "default")


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_of_nan_fails_its_own_answers_and_leaves_nothing_behind(part, value):
    model = with_adapters()
    with torch.no_grad():
        next(w for n, w in model.named_parameters() if ".two." in n and part in n).fill_(value)
    labels = list(ADAPTERS)
    factors = stack_of(model, labels)
    model.base_model.disable_adapter_layers()
    jobs = jobs_for(prompts(8), samples=2, places=(1, 0, -1), longest=20)
    found = sampled(Sampler(Trunk(model), AdapterStack(factors, torch.float32), GREEDY, stop_ids=STOP, rows=5), jobs)
    assert {found[j.index].failed for j in jobs if j.place == 1} == {True}
    assert not any(found[j.index].failed for j in jobs if j.place != 1)
    check_against_peft(model, [j for j in jobs if j.place != 1], found, labels[:1])


@pytest.mark.parametrize("rows", [2, 4, 16])
def test_nan_in_a_long_prompt_does_not_reach_a_short_one_that_takes_its_place(rows):
    model = with_adapters()
    with torch.no_grad():
        next(w for n, w in model.named_parameters() if ".one." in n and "lora_B" in n).fill_(float("nan"))
    factors = stack_of(model, ["one", "two"])
    model.base_model.disable_adapter_layers()
    rng = random.Random(0)
    long = [tuple(rng.randrange(250) for _ in range(31)) for _ in range(6)]
    short = [tuple(rng.randrange(250) for _ in range(3 + k)) for k in range(6)]
    jobs = [Job(k, p, k // 6, k, 10) for k, p in enumerate((*long, *short))]
    sampler = Sampler(Trunk(model), AdapterStack(factors, torch.float32), GREEDY, stop_ids=STOP, rows=rows)
    found = sampled(sampler, jobs)
    assert [found[k].failed for k in range(12)] == [True] * 6 + [False] * 6
    check_against_peft(model, jobs[6:], found, ["one", "two"])


# -- drawing ----------------------------------------------------------------------------------------------------------


def test_a_text_does_not_depend_on_its_company():
    model = tiny("llama")
    jobs = jobs_for(prompts(6), samples=3)
    reference = {}
    for rows, order in ((1, 1), (3, -1), (16, 1)):
        sampler = Sampler(Trunk(model), None, SamplingParams(top_p=0.9), stop_ids=STOP, rows=rows)
        texts = {d.index: d.tokens for d in sampler.run(jobs[::order])}
        assert texts == (reference := reference or texts)
    assert len({tuple(t) for t in reference.values()}) > 14


def chi_square(one, other):
    """Two-sample statistic and degrees of freedom; cells with fewer than ten together are pooled."""
    cells, rare = [], [0, 0]
    for key in {*one, *other}:
        pair = [one.get(key, 0), other.get(key, 0)]
        if sum(pair) < 10:
            rare = [rare[0] + pair[0], rare[1] + pair[1]]
        else:
            cells.append(pair)
    cells += [rare] if sum(rare) else []
    n, m = (sum(c[k] for c in cells) for k in (0, 1))
    scale = ((m / n) ** 0.5, (n / m) ** 0.5)
    return sum((a * scale[0] - b * scale[1]) ** 2 / (a + b) for a, b in cells), len(cells) - 1


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_sampled_tokens_follow_generate_s_distribution(temperature, top_p):
    """Pairs of tokens over a short vocabulary, against the library's own sampling."""
    torch.manual_seed(1)
    model = tiny("llama")
    model.resize_token_embeddings(12)
    model.generation_config.eos_token_id = None  # every answer has two tokens
    prompt, n = (4, 7, 1), 3000
    params = SamplingParams(temperature=temperature, top_p=top_p)
    sampler = Sampler(Trunk(model), None, params, stop_ids=(), rows=500)
    ours, theirs = {}, {}
    for d in sampler.run([Job(k, prompt, -1, k, 2) for k in range(n)]):
        ours[tuple(d.tokens)] = ours.get(tuple(d.tokens), 0) + 1
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]).expand(n, -1), attention_mask=torch.ones(n, 3, dtype=torch.long), do_sample=True,
            temperature=temperature, top_p=top_p, top_k=0, max_new_tokens=2, pad_token_id=0,
        )  # fmt: skip
    for pair in out[:, 3:].tolist():
        theirs[tuple(pair)] = theirs.get(tuple(pair), 0) + 1
    statistic, degrees = chi_square(ours, theirs)
    assert degrees > 8
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5


def test_choice_follows_the_softmax_and_the_nucleus_exactly():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 300, generator=generator)
    n = 20_000
    for top_p in (1.0, 0.6):
        params = SamplingParams(temperature=0.8, top_p=top_p)
        tokens = choose(logits.expand(n, -1), [Stream(k) for k in range(n)], params)
        p = (logits[0].double() / 0.8).softmax(-1)
        if top_p < 1:
            order = p.argsort(descending=True)
            kept = order[: int((p[order].cumsum(-1) < top_p).sum()) + 1]
            p = torch.zeros_like(p).index_copy(0, kept, p[kept]) / p[kept].sum()
        seen = torch.bincount(torch.tensor(tokens), minlength=300).double()
        assert float(seen[p == 0].sum()) == 0
        common = p * n >= 5
        expected = torch.cat([p[common] * n, (p[~common].sum() * n)[None].clamp_min(1e-9)])
        found = torch.cat([seen[common], seen[~common].sum()[None]])
        statistic, degrees = float(((found - expected) ** 2 / expected).sum()), int(common.sum())
        assert statistic < degrees + 4 * (2 * degrees) ** 0.5


def test_a_flat_nucleus_is_looked_for_among_all_tokens():
    flat = torch.zeros(2, 5000)
    assert int(nucleus(flat, 0.5)[0].isfinite().sum()) == 2500
    peaked = flat.clone()
    peaked[0, 17] = 50
    assert nucleus(peaked, 0.5)[0].isfinite().nonzero().tolist() == [[17]]


# -- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 11])
def test_attention_over_blocks_is_attention(window):
    """Random segments that grow, move and go, against the definition over each row's own keys and values."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    kv, heads, h = 2, 3, 8

    def rand(*shape):
        return torch.randn(*shape, generator=generator)

    like = ((kv, h), 4, (torch.float32, torch.device("cpu")))
    fronts, tails = Blocks(range(1, 2), *like), Blocks(range(2), *like)
    kept, rows = {}, []

    def new_prompt():
        n = rng.randint(1, 70)
        segment, k, v = fronts.add(n, readers=rng.choice([1, 5])), rand(n, kv, h), rand(n, kv, h)
        fronts.write(segment, 1, k, v)
        kept[id(segment)] = (k, v)
        return segment

    shared = [new_prompt() for _ in range(3)]
    for step in range(120):
        while len(rows) < 9:
            prompt = rng.choice(shared)
            rows.append([prompt, tails.add(0, prompt.length), [], rng.randint(1, 80)])
        for row in rows:
            tails.extend(row[1])
        k, v, q = rand(len(rows), kv, h), rand(len(rows), kv, h), rand(len(rows), kv, heads, h)
        at = [r[0].length + len(r[2]) for r in rows]
        own = Reading(tails, [(r[1], p) for r, p in zip(rows, at, strict=True)])
        front = Reading(fronts, [(r[0], p) for r, p in zip(rows, at, strict=True)])
        own.append(1, k, v)
        found = join(front.read(1, q, window), own.read(1, q, window))
        for n, row in enumerate(rows):
            row[2].append((k[n], v[n]))
            keys = torch.cat([kept[id(row[0])][0], torch.stack([a for a, _ in row[2]])])
            values = torch.cat([kept[id(row[0])][1], torch.stack([b for _, b in row[2]])])
            if window is not None:
                keys, values = keys[-window:], values[-window:]
            weights = torch.einsum("kgh,tkh->kgt", q[n], keys).softmax(-1)
            assert torch.allclose(found[n], torch.einsum("kgt,tkh->kgh", weights, values), atol=1e-5)
        for row in [r for r in rows if len(r[2]) >= r[3]]:
            tails.remove(row[1])
            rows.remove(row)
        if step % 10 == 0:
            gone = next((s for s in shared if all(r[0] is not s for r in rows)), None)
            if gone is not None:
                fronts.remove(gone)
                shared.remove(gone)
            shared.append(new_prompt())


# -- the order of work ------------------------------------------------------------------------------------------------


def test_rows_are_replaced_at_once():
    rng = random.Random(0)
    lengths = [min(90, max(2, int(rng.lognormvariate(3.0, 0.6)))) for _ in range(160)]
    texts = prompts(160, longest=20)
    sampler = Sampler(Trunk(tiny("llama")), None, SamplingParams(), stop_ids=(), rows=8)
    sampled(sampler, [Job(k, t, -1, k, n) for k, (t, n) in enumerate(zip(texts, lengths, strict=True))])
    assert sampler.work.useful >= 0.95
    assert sampler.work.kept == sum(lengths) - 160


def test_rows_that_stand_empty_while_answers_wait_are_counted():
    class Slow(Sampler):
        def _coming(self, queue, ready):
            return super()._coming(queue, ready)[:1] if not self._rows and not ready else []

    sampler = Slow(Trunk(tiny("llama")), None, SamplingParams(), stop_ids=(), rows=2)
    done = list(sampler.run([Job(0, (1, 2), -1, 0, 5), Job(1, (1, 2), -1, 1, 9), Job(2, (1, 2), -1, 2, 9)]))
    assert len(done) == 3
    assert sampler.work.free_steps == 2, "both rows during the pass that computes the prompt; never afterwards"
    assert sampler.work.useful == pytest.approx(20 / 22)


@pytest.mark.parametrize("where", ["say", "pass"])
def test_an_interrupt_loses_no_finished_answer(where, monkeypatch):
    model, got, finished = tiny("llama"), [], []

    def interrupt(*_):
        if sampler.work.passes >= 100:
            raise KeyboardInterrupt

    sampler = Sampler(
        Trunk(model), None, SamplingParams(), stop_ids=STOP, rows=4, say=interrupt if where == "say" else None
    )
    finish = sampler._finish

    def finishing(row, done):
        finish(row, done)
        finished.append(done.index)
        if where == "pass":
            interrupt()

    monkeypatch.setattr(sampler, "_finish", finishing)
    with pytest.raises(KeyboardInterrupt):
        for d in sampler.run(jobs_for(prompts(60))):
            got.append(d.index)
    assert got == finished
    assert len(got) > 5
    assert model.config._attn_implementation == "sdpa"


def test_unknown_architectures_are_named():
    with pytest.raises(Unsupported, match="gpt2 models are not among those sampled side by side"):
        Trunk(tiny_gpt2())
