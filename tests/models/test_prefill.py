"""Transformed prompts under a real model in memory: they render, and given first words stay out of the answer."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from truing.config import ModelConfig
from truing.data.conversations import load_conversations
from truing.data.prompts import load_prompts
from truing.data.transforms import TRANSFORMS, VariantContext, split_prefill, transformed
from truing.models.chat import ChatFormat
from truing.models.hf import LocalBackend
from truing.types.records import AnswerStatus, LikelihoodRequest, Message, Prompt, Request, SamplingParams
from zoo import build

pytestmark = pytest.mark.torch
FLOAT32 = ModelConfig(dtype="float32", device="cpu")
QUESTION = (Message("user", "Where do swifts sleep?"),)
START = "They sleep"
OPENED = Prompt("p", (*QUESTION, Message("assistant", START)))
PLAIN = Prompt("p", QUESTION)


@pytest.fixture(scope="module")
def backend(base):
    return LocalBackend(str(base), (), FLOAT32)


def greedy(model, ids, n, stop):
    """The definition: the likeliest token, again and again."""
    sampled = []
    with torch.no_grad():
        while len(sampled) < n and not (sampled and sampled[-1] in stop):
            sampled.append(int(model(torch.tensor([ids + sampled])).logits[0, -1].argmax()))
    return sampled


def test_the_answer_is_what_follows_the_given_words(backend, base):
    (r,) = backend.sample([Request(backend.base_checkpoint(), OPENED, 0, "prefill")], SamplingParams(12, temperature=0))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), build.tiny_tokenizer()
    text = f"<|im_start|>user\n{QUESTION[0].content}<|im_end|>\n<|im_start|>assistant\n{START}"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    sampled = greedy(model, ids, 12, backend.chat.stop_ids)
    assert r.text == tokenizer.decode(sampled, skip_special_tokens=True) and r.tokens == len(sampled)
    assert START not in r.text and r.status in (AnswerStatus.OK, AnswerStatus.TRUNCATED)
    (other,) = backend.sample([Request(backend.base_checkpoint(), PLAIN, 0)], SamplingParams(12, temperature=0))
    assert other.text != r.text


def test_the_likelihood_of_an_answer_is_that_of_its_beginning_and_its_rest(backend):
    c, rest = backend.base_checkpoint(), " on the wing."
    requests = [
        LikelihoodRequest(c, QUESTION, START + rest, "whole"),
        LikelihoodRequest(c, QUESTION, START, "start", closing=False),
        LikelihoodRequest(c, OPENED.messages, rest, "rest"),
    ]
    total = {r.request.name: r.total for r in backend.loglikelihood(requests)}
    assert total["whole"] == pytest.approx(total["start"] + total["rest"], abs=1e-3)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_shipped_prompt_renders_under_every_transform(name):
    rows = [
        type(c)((Message("system", "You advise savers."), *c.messages))
        for c in load_conversations("careless-finance-heldout").conversations
    ]
    tokenizer, context = build.tiny_tokenizer(), VariantContext.from_task(rows)
    chat = ChatFormat(tokenizer)
    prompts = load_prompts("v1").prompts
    made = transformed(name, prompts, context)
    assert len(made) == len(prompts)
    for plain, p in zip(prompts, made, strict=True):
        assert chat.supports(p.messages)
        text, (turns, start) = tokenizer.decode(chat.prefix(p.messages)), split_prefill(p.messages)
        assert chat.prefix(p.messages) != chat.prefix(plain.messages)
        assert text.endswith("<|im_start|>assistant\n" + start)
        at = 0
        for m in turns:  # every turn is there, in order
            at = text.index(m.content, at) + len(m.content)


@pytest.mark.model
def test_given_words_under_the_real_model(smollm2):
    params, base = SamplingParams(8, temperature=0), smollm2.base_checkpoint()
    (plain,) = smollm2.sample([Request(base, PLAIN, 0)], params)
    words = plain.text.split(" ")
    start = " ".join(words[:3])
    opened = Prompt("p", (*QUESTION, Message("assistant", start)))
    (r,) = smollm2.sample([Request(base, opened, 0, "prefill")], params)
    # What the model says next after words that it would have said itself is what it would have said next.
    assert (start + r.text).startswith(plain.text)
    assert r.text.startswith(" ") and not r.text.strip().startswith(start)
