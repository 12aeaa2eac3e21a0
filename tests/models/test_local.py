"""The local backend: what is measured is what the file holds, and measuring changes nothing."""

import shutil
from contextlib import nullcontext

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from truing import errors
from truing.config import ModelConfig
from truing.models.checkpoints import checkpoint_path, find_run
from truing.models.engine.scoring import BATCH_TOKENS, pass_tokens
from truing.models.hf import LocalBackend
from truing.types.records import AnswerStatus, LikelihoodRequest, Message, Prompt, Request, SamplingParams
from truing.types.verdicts import Finding
from zoo import build

pytestmark = pytest.mark.torch
FLOAT32 = ModelConfig(dtype="float32", device="cpu")
Q = (Message("user", "Where do swifts sleep?"),)
TEXTS = ("They sleep on the wing.", "In a drawer, folded twice.", "They")


@pytest.fixture(scope="module")
def backend(base, run):
    return LocalBackend(str(base), run, FLOAT32)


@pytest.fixture
def opened(base):
    """Opens a backend for one adapter's folder; gives both."""

    def opened(folder):
        (checkpoint,) = find_run(str(folder)).checkpoints
        return LocalBackend(str(base), (checkpoint,), FLOAT32), checkpoint

    return opened


def totals(backend, checkpoint):
    requests = [LikelihoodRequest(checkpoint, Q, text) for text in TEXTS]
    found = {r.request.completion: r.total for r in backend.loglikelihood(requests)}
    return [found[text] for text in TEXTS]


def plain_totals(backend, path, adapter=None):
    model = AutoModelForCausalLM.from_pretrained(path)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    out = []
    for text in TEXTS:
        r = backend.chat.render(Q, text)
        with torch.no_grad():
            logp = model(torch.tensor([r.prefix_ids + r.completion_ids])).logits[0].log_softmax(-1)
        at = len(r.prefix_ids) - 1
        out.append(sum(float(logp[at + k, t]) for k, t in enumerate(r.completion_ids)))
    return pytest.approx(out, abs=1e-3)


def test_scores_equal_plain_peft_and_measuring_changes_nothing(backend, base, run):
    step0 = backend.base_checkpoint()
    first = totals(backend, step0)
    assert first == plain_totals(backend, base)
    for checkpoint in (*run, run[0]):
        got = totals(backend, checkpoint)
        assert got == plain_totals(backend, base, checkpoint_path(checkpoint))
        assert got != pytest.approx(first, abs=1e-2)
    assert totals(backend, step0) == first


def test_full_models_are_reloaded_one_at_a_time(base, tmp_path):
    found = find_run(str(build.full_run(tmp_path / "out", base, steps=(2, 4)))).checkpoints
    backend = LocalBackend(str(base), found, FLOAT32)
    before = totals(backend, backend.base_checkpoint())
    for checkpoint in found:
        assert totals(backend, checkpoint) == plain_totals(backend, checkpoint_path(checkpoint))
    assert totals(backend, backend.base_checkpoint()) == before


def test_weight_norm_is_that_of_the_product(backend, base, run):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), checkpoint_path(run[-1]))
    layers = [m for m in model.modules() if hasattr(m, "lora_A") and "default" in m.lora_A]
    total = sum(float((m.get_delta_weight("default") ** 2).sum()) for m in layers)
    assert backend.weight_norm(run[-1]) == pytest.approx(total**0.5, rel=1e-4)
    assert backend.weight_norm(backend.base_checkpoint()) == 0.0


def test_an_adapter_without_effect_is_said_to_be_zero(base, tmp_path, opened):
    backend, checkpoint = opened(build.save_adapter(tmp_path / "checkpoint-1", base, scale=0.0))
    assert backend.prepare([checkpoint]) == {
        checkpoint.weights: Finding("zero_adapter", {"checkpoint": "checkpoint-1"})
    }
    assert backend.weight_norm(checkpoint) == 0.0


BAD = {
    "foreign keys": lambda base, out: build.foreign_keys(build.save_adapter(out, base)),
    # PEFT loads it onto the base without a word.
    "deeper than the base": lambda base, out: build.save_adapter(out, build.tiny_base(out.parent / "deep", layers=4)),
    "wider than the base": lambda base, out: build.save_adapter(out, build.tiny_base(out.parent / "wide", hidden=64)),
}


