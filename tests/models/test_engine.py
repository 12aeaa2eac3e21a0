"""A local backend's answers: what goes into one batch, what by itself, what is kept between calls, what is refused."""

import logging
import shutil

import pytest

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
PARAMS = SamplingParams(max_tokens=12)


@pytest.fixture(scope="module")
def full(base, tmp_path_factory):
    return find_run(str(build.full_run(tmp_path_factory.mktemp("full"), base, steps=(5,)))).checkpoints[0]


@pytest.fixture
def backend(base, run):
    return LocalBackend(str(base), run, FLOAT32)


@pytest.fixture(scope="module")
def requests(base, run):
    """Of the base and its adapters."""
    return requests_of((LocalBackend(str(base), run, FLOAT32).base_checkpoint(), *run))


@pytest.fixture(scope="module")
def reference(base, run, requests):
    """What they are answered, by a backend that does nothing else."""
    return texts_of(LocalBackend(str(base), run, FLOAT32).sample(requests, PARAMS))


def requests_of(checkpoints, samples=2):
    return [Request(c, p, d) for c in checkpoints for p in PROMPTS for d in range(samples)]


def texts_of(answers):
    return {
        (r.request.checkpoint.label, r.request.prompt.id, r.request.sample): (r.text, r.status, r.tokens)
        for r in answers
    }


def plainly(backend, requests, params=PARAMS):
    """Each by itself, by transformers' own `generate` with the same random streams."""
    out = []
    ends = (lambda t: params.cut(backend.chat.decode(t)) is not None) if params.stop else None
    options = BatchOptions(1, backend.chat.stop_ids, ends)
    for r in requests:
        prompt, seed = tuple(backend.chat.prefix(r.prompt.messages)), answer_seed(r, params)
        wanted = [GenerateRequest(0, prompt, "", seed, params.max_tokens)]
        (found,) = generate_plainly(lambda c=r.checkpoint: backend.use(c), wanted, params, options)
        out.append(answer(r, found, backend.chat, params))
    return texts_of(out)


def test_adapters_a_dora_and_full_models_answer_as_each_does_alone(base, run, full, tmp_path, caplog):
    build.save_adapter(tmp_path / "checkpoint-3", base, seed=5, scale=8.0, use_dora=True)
    every = (*run, *find_run(str(tmp_path)).checkpoints, full)
    backend = LocalBackend(str(base), every, FLOAT32)
    every = (backend.base_checkpoint(), *every)
    requests = requests_of(every)
    with caplog.at_level(logging.WARNING):
        found = texts_of(backend.sample(requests, PARAMS))
    assert found == plainly(backend, requests)
    assert "by itself, not in a batch with others" in caplog.text
    assert "one by one" not in caplog.text
    assert len({tuple(found[c.label, p.id, 0] for p in PROMPTS) for c in every}) == len(every)


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_other_architectures_are_batched_but_an_unknown_one_is_sampled_by_generate(base, tmp_path, name, caplog):
    folder = shutil.copytree(base, tmp_path / name)
    (tiny_gpt2() if name == "gpt2" else tiny(name)).save_pretrained(folder)
    backend = LocalBackend(str(folder), (), FLOAT32)
    with caplog.at_level(logging.WARNING):
        requests = requests_of([backend.base_checkpoint()])
        found = texts_of(backend.sample(requests, PARAMS))
    assert found == plainly(backend, requests)
    assert ("one by one: gpt2 models are not among those batched here" in caplog.text) is (name == "gpt2")
    assert bool(caplog.text) is (name == "gpt2")


