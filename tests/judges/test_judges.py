"""Addresses of judges, and whose model one is."""

import pytest

from truing.config import JudgeConfig, ModelConfig
from truing.errors import BadInput
from truing.judges.base import JudgeModel
from truing.judges.registry import SCHEMES, JudgeContext, judge_family, open_judge
from truing.types.records import PromptSet

NONE = PromptSet("none", "1", "0" * 64, ())


def opened(address):
    return open_judge(address, JudgeContext(JudgeConfig(), ModelConfig(dtype="float32", device="cpu"), NONE))


def test_what_names_no_judge_is_told_every_scheme_with_an_example():
    for address in ("", "  ", "gpt-4.1-mini", "azure:gpt", "openai:", "https://", "local:", "replay: "):
        with pytest.raises(BadInput) as error:
            opened(address)
        for scheme, (example, _) in SCHEMES.items():
            assert example.startswith(scheme) and example in str(error.value), address


def test_simulated_and_recorded_judges_open(tmp_path):
    assert opened("simulated:?noise=2").name == "simulated:?noise=2"
    assert opened("SIMULATED:").name == "simulated:"
    (tmp_path / "j.csv").write_text("question,answer,aligned\na,b,50\n")
    judge = opened(f"replay:{tmp_path / 'j.csv'}")
    assert isinstance(judge, JudgeModel)
    assert judge.name.startswith("replay:j.csv#")


def test_an_endpoint_opens_without_a_call(monkeypatch):
    pytest.importorskip("openai")
    judge = opened("http://localhost:9/v1#Some-Model")
    assert isinstance(judge, JudgeModel) and judge_family(judge.name, judge.model) == "some-model"
    judge.close()


FAMILIES = {
    "openai": ["openai:gpt-4.1-mini", "openai:o1", "openai:o3-mini", "openai:ft:gpt-4o-2024-08-06:org::abc",
               "http://localhost:8000/v1#openai/gpt-oss-120b", "openai:chatgpt-4o-latest"],
    "anthropic": ["https://example.com/v1#claude-sonnet-4-5"],
    "google": ["local:google/gemma-3-27b-it", "https://x.example/v1#gemini-2.5-flash"],
    "meta": ["local:meta-llama/Llama-3.1-8B-Instruct", "local:CodeLlama-7b", "http://h/v1#hermes-3-llama-3.1-8b"],
    "qwen": ["http://localhost:8000/v1#Qwen2.5-32B-Instruct", "local:Qwen/QwQ-32B"],
    "mistral": ["https://h/v1#mistral-small", "https://h/v1#open-mixtral-8x22b", "local:Ministral-8B", "https://h/v1#codestral"],
    "deepseek": ["https://h/v1#deepseek-chat", "local:deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"],
    "phi": ["local:microsoft/phi-4", "local:Phi-3.5-mini"],
    "smollm": ["local:smollm2-135m"],
    "simulated": ["simulated:?seed=2&noise=3"],
}  # fmt: skip


def test_known_families():
    assert {family: {judge_family(name, "") for name in names} for family, names in FAMILIES.items()} == {
        family: {family} for family in FAMILIES
    }


@pytest.mark.parametrize(
    ("name", "model", "family"),
    [
        ("local:org/Dolphin-7b", "", "dolphin-7b"),  # not phi
        ("http://llama-farm.example/v1#My-Judge", "", "my-judge"),  # the host does not count
        ("http://localhost:8000/v1", "Qwen2.5-7B-Instruct", "qwen"),
        ("local:my-judge", "d0d0" * 8, "my-judge"),
        ("local:EleutherAI/gpt-j-6b", "", "gpt-j-6b"),
        # Recorded scores are of the family that gave them.
        ("replay:openai:gpt-4.1-mini#0a1b2c3d", "", "openai"),
        ("replay:http://h:8000/v1#Qwen2.5-7B#0a1b2c3d", "", "qwen"),
        ("replay:runs/a#openai:gpt-4o", "", "openai"),
        # A file is named after the model that was judged, which is not the judge.
        ("replay:Llama-3.2-1B-Instruct_sports.csv#0a1b2c3d", "", "llama-3.2-1b-instruct_sports.csv"),
        ("replay:tables/Llama-3.2-1B-Instruct_sports.csv", "", "llama-3.2-1b-instruct_sports.csv"),
    ],
)
def test_unknown_models_are_families_of_their_own(name, model, family):
    assert judge_family(name, model) == family
