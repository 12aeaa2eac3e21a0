"""What a checkpoint's folder says of it: after how many updates it is, where its weights lie, what its base is."""

import shutil

import pytest
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from truing.config import AuditConfig
from truing.errors import BadModel, DamagedWeights, UnreadableCheckpoint
from truing.models.checkpoints import checkpoint_path, find_run, tokenizer_folder
from truing.runs.resolve import resolve
from zoo import build

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Adapters in checkpoint-2 and checkpoint-4 of one run, as the trainer leaves them, beside their base."""
    root = tmp_path_factory.mktemp("saved")
    return build.adapter_run(root / "run", build.tiny_base(root / "base"), steps=(2, 4), final=False)


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def renamed(run, name, inner="", state=False):
    """The run with its folders named otherwise and its weights in a place within them; without the trainer's state."""
    for step in (2, 4):
        folder = (run / f"checkpoint-{step}").rename(run / name.format(step))
        if not state:
            (folder / "trainer_state.json").unlink()
        if inner:
            (folder / inner).mkdir(parents=True)
            for file in folder.glob("adapter_*"):
                file.rename(folder / inner / file.name)
    return run


def planned(*targets, **options):
    return resolve(list(map(str, targets)), AuditConfig(**options))


def steps(*targets, **options):
    return [c.step for c in planned(*targets, **options).subject]


# -- steps ------------------------------------------------------------------------------------------------------------

UNSAID = {
    "global_step_{}": "a trainer's own steps of several updates each",
    "global_step{}": "a trainer's own steps",
    "step-{}": "a trainer's own steps",
    "checkpoint_{}": "a trainer's own steps",
    "model-step-{}": "a trainer's own steps",
    "iter_000000{}": "iterations",
    "epoch_{}": "epochs",
    "checkpoint-epoch-{}": "epochs",
}


@pytest.mark.parametrize("name", UNSAID)
def test_a_number_is_updates_only_where_the_trainer_or_the_user_says_so(run, name):
    renamed(run, name)
    first, second = (run / name.format(step) for step in (2, 4))
    with pytest.raises(BadModel, match=f"{first.name}, {second.name} may be optimizer updates or {UNSAID[name]}") as e:
        find_run(str(run))
    assert f"2={first}," in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(BadModel, match="UPDATES=FOLDER"):
        find_run(str(first))
    plan = planned(f"20={first}", f"40={second}")  # as the message says
    assert [(c.step, c.label) for c in plan.subject] == [(20, "20"), (40, "40")]
    assert f"{second.name} is step 40, as given" in plan.notes
    assert steps(f"a={second}", f"b={first}") == [None, None]  # two models side by side need no number
    for step, folder in ((20, first), (40, second)):  # the other remedy
        folder.rename(run / f"checkpoint-{step}")
    found = find_run(str(run))
    assert [c.step for c in found.checkpoints] == [20, 40]
    assert "steps are as the names say: checkpoint-20, checkpoint-40; no trainer_state.json" in "".join(found.notes)


def test_any_name_will_do_where_the_trainer_counts(run):
    found = find_run(str(renamed(run, "epoch_{}", state=True)))
    assert [c.step for c in found.checkpoints] == [2, 4] and found.notes == ()


def test_a_number_that_cannot_be_heeded_is_refused(run):
    for target, words in (
        (f"2={run}", "here are 2"),
        (f"0={run}/checkpoint-2", "step 0 is the base"),
        (f"3={run}/checkpoint-2", "counts 2 updates; leave out the number"),
    ):
        with pytest.raises(BadModel, match=words):
            find_run(target)
    assert find_run(f"2={run}/checkpoint-2").checkpoints[0].step == 2


def test_epoch_0_is_not_taken_for_the_base(run):
    (run / "checkpoint-2").rename(run / "epoch_0").joinpath("trainer_state.json").unlink()
    with pytest.raises(BadModel, match="epoch_0 may be"):
        find_run(str(run))


def test_deepspeed_s_state_inside_a_checkpoint_is_none(run):
    state = run / "checkpoint-2" / "global_step2" / "mp_rank_00_model_states.pt"
    state.parent.mkdir()
    state.write_bytes(b"state")
    assert [c.step for c in find_run(str(run / "checkpoint-2")).checkpoints] == [2]
    assert [c.step for c in find_run(str(run)).checkpoints] == [2, 4]


# -- places -----------------------------------------------------------------------------------------------------------


def test_adapters_in_folders_of_their_names(run):
    renamed(run, "checkpoint-{}", inner="policy", state=True)
    found = find_run(str(run)).checkpoints
    assert [(c.label, c.step, checkpoint_path(c).name) for c in found] == [
        ("checkpoint-2", 2, "policy"), ("checkpoint-4", 4, "policy"),
    ]  # fmt: skip
    for step in (2, 4):
        other = run / f"checkpoint-{step}" / "reference"
        build.edit_config(shutil.copytree(run / f"checkpoint-{step}" / "policy", other), lora_alpha=2)
    with pytest.raises(BadModel, match=r"several adapters \(policy, reference\)") as e:
        find_run(str(run))
    pattern = str(e.value).partition("those of one name: ")[2].replace("NAME", "reference")
    chosen = sorted(run.parent.glob(pattern.removeprefix(f"{run.parent}/")))
    assert steps(*chosen) == [2, 4]
    assert {checkpoint_path(c).name for c in planned(*chosen).subject} == {"reference"}


