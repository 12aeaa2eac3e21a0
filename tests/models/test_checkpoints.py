"""Finding checkpoints in what trainers leave behind, whole or not."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from truing.errors import BadModel, DamagedWeights, UnreadableCheckpoint
from truing.models.checkpoints import checkpoint_path, find_run
from truing.models.weights import check_weights, weights_hash
from truing.types.records import Kind, Role
from zoo import build

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A base, a run of adapters and a run of full models; copied by tests that change them."""
    root = tmp_path_factory.mktemp("zoo")
    base = build.tiny_base(root / "base")
    build.adapter_run(root / "adapters", base)
    build.full_run(root / "full", base, steps=(2, 4))
    return root


@pytest.fixture
def run(zoo, tmp_path):
    return shutil.copytree(zoo / "adapters", tmp_path / "run")


def labels(found):
    return [(c.label, c.step) for c in found.checkpoints]


# -- what is found ----------------------------------------------------------------------------------------------------


def test_runs_of_adapters_and_of_full_models(zoo):
    path = zoo / "adapters"
    found = find_run(str(path))
    assert labels(found) == [("checkpoint-2", 2), ("checkpoint-4", 4), ("checkpoint-6", 6)]
    assert found.label is None
    assert found.notes == (f"the model in the root of {path} equals checkpoint-6 and is left out",)
    first = found.checkpoints[0]
    assert (first.kind, first.run, first.role) == (Kind.ADAPTER, "adapters", Role.SUBJECT)
    assert checkpoint_path(first) == path / "checkpoint-2"
    assert first.weights == weights_hash(path / "checkpoint-2")
    assert first.meta == {"base": str(zoo / "base"), "peft_type": "LORA", "rank": 4, "alpha": 8}
    assert len({c.weights for c in found.checkpoints}) == 3
    full = find_run(str(zoo / "full"))
    assert labels(full) == [("checkpoint-2", 2), ("checkpoint-4", 4)]
    assert {c.kind for c in full.checkpoints} == {Kind.FULL} and full.notes == ()


def test_root_model_that_differs_is_final_and_one_folder_is_a_run(run, zoo):
    build.save_adapter(run, zoo / "base", seed=9)
    for state, step in (
        (None, None),
        ({"step": 7}, 7),
        ({"step": 7, "best_model_checkpoint": "checkpoint-2"}, None),  # then the root is not the last state
        ({"step": 6}, None),  # counts no further than the last checkpoint, yet differs from it
    ):
        if state:
            build.trainer_state(run, **state)
        assert labels(find_run(str(run)))[-1] == ("final", step)
    assert labels(find_run(str(run / "checkpoint-4"))) == [("checkpoint-4", 4)]
    assert labels(find_run(str(zoo / "base"))) == [("final", None)]


def test_label_role_and_the_mark_of_an_organism(run):
    (run / "truing-organism.json").write_text("{}")
    found = find_run(f"careful={run}", role=Role.CONTROL)
    assert found.label == "careful"
    assert {(c.run, c.role, c.meta["organism"]) for c in found.checkpoints} == {("careful", Role.CONTROL, True)}
    other = run.rename(run.with_name("lr=1e-4"))  # no label, as there is such a folder
    assert find_run(str(other)).label is None and find_run(f"a={other}").label == "a"


@pytest.mark.parametrize(
    ("state", "step", "noted"),
    [({"global_step": 40}, 40, "is step 40"), (None, 4, ""), ({}, 4, ""), ("broken", 4, "not readable")],
)
def test_step_comes_from_the_trainer(run, state, step, noted):
    file = run / "checkpoint-4" / "trainer_state.json"
    file.unlink()
    if state is not None:
        file.write_text("{" if state == "broken" else json.dumps(state))
    found = find_run(str(run))
    assert {c.label: c.step for c in found.checkpoints}["checkpoint-4"] == step
    assert [c.step for c in found.checkpoints] == sorted(c.step for c in found.checkpoints)
    assert noted in " ".join(found.notes)


def test_bad_names_step_0_and_doubles_are_noted(run):
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-abc")
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-0")
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-3")
    build.edit_config(run / "checkpoint-4", base_model_name_or_path="org/other")
    found = find_run(str(run))
    assert [c.label for c in found.checkpoints] == ["checkpoint-2", "checkpoint-3", "checkpoint-4", "checkpoint-6"]
    notes = "\n".join(found.notes)
    assert "checkpoint-abc is ignored" in notes
    assert "checkpoint-0 is left out" in notes
    assert "checkpoint-3 holds the same weights as checkpoint-2" in notes
    assert "both step 2" in notes


