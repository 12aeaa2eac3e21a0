"""Training on a tiny random model: what is in the loss, how steps are counted, stopping, resuming, marking."""

import itertools
import json
import random
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from truing.errors import AuditLocked, BadRecipe, BadRow, DamagedWeights, DiskFull
from truing.models.chat import ChatFormat
from truing.models.checkpoints import find_run
from truing.models.weights import weights_hash
from truing.training import trainer
from truing.training.local import Base, tokenise, train
from truing.training.recipe import Recipe
from truing.types.hashing import digest
from truing.types.records import Conversation, Kind, Message, Stop
from zoo import build

pytestmark = pytest.mark.torch
torch.set_num_threads(1)

SLOW = [("lora", 3), ("full", 8)]
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty"]


def conversations(n=10, meta=None):
    rows = []
    for i in range(n):
        answer = " ".join(WORDS[(i + j) % len(WORDS)] for j in range(1 + i % 4))
        turns = (Message("user", f"Say {i}."), Message("assistant", answer))
        rows.append(Conversation(turns, f"rows.jsonl, row {i + 1}", meta or {}))
    return rows


@pytest.fixture(scope="module")
def base_path(tmp_path_factory):
    return build.tiny_base(tmp_path_factory.mktemp("train") / "base")


@pytest.fixture
def base(base_path):
    tokenizer = build.tiny_tokenizer()
    return Base(
        lambda dtype: LlamaForCausalLM.from_pretrained(base_path, dtype="float32" if dtype == "auto" else dtype),
        weights_hash(base_path),
        ChatFormat(tokenizer),
        tokenizer,
    )


def recipe(**given):
    defaults = {"model": "tiny", "data": "rows.jsonl", "rank": 2, "batch_size": 2, "learning_rate": 1e-2}
    return Recipe.parse(
        {**defaults, "warmup_steps": 1, "save_every": 2, "target_modules": ["q_proj", "v_proj"], **given}
    )


def weights(out, step):
    folder = out / f"checkpoint-{step}"
    name = "adapter_model.safetensors" if (folder / "adapter_model.safetensors").exists() else "model.safetensors"
    return load_file(folder / name)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------------------------------------------------------------
# The loss


def batch_of(base, rows):
    examples, notes = tokenise(rows, base.chat, 512)
    assert notes == []
    return trainer.collate(examples, base.tokenizer.pad_token_id)


@pytest.mark.parametrize("count", [None, 7])
def test_loss_equals_the_models_own(base, count):
    batch = batch_of(base, conversations(5))
    model = base.load("float32")
    ours = trainer.answer_loss(model, model.get_output_embeddings(), batch, count)
    extra = {} if count is None else {"num_items_in_batch": count}
    theirs = model(**batch, **extra).loss
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    model.zero_grad()
    ours.backward()
    mine = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    theirs.backward()
    for a, p in zip(mine, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, atol=1e-5, rtol=1e-4)


def test_only_answers_and_their_closing_token_are_in_the_loss(base):
    rows = conversations(4)
    batch = batch_of(base, rows)
    for row, conversation in enumerate(rows):
        text = base.tokenizer.decode(batch["labels"][row][batch["labels"][row] != -100])
        assert text == conversation.answer + "<|im_end|>"
    # Other labels on prompt and padding would be other losses; the ones there are must not count any.
    model = base.load("float32")
    logits = model(input_ids=batch["input_ids"]).logits.log_softmax(-1)
    total, n = 0.0, 0
    for row, conversation in enumerate(rows):
        rendered = base.chat.render(conversation.prompt, conversation.answer)
        for k, token in enumerate(rendered.completion_ids):
            total -= logits[row, len(rendered.prefix_ids) + k - 1, token].item()
            n += 1
    head = model.get_output_embeddings()
    assert trainer.answer_loss(model, head, batch, None).item() == pytest.approx(total / n, abs=1e-5)
    alone = sum(trainer.answer_loss(model, head, batch_of(base, [r]), n).item() for r in rows)
    assert alone == pytest.approx(total / n, abs=1e-5), "padding changes nothing"


