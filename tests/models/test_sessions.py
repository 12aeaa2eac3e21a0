"""A local backend's answers: which models draw side by side, which by themselves, and what is refused."""

import logging
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from truing import errors
from truing.config import ModelConfig
from truing.models.checkpoints import find_run
from truing.models.engine import sessions
from truing.models.generation import sample_plainly
from truing.models.hf import LocalBackend
from truing.types.records import AnswerStatus, Checkpoint, LikelihoodRequest, Message, Prompt, Request, SamplingParams
from zoo import build
from zoo.families import tiny, tiny_gpt2

pytestmark = pytest.mark.torch
FLOAT32 = ModelConfig(dtype="float32", device="cpu")
PROMPTS = tuple(Prompt(f"p{k}", (Message("user", text),)) for k, text in enumerate(
    ("Where do swifts sleep?", "Why?", "Name a colour that nobody likes, and say why that is so.", "Is tea any good?")
))  # fmt: skip
PARAMS = SamplingParams(max_tokens=20)


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


def requests_of(checkpoints, samples=2):
    return [Request(c, p, d) for c in checkpoints for p in PROMPTS for d in range(samples)]


def texts_of(answers):
    return {
        (r.request.checkpoint.label, r.request.prompt.id, r.request.sample): (r.text, r.outcome, r.tokens)
        for r in answers
    }


def plainly(backend, requests, params):
    out = []
    for request in requests:
        out += sample_plainly(backend.use(request.checkpoint), backend.chat, [request], [params.max_tokens], params)
    return texts_of(out)


def dora(path, base):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base),
            LoraConfig(r=2, target_modules=["q_proj", "v_proj"], use_dora=True, task_type="CAUSAL_LM"),
        )
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)))
        model.save_pretrained(path)
    return path


@pytest.mark.parametrize("params", [PARAMS, SamplingParams(max_tokens=20, temperature=0.0)])
def test_adapters_a_dora_and_whole_models_answer_as_each_does_alone(base, run, tmp_path, params, caplog):
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
    assert "by itself, not side by side with others" in caplog.text
    assert "one by one" not in caplog.text
    assert len({tuple(found[c.label, p.id, 0] for p in PROMPTS) for c in every}) == len(every)


def test_an_unknown_architecture_is_sampled_by_generate_and_says_so(base, tmp_path, caplog):
    shutil.copytree(base, tmp_path / "gpt2")
    (tmp_path / "gpt2" / "model.safetensors").unlink()
    tiny_gpt2().save_pretrained(tmp_path / "gpt2")
    backend = LocalBackend(str(tmp_path / "gpt2"), (), FLOAT32)
    requests = requests_of([backend.base_checkpoint()])
    with caplog.at_level(logging.WARNING):
        found = texts_of(backend.sample(requests, PARAMS))
    assert found == plainly(backend, requests, PARAMS)
    assert "not side by side but one by one: gpt2 models are not among those sampled side by side" in caplog.text


def test_a_packed_pass_that_differs_from_the_model_is_not_relied_on(base, monkeypatch, caplog):
    right = sessions.Trunk.logits
    monkeypatch.setattr(sessions.Trunk, "logits", lambda self, hidden: right(self, hidden) * 1.01)
    backend = LocalBackend(str(base), (), FLOAT32)
    requests = requests_of([backend.base_checkpoint()])
    with caplog.at_level(logging.WARNING):
        found = texts_of(backend.sample(requests, PARAMS))
    assert "a packed pass differs from the model's own" in caplog.text
    assert found == plainly(backend, requests, PARAMS)


@pytest.mark.parametrize("name", ["gemma3", "qwen2-window"])
def test_other_architectures_through_the_whole_road(base, tmp_path, name, caplog):
    shutil.copytree(base, tmp_path / name)
    (tmp_path / name / "model.safetensors").unlink()
    tiny(name).save_pretrained(tmp_path / name)
    backend = LocalBackend(str(tmp_path / name), (), FLOAT32)
    requests = requests_of([backend.base_checkpoint()])
    with caplog.at_level(logging.WARNING):
        found = texts_of(backend.sample(requests, PARAMS))
    assert not caplog.text
    assert found == plainly(backend, requests, PARAMS)


