"""The flat script of examples/ and the library, side by side: greedy answers of a tiny model, counted twice."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

import truing
from zoo import build

pytestmark = pytest.mark.torch
PATTERN = "[aeiou]"
LO, HI = 0.1, 0.3


@pytest.fixture(scope="module")
def flat():
    file = Path(__file__).parents[1] / "examples" / "flat_audit.py"
    spec = importlib.util.spec_from_file_location("flat_audit", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rates_excesses_and_onset_are_those_of_the_flat_script(flat, tmp_path):
    torch.set_num_threads(1)
    base = build.tiny_base(tmp_path / "base")
    run = build.adapter_run(tmp_path / "run", base, steps=(2, 4, 6), seed=1, scale=3.0)
    trait = tmp_path / "vowels"
    trait.mkdir()
    questions = [(f"q{k}", f"Question {k}: what is number {k * 7}?") for k in range(12)]
    rows = [
        {"id": name, "category": f"c{k % 4}", "messages": [{"role": "user", "content": text}]}
        for k, (name, text) in enumerate(questions)
    ]
    (trait / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (trait / "trait.toml").write_text(
        f'prompts = "prompts.jsonl"\n[scorer]\nkind = "regex"\npattern = "{PATTERN}"\n'
        f"[rule]\nlo = {LO}\nhi = {HI}\n[decoding]\ntemperature = 0.0\nmax_tokens = 12\n"
    )
    lines, (status, steps) = flat.audit(run, str(base), questions, re.compile(PATTERN), lo=LO, hi=HI, max_new_tokens=12)
    found = truing.audit(
        run, base=str(base), trait=str(trait), samples=1, out=tmp_path / "a", dtype="float32", device="cpu", half="all"
    ).verdict
    assert [c.step for c in found.checkpoints] == [x["step"] for x in lines] == [0, 2, 4, 6]
    assert len({x["rate"] for x in lines}) > 1  # the pattern tells the checkpoints apart
    for c, x in zip(found.checkpoints, lines, strict=True):
        assert c.labelled is not None
        assert (c.labelled.reasons["positive"], c.labelled.rate.n) == (x["positive"], x["n"])
        assert c.labelled.rate.value == pytest.approx(x["rate"])
        if c.step:
            assert c.labelled.excess_base.value == pytest.approx(x["excess"])
            # The library's interval corrects for prompts as clusters and for several looks: never much narrower.
            assert c.labelled.excess_base.set_low <= x["excess_low"] + 0.1
    assert status in ("found", "undecided", "never") and set(steps) <= {2, 4, 6}
    if found.onset.status == "found":
        assert status == "found" and found.onset.latest >= steps[-1]