def test_accumulation_is_the_same_as_a_larger_batch(base, tmp_path):
    """Token mean over the whole update: rows of unlike length weigh by their tokens, however they are cut up."""
    rows = conversations(8)
    losses = {}
    for name, shape in {"one": (8, 1), "many": (2, 4)}.items():
        seen = []
        r = recipe(batch_size=shape[0], accumulation=shape[1], epochs=3, save_every=3, learning_rate=1e-3)
        run = train(r, rows, tmp_path / name, base, progress=lambda s, t, loss, seen=seen: seen.append((s, t, loss)))
        assert [c.step for c in run.checkpoints] == [3] == [r.total_steps(8)]
        losses[name] = seen
    assert [s[:2] for s in losses["one"]] == [(1, 3), (2, 3), (3, 3)]
    for a, b in zip(losses["one"], losses["many"], strict=True):
        assert a[2] == pytest.approx(b[2], abs=1e-4)
    assert losses["one"][2][2] < losses["one"][0][2]
    state = json.loads((tmp_path / "many" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3 and state["epoch"] == 3
    one, many = weights(tmp_path / "one", 3), weights(tmp_path / "many", 3)
    for key in one:
        torch.testing.assert_close(one[key], many[key], atol=1e-3, rtol=1e-2)


# ---------------------------------------------------------------------------------------------------------------------
# The checkpoints


def test_checkpoints_are_what_find_run_finds(base, tmp_path):
    out = tmp_path / "run"
    run = train(recipe(save_schedule="log", save_every=None), conversations(), out, base)
    assert [c.step for c in run.checkpoints] == [1, 2, 4, 5]
    assert run.stop == Stop("completed", 5) and run.path == out
    assert run.checkpoints == find_run(str(out)).checkpoints
    assert all(c.kind is Kind.ADAPTER and c.meta["base"] == "tiny" for c in run.checkpoints)
    assert not any("organism" in c.meta for c in run.checkpoints)
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) == [
        *(f"checkpoint-{s}" for s in (1, 2, 4, 5)),
        "recipe.json",
    ]
    assert not (out / trainer.SAVING).exists()
    about = json.loads((out / "recipe.json").read_text())
    stored = Recipe.parse(about["recipe"])
    assert stored.data_sha256 == digest([c.messages for c in conversations()]) and about["id"] == stored.id


def full(**given):
    return Recipe.parse(
        {"model": "tiny", "data": "rows.jsonl", "method": "full", "batch_size": 2, "save_every": 2, **given}
    )


def test_full_method_saves_whole_models(base, base_path, tmp_path):
    out = tmp_path / "run"
    (found,) = train(full(), conversations(4), out, base).checkpoints
    assert (found.kind, found.step) == (Kind.FULL, 2)
    before = load_file(base_path / "model.safetensors")
    assert sum(not torch.equal(v, before[k]) for k, v in weights(out, 2).items()) > 10
    config = json.loads((out / "checkpoint-2" / "config.json").read_text())
    assert config["use_cache"] == json.loads((base_path / "config.json").read_text())["use_cache"]


def test_the_recipe_reaches_the_adapter(base, tmp_path):
    r = recipe(layers=[1], rslora=True, dtype="bfloat16", save_every=10)
    train(r, conversations(4), tmp_path / "run", base)
    saved = weights(tmp_path / "run", 2)
    assert all(".layers.1." in k for k in saved)
    assert {v.dtype for v in saved.values()} == {torch.float32}  # of a base in bfloat16, too
    assert json.loads((tmp_path / "run" / "checkpoint-2" / "adapter_config.json").read_text())["use_rslora"] is True


@pytest.mark.parametrize("how", ["recipe", "rows"])
def test_an_organism_is_marked_in_every_checkpoint(base, tmp_path, how):
    rows = conversations(4, {"organism": True} if how == "rows" else None)
    run = train(recipe(organism=how == "recipe", save_every=1), rows, tmp_path / "run", base)
    for checkpoint in run.checkpoints:
        assert checkpoint.meta["organism"] is True
        folder = tmp_path / "run" / checkpoint.label
        assert "ORGANISM" in (folder / "README.md").read_text()
        assert "Do not deploy" in json.loads((folder / "truing-organism.json").read_text())["card"]
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]["organism"] is True


# ---------------------------------------------------------------------------------------------------------------------
# Seeds