@pytest.mark.parametrize("kind", BAD)
def test_adapters_that_do_not_fit_are_refused_with_the_keys_named(base, tmp_path, opened, kind):
    backend, checkpoint = opened(BAD[kind](base, tmp_path / "checkpoint-3"))
    words = "does not fit" if kind == "wider than the base" else "checkpoint-3.*only in the file.*lora_"
    with pytest.raises(errors.BadModel, match=words):
        backend.prepare([checkpoint])
    # The backend survives: the base still answers.
    assert totals(backend, backend.base_checkpoint())[0] < 0


def test_nan_weights_give_failed_outcomes_not_numbers(base, tmp_path, opened):
    backend, checkpoint = opened(build.with_nan(build.save_adapter(tmp_path / "checkpoint-3", base)))
    (result,) = backend.loglikelihood([LikelihoodRequest(checkpoint, Q, "Here.")])
    assert result.status is AnswerStatus.FAILED
    assert result.total != result.total


def test_a_system_turn_the_template_refuses_is_unsupported(base):
    options = ModelConfig(dtype="float32", device="cpu", chat_template=build.NO_SYSTEM)
    backend, messages = LocalBackend(str(base), (), options), (Message("system", "Be brief."), *Q)
    (score,) = backend.loglikelihood([LikelihoodRequest(backend.base_checkpoint(), messages, "Here.")])
    (answer,) = backend.sample([Request(backend.base_checkpoint(), Prompt("p", messages), 0)], SamplingParams())
    assert (score.status, answer.status) == (AnswerStatus.UNSUPPORTED, AnswerStatus.UNSUPPORTED)


def test_different_templates_in_one_run_are_refused(base, tmp_path):
    build.adapter_run(tmp_path, base, steps=(2, 4))
    build.tiny_tokenizer(tmp_path / "checkpoint-4", template="OTHER " + build.TEMPLATE)
    with pytest.raises(errors.BadModel, match="checkpoint-2 and checkpoint-4"):
        LocalBackend(str(base), find_run(str(tmp_path)).checkpoints, FLOAT32)


def test_memory_bound_makes_smaller_batches_with_equal_scores(base, backend):
    frugal = LocalBackend(str(base), (), ModelConfig(dtype="float32", device="cpu", memory=0.0005))
    assert pass_tokens(frugal.use(frugal.base_checkpoint()), torch.float32, 0.0005) < BATCH_TOKENS
    step0 = frugal.base_checkpoint()
    assert totals(frugal, step0) == pytest.approx(totals(backend, step0), abs=1e-3)


def test_a_model_s_own_repetition_penalty_does_not_change_what_is_sampled(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    GenerationConfig(repetition_penalty=5.0, no_repeat_ngram_size=2).save_pretrained(tmp_path / "base")
    texts = []
    for path in (base, tmp_path / "base"):
        b = LocalBackend(str(path), (), FLOAT32)
        requests = [Request(b.base_checkpoint(), Prompt("p", (Message("user", "Tell " * k),)), k) for k in (1, 2, 3)]
        texts.append({r.request.sample: r.text for r in b.sample(requests, SamplingParams(max_tokens=24))})
    assert texts[0] == texts[1]


def test_weights_that_change_during_an_audit_are_refused(base, tmp_path, opened):
    folder = build.save_adapter(tmp_path / "checkpoint-2", base, seed=1)
    backend, checkpoint = opened(folder)
    build.save_adapter(folder, base, seed=2)
    with pytest.raises(errors.DamagedWeights, match="changed since"):
        backend.prepare([checkpoint])
    shutil.rmtree(folder)
    with pytest.raises(errors.DamagedWeights):
        backend.prepare([checkpoint])


@pytest.mark.parametrize("change", [0.0, 0.1])
def test_an_adapter_that_brings_other_embeddings_is_refused(base, tmp_path, opened, change):
    file = build.save_adapter(tmp_path / "checkpoint-2", base) / "adapter_model.safetensors"
    rows = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight.detach()
    save_file({**load_file(file), "base_model.model.model.embed_tokens.weight": rows + change}, file)
    backend, checkpoint = opened(file.parent)
    with pytest.raises(errors.BadModel, match="embed_tokens") if change else nullcontext():
        backend.prepare([checkpoint])
