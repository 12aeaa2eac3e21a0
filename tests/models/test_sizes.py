"""What is built is no larger than its files; masks that old files hold; attention where there is no fast one."""

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

from truing.config import ModelConfig
from truing.errors import BadModel
from truing.models import trial
from truing.models.checkpoints import find_run
from truing.models.hf import LocalBackend
from truing.models.loading import load_model, load_tokenizer, with_attention
from zoo import build

pytestmark = pytest.mark.torch
FLOAT32 = ModelConfig(dtype="float32", device="cpu")


def loaded(folder):
    return load_model(folder, torch.float32, torch.device("cpu"), FLOAT32)


def configured(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return folder


HUGE = [
    {"num_hidden_layers": 10**6}, {"num_hidden_layers": 10**12}, {"hidden_size": 10**9}, {"vocab_size": 10**12},
    {"intermediate_size": 10**10}, {"head_dim": 10**10}, {"num_attention_heads": 10**7}, {"num_labels": 10**9},
    {"n_layers": 10**7}, {"text_config": {"num_hidden_layers": 10**6}}, {"vocab_size": 10**6}, {"hidden_size": 65536},
]  # fmt: skip


@pytest.mark.parametrize("fields", HUGE, ids=str)
def test_a_configuration_larger_than_its_files_is_refused_at_once(base, tmp_path, fields):
    folder = configured(shutil.copytree(base, tmp_path / "model"), **fields)
    with pytest.raises(BadModel, match=r"config\.json|tensors are not those") as e:
        loaded(folder)
    assert "\n" not in str(e.value)
    if "more than a model of" in str(e.value):
        with pytest.raises(BadModel, match="more than a model of"):  # transformers reads it for a tokenizer too
            load_tokenizer(folder, FLOAT32)
        shutil.copy(base / "config.json", folder / "config.json")  # as the message says
        loaded(folder)


def test_large_numbers_that_cost_nothing_are_let_be(base, tmp_path):
    fields = {"rope_theta": 10**12, "max_position_embeddings": 10**7, "max_window_layers": 70, "sliding_window": 10**10}
    loaded(configured(shutil.copytree(base, tmp_path / "model"), **fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"r": 1 << 20}, "rank 1,048,576"), ({"rank_pattern": {"q_proj": 5000}}, "rank 5,000"),
     ({"layer_replication": [[0, 1], [0, 10**6]]}, "1,000,001 layers")],
)  # fmt: skip
def test_an_adapter_larger_than_its_file_is_refused(base, tmp_path, fields, words):
    folder = build.save_adapter(tmp_path / "checkpoint-2", base)
    build.edit_config(folder, **fields)
    backend = LocalBackend(str(base), found := find_run(str(folder)).checkpoints, FLOAT32)
    with pytest.raises(BadModel, match=rf"adapter_config\.json: .*{words}"):
        backend.prepare(found)


# -- tokenizers in parts ----------------------------------------------------------------------------------------------


def in_parts(folder, vocabulary):
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return folder


def test_a_tokenizer_in_parts_is_made_in_the_child_first_within_limits(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "cache"))
    folder = in_parts(tmp_path / "parts", {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3})
    assert load_tokenizer(folder, FLOAT32)("ab")["input_ids"] == [2]
    large = in_parts(tmp_path / "large", {f"{k:x}": k for k in range(300_000)})
    monkeypatch.setattr(trial, "MEMORY", 16 << 20)
    with pytest.raises(BadModel, match=r"tokenizer takes over .* put the tokenizer of the base in its place"):
        load_tokenizer(large, FLOAT32)


# -- masks ------------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "vocab_size": 264,
    "n_embd": 32,
    "n_layer": 1,
    "n_head": 4,
    "n_positions": 16,
    "bos_token_id": 0,
}
MASKED = {
    "gpt2": (t.GPT2LMHeadModel, t.GPT2Config(**SMALL, eos_token_id=0), "transformer.h.0.attn"),
    "gptj": (t.GPTJForCausalLM, t.GPTJConfig(**SMALL, eos_token_id=0, rotary_dim=4), "transformer.h.0.attn"),
}


@pytest.mark.parametrize("kind", MASKED)
def test_causal_masks_beside_the_weights_are_no_strangers(tmp_path, kind):
    made, config, place = MASKED[kind]
    made(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    own = load_file(file)
    mask = torch.ones(16, 16, dtype=torch.bool).tril()[None, None].contiguous()
    save_file(own | {f"{place}.bias": mask, f"{place}.masked_bias": torch.tensor(-1e9)}, file, {"format": "pt"})
    parameters = loaded(tmp_path).state_dict()
    assert all(torch.equal(parameters[k], v) for k, v in own.items())
    for strange in ({f"{place}.masked_bias": torch.ones(32)}, {f"{place}.q_proj.weight.absmax": torch.ones(4)}):
        save_file(own | strange, file, {"format": "pt"})
        with pytest.raises(BadModel, match=f"only in the file: {next(iter(strange))}"):
            loaded(tmp_path)


def test_a_head_beside_tied_embeddings_is_the_file_s(tmp_path):
    config = t.LlamaConfig(
        vocab_size=264, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    t.LlamaForCausalLM(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    own = load_file(file)
    for more in (0, 1):
        head = own["model.embed_tokens.weight"] + more
        save_file(own | {"lm_head.weight": head}, file, {"format": "pt"})
        model = loaded(tmp_path)
        assert torch.equal(model.lm_head.weight, head)
        assert torch.equal(model.model.embed_tokens.weight, own["model.embed_tokens.weight"])


# -- attention --------------------------------------------------------------------------------------------------------

ROOT = Path(t.__file__).parent / "models"
NO_SDPA = re.compile(r"_supports_sdpa = False")


def without_fast_attention():
    """(module, class) of every causal model whose file does not say that all of it has fast attention."""
    for file in sorted(ROOT.glob("*/modeling_*.py")):
        text = file.read_text(encoding="utf-8")
        if NO_SDPA.search(text) or "_supports_sdpa" not in text:
            for name in sorted({n for n in CAUSAL.values() if isinstance(n, str) and f"class {n}(" in text}):
                yield f"transformers.models.{file.parent.name}.{file.stem}", name


@pytest.mark.parametrize(("module", "name"), [*without_fast_attention()], ids=lambda x: x.rpartition(".")[2])
def test_every_architecture_without_fast_attention_takes_its_own(module, name):
    kind = getattr(importlib.import_module(module), name)
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model)
    taken = with_attention(lambda asked: model.get_correct_attn_implementation(asked, True))
    assert taken == ("sdpa" if kind._supports_sdpa else "eager")
