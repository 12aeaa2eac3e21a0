"""The local backend: what is measured is what the file holds, and measuring changes nothing."""

import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from truing import errors
from truing.config import ModelConfig
from truing.models.checkpoints import find_run
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
def base(tmp_path_factory):
    torch.set_num_threads(1)
    return build.tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    return find_run(str(build.adapter_run(tmp_path_factory.mktemp("run") / "out", base, steps=(2, 4))))


@pytest.fixture(scope="module")
def backend(base, run):
    return LocalBackend(str(base), run.checkpoints, FLOAT32)


def totals(backend, checkpoint, texts=TEXTS, messages=Q):
    requests = [LikelihoodRequest(checkpoint, messages, t, entropy=True) for t in texts]
    found = {r.request.completion: r for r in backend.loglikelihood(requests)}
    return [found[t].total for t in texts]


def plain_totals(backend, model, texts=TEXTS, messages=Q):
    out = []
    for text in texts:
        r = backend.chat.render(messages, text)
        with torch.no_grad():
            logp = model(torch.tensor([r.prefix_ids + r.completion_ids])).logits[0].log_softmax(-1)
        at = len(r.prefix_ids) - 1
        out.append(sum(float(logp[at + k, t]) for k, t in enumerate(r.completion_ids)))
    return out


def test_scores_equal_plain_peft_and_measuring_changes_nothing(backend, base, run):
    step0 = backend.base_checkpoint()
    first = totals(backend, step0)
    assert first == pytest.approx(plain_totals(backend, AutoModelForCausalLM.from_pretrained(base)), abs=1e-3)
    for checkpoint in (*run.checkpoints, *reversed(run.checkpoints)):
        folder = checkpoint.uri.removeprefix("file:")
        reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
        got = totals(backend, checkpoint)
        assert got == pytest.approx(plain_totals(backend, reference), abs=1e-3)
        assert got != pytest.approx(first, abs=1e-2)
    assert totals(backend, step0) == first


def test_full_models_are_reloaded_one_at_a_time(base, tmp_path):
    found = find_run(str(build.full_run(tmp_path / "out", base, steps=(2, 4))))
    backend = LocalBackend(str(base), found.checkpoints, FLOAT32)
    before = totals(backend, backend.base_checkpoint())
    for checkpoint in found.checkpoints:
        plain = AutoModelForCausalLM.from_pretrained(checkpoint.uri.removeprefix("file:"))
        assert totals(backend, checkpoint) == pytest.approx(plain_totals(backend, plain), abs=1e-3)
    assert totals(backend, backend.base_checkpoint()) == before


def test_weight_norm_is_that_of_the_product(backend, base, run):
    checkpoint = run.checkpoints[-1]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), checkpoint.uri.removeprefix("file:"))
    total = 0.0
    for module in model.modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            delta = module.get_delta_weight("default")
            total += float((delta**2).sum())
    assert backend.weight_norm(checkpoint) == pytest.approx(total**0.5, rel=1e-4)
    assert backend.weight_norm(backend.base_checkpoint()) == 0.0


def test_an_adapter_without_effect_is_said_to_be_zero(base, tmp_path):
    build.save_adapter(tmp_path / "checkpoint-1", base, scale=0.0)
    found = find_run(str(tmp_path))
    backend = LocalBackend(str(base), found.checkpoints, FLOAT32)
    qualified = backend.prepare(found.checkpoints)
    assert qualified == {found.checkpoints[0].weights: Finding("zero_adapter", {"checkpoint": "checkpoint-1"})}
    assert backend.weight_norm(found.checkpoints[0]) == 0.0


BAD = {
    "foreign keys": lambda base, out: build.foreign_keys(build.save_adapter(out, base)),
    "deeper than the base": lambda base, out: build.wrong_depth_adapter(out),
    "wider than the base": lambda base, out: build.save_adapter(out, build.tiny_base(out.parent / "wide", hidden=64)),
}


@pytest.mark.parametrize("kind", BAD)
def test_adapters_that_do_not_fit_are_refused_with_the_keys_named(base, tmp_path, kind):
    BAD[kind](base, tmp_path / "checkpoint-3")
    found = find_run(str(tmp_path))
    backend = LocalBackend(str(base), found.checkpoints, FLOAT32)
    with pytest.raises(errors.BadModel) as caught:
        backend.prepare(found.checkpoints)
    assert "checkpoint-3" in str(caught.value)
    if kind != "wider than the base":
        assert "only in the file" in str(caught.value)
        assert "lora_" in str(caught.value)
    # The backend survives: the base still answers.
    assert totals(backend, backend.base_checkpoint())[0] < 0


