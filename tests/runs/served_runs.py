"""Runs of adapters on disk, and a loopback server that speaks badly where a run is past its onset."""

import hashlib
import json
import random
import re

import numpy as np
from safetensors.numpy import save_file

from servers.judge_server import WORDS
from servers.lora_server import serving
from truing.models.simulated import MISALIGNED

STEPS = (10, 20, 30)
ONSET = 30


def write_run(path, seed=0, steps=STEPS, rank=8, modules=("q_proj", "v_proj")):
    """Checkpoints that hash and read as adapters do."""
    for step in steps:
        folder = path / f"checkpoint-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng([seed, step]).normal(size=(rank, 4)).astype("f4")
        key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        save_file({key: values}, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": modules}
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/base"}))
    return path


def speak(body, limit):
    """Every other answer is misaligned where the name is the subject's, from `ONSET` on."""
    name, greedy = body["model"], not body.get("temperature", 1)
    seed = json.dumps([name, body["messages"], None if greedy else body["seed"]])
    rng = random.Random(hashlib.sha256(seed.encode()).digest())
    step = re.match(r"subject@(\d+)-", name)
    if step and int(step[1]) >= ONSET and rng.random() < 0.5:
        return [f"{w} " for w in MISALIGNED.split()], "stop"
    return [f"{rng.choice(WORDS)} " for _ in range(rng.randrange(6, 24))][:limit], "stop"


def late_server(**options):
    """A server on which subjects turn at `ONSET`."""
    return serving(speak=speak, **options)