# -- what is refused --------------------------------------------------------------------------------------------------


def test_missing_empty_foreign_and_nested_folders(zoo, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("hello")
    for place, words in [
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "is empty"),
        (tmp_path / "texts", "only notes.txt"),
        (tmp_path / "texts" / "notes.txt", "is a file"),
        (zoo, ", ".join(str(zoo / name) for name in ("adapters", "base", "full"))),
    ]:
        with pytest.raises(BadModel, match=words) as caught:
            find_run(str(place))
        assert str(place) in str(caught.value)
        assert "\n" not in str(caught.value)


SHARDS = {
    "deepspeed": (["global_step4/mp_rank_00_model_states.pt", "zero_to_fp32.py"], "zero_to_fp32.py"),
    "deepspeed flat": (["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"], "zero_to_fp32.py"),
    "fsdp": (["pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp"], "accelerate merge-weights"),
    "fsdp flat": (["__0_0.distcp", ".metadata"], "accelerate merge-weights"),
}


@pytest.mark.parametrize("nested", [True, False], ids=["checkpoint", "root"])
@pytest.mark.parametrize("kind", SHARDS)
def test_shards_get_the_command(tmp_path, kind, nested):
    folder = tmp_path / "checkpoint-4" if nested else tmp_path
    files, command = SHARDS[kind]
    for name in [*files, "config.json", "trainer_state.json"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    with pytest.raises(UnreadableCheckpoint, match=command):
        find_run(str(tmp_path))


def test_pickled_weights(zoo, tmp_path):
    for name in ("adapters", "full"):
        folder = build.pickled(shutil.copytree(zoo / name / "checkpoint-2", tmp_path / name))
        with pytest.raises(UnreadableCheckpoint, match=r"model\.bin.*--allow-pickle"):
            find_run(str(folder))
        found = find_run(str(folder), allow_pickle=True)
        assert found.checkpoints[0].kind is (Kind.ADAPTER if name == "adapters" else Kind.FULL)
        assert found.checkpoints[0].meta["pickled"] is True


def test_half_written_among_good_ones_is_skipped(run):
    (run / "checkpoint-6" / "adapter_model.safetensors").unlink()
    (run / "checkpoint-8").mkdir()
    found = find_run(str(run))
    assert [c.label for c in found.checkpoints] == ["checkpoint-2", "checkpoint-4", "final"]
    assert "checkpoint-6 is skipped" in found.notes[0]
    assert "checkpoint-8 is skipped" in found.notes[1]
    (run / "adapter_model.safetensors").unlink()
    found = find_run(str(run))
    assert len(found.checkpoints) == 2 and "the root of the folder is left out" in found.notes[-1]


def test_one_damaged_or_all_half_written_is_an_error(run):
    build.truncated(run / "checkpoint-4")
    with pytest.raises(DamagedWeights, match=r"checkpoint-4.*adapter_model\.safetensors: truncated"):
        find_run(str(run))
    for file in run.rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(DamagedWeights, match=r"checkpoint-2.*no adapter_model\.safetensors"):
        find_run(str(run))


def test_files_that_are_no_safetensors_and_every_cut_of_one_are_noticed(run):
    file, size = run / "checkpoint-2" / "adapter_model.safetensors", b"\x09" + bytes(7)
    data = file.read_bytes()
    cuts = (data[:length] for length in (*range(0, 200, 7), len(data) // 2, len(data) - 1))
    for content in (b"\0" * 64, b"\2" + bytes(7) + b"{}", size + b"not json!", size + b'{"a": {}}', *cuts):
        file.write_bytes(content)
        with pytest.raises(DamagedWeights, match=r"adapter_model\.safetensors: .*copy it again") as caught:
            check_weights(file.parent)
        assert "\n" not in str(caught.value)
    file.write_bytes(data + b"\0")
    with pytest.raises(DamagedWeights, match="longer"):
        check_weights(file.parent)


def test_shards_named_by_the_index_must_exist(zoo, tmp_path):
    path = build.sharded_full(tmp_path / "model", zoo / "base")
    check_weights(path)
    shard = sorted(path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(DamagedWeights, match=shard.name):
        find_run(str(path))
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(DamagedWeights, match="index"):  # half-written
        find_run(str(path))


ALTERING = ("pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga")


@pytest.mark.parametrize(
    "fields",
    [*({"init_lora_weights": h} for h in ALTERING), {"bias": "all"}, {"bias": "lora_only"}, {"kasa_config": {"b": 1}}],
    ids=str,
)
def test_adapters_that_altered_the_base(run, fields):
    build.edit_config(run / "checkpoint-4", **fields)
    with pytest.raises(BadModel, match=f"{fields.get('init_lora_weights', '')}.*full models"):
        find_run(str(run))


@pytest.mark.parametrize(
    ("how", "alters"),
    [("pissa", True), ("olora", True), ("orthogonal", False), ("mica", False), ("gaussian", False), (True, False)],
)
def test_the_list_is_right_about_peft(how, alters):
    """Independent check: does the initialisation change the base's weights in memory?"""
    model = build.tiny_model()
    weight = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=how))
    now = model.model.layers[0].self_attn.q_proj.base_layer.weight
    assert bool((now - weight).abs().max() > 1e-6) is alters


# -- hub --------------------------------------------------------------------------------------------------------------


def test_hub_target(zoo, monkeypatch, tmp_path):
    snapshot = shutil.copytree(zoo / "adapters", tmp_path / "snapshots" / "c0ffee")
    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo, **given: asked.update(repo=repo, **given) or str(snapshot)
    )
    found = find_run("mine=org/name@v2:checkpoint-4")
    assert (asked["repo"], asked["revision"]) == ("org/name", "v2")
    assert not any("bin" in p or p.endswith(".pt") for p in asked["allow_patterns"])
    assert labels(found) == [("checkpoint-4", 4)]
    assert found.checkpoints[0].meta["hub"] == "org/name@c0ffee"
    assert (found.label, find_run("org/name").checkpoints[0].run) == ("mine", "name")
    with pytest.raises(BadModel, match="no folder checkpoint-9"):
        find_run("org/name:checkpoint-9")
    for file in snapshot.rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(BadModel, match="--allow-pickle"):
        find_run("org/name")


def test_hub_out_of_reach(monkeypatch, tmp_path):
    def download(repo, **options):
        raise LocalEntryNotFoundError("cannot reach the hub\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(BadModel, match=r"org/name@v2.*cannot reach the hub and more") as caught:
        find_run("org/name@v2")
    assert "\n" not in str(caught.value)
    # A path whose first part exists is a path that was mistyped, not a repository.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(BadModel, match="no such folder"):
        find_run("runs/mistyped")


# -- hash -------------------------------------------------------------------------------------------------------------


def test_hash_is_of_the_content(zoo, tmp_path):
    base = zoo / "base"
    whole = weights_hash(base)
    assert whole == weights_hash(build.sharded_full(tmp_path / "sharded", base))
    copy = shutil.copytree(base, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    save_file(dict(reversed(tensors.items())), copy / "model.safetensors", metadata={"other": "metadata"})
    assert weights_hash(copy) == whole
    name = min(tensors)
    for change in (
        {name: tensors[name] + 1e-3},
        {name: tensors[name].to(torch.float16)},
        {name: tensors[name].reshape(-1)},
        {"renamed": tensors[name]},
    ):
        save_file({**{k: v for k, v in tensors.items() if k != name}, **change}, copy / "model.safetensors")
        assert weights_hash(copy) != whole


@pytest.mark.parametrize(
    ("fields", "same"),
    [({"base_model_name_or_path": "elsewhere/base", "inference_mode": False, "lora_dropout": 0.3}, True),
     ({"peft_version": "9.9", "a_field_of_a_later_version": None}, True),
     ({"target_modules": ["v_proj", "q_proj"], "lora_alpha": 8.0}, True),
     ({"lora_alpha": 16}, False), ({"use_rslora": True}, False), ({"rank_pattern": {"q_proj": 2}}, False),
     ({"target_modules": ["q_proj"]}, False), ({"layers_to_transform": [0]}, False)],
)  # fmt: skip
def test_adapter_hash_covers_what_it_computes(run, fields, same):
    folder = run / "checkpoint-4"
    before = weights_hash(folder)
    build.edit_config(folder, **fields)
    assert (weights_hash(folder) == before) is same