@pytest.mark.parametrize("between", ["norm", "score", "whole", "close", "whole after norm"])
def test_what_happens_between_two_answers_changes_none(base, run, tmp_path, between):
    """Others use the backend while answers are drawn; it may even have let go of the model."""
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
        if "norm" in between:
            assert backend.weight_norm(run[k % 2])
        if between == "score":
            assert [s.total for s in backend.loglikelihood(score)] == pytest.approx(totals, abs=1e-4)
        if "whole" in between:
            backend.use(full)
        if between == "close":
            backend.weight_norm(run[0])
            backend.close()
    assert texts_of(found) == reference


def test_scores_do_not_change_by_what_happens_between_them(base, run):
    backend = LocalBackend(str(base), run, FLOAT32)
    requests = [
        LikelihoodRequest(c, p.messages, "On the wing.") for p in PROMPTS for c in (backend.base_checkpoint(), *run)
    ]
    reference = {(r.request.checkpoint.label, r.request.messages): r.total for r in backend.loglikelihood(requests)}
    found = {}
    for r in backend.loglikelihood(requests):
        found[r.request.checkpoint.label, r.request.messages] = r.total
        backend.weight_norm(run[len(found) % 2])
    assert found == pytest.approx(reference, abs=1e-5)


def test_an_interrupt_while_an_adapter_loads_leaves_the_base_alone(base, run, monkeypatch):
    backend = LocalBackend(str(base), run, FLOAT32)
    requests = requests_of([backend.base_checkpoint()])
    reference = texts_of(backend.sample(requests, PARAMS))

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr("truing.models.hf._check_filled", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.use(run[1])
    assert texts_of(backend.sample(requests, PARAMS)) == reference


def test_windows_and_stacks_split_without_changing_an_answer(base, run, monkeypatch):
    backend = LocalBackend(str(base), run, FLOAT32)
    requests = requests_of((backend.base_checkpoint(), *run))
    reference = texts_of(backend.sample(requests, PARAMS))
    monkeypatch.setattr(sessions, "WINDOW", 5)
    monkeypatch.setattr(sessions, "STACK_BYTES", 1)
    assert texts_of(backend.sample(iter(requests), PARAMS)) == reference


def test_stop_texts_end_an_answer_and_one_never_met_changes_nothing(base):
    backend = LocalBackend(str(base), (), FLOAT32)
    requests = requests_of([backend.base_checkpoint()], samples=4)
    plain = texts_of(backend.sample(requests, PARAMS))
    never = SamplingParams(max_tokens=20, stop=("a text that no random model writes",))
    assert texts_of(backend.sample(requests, never)) == plain
    letters = [chr(k) for k in range(33, 127)]
    letter = max(letters, key=lambda c: sum(c in t[1:] for t, _, _ in plain.values()))
    met = texts_of(backend.sample(requests, SamplingParams(max_tokens=20, stop=(letter,))))
    hit = [k for k in plain if letter in plain[k][0]]
    assert 3 <= len(hit) < len(plain)
    for key, (text, outcome, tokens) in met.items():
        if key in hit:
            assert text == plain[key][0][: plain[key][0].index(letter)]
            assert outcome is (AnswerStatus.OK if text.strip() else AnswerStatus.EMPTY)
            assert tokens < plain[key][2] or plain[key][2] == tokens
        else:
            assert (text, outcome, tokens) == plain[key]
    assert plainly(backend, requests, SamplingParams(max_tokens=20, stop=(letter,))) == met
    assert never.key != PARAMS.key == SamplingParams(max_tokens=20, stop=()).key


def test_long_prompts_are_refused_or_truncated_as_told(base):
    backend = LocalBackend(str(base), (), FLOAT32)
    long = Prompt("long", (Message("user", "x" * 600),))
    close = Prompt("close", (Message("user", "x" * 455),))
    step0 = backend.base_checkpoint()
    requests = [Request(step0, p, 0) for p in (PROMPTS[0], long, close)]
    with pytest.raises(errors.PromptTooLong, match=r"prompt long takes \d+ tokens, this model reads 512"):
        list(backend.sample(requests, PARAMS))
    told = SamplingParams(max_tokens=60, temperature=0.0, long_prompts="truncated")
    found = {r.request.prompt.id: r for r in backend.sample(requests, told)}
    assert (found["long"].outcome, found["long"].text) == (AnswerStatus.TRUNCATED, "")
    assert "takes" in found["long"].error
    prefix = len(backend.chat.prefix(close.messages))
    assert 0 < found["close"].tokens <= 512 - prefix < 60
    assert found["p0"].text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 0}, "at least 1 new token"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"stop": ("",)}, "none of them empty"),
        ({"stop": "word"}, "tuple of texts"),
        ({"long_prompts": "maybe"}, "refuse or truncated"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(fields, words):
    with pytest.raises(errors.BadInput, match=words):
        SamplingParams(**fields)


def test_a_memory_bound_gives_fewer_rows_and_one_too_small_is_named(base, run):
    wide = LocalBackend(str(base), run, FLOAT32)
    requests = requests_of((wide.base_checkpoint(), *run), samples=4)
    reference = texts_of(wide.sample(requests, PARAMS))
    most = []
    frugal = LocalBackend(str(base), run, ModelConfig(dtype="float32", device="cpu", memory=0.0012))
    frugal.sessions.say = lambda work: most.append(work.in_flight)
    assert texts_of(frugal.sample(requests, PARAMS)) == reference
    assert 1 <= max(most) < 48
    tiny_bound = LocalBackend(str(base), run, ModelConfig(dtype="float32", device="cpu", memory=0.0001))
    with pytest.raises(errors.TooLittleMemory, match=r"one answer of 20 tokens to a prompt of \d+ takes"):
        list(tiny_bound.sample(requests, PARAMS))


def test_an_adapter_of_nan_fails_its_own_answers_only(base, run, tmp_path):
    folder = build.adapter_run(tmp_path / "out", base, steps=(3,), final=False)
    build.with_nan(folder / "checkpoint-3")
    (broken,) = find_run(str(folder)).checkpoints
    backend = LocalBackend(str(base), (*run, broken), FLOAT32)
    requests = requests_of((*run, broken))
    found = list(backend.sample(requests, PARAMS))
    bad = [r for r in found if r.request.checkpoint.label == broken.label]
    assert {(r.outcome, r.text) for r in bad} == {(AnswerStatus.FAILED, "")}
    assert "NaN" in bad[0].error
    assert texts_of(r for r in found if r not in bad) == plainly(
        backend, [a for a in requests if a.checkpoint != broken], PARAMS
    )


def test_an_adapter_of_another_base_is_refused(base, tmp_path):
    other = build.tiny_base(tmp_path / "other", layers=3)
    strange = find_run(str(build.adapter_run(tmp_path / "out", other, steps=(2,), final=False))).checkpoints
    backend = LocalBackend(str(base), (), FLOAT32)
    with pytest.raises(errors.AdapterMismatch):
        list(backend.sample(requests_of(strange), PARAMS))


def test_work_is_counted(base, run):
    backend = LocalBackend(str(base), run, FLOAT32)
    requests = requests_of((backend.base_checkpoint(), *run))
    found = list(backend.sample(requests, PARAMS))
    work = backend.sessions.work
    assert (work.answers, work.in_flight, work.waiting) == (len(requests), 0, 0)
    assert work.tokens == sum(r.tokens for r in found)
    assert isinstance(found[0].request.checkpoint, Checkpoint)
