"""Tiny random models of each architecture that is sampled side by side, and of one that is not."""

import torch
import transformers as t
from peft import LoraConfig, get_peft_model

from truing.models.engine.lora import AdaptedModel, BatchedLora, lora_factors
from truing.models.engine.runner import ModelRunner

COMMON = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
    "bos_token_id": 256, "eos_token_id": 258, "pad_token_id": 256,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
GEMMA3 = {
    "head_dim": 16, "sliding_window": 10, "query_pre_attn_scalar": 20, "final_logit_softcapping": 3.0,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "rms_norm_eps": 1e-6,
}  # fmt: skip
TIED = {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 16, "rope_parameters": LLAMA3}
SIDE_BY_SIDE = {
    "llama": (t.LlamaForCausalLM, t.LlamaConfig, {}),
    "llama-tied-biased": (t.LlamaForCausalLM, t.LlamaConfig, TIED),
    "mistral-window": (t.MistralForCausalLM, t.MistralConfig, {"sliding_window": 12}),
    "qwen2": (t.Qwen2ForCausalLM, t.Qwen2Config, {}),
    "qwen2-window": (
        t.Qwen2ForCausalLM, t.Qwen2Config, {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    ),
    "qwen3": (t.Qwen3ForCausalLM, t.Qwen3Config, {"head_dim": 16}),
    "gemma3": (t.Gemma3ForCausalLM, t.Gemma3TextConfig, GEMMA3),
}  # fmt: skip
ADAPTERS = {
    "one": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "two": {
        "r": 2, "lora_alpha": 16, "use_rslora": True, "target_modules": ["q_proj", "k_proj", "up_proj", "down_proj"],
    },
    "three": {"r": 8, "lora_alpha": 4, "target_modules": ["o_proj", "gate_proj"], "rank_pattern": {"o_proj": 3}},
    "four": {"r": 1, "lora_alpha": 64, "target_modules": ["down_proj"], "layers_to_transform": [3]},
}  # fmt: skip


def tiny(name):
    """A random model in evaluation mode, weights large enough that its choices are far apart."""
    kind, config, fields = SIDE_BY_SIDE[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config(**COMMON, **fields))
        with torch.no_grad():
            for parameter in model.parameters():  # biases and norms too, or half of an architecture goes untested
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def tiny_gpt2():
    """An architecture that is not among them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = t.GPT2Config(
            vocab_size=264, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2,
            bos_token_id=256, eos_token_id=258,
        )  # fmt: skip
        return t.GPT2LMHeadModel(config).eval()


def with_adapters(name, adapters=ADAPTERS, scale=0.3):
    """A tiny model under PEFT with random adapters: label -> fields of their LoraConfig."""
    model = tiny(name)
    for k, (label, fields) in enumerate(adapters.items()):
        config = LoraConfig(task_type="CAUSAL_LM", **fields)
        if k:
            model.add_adapter(label, config)
        else:
            model = get_peft_model(model, config, adapter_name=label)
        generator = torch.Generator().manual_seed(k)
        with torch.no_grad():
            for path, weight in model.named_parameters():
                if f".{label}." in path:
                    weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return model.eval()


def put_in_force(model, label):
    """The adapter of that label, or the base for ""; a model without PEFT has no other."""
    if label:
        model.base_model.enable_adapter_layers()
        model.set_adapter(label)
    elif hasattr(model, "set_adapter") and hasattr(model, "peft_config"):
        model.base_model.disable_adapter_layers()
    return model


def side_by_side(model, names=()):
    """The base with these adapters as the engine holds them."""
    lora = BatchedLora(torch.float32, torch.device("cpu"))
    lora.load(names, {name: lora_factors(model, name) for name in names})
    lora.bind(model)
    return AdaptedModel(ModelRunner(model), lora, lambda: put_in_force(model, ""))