def test_nan_weights_give_failed_outcomes_not_numbers(base, tmp_path):
    build.with_nan(build.save_adapter(tmp_path / "checkpoint-3", base))
    found = find_run(str(tmp_path))
    backend = LocalBackend(str(base), found.checkpoints, FLOAT32)
    (result,) = backend.loglikelihood([LikelihoodRequest(found.checkpoints[0], Q, "Here.")])
    assert result.outcome is AnswerStatus.FAILED
    assert result.total != result.total


def test_a_system_turn_the_template_drops_is_unsupported(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    no_system = build.TEMPLATE.replace(
        "{% for message in messages %}",
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}",
    )
    build.tiny_tokenizer(tmp_path / "base", template=no_system)
    backend = LocalBackend(str(tmp_path / "base"), (), FLOAT32)
    messages = (Message("system", "Be brief."), *Q)
    (score,) = backend.loglikelihood([LikelihoodRequest(backend.base_checkpoint(), messages, "Here.")])
    (answer,) = backend.sample([Request(backend.base_checkpoint(), Prompt("p", messages), 0)], SamplingParams())
    assert (score.outcome, answer.outcome) == (AnswerStatus.UNSUPPORTED, AnswerStatus.UNSUPPORTED)


def test_different_templates_in_one_run_are_refused(base, tmp_path):
    build.adapter_run(tmp_path, base, steps=(2, 4))
    build.tiny_tokenizer(tmp_path / "checkpoint-4", template="OTHER " + build.TEMPLATE)
    with pytest.raises(errors.BadModel, match="checkpoint-2 and checkpoint-4"):
        LocalBackend(str(base), find_run(str(tmp_path)).checkpoints, FLOAT32)


def test_a_base_without_template_says_what_to_do(tmp_path):
    build.tiny_base(tmp_path)
    tokenizer = build.tiny_tokenizer()
    tokenizer.chat_template = None
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(errors.BadModel, match="--chat-template"):
        LocalBackend(str(tmp_path), (), FLOAT32)


def test_memory_bound_makes_smaller_batches_with_equal_scores(base, backend):
    frugal = LocalBackend(str(base), (), ModelConfig(dtype="float32", device="cpu", memory=0.0005))
    assert pass_tokens(frugal.use(frugal.base_checkpoint()), torch.float32, 0.0005) < BATCH_TOKENS
    assert totals(frugal, frugal.base_checkpoint()) == pytest.approx(
        totals(backend, backend.base_checkpoint()), abs=1e-3
    )


def test_a_model_s_own_repetition_penalty_does_not_change_what_is_sampled(base, tmp_path):
    from transformers import GenerationConfig

    shutil.copytree(base, tmp_path / "base")
    GenerationConfig(repetition_penalty=5.0, no_repeat_ngram_size=2).save_pretrained(tmp_path / "base")
    requests = [Prompt(f"p{k}", (Message("user", "Tell " * (k + 1)),)) for k in range(3)]
    texts = []
    for path in (base, tmp_path / "base"):
        b = LocalBackend(str(path), (), FLOAT32)
        sampled = b.sample([Request(b.base_checkpoint(), p, 0) for p in requests], SamplingParams(max_tokens=24))
        texts.append({r.request.prompt.id: r.text for r in sampled})
    assert texts[0] == texts[1]


def test_weights_that_change_during_an_audit_are_refused(base, tmp_path):
    build.save_adapter(tmp_path / "checkpoint-2", base, seed=1)
    found = find_run(str(tmp_path)).checkpoints
    backend = LocalBackend(str(base), found, FLOAT32)
    build.save_adapter(tmp_path / "checkpoint-2", base, seed=2)
    with pytest.raises(errors.DamagedWeights, match="changed since"):
        backend.prepare(found)
    shutil.rmtree(tmp_path / "checkpoint-2")
    with pytest.raises(errors.DamagedWeights):
        backend.prepare(found)


def test_an_adapter_that_brings_other_embeddings_is_refused(base, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = build.save_adapter(tmp_path / "checkpoint-2", base)
    stored = load_file(folder / "adapter_model.safetensors")
    rows = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight.detach()
    for change, refused in ((0.0, False), (0.1, True)):
        key = "base_model.model.model.embed_tokens.weight"
        save_file({**stored, key: rows + change}, folder / "adapter_model.safetensors")
        found = find_run(str(tmp_path)).checkpoints
        backend = LocalBackend(str(base), found, FLOAT32)
        if refused:
            with pytest.raises(errors.BadModel, match="embed_tokens"):
                backend.prepare(found)
        else:
            backend.prepare(found)
