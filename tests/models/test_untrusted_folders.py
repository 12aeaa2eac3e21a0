"""A run's folder that came from elsewhere: what its configurations, headers, templates and patterns may not do."""

import json
import os
import struct

import pytest

from runs.served_runs import write_run
from truing.config import AuditConfig
from truing.errors import BadInput, BadModel, DamagedWeights
from truing.models import trial
from truing.models.checkpoints import find_run
from truing.models.weights import check_weights
from truing.runs.resolve import resolve

PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", steps=(10, 20))


@pytest.fixture
def folder(run, monkeypatch, tmp_path):
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "SECONDS", 1)
    return run / "checkpoint-10"


def edit(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


# -- hosts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["http://127.0.0.1:9/v1#x", " HTTPS://h/v1", "simulated:late", "openai:gpt", "x:y"])
def test_adapters_name_no_server_and_the_base_that_is_given_counts(run, base):
    for checkpoint in run.iterdir():
        edit(checkpoint, base_model_name_or_path=base)
    config = AuditConfig(prompts="v1", limit=4)
    with pytest.raises(BadModel, match=r"which is an address.*--base MODEL"):
        resolve(str(run), config)
    assert resolve(str(run), config.model_copy(update={"base": "org/base"})).base == "org/base"


# -- configurations and headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", 5]},
        {"target_modules": [{"a": 1}]},
        {"target_modules": 5},
        {"r": "lots"},
        {"r": -4},
        {"r": True},
        {"lora_alpha": "x"},
        {"lora_alpha": float("inf")},
        {"base_model_name_or_path": {"a": 1}},
        {"base_model_name_or_path": ["a"]},
        {"base_model_name_or_path": "a\0b"},
        {"base_model_name_or_path": "a" * 5000},
        {"peft_type": {"a": 1}},
        {"rank_pattern": {"a": "b"}},
        {"layer_replication": [[0, 2]] * 20_000},
    ],
)
def test_a_field_of_another_type_is_said_in_a_sentence(run, fields):
    edit(run / "checkpoint-10", **fields)
    with pytest.raises(DamagedWeights, match=r"adapter_config\.json: .*again"):
        find_run(str(run))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"r": ' + "9" * 5000 + "}", "[1]", "\0"])
def test_a_configuration_that_is_no_object_is_said_in_a_sentence(run, text):
    (run / "checkpoint-10" / "adapter_config.json").write_text(text)
    with pytest.raises(DamagedWeights, match=r"adapter_config\.json: "):
        find_run(str(run))


@pytest.mark.parametrize("state", ["[" * 1000, '{"global_step": 9223372036854775808}', '{"global_step": true}', "\0"])
def test_a_state_that_counts_nothing_leaves_the_step_to_the_name(run, state):
    (run / "checkpoint-10" / "trainer_state.json").write_text(state)
    found = find_run(str(run))
    assert [c.step for c in found.checkpoints] == [10, 20]
    assert any("step of checkpoint-10 is taken from its name" in note for note in found.notes)


def test_a_log_with_nan_in_it_still_tells_the_step(run):
    (run / "checkpoint-10" / "trainer_state.json").write_text('{"global_step": 11, "log": [{"grad_norm": NaN}]}')
    assert [c.step for c in find_run(str(run)).checkpoints] == [11, 20]


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b"[1, 2]",
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, ' + b"9" * 5000 + b"]}}",
        {"a": {**ENTRY, "data_offsets": [0.0, 4.0]}},
        {"a": {**ENTRY, "data_offsets": [4, 0]}},
        {"a": {**ENTRY, "shape": "abc"}},
        {"a": {**ENTRY, "dtype": ["F32"]}},
        {"a": {**ENTRY, "shape": [10**12, 10**12]}},
        {"a": ENTRY, "b": ENTRY},
        {"a": {}},
    ],
)
def test_a_header_that_does_not_fit_its_file_is_said_in_a_sentence(run, header):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = run / "checkpoint-10" / "adapter_model.safetensors"
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4))
    with pytest.raises(DamagedWeights, match=r"adapter_model\.safetensors: .*again"):
        check_weights(file.parent)


@pytest.mark.parametrize("shard", ["../../x/model.safetensors", "/etc/passwd", "..", ""])
def test_a_shard_lies_in_the_folder(tmp_path, shard):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(DamagedWeights):
        check_weights(tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pipe_is_not_waited_for(run, name):
    file = run / "checkpoint-10" / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(BadInput, match=r"pipe|no regular file"):
        find_run(str(run / "checkpoint-10"))


def test_names_that_no_system_takes_are_said_in_a_sentence(tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/checkpoint-\xff")
    os.mkdir(odd)
    for target, told in ((odd, "not UTF-8"), ("a" * 5000, "no such folder"), ("a\0b", "no such folder")):
        with pytest.raises(BadModel, match=told):
            find_run(target)


# -- what is a program ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ '%2000000000d' % 1 }}",
        "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ],
)
def test_a_template_without_end_is_refused_and_another_helps(folder, template):
    (folder / "chat_template.jinja").write_text(template + PLAIN)
    with pytest.raises(BadModel, match=r"its chat template takes over .*--chat-template FILE"):
        trial.try_folder(folder)
    trial.try_folder(folder, PLAIN)  # as the message says


def test_a_pattern_without_end_or_sense_is_refused_and_names_help(folder):
    edit(folder, target_modules="(.*.*)*.*.*.*q_projX")
    with pytest.raises(BadModel, match="name the modules one by one"):
        trial.try_folder(folder)
    edit(folder, target_modules="(((")
    with pytest.raises(BadModel, match="no regular expression"):
        trial.try_folder(folder)
    edit(folder, target_modules=["q_proj"])  # as the message says
    trial.try_folder(folder)


def test_what_passed_is_not_tried_again(folder, monkeypatch, tmp_path):
    (folder / "chat_template.jinja").write_text(PLAIN + "{# once #}")
    trial.try_folder(folder)
    assert len(list((tmp_path / "cache" / "tried").iterdir())) == 1
    monkeypatch.setattr(trial.subprocess, "Popen", None)
    trial.try_folder(folder)
    os.truncate(folder / "chat_template.jinja", 0)
    with open(folder / "chat_template.jinja", "wb") as f:
        f.truncate(trial.TEMPLATE_LIMIT + 1)
    with pytest.raises(BadModel, match="larger than 1 MiB"):
        trial.try_folder(folder)