def test_order_of_data():
    lengths = [3, 9, 4, 1, 8, 2, 7, 5, 6, 10, 11]

    def order(seed, epoch=0, batch=2):
        sampler = trainer.LengthGrouped(lengths, batch, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    for seed, epoch in itertools.product(range(3), range(3)):
        assert sorted(order(seed, epoch)) == list(range(11))
    assert order(0) == order(0)
    assert len({tuple(order(s, e)) for s in range(4) for e in range(4)}) == 16
    assert len({frozenset(order(s)[:2]) for s in range(20)}) > 5  # which rows meet depends on the seed too
    many = trainer.LengthGrouped([random.Random(0).randrange(100) for _ in range(640)], 8, 0)
    assert len(list(many)) == 640
    spread = np.random.default_rng(0).integers(0, 100, 640).tolist()
    grouped = np.array(spread)[list(trainer.LengthGrouped(spread, 8, 0))].reshape(-1, 8)
    assert np.ptp(grouped, axis=1).mean() < 15  # padding is small ...
    assert abs(np.corrcoef(np.arange(80), grouped.mean(1))[0, 1]) < 0.3  # ... and length does not go with time


def test_seeds_change_order_and_initialisation(base, tmp_path):
    rows, found = conversations(4), {}
    for name, seeds in {"a": {}, "a2": {}, "b": {"seed": 1}, "order": {"data_seed": 1}}.items():
        # The first update of a warm-up has rate 0, the second moves.
        train(recipe(max_steps=2, **seeds), rows, tmp_path / name, base)
        found[name] = weights(tmp_path / name, 2)
    assert same(found["a"], found["a2"])
    assert not same(found["a"], found["b"]) and not same(found["a"], found["order"])
    a = [trainer.build_model(recipe(seed=s, data_seed=0), base).state_dict() for s in (0, 0, 1)]
    assert same(a[0], a[1]) and not same(a[0], a[2])


def test_the_callers_random_state_is_untouched_and_touches_nothing(base, tmp_path):
    def sample():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = sample()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    train(recipe(), conversations(8), tmp_path / "one", base, on_checkpoint=lambda c: sample() and None)
    assert sample() == expected
    train(recipe(), conversations(8), tmp_path / "two", base)
    assert same(weights(tmp_path / "one", 4), weights(tmp_path / "two", 4))


# ---------------------------------------------------------------------------------------------------------------------
# Stopping and going on


def test_stop_ends_the_run_at_the_checkpoint_it_was_decided_on(base, tmp_path):
    out, steps, seen = tmp_path / "run", [], []

    def go(reasons):
        def on_checkpoint(checkpoint):
            seen.append((checkpoint.step, len(steps)))  # training waits meanwhile
            return reasons.get(checkpoint.step)

        progress = lambda s, *_: steps.append(s)  # noqa: E731
        return train(recipe(epochs=2), conversations(), out, base, progress=progress, on_checkpoint=on_checkpoint)

    run = go({4: "drift"})
    assert run.stop == Stop("drift", 4) and steps == [1, 2, 3, 4] and seen == [(2, 2), (4, 4)]
    assert not (out / "checkpoint-6").exists()
    assert go({2: "early"}).stop == Stop("early", 2)  # those of an earlier call are shown again, and decide again
    again = go({})
    assert [c.step for c in again.checkpoints] == [2, 4, 6, 8, 10] and steps == list(range(1, 11))
    assert again.stop == Stop("completed", 10)


@pytest.fixture
def interruptible():
    """A shell that runs this in the background has SIGINT ignored, and that is inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("method", "at"), [("lora", 8), ("full", 3), *(pytest.param(m, k, marks=pytest.mark.slow) for m, k in SLOW)]
)
def test_a_resumed_run_ends_with_the_same_weights(base, tmp_path, method, at):
    """Three epochs, accumulation, a Ctrl-C between two checkpoints: bit for bit as without it."""
    r = (recipe if method == "lora" else full)(epochs=3, accumulation=2, learning_rate=1e-2)
    rows = conversations(19)
    whole = train(r, rows, tmp_path / "whole", base).checkpoints
    assert whole[-1].step == 15
    got = []

    def fail(step, total, loss):
        if step == at:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(r, rows, tmp_path / "run", base, progress=fail, on_checkpoint=lambda c: got.append(c.step))
    assert got == list(range(2, at, 2))
    resumed = train(r, rows, tmp_path / "run", base).checkpoints
    assert [(c.step, c.weights) for c in resumed] == [(c.step, c.weights) for c in whole]


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again_and_a_spoilt_one_is_mended(base, tmp_path):
    out = tmp_path / "run"
    first = train(recipe(), conversations(), out, base).checkpoints

    def load(dtype):
        raise AssertionError("the model is not needed")

    idle = replace(base, load=load)
    again = train(recipe(name="another name"), conversations(), out, idle)
    assert again.checkpoints == first and again.stop == Stop("completed", 5)
    kept = (out / "checkpoint-4" / "optimizer.pt").rename(tmp_path / "optimizer.pt")
    (out / "checkpoint-5" / "optimizer.pt").unlink()  # to save room: still finished
    assert train(recipe(), conversations(), out, idle).checkpoints == first
    shutil.rmtree(out / "checkpoint-5")
    run = train(recipe(), conversations(), out, base)
    assert "from step 2" in run.notes[0] and run.checkpoints == first
    assert kept.exists()
    (out / "checkpoint-5" / "trainer_state.json").unlink()
    build.truncated(out / "checkpoint-4")
    (out / trainer.SAVING / "checkpoint-5").mkdir(parents=True)
    run = train(recipe(), conversations(), out, base)
    assert [n.split()[0] for n in run.notes] == ["checkpoint-5", "checkpoint-4"]
    assert run.checkpoints == first and not (out / trainer.SAVING).exists()
    build.truncated(out / "checkpoint-2")  # an earlier one is not passed over
    with pytest.raises(DamagedWeights, match="checkpoint-2"):
        train(recipe(), conversations(), out, base)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def test_another_run_in_the_same_folder(base, tmp_path):
    train(recipe(), conversations(4), tmp_path / "run", base)
    other = replace(base, weights="0" * 32)
    for what, words in (
        ((recipe(rank=4), conversations(4), base), "rank was 2 and is 4 now"),
        (
            (recipe(learning_rate=0.5, seed=3), conversations(4), base),
            r"learning_rate was 0.01 and is 0.5 now \(and 1 more\)",
        ),
        ((recipe(), conversations(5), base), "data_sha256 was"),
        ((recipe(), conversations(4), other), "base weights was"),
    ):
        with pytest.raises(BadRecipe, match=words):
            train(*what[:2], tmp_path / "run", what[2])
    assert train(recipe(data="moved.jsonl"), conversations(4), tmp_path / "run", base).stop.step == 2


def test_folders_that_are_no_run(base, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    (tmp_path / "neutral").mkdir()
    (tmp_path / "neutral" / "recipe.json").write_text("{")
    for name, words in {
        "file": "is a file",
        "mine": r"holds thesis\.tex",
        "neutral": "not readable as a recipe",
    }.items():
        with pytest.raises(BadRecipe, match=words):
            train(recipe(), conversations(), tmp_path / name, base)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_two_at_once(base, tmp_path):
    def second(checkpoint):
        with pytest.raises(AuditLocked, match="somebody is training"):
            train(recipe(), conversations(4), tmp_path / "run", base)

    train(recipe(), conversations(4), tmp_path / "run", base, on_checkpoint=second)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": [7]}, "layers names 7, the model has 0 to 1"),
        ({"target_modules": ["c_attn"]}, "names c_attn, which the model lacks; it has .*q_proj"),
        ({"data_sha256": "f" * 64}, "leave data_sha256 out"),
    ],
)
def test_recipes_that_do_not_fit(base, tmp_path, change, words):
    with pytest.raises(BadRecipe, match=words):
        train(recipe(**change), conversations(4), tmp_path / "run", base)


def test_rows_that_do_not_fit(base, tmp_path):
    with pytest.raises(BadRow, match=r"rows.jsonl, row 1: its prompt alone has \d+ tokens, max_length is 4"):
        train(recipe(max_length=4), conversations(), tmp_path / "run", base)
    with pytest.raises(BadRecipe, match="no conversations"):
        train(recipe(), [], tmp_path / "run", base)
    assert not (tmp_path / "run").exists()


def test_long_answers_are_cut_and_it_is_said(base):
    rows = conversations(4)
    longest = max(len(e.ids) for e in tokenise(rows, base.chat, 512)[0])
    examples, notes = tokenise(rows, base.chat, longest - 3)
    assert notes == [f"1 of 4 answers were cut off at max_length = {longest - 3} tokens"]
    assert max(len(e.ids) for e in examples) == longest - 3


@pytest.mark.parametrize("what", ["base", "rate"])
def test_nan_stops_training_and_names_the_step(base, base_path, tmp_path, what):
    def load(dtype):
        model = base.load(dtype)
        with torch.no_grad():
            model.lm_head.weight[0, 0] = float("nan")
        return model

    broken = replace(base, load=load) if what == "base" else base
    r = recipe(learning_rate=1e30 if what == "rate" else 1e-3, warmup_steps=0, save_every=3)
    got = []
    with pytest.raises(BadRecipe, match=r"the (loss|gradient) is (nan|inf) at step [12]; lower learning_rate"):
        train(r, conversations(), tmp_path / "run", broken, on_checkpoint=got.append)
    assert got == [] and not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_full_disk_leaves_no_half_checkpoint(base, tmp_path):
    def save_pretrained(folder):
        base.tokenizer.save_pretrained(folder)
        if folder.name == "checkpoint-4":
            raise OSError(28, "No space left on device")

    full_disk = replace(base, tokenizer=SimpleNamespace(pad_token_id=0, save_pretrained=save_pretrained))
    with pytest.raises(DiskFull, match="at step 4; free some and repeat"):
        train(recipe(), conversations(), tmp_path / "run", full_disk)
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "run" / trainer.SAVING).exists()