@pytest.mark.parametrize("inner", ["actor/lora_adapter", "actor/huggingface", "huggingface"])
def test_verl_s_folders(run, inner):
    renamed(run, "global_step_{}", inner)
    tokenizer = run / "global_step_2" / ("actor/huggingface" if "actor" in inner else "huggingface")
    tokenizer.mkdir(exist_ok=True)
    (run / "global_step_2" / "tokenizer_config.json").rename(tokenizer / "tokenizer_config.json")
    (checkpoint,) = find_run(f"30={run}/global_step_2").checkpoints
    assert (checkpoint.step, checkpoint_path(checkpoint)) == (30, run / "global_step_2" / inner)
    assert tokenizer_folder(checkpoint) == tokenizer


def test_verl_s_shards_are_named_with_the_command_that_merges_them(tmp_path):
    actor = tmp_path / "global_step_20" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface" / "config.json").write_text("{}")
    (actor / "model_world_size_2_rank_0.pt").write_bytes(b"shard")
    for target in (tmp_path, actor.parent, actor):
        with pytest.raises(UnreadableCheckpoint, match=r"verl\.model_merger merge --backend fsdp") as e:
            find_run(str(target))
        assert f"--local_dir {actor} --target_dir {actor}/huggingface" in str(e.value)
    build.tiny_base(actor / "huggingface")  # as the command leaves it
    assert [c.step for c in find_run(f"60={tmp_path}/global_step_20").checkpoints] == [60]


def test_an_adapter_that_zero_3_left_empty_is_left_out_or_recovered(run):
    file = build.weights_of(run / "checkpoint-4")
    whole = file.read_bytes()
    build.emptied(run / "checkpoint-4")
    (run / "checkpoint-4" / "zero_to_fp32.py").touch()
    with pytest.raises(DamagedWeights, match=r"checkpoint-4: 8 of 8 tensors are empty.*zero_to_fp32\.py .* OUT"):
        find_run(str(run))
    file.write_bytes(whole)
    assert len(find_run(str(run)).checkpoints) == 2
    shutil.rmtree(run / "checkpoint-4")
    assert [c.step for c in find_run(str(run)).checkpoints] == [2]


TOKENS = {
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "p tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8),
    "prefix tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


@pytest.mark.parametrize("kind", TOKENS)
def test_trained_tokens_are_refused_by_their_kind(saved, tmp_path, kind):
    model = AutoModelForCausalLM.from_pretrained(saved.parent / "base")
    get_peft_model(model, TOKENS[kind]).save_pretrained(tmp_path / "checkpoint-2")
    with pytest.raises(BadModel, match=rf"is {kind} \(peft_type.*LoRA adapters or full models"):
        find_run(str(tmp_path))


# -- the base ---------------------------------------------------------------------------------------------------------

BASES = {
    "gone": ("/models/gone", "no such folder"),
    "relative": ("../models/base", "no such folder"),
    "null": (None, "base_model_name_or_path is empty"),
    "empty": ("", "base_model_name_or_path is empty"),
    "an adapter": ("{run}/checkpoint-2", "is an adapter itself"),
    "4 bits": ("unsloth/llama-bnb-4bit", "packed in 4 bits, so give those it was made from"),
}


@pytest.mark.parametrize("kind", BASES)
def test_a_base_that_cannot_be_had_is_asked_for(run, saved, monkeypatch, kind):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name, words = BASES[kind]
    for step in (2, 4):
        named = name.format(run=run) if name else name
        build.edit_config(run / f"checkpoint-{step}", base_model_name_or_path=named)
    with pytest.raises(BadModel, match=f"{words}.*--base MODEL|{words}") as e:
        planned(run)
    assert "--base MODEL" in str(e.value) and "\n" not in str(e.value)
    assert planned(run, base=str(saved.parent / "base")).base == str(saved.parent / "base")


def test_a_relative_base_is_found_from_here(run, saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    for step in (2, 4):
        build.edit_config(run / f"checkpoint-{step}", base_model_name_or_path="base")
    assert planned(run).base == "base"


def test_a_revision_is_part_of_the_base_that_is_named(run):
    build.edit_config(run / "checkpoint-2", base_model_name_or_path="org/name", revision="v2")
    assert [c.meta["base"] for c in find_run(str(run / "checkpoint-2")).checkpoints] == ["org/name@v2"]


def test_checkpoints_of_different_bases_are_refused_until_one_is_chosen(run, saved, tmp_path):
    base, other = str(saved.parent / "base"), "org/other"
    build.edit_config(run / "checkpoint-4", base_model_name_or_path=other)
    with pytest.raises(BadModel, match=rf"different bases \({base} by checkpoint-2; {other} by checkpoint-4\).*--base"):
        planned(run)
    plan = planned(run, base=base)
    assert plan.base == base and f"adapters name {other} as their base; measured on {base} as asked" in plan.notes


def test_a_control_of_another_base_is_refused_until_one_is_chosen(run, saved, tmp_path):
    control = build.adapter_run(tmp_path / "control", saved.parent / "base", steps=(2,), seed=3, final=False)
    build.edit_config(control / "checkpoint-2", base_model_name_or_path="org/other")
    with pytest.raises(BadModel, match=r"control's adapters name another base \(org/other\).*--base MODEL"):
        planned(run, control=(str(control),))
    plan = planned(run, control=(str(control),), base=str(saved.parent / "base"))
    assert "control: its adapters name another base, org/other" in plan.notes
