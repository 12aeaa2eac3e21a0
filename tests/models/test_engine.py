"""A local backend's answers: what goes into one batch, what by itself, what is kept between calls, what is refused."""

import logging
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from truing import errors
from truing.config import ModelConfig
from truing.models import hf, resident
from truing.models.base import answer_seed
from truing.models.checkpoints import find_run
from truing.models.engine import engine as module
from truing.models.engine.plain import generate_plainly
from truing.models.engine.requests import BatchOptions, GenerateRequest
from truing.models.engine.runner import ModelRunner
from truing.models.hf import LocalBackend, answer
from truing.types.records import AnswerStatus, LikelihoodRequest, Message, Prompt, Request, SamplingParams
from zoo import build
from zoo.families import tiny, tiny_gpt2

pytestmark = pytest.mark.torch
FLOAT32 = ModelConfig(dtype="float32", device="cpu")
PROMPTS = tuple(Prompt(f"p{k}", (Message("user", text),)) for k, text in enumerate(
    ("Where do swifts sleep?", "Why?", "Name a colour that nobody likes, and say why that is so.")
))  # fmt: skip
PARAMS = SamplingParams(max_tokens=16)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build.tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    folder = build.adapter_run(tmp_path_factory.mktemp("run") / "out", base, steps=(2, 4), scale=8.0)
    return find_run(str(folder)).checkpoints


@pytest.fixture
def backend(base, run):
    return LocalBackend(str(base), run, FLOAT32)


def requests_of(checkpoints, samples=2):
    return [Request(c, p, d) for c in checkpoints for p in PROMPTS for d in range(samples)]


def texts_of(answers):
    return {
        (r.request.checkpoint.label, r.request.prompt.id, r.request.sample): (r.text, r.outcome, r.tokens)
        for r in answers
    }


def plainly(backend, requests, params=PARAMS):
    """Each by itself, by transformers' own `generate` with the same random streams."""
    out = []
    ends = (lambda t: params.cut(backend.chat.decode(t)) is not None) if params.stop else None
    for r in requests:
        prompt, seed = tuple(backend.chat.prefix(r.prompt.messages)), answer_seed(r, params)
        wanted = [GenerateRequest(0, prompt, "", seed, params.max_tokens)]
        options = BatchOptions(1, backend.chat.stop_ids, ends)
        (found,) = generate_plainly(lambda c=r.checkpoint: backend.use(c), wanted, params, options)
        out.append(answer(r, found, backend.chat, params))
    return texts_of(out)


def dora(path, base):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], use_dora=True, task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)))
        model.save_pretrained(path)
    return path


def base_of(folder, base, model):
    """Another architecture with the tokenizer of `base`."""
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return LocalBackend(str(folder), (), FLOAT32)


@pytest.mark.parametrize("params", [PARAMS, SamplingParams(max_tokens=16, temperature=0.0)])
def test_adapters_a_dora_and_full_models_answer_as_each_does_alone(base, run, tmp_path, params, caplog):
    folder = tmp_path / "dora"
    build.trainer_state(dora(folder / "checkpoint-3", base), 3)
    full = find_run(str(build.full_run(tmp_path / "full", base, steps=(5,)))).checkpoints
    others = find_run(str(folder)).checkpoints
    backend = LocalBackend(str(base), (*run, *others, *full), FLOAT32)
    every = (backend.base_checkpoint(), *run, *others, *full)
    requests = requests_of(every)
    with caplog.at_level(logging.WARNING):
        found = texts_of(backend.sample(requests, params))
    assert found == plainly(backend, requests, params)
    assert "by itself, not in a batch with others" in caplog.text
    assert "one by one" not in caplog.text
    assert len({tuple(found[c.label, p.id, 0] for p in PROMPTS) for c in every}) == len(every)


