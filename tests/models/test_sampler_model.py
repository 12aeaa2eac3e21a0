"""The sampler on the real 135M model: what it draws is what `generate` draws."""

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from truing.config import ModelConfig
from truing.data.prompts import load_prompts
from truing.models.chat import ChatFormat
from truing.models.download import cache_dir
from truing.models.engine.batching import Job, Recorder, Sampler
from truing.models.engine.lora import AdapterStack, lora_factors
from truing.models.engine.runner import Trunk
from truing.models.engine.sessions import agrees
from truing.models.loading import load_tokenizer
from truing.types.records import SamplingParams

FOLDER = cache_dir() / "models" / "smollm2-135m"
TOKENS = 8
pytestmark = [
    pytest.mark.torch,
    pytest.mark.model,
    pytest.mark.skipif(not (FOLDER / "config.json").exists(), reason="truing models get smollm2-135m"),
]


@pytest.fixture(scope="module")
def model() -> Any:
    """The base with two random adapters, strong enough to change what it says."""
    torch.set_num_threads(1)
    base: Any = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped: Any = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"), "one")
        wrapped.add_adapter("two", LoraConfig(r=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, weight in wrapped.named_parameters():
            if "lora_B" in path:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return wrapped.eval()


@pytest.fixture(scope="module")
def prefixes():
    chat = ChatFormat(load_tokenizer(FOLDER, ModelConfig()))
    return [tuple(chat.prefix(p.messages)) for p in load_prompts("v1").only("eval", 3).prompts]


def test_greedy_answers_equal_generate_but_where_the_reference_itself_is_undecided(model, prefixes):
    """Base and adapters side by side; a first difference is allowed only at a top-2 gap under 1e-4."""
    stack = AdapterStack([lora_factors(model, name) for name in ("one", "two")], torch.float32)
    model.base_model.disable_adapter_layers()
    jobs = [Job(k, prefixes[k % 2], k // 2 - 1, 0, TOKENS) for k in range(6)]
    sampler = Sampler(Trunk(model), stack, SamplingParams(temperature=0.0), stop_ids=(2,), rows=4)
    found = {d.index: d.tokens for d in sampler.run(jobs)}
    assert len({tuple(t) for t in found.values()}) >= 4
    for job in jobs:
        if job.place >= 0:
            model.base_model.enable_adapter_layers()
            model.set_adapter(("one", "two")[job.place])
        ids = torch.tensor([job.prefix])
        with torch.inference_mode():
            own = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False,
                eos_token_id=2, pad_token_id=2, repetition_penalty=1.0,
            )[0, len(job.prefix) :].tolist()  # fmt: skip
            differ = [k for k, (a, b) in enumerate(zip(own, found[job.index], strict=False)) if a != b]
            if differ:
                top = model(torch.tensor([[*job.prefix, *own[: differ[0]]]])).logits[0, -1].topk(2).values
                assert float(top[0] - top[1]) < 1e-4
            else:
                assert own == found[job.index]


def test_log_probabilities_are_within_1e_4_of_the_model_s_own(model, prefixes):

    model.base_model.disable_adapter_layers()
    sampler = Recorder(Trunk(model), None, SamplingParams(), stop_ids=(), rows=3)
    list(sampler.run([Job(k, prefix, -1, k, 6) for k, prefix in enumerate(prefixes)]))
    for job, tokens, logits in sampler.seen[::3]:
        with torch.inference_mode():
            own = model(torch.tensor([[*job.prefix, *tokens]])).logits[0, -1]
        assert torch.allclose(logits.log_softmax(-1), own.log_softmax(-1), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trial_of_an_architecture_passes_in_both_number_types(prefixes, dtype):
    model: Any = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype).eval()
    assert agrees(model, Trunk(model), prefixes[0]) is True
