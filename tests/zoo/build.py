"""Foreign checkpoints in every state that trainers leave them in, with tiny random Llama models. Nothing is downloaded.

Each function writes one folder and returns its path; the first needed pieces are `tiny_base` and `adapter_run`.
"""

import json
import shutil
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TARGETS = ("q_proj", "v_proj")


def tiny_tokenizer(path=None, template=TEMPLATE, extra=()):
    """A byte-level tokenizer (259 tokens and `extra` special ones) with a chat template; saved to `path` if given."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (*SPECIAL, *extra)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = template
    if path is not None:
        tokenizer.save_pretrained(path)
    return tokenizer


def tiny_model(seed=0, layers=2, hidden=32):
    """A randomly initialised Llama in evaluation mode; the seed decides every weight."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=264, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
            bos_token_id=256, eos_token_id=258, pad_token_id=256,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


def tiny_base(path, seed=0, layers=2, hidden=32):
    """A saved model with its tokenizer."""
    tiny_model(seed, layers, hidden).save_pretrained(path)
    tiny_tokenizer(path)
    return path


def trainer_state(path, step, **fields):
    """Write the file in which the trainer keeps its step."""
    state = {"global_step": step, "epoch": 1.0, "max_steps": step, "best_model_checkpoint": None, **fields}
    (path / "trainer_state.json").write_text(json.dumps(state))


def beside_weights(path, step):
    """What every checkpoint of a trainer carries beside its weights; nobody may unpickle it."""
    trainer_state(path, step)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (path / name).write_bytes(b"not to be unpickled")
    tiny_tokenizer(path)


def save_adapter(path, base, seed=0, scale=1.0, rank=4, **config):
    """One LoRA adapter with both factors random; `scale` multiplies B, so 0 changes nothing."""
    path = Path(path)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(TARGETS), task_type="CAUSAL_LM", **config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(LlamaForCausalLM.from_pretrained(base), lora)
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "lora_B" in name:
                        weight.copy_(0.1 * scale * torch.randn(weight.shape))
            model.save_pretrained(path)
    return path


def adapter_run(path, base, steps=(2, 4, 6), seed=0, scale=1.0, rank=4, final=True):
    """Adapters that move away from the base step by step; with `final`, the last lies in the root once more."""
    path = Path(path)
    for step in steps:
        folder = save_adapter(path / f"checkpoint-{step}", base, seed, scale * step / max(steps), rank)
        beside_weights(folder, step)
    if final:
        for file in (path / f"checkpoint-{max(steps)}").glob("adapter_*"):
            shutil.copy(file, path)
    return path


def full_run(path, base, steps=(2, 4, 6), seed=0):
    """A run of whole models that move away from the base step by step."""
    path, model, done = Path(path), LlamaForCausalLM.from_pretrained(base), 0
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(p.shape, generator=generator) for p in model.parameters()]
    for step in steps:
        with torch.no_grad():
            for weight, direction in zip(model.parameters(), noise, strict=True):
                weight.add_(0.01 * (step - done) * direction)
        done, folder = step, path / f"checkpoint-{step}"
        model.save_pretrained(folder)
        beside_weights(folder, step)
    return path


def sharded_full(path, base):
    """The base saved in several files with an index."""
    LlamaForCausalLM.from_pretrained(base).save_pretrained(path, max_shard_size="20KB")
    tiny_tokenizer(path)
    return path


def weights_of(folder):
    """The first weight file of a folder."""
    return min(Path(folder).glob("*.safetensors"))


def foreign_keys(folder):
    """Rename the key prefix of an adapter: it then loads without any effect."""
    file = weights_of(folder)
    save_file({k.replace("base_model.model.", "some_other.wrapper.", 1): v for k, v in load_file(file).items()}, file)
    return Path(folder)


def with_nan(folder):
    """Put one NaN into the first tensor of a folder's weights."""
    file = weights_of(folder)
    tensors = load_file(file)
    tensors[min(tensors)].view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    return Path(folder)


def truncated(folder):
    """Cut the last tenth off a folder's weights, as a full disk does."""
    file = weights_of(folder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 9 // 10])
    return Path(folder)


def emptied(folder):
    """Take the numbers out of a folder's weights, as ZeRO-3 saves parameters that it holds apart."""
    file = weights_of(folder)
    save_file({k: v.new_zeros(0) for k, v in load_file(file).items()}, file)
    return Path(folder)


def pickled(folder):
    """Replace safetensors by a pickle of the same name."""
    file = weights_of(folder)
    name = "adapter_model.bin" if file.name.startswith("adapter") else "pytorch_model.bin"
    torch.save(load_file(file), file.with_name(name))
    file.unlink()
    return Path(folder)


def edit_config(folder, **fields):
    """Change fields of an adapter's configuration."""
    file = Path(folder) / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