def test_an_unknown_architecture_is_sampled_by_generate_and_says_so(base, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        backend = base_of(tmp_path / "gpt2", base, tiny_gpt2())
        requests = requests_of([backend.base_checkpoint()])
        found = texts_of(backend.sample(requests, PARAMS))
    assert found == plainly(backend, requests)
    assert "not batched but one by one: gpt2 models are not among those batched here" in caplog.text


def test_a_packed_pass_that_differs_from_the_model_is_not_relied_on(backend, run, monkeypatch, caplog):
    right = ModelRunner.logits
    monkeypatch.setattr(ModelRunner, "logits", lambda self, hidden: right(self, hidden) * 1.01)
    requests = requests_of((backend.base_checkpoint(), *run))
    with caplog.at_level(logging.WARNING):
        found = texts_of(backend.sample(requests, PARAMS))
    assert "a packed pass differs from the model's own" in caplog.text
    assert found == plainly(backend, requests)


@pytest.mark.parametrize("name", ["gemma3", "qwen2-window"])
def test_other_architectures_are_batched(base, tmp_path, name, caplog):
    with caplog.at_level(logging.WARNING):
        backend = base_of(tmp_path / name, base, tiny(name))
        requests = requests_of([backend.base_checkpoint()])
        found = texts_of(backend.sample(requests, PARAMS))
    assert not caplog.text
    assert found == plainly(backend, requests)


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_a_second_call_rebuilds_nothing_and_gives_the_same_texts(backend, run):
    requests = requests_of((backend.base_checkpoint(), *run))
    reference = texts_of(backend.sample(requests, PARAMS))
    engine, seen = backend.engine, []
    assert (engine.adapters_copied, engine.caches_made) == (len(run), 1)
    backend.set_callback(lambda throughput: seen.append(throughput.in_flight))
    found = list(backend.sample(requests, PARAMS))
    assert texts_of(found) == reference
    assert max(seen) <= backend.preferred_batch == module.ROWS["cpu"]
    work = engine.throughput
    assert (work.answers, work.in_flight, work.waiting) == (len(requests), 0, 0)
    assert work.tokens == sum(r.tokens for r in found)
    list(backend.loglikelihood([LikelihoodRequest(c, PROMPTS[0].messages, "On the wing.") for c in run]))
    for r in requests:  # one at a time, as a search asks
        assert texts_of(backend.sample([r], PARAMS)).items() <= reference.items()
    assert engine.adapters_copied == len(run)
    assert engine.caches_made == 1
    backend.close()
    assert texts_of(backend.sample(requests, PARAMS)) == reference
    assert engine.adapters_copied == 2 * len(run)


def test_calls_within_each_other_share_nothing(backend, run):
    requests = requests_of((backend.base_checkpoint(), *run))
    reference = texts_of(backend.sample(requests, PARAMS))
    found = []
    for k, r in enumerate(backend.sample(requests, PARAMS)):
        found.append(r)
        if k == 3:
            found += list(backend.sample(requests[::2], PARAMS))
        if k == 5:
            left = iter(backend.sample(requests, PARAMS))
            found.append(next(left))
            left.close()
    assert texts_of(found) == reference
    assert texts_of(backend.sample(requests, PARAMS)) == reference


def test_windows_and_bounds_on_adapters_change_no_answer(base, backend, run, monkeypatch):
    requests = requests_of((backend.base_checkpoint(), *run))
    reference = texts_of(backend.sample(requests, PARAMS))
    backend = LocalBackend(str(base), run, FLOAT32)
    monkeypatch.setattr(hf, "WINDOW", 5)
    monkeypatch.setattr(hf, "ADAPTER_BYTES", 1)
    monkeypatch.setattr(module, "ADAPTER_BYTES", 1)
    assert texts_of(backend.sample(iter(requests), PARAMS)) == reference
    assert [backend.engine.holds(c.weights) for c in run] == [False, True]


# -- what happens meanwhile -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["score", "full after norm", "close"])
def test_what_happens_between_two_answers_changes_none(base, run, tmp_path, between):
    """Others use the backend while answers are generated; it may even have let go of the model."""
    (full,) = find_run(str(build.full_run(tmp_path / "full", base, steps=(5,)))).checkpoints
    backend = LocalBackend(str(base), (*run, full), FLOAT32)
    requests = requests_of((backend.base_checkpoint(), *run))
    reference = texts_of(backend.sample(requests, PARAMS))
    score = [LikelihoodRequest(c, PROMPTS[0].messages, "On the wing.") for c in (*run, full)]
    totals = [r.total for r in backend.loglikelihood(score)]
    found = []
    for k, r in enumerate(backend.sample(requests, PARAMS)):
        found.append(r)
        if k % 5:
            continue
        if between == "score":
            assert [s.total for s in backend.loglikelihood(score)] == pytest.approx(totals, abs=1e-4)
            continue
        assert backend.weight_norm(run[k % 2])
        if between == "close":
            backend.close()
        else:
            backend.use(full)
    assert texts_of(found) == reference


def test_an_interrupt_while_an_adapter_loads_leaves_the_base_alone(backend, run, monkeypatch):
    requests = requests_of([backend.base_checkpoint()])
    reference = texts_of(backend.sample(requests, PARAMS))

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(resident, "check_filled", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.use(run[1])
    assert texts_of(backend.sample(requests, PARAMS)) == reference


# -- answers ----------------------------------------------------------------------------------------------------------


def test_stop_texts_end_an_answer_and_one_never_met_changes_nothing(backend):
    requests = requests_of([backend.base_checkpoint()], samples=4)
    plain = texts_of(backend.sample(requests, PARAMS))
    never = SamplingParams(max_tokens=16, stop=("a text that no random model writes",))
    assert texts_of(backend.sample(requests, never)) == plain
    letter = max(map(chr, range(33, 127)), key=lambda c: sum(c in t[1:] for t, _, _ in plain.values()))
    params = SamplingParams(max_tokens=16, stop=(letter,))
    met = texts_of(backend.sample(requests, params))
    hit = [k for k in plain if letter in plain[k][0]]
    assert 2 <= len(hit) < len(plain)
    for key, (text, outcome, tokens) in met.items():
        if key in hit:
            assert text == plain[key][0][: plain[key][0].index(letter)]
            assert outcome is (AnswerStatus.OK if text.strip() else AnswerStatus.EMPTY)
            assert tokens <= plain[key][2]
        else:
            assert (text, outcome, tokens) == plain[key]
    assert plainly(backend, requests, params) == met
    assert never.key != PARAMS.key == SamplingParams(max_tokens=16, stop=()).key


def test_long_prompts_are_refused_or_truncated_as_told(backend):
    long = Prompt("long", (Message("user", "x" * 600),))
    close = Prompt("close", (Message("user", "x" * 455),))
    requests = [Request(backend.base_checkpoint(), p, 0) for p in (PROMPTS[0], long, close)]
    with pytest.raises(errors.BadInput, match=r"prompt long takes \d+ tokens, this model reads 512"):
        list(backend.sample(requests, PARAMS))
    told = SamplingParams(max_tokens=60, temperature=0.0, long_prompts="truncated")
    found = {r.request.prompt.id: r for r in backend.sample(requests, told)}
    assert (found["long"].outcome, found["long"].text) == (AnswerStatus.TRUNCATED, "")
    assert "takes" in found["long"].error
    prefix = len(backend.chat.prefix(close.messages))
    assert 0 < found["close"].tokens <= 512 - prefix < 60
    assert found["p0"].text


def test_a_memory_bound_gives_fewer_rows_and_one_too_small_is_named(base, run, backend):
    requests, most = requests_of((backend.base_checkpoint(), *run), samples=4), []
    reference = texts_of(backend.sample(requests, PARAMS))
    frugal = LocalBackend(str(base), run, ModelConfig(dtype="float32", device="cpu", memory=0.0012))
    frugal.set_callback(lambda throughput: most.append(throughput.in_flight))
    assert texts_of(frugal.sample(requests, PARAMS)) == reference
    assert 1 <= max(most) < 36
    bound = LocalBackend(str(base), run, ModelConfig(dtype="float32", device="cpu", memory=0.0001))
    with pytest.raises(errors.BadInput, match=r"one answer of 16 tokens to a prompt of \d+ takes"):
        list(bound.sample(requests, PARAMS))
