"""Weights that reach the model whole, or are refused: full models, and adapters of every kind that people have."""

import shutil

import pytest
import torch
import transformers as t
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from truing import errors
from truing.config import ModelConfig
from truing.models.checkpoints import checkpoint_path, find_run
from truing.models.hf import LocalBackend
from truing.types.records import LikelihoodRequest, Message
from zoo import build

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:The following .*_pattern"),
]
FLOAT32 = ModelConfig(dtype="float32", device="cpu")
TRUSTED = ModelConfig(dtype="float32", device="cpu", allow_pickle=True)
IDS = torch.tensor([[257, 80, 258, 81, 90]])
SMALL = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
    "bos_token_id": 256, "eos_token_id": 258, "pad_token_id": 256,
}  # fmt: skip


def saved(path, model):
    """A base with its tokenizer."""
    model.eval().save_pretrained(path)
    build.tiny_tokenizer(path)
    return path


def made(kind, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config)


def adapter(path, base, load=AutoModelForCausalLM, rows=None, **config):
    """One adapter whose every trained number is random."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = load.from_pretrained(base)
        if rows:
            model.resize_token_embeddings(rows)
        fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **config}
        model = get_peft_model(model, LoraConfig(**fields))
        with torch.no_grad():
            for weight in (w for w in model.parameters() if w.requires_grad):
                weight.add_(0.1 * torch.randn(weight.shape))
        model.save_pretrained(path)
    return path


def rewritten(folder, change):
    """A folder whose first weight file holds what `change` makes of its tensors."""
    file = build.weights_of(folder)
    save_file({k: v.clone() for k, v in change(load_file(file)).items()}, file, metadata={"format": "pt"})
    return folder


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


def by_hand(base, folder=None):
    """Logits of transformers and PEFT alone."""
    model = AutoModelForCausalLM.from_pretrained(base)
    return logits(model if folder is None else PeftModel.from_pretrained(model, folder).eval())


def opened(base, folder, options=FLOAT32):
    found = find_run(str(folder), allow_pickle=options.allow_pickle).checkpoints
    return LocalBackend(str(base), found, options), found


def measured(base, folder, options=FLOAT32):
    """Logits of a folder's only checkpoint and of the base before and after it."""
    backend, (checkpoint,) = opened(base, folder, options)
    before = logits(backend.use(backend.base_checkpoint()))
    backend.prepare([checkpoint])
    own = logits(backend.use(checkpoint))
    list(backend.loglikelihood([LikelihoodRequest(checkpoint, (Message("user", "Hi."),), "Here.")]))
    assert torch.equal(logits(backend.use(backend.base_checkpoint())), before)
    assert not torch.equal(own, before)
    return own


# -- full models ------------------------------------------------------------------------------------------------------

WRAPPED = {
    "torch.compile": lambda k: "_orig_mod." + k,
    "DDP": lambda k: "module." + k,
    "both": lambda k: "module._orig_mod." + k,
    "FSDP": lambda k: "_fsdp_wrapped_module." + k.replace(".0.", ".0._fsdp_wrapped_module._checkpoint_wrapped_module."),
    "no model.": lambda k: k.removeprefix("model."),
    "model. twice": lambda k: "model." + k,
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPED)
def test_known_prefixes_are_taken_off_and_every_parameter_is_the_file_s(base, tmp_path, kind):
    (folder,) = [build.full_run(tmp_path / "run", base, steps=(2,)) / "checkpoint-2"]
    tensors = load_file(folder / "model.safetensors")
    rewritten(folder, lambda found: {WRAPPED[kind](k): v for k, v in found.items()})
    backend, (checkpoint,) = opened(base, folder)
    backend.prepare([checkpoint])
    parameters = dict(backend.use(checkpoint).named_parameters())
    assert parameters.keys() == tensors.keys()
    assert all(torch.equal(parameters[k], tensors[k]) for k in tensors)


def less(tensors, *names):
    return {k: v for k, v in tensors.items() if not any(n in k for n in names)}