def test_a_packed_pass_that_differs_from_the_model_is_not_relied_on(backend, requests, reference, monkeypatch, caplog):
    right = ModelRunner.logits
    monkeypatch.setattr(ModelRunner, "logits", lambda self, hidden: right(self, hidden) * 1.01)
    with caplog.at_level(logging.WARNING):
        assert texts_of(backend.sample(requests, PARAMS)) == reference
    assert "a packed pass differs from the model's own" in caplog.text


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_a_second_call_rebuilds_nothing_and_gives_the_same_texts(backend, run, requests, reference, monkeypatch):
    made, seen, factors, caches = [], [], hf.lora_factors, module.Caches.of
    monkeypatch.setattr(hf, "lora_factors", lambda *given: made.append("adapter") or factors(*given))
    monkeypatch.setattr(module.Caches, "of", lambda *given: made.append("caches") or caches(*given))
    assert texts_of(backend.sample(requests, PARAMS)) == reference
    assert sorted(made) == ["adapter"] * len(run) + ["caches"] * 2  # one to try the architecture
    backend.set_callback(lambda throughput: seen.append(throughput.in_flight))
    found = list(backend.sample(requests, PARAMS))
    assert texts_of(found) == reference
    assert max(seen) <= backend.preferred_batch == module.ROWS["cpu"]
    work = backend.engine.throughput
    assert (work.answers, work.in_flight, work.waiting) == (len(requests), 0, 0)
    assert work.kept + work.answers == sum(r.tokens for r in found)
    list(backend.loglikelihood([LikelihoodRequest(c, PROMPTS[0].messages, "On the wing.") for c in run]))
    for r in requests[::3]:  # one at a time, as a search asks
        assert texts_of(backend.sample([r], PARAMS)).items() <= reference.items()
    assert len(made) == len(run) + 2
    backend.close()
    assert texts_of(backend.sample(requests, PARAMS)) == reference
    assert made.count("adapter") == 2 * len(run)


def test_calls_within_each_other_share_nothing(backend, requests, reference):
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


def test_windows_and_bounds_on_adapters_change_no_answer(backend, run, requests, reference, monkeypatch):
    monkeypatch.setattr(hf, "WINDOW", 5)
    monkeypatch.setattr(hf, "ADAPTER_BYTES", 1)
    monkeypatch.setattr(module, "ADAPTER_BYTES", 1)
    assert texts_of(backend.sample(iter(requests), PARAMS)) == reference
    assert [backend.engine.holds(c.weights) for c in run] == [False, True]


# -- what happens meanwhile -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["score", "full after norm", "close"])
def test_what_happens_between_two_answers_changes_none(base, run, full, requests, reference, between):
    """Others use the backend while answers are generated; it may even have let go of the model."""
    backend = LocalBackend(str(base), (*run, full), FLOAT32)
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


def test_an_interrupt_while_an_adapter_loads_leaves_the_base_alone(backend, run, requests, reference, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(resident, "check_filled", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.use(run[1])
    found = texts_of(backend.sample([r for r in requests if r.checkpoint not in run], PARAMS))
    assert found and found.items() <= reference.items()


# -- answers ----------------------------------------------------------------------------------------------------------


def test_stop_texts_end_an_answer_and_one_never_met_changes_nothing(backend):
    requests = requests_of([backend.base_checkpoint()], samples=4)
    plain = texts_of(backend.sample(requests, PARAMS))
    never = SamplingParams(max_tokens=12, stop=("a text that no random model writes",))
    assert texts_of(backend.sample(requests, never)) == plain
    letter = max(map(chr, range(33, 127)), key=lambda c: sum(c in t[1:] for t, _, _ in plain.values()))
    params = SamplingParams(max_tokens=12, stop=(letter,))
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
    assert never.key != PARAMS.key == SamplingParams(max_tokens=12, stop=()).key


def test_long_prompts_are_refused_or_truncated_as_told(backend):
    long = Prompt("long", (Message("user", "x" * 600),))
    close = Prompt("close", (Message("user", "x" * 455),))
    requests = [Request(backend.base_checkpoint(), p, 0) for p in (PROMPTS[0], long, close)]
    with pytest.raises(errors.BadInput, match=r"prompt long takes \d+ tokens, this model reads 512"):
        list(backend.sample(requests, PARAMS))
    counted = SamplingParams(max_tokens=60, temperature=0.0, long_prompts="truncated")
    found = {r.request.prompt.id: r for r in backend.sample(requests, counted)}
    assert (found["long"].status, found["long"].text) == (AnswerStatus.TRUNCATED, "")
    assert "takes" in found["long"].error
    prefix = len(backend.chat.prefix(close.messages))
    assert 0 < found["close"].tokens <= 512 - prefix < 60
    assert found["p0"].text


def test_a_memory_bound_gives_fewer_rows_and_one_too_small_is_named(base, run, requests, reference):
    def bounded(memory):
        return LocalBackend(str(base), run, ModelConfig(dtype="float32", device="cpu", memory=memory))

    frugal, most = bounded(0.00095), []
    frugal.set_callback(lambda throughput: most.append(throughput.in_flight))
    assert texts_of(frugal.sample(requests, PARAMS)) == reference
    assert 1 <= max(most) < len(requests)
    with pytest.raises(errors.BadInput, match=r"one answer of 12 tokens to a prompt of \d+ takes"):
        list(bounded(0.0001).sample(requests, PARAMS))
