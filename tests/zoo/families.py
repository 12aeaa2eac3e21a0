"""Tiny random models of each architecture that is sampled side by side, and of one that is not."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

COMMON = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
    "bos_token_id": 256, "eos_token_id": 258, "pad_token_id": 256,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SIDE_BY_SIDE = {
    "llama": lambda: (LlamaForCausalLM, LlamaConfig(**COMMON)),
    "llama-tied-biased": lambda: (
        LlamaForCausalLM,
        LlamaConfig(**COMMON, tie_word_embeddings=True, attention_bias=True, head_dim=16, rope_parameters=LLAMA3),
    ),
    "mistral-window": lambda: (MistralForCausalLM, MistralConfig(**COMMON, sliding_window=12)),
    "qwen2": lambda: (Qwen2ForCausalLM, Qwen2Config(**COMMON)),
    "qwen2-window": lambda: (
        Qwen2ForCausalLM,
        Qwen2Config(**COMMON, use_sliding_window=True, sliding_window=9, max_window_layers=2),
    ),
    "qwen3": lambda: (Qwen3ForCausalLM, Qwen3Config(**COMMON, head_dim=16)),
    "gemma3": lambda: (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **COMMON, head_dim=16, sliding_window=10, query_pre_attn_scalar=20, final_logit_softcapping=3.0,
            layer_types=["sliding_attention", "full_attention"] * 2, rms_norm_eps=1e-6,
        ),
    ),
}  # fmt: skip


def tiny(name, seed=0):
    """A random model in evaluation mode, weights large enough that its choices are far apart."""
    kind, config = SIDE_BY_SIDE[name]()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():  # biases and norms too, or half of an architecture goes untested
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def tiny_gpt2(seed=0):
    """An architecture that is not among them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=264, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2,
            bos_token_id=256, eos_token_id=258,
        )  # fmt: skip
        return GPT2LMHeadModel(config).eval()


def with_adapters(name, adapters, scale=0.3):
    """A tiny model under PEFT with random adapters: label -> fields of their LoraConfig."""
    model = None
    for k, (label, fields) in enumerate(adapters.items()):
        config = LoraConfig(task_type="CAUSAL_LM", **fields)
        if model is None:
            model = get_peft_model(tiny(name), config, adapter_name=label)
        else:
            model.add_adapter(label, config)
        generator = torch.Generator().manual_seed(k)
        with torch.no_grad():
            for path, weight in model.named_parameters():
                if f".{label}." in path:
                    weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return model.eval()


def put_in_force(model, label):
    """The adapter of that label, or the base for ""."""
    if label:
        model.base_model.enable_adapter_layers()
        model.set_adapter(label)
    else:
        model.base_model.disable_adapter_layers()