FOREIGN = {
    "no head": (lambda f: less(f, "lm_head"), r"only in the model: lm_head\.weight"),
    "a layer less": (lambda f: less(f, "layers.1."), r"only in the model: model\.layers\.1\..* more"),
    "a layer more": (lambda f: f | {k.replace("s.1.", "s.2."): f[k] for k in f}, r"in the file: model\.layers\.2"),
    "a bias": (lambda f: f | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, "in the file: .*q_proj.bias"),
    "another architecture": (lambda f: {k.replace("_attn", "_a"): f[k] for k in f}, "in the model"),
    "unknown prefix": (lambda f: {"policy." + k: v for k, v in f.items()}, "only in the file: policy"),
    "shorter": (
        lambda f: f | {"model.norm.weight": torch.ones(7)}, r"another shape: model\.norm\.weight \[7\] for \[32\]",
    ),
    "twice": (lambda f: f | {"module.lm_head.weight": f["lm_head.weight"] + 1}, "twice in the file: lm_head.weight"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_full_model_with_other_tensors_is_refused_with_their_names(base, tmp_path, kind):
    change, words = FOREIGN[kind]
    run = build.full_run(tmp_path / "run", base, steps=(2, 4))
    rewritten(run / "checkpoint-4", change)
    backend, found = opened(base, run)
    with pytest.raises(errors.BadModel, match=f"checkpoint-4.*{words}") as caught:
        backend.prepare(found)
    assert "leave it out" in str(caught.value) and "\n" not in str(caught.value)
    for remedy in ("as the base", "left out"):
        if remedy == "as the base":  # it is no better as one
            with pytest.raises(errors.BadModel, match=words):
                alone = LocalBackend(str(run / "checkpoint-4"), (), FLOAT32)
                alone.use(alone.base_checkpoint())
        else:
            backend.prepare(found[:1])


def test_buffers_and_tied_heads_that_files_leave_out_are_no_error(tmp_path):
    config = t.LlamaConfig(**SMALL, tie_word_embeddings=True)
    base = saved(tmp_path / "base", made(t.LlamaForCausalLM, config))
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}  # as transformers 4.30 saved it
    rewritten(base, lambda found: found | inv_freq)
    backend = LocalBackend(str(base), (), FLOAT32)
    assert torch.equal(logits(backend.use(backend.base_checkpoint())), by_hand(base))


def test_other_weights_named_by_the_configuration_and_an_adapter_beside_are_refused(base, tmp_path):
    both = shutil.copytree(base, tmp_path / "both")
    build.save_adapter(both, base)
    with pytest.raises(errors.BadModel, match="holds an adapter beside a model; remove one"):
        LocalBackend(str(both), (), FLOAT32)
    file = shutil.copytree(base, tmp_path / "other") / "config.json"
    file.write_text(file.read_text().replace("{", '{"transformers_weights": "other.safetensors",', 1))
    backend = LocalBackend(str(file.parent), (), FLOAT32)
    with pytest.raises(errors.BadModel, match="remove transformers_weights"):
        backend.use(backend.base_checkpoint())


SLOW = {
    "gpt_oss": (
        t.GptOssForCausalLM, t.GptOssConfig,
        {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64,
         "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gemma2": (t.Gemma2ForCausalLM, t.Gemma2Config, {"head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8}),
}  # fmt: skip


@pytest.mark.parametrize("kind", SLOW)
def test_models_without_fast_attention_are_measured_with_their_own(tmp_path, kind):
    model, config, fields = SLOW[kind]
    base = saved(tmp_path / "base", made(model, config(**SMALL, **fields)))
    folder = adapter(tmp_path / "checkpoint-2", base)
    torch.testing.assert_close(measured(base, folder), by_hand(base, folder), atol=1e-5, rtol=0)


# -- adapters ---------------------------------------------------------------------------------------------------------

TOKENS = {"embed_tokens": [256, 257, 258]}
MOE = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize("tied", [False, True])
def test_trained_token_rows_come_and_go_with_their_adapter(tmp_path, tied):
    config = t.LlamaConfig(**SMALL, tie_word_embeddings=tied)
    base = saved(tmp_path / "base", made(t.LlamaForCausalLM, config))
    folder = adapter(tmp_path / "run" / "checkpoint-2", base, trainable_token_indices=TOKENS)
    assert torch.equal(measured(base, folder), by_hand(base, folder))
    plain = adapter(tmp_path / "run" / "checkpoint-4", base)
    backend, (tokens, other) = opened(base, tmp_path / "run")
    assert backend.prepare([tokens, other]) == {} and backend.weight_norm(tokens) is None
    for checkpoint, place in ((other, plain), (tokens, folder), (other, plain)):
        assert torch.equal(logits(backend.use(checkpoint)), by_hand(base, place))


def test_adapters_of_vision_models_with_older_names_are_those_with_newer(tmp_path):
    text = t.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=64, query_pre_attn_scalar=8)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = t.Gemma3Config(
        text_config=text.to_dict(), vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, boi_token_index=260, eoi_token_index=261, image_token_index=262,
    )  # fmt: skip
    base = saved(tmp_path / "base", made(t.Gemma3ForConditionalGeneration, config))
    targets = r".*language_model.*\.(q_proj|v_proj)"
    new = adapter(tmp_path / "new", base, t.AutoModelForImageTextToText, target_modules=targets)
    old = shutil.copytree(new, tmp_path / "old")
    rewritten(old, lambda f: {k.replace("model.language_model.", "language_model.model."): v for k, v in f.items()})
    assert torch.equal(measured(base, old), by_hand(base, new))
    rewritten(old, lambda f: f | {"base_model.model.stranger.lora_A.weight": torch.ones(4, 32)})
    backend, found = opened(base, old)
    with pytest.raises(errors.BadModel, match="only in the file"):
        backend.prepare(found)


def per_expert(folder, experts=4, layers=2):
    """Replace what an adapter holds of experts by tensors of their own for each."""
    random, one = torch.Generator().manual_seed(2), {}
    for where in (f"{k}.block_sparse_moe.experts.{e}" for k in range(layers) for e in range(experts)):
        for name, (out, size) in {"w1": (48, 32), "w3": (48, 32), "w2": (32, 48)}.items():
            key = f"base_model.model.model.layers.{where}.{name}"
            one |= {f"{key}.lora_A.weight": torch.randn(4, size, generator=random)}
            one |= {f"{key}.lora_B.weight": 0.1 * torch.randn(out, 4, generator=random)}
    build.edit_config(folder, target_modules=["q_proj", "v_proj", "w1", "w2", "w3"])
    return rewritten(folder, lambda found: found | one)


def test_adapters_of_experts_are_measured_joined_or_apart(tmp_path):
    config = t.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
    base = saved(tmp_path / "base", made(t.MixtralForCausalLM, config))
    for folder in (adapter(tmp_path / "joined", base, target_parameters=MOE), adapter(tmp_path / "apart", base)):
        if folder.name == "apart":
            per_expert(folder)
        torch.testing.assert_close(measured(base, folder), by_hand(base, folder), atol=1e-5, rtol=0)
    rewritten(folder, lambda found: less(found, "layers.1.block_sparse_moe.experts.3"))
    backend, found = opened(base, folder)
    with pytest.raises(errors.BadModel, match="apart"):
        backend.prepare(found)


def test_prompt_tuning_is_refused_by_name(base, tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path)
    with pytest.raises(errors.BadModel, match=r"is prompt tuning \(peft_type.*LoRA adapters or full models"):
        find_run(str(tmp_path))


def test_pickles_are_loaded_where_allowed_and_held_to_the_same(base, tmp_path):
    full = build.full_run(tmp_path / "full", base, steps=(2,)) / "checkpoint-2"
    lora = adapter(tmp_path / "lora", base)
    expected = [by_hand(base, lora), by_hand(full)]
    for folder, value in zip((lora, full), expected, strict=True):
        build.pickled(folder)
        assert torch.equal(measured(base, folder, TRUSTED), value)
    for folder in (lora, full):
        file = next(folder.glob("*_model.bin"))
        torch.save(torch.load(file) | {"stranger": torch.ones(2)}, file)
        backend, found = opened(base, folder, TRUSTED)
        with pytest.raises(errors.BadModel, match="only in the file: stranger"):
            backend.prepare(found)
        torch.save({"state_dict": torch.load(file), "epoch": 3}, file)
        backend, found = opened(base, folder, TRUSTED)
        with pytest.raises(errors.DamagedWeights, match="state_dict alone"):
            backend.prepare(found)
    backend = LocalBackend(str(full), (), FLOAT32)
    with pytest.raises(errors.UnreadableCheckpoint, match="--allow-pickle"):
        backend.use(backend.base_checkpoint())


@pytest.mark.parametrize("full", [False, True])
def test_a_base_with_too_few_tokens_is_enlarged_as_the_message_says(tmp_path, full):
    base = made(t.LlamaForCausalLM, t.LlamaConfig(**SMALL | {"vocab_size": 257})).eval()
    base.save_pretrained(tmp_path / "base")
    folder = tmp_path / "checkpoint-2"
    if full:
        larger = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        larger.resize_token_embeddings(264)
        larger.save_pretrained(folder)
    else:
        adapter(folder, tmp_path / "base", rows=264, modules_to_save=["embed_tokens", "lm_head"])
    build.tiny_tokenizer(folder)
    backend, found = opened(tmp_path / "base", folder)
    with pytest.raises(errors.BadModel, match=r"resize_token_embeddings\(264\).*--base DIR"):
        backend.prepare(found)
        backend.use(backend.base_checkpoint())
    base.resize_token_embeddings(264)
    base.save_pretrained(tmp_path / "DIR")
    expected = by_hand(folder) if full else by_hand(tmp_path / "DIR", folder)
    assert torch.equal(measured(tmp_path / "DIR", folder), expected)


def test_tensors_that_zero_3_left_empty_are_named_as_such(base, tmp_path):
    folder = rewritten(adapter(tmp_path / "a", base), lambda found: {k: v.new_zeros(0) for k, v in found.items()})
    with pytest.raises(errors.DamagedWeights, match=r"8 of 8 tensors are empty.*stage3_gather_16bit_weights"):
        find_run(str(folder))
    (folder / "zero_to_fp32.py").touch()
    with pytest.raises(errors.DamagedWeights, match=r"zero_to_fp32\.py .* OUT"):
        find_run(str(folder))
    build.pickled(folder)
    (folder / "zero_to_fp32.py").unlink()
    backend, found = opened(base, folder, TRUSTED)
    with pytest.raises(errors.DamagedWeights, match="ZeRO-3"):
        backend.prepare(found)
    assert checkpoint_path(found[0]) == folder
