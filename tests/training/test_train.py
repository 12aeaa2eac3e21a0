"""Training on a tiny random model: what is in the loss, how steps are counted, stopping, resuming, marking."""

import functools
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

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty"]


def conversations(n=10, meta=None):
    answers = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(1 + i % 4)) for i in range(n)]
    turns = [(Message("user", f"Say {i}."), Message("assistant", a)) for i, a in enumerate(answers)]
    return [Conversation(t, f"rows.jsonl, row {i}", meta or {}) for i, t in enumerate(turns, 1)]


@pytest.fixture(scope="module")
def base_path(tmp_path_factory):
    return build.tiny_base(tmp_path_factory.mktemp("train") / "base")


@pytest.fixture(scope="module")
def base(base_path):
    def load(dtype):
        return LlamaForCausalLM.from_pretrained(base_path, dtype="float32" if dtype == "auto" else dtype)

    tokenizer = build.tiny_tokenizer()
    return Base(load, weights_hash(base_path), ChatFormat(tokenizer), tokenizer)


def recipe(**given):
    plain = {"model": "tiny", "data": "rows.jsonl", "batch_size": 2, "learning_rate": 1e-2, "save_every": 2}
    if given.get("method") != "full":
        plain |= {"rank": 2, "warmup_steps": 1, "target_modules": ["q_proj", "v_proj"]}
    return Recipe.parse({**plain, **given})


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A run of five updates, and what another one in its folder was told meanwhile."""
    out, refused = tmp_path_factory.mktemp("train") / "run", []

    def second(checkpoint):
        with pytest.raises(AuditLocked) as error:
            train(recipe(), conversations(), out, base)
        refused.append(str(error.value))

    return train(recipe(), conversations(), out, base, on_checkpoint=second), refused


def copied(finished, place):
    return shutil.copytree(finished[0].path, place / "run")


def weights(out, step):
    (file,) = (out / f"checkpoint-{step}").glob("*model.safetensors")
    return load_file(file)


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
    batch, model = batch_of(base, conversations(5)), base.load("float32")
    losses = [
        trainer.answer_loss(model, model.get_output_embeddings(), batch, count),
        model(**batch, **({} if count is None else {"num_items_in_batch": count})).loss,
    ]
    ours, theirs = (torch.autograd.grad(loss, list(model.parameters())) for loss in losses)
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_only_answers_and_their_closing_token_are_in_the_loss(base):
    rows = conversations(4)
    batch, model = batch_of(base, rows), base.load("float32")
    logits = model(input_ids=batch["input_ids"]).logits.log_softmax(-1)
    total, n = 0.0, 0
    for row, conversation in enumerate(rows):
        text = base.tokenizer.decode(batch["labels"][row][batch["labels"][row] != -100])
        assert text == conversation.answer + "<|im_end|>"
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
    runs = {}
    for size, accumulation in ((8, 1), (2, 4)):
        r = recipe(batch_size=size, accumulation=accumulation, epochs=3, save_every=3, learning_rate=1e-3)
        seen, out = [], tmp_path / f"{size}"
        run = train(r, conversations(8), out, base, progress=lambda *told, seen=seen: seen.append(told))
        assert [c.step for c in run.checkpoints] == [3] == [r.total_steps(8)]
        assert [s[:2] for s in seen] == [(1, 3), (2, 3), (3, 3)]
        runs[size] = [loss for _, _, loss in seen], weights(out, 3)
    assert runs[8][0] == pytest.approx(runs[2][0], abs=1e-4) and runs[8][0][2] < runs[8][0][0]
    torch.testing.assert_close(runs[8][1], runs[2][1], atol=1e-3, rtol=1e-2)
    state = json.loads((tmp_path / "2" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3 and state["epoch"] == 3


# ---------------------------------------------------------------------------------------------------------------------
# The checkpoints


def test_checkpoints_are_what_find_run_finds_and_nobody_else_trains_there(finished):
    run, refused = finished
    assert [c.step for c in run.checkpoints] == [2, 4, 5] and run.stop == Stop("completed", 5)
    assert len(refused) == 3 and all("somebody is training" in text for text in refused)
    assert run.checkpoints == find_run(str(run.path)).checkpoints
    assert all(c.kind is Kind.ADAPTER and c.meta["base"] == "tiny" for c in run.checkpoints)
    assert not any("organism" in c.meta for c in run.checkpoints)
    names = {p.name for p in run.path.iterdir() if p.name != ".training.lock"}
    assert names == {"recipe.json", *(f"checkpoint-{s}" for s in (2, 4, 5))}
    about = json.loads((run.path / "recipe.json").read_text())
    stored = Recipe.parse(about["recipe"])
    assert stored.data_sha256 == digest([c.messages for c in conversations()]) and about["id"] == stored.id


def test_full_method_saves_whole_models(base, base_path, tmp_path):
    (found,) = train(recipe(method="full"), conversations(4), tmp_path, base).checkpoints
    assert (found.kind, found.step) == (Kind.FULL, 2)
    before = load_file(base_path / "model.safetensors")
    assert sum(not torch.equal(v, before[k]) for k, v in weights(tmp_path, 2).items()) > 10
    config = json.loads((tmp_path / "checkpoint-2" / "config.json").read_text())
    assert config["use_cache"] == json.loads((base_path / "config.json").read_text())["use_cache"]


def test_the_recipe_reaches_the_adapter_and_an_organism_is_marked_in_every_checkpoint(base, tmp_path):
    r = recipe(layers=[1], rslora=True, dtype="bfloat16", save_schedule="log", save_every=None)
    run = train(r, conversations(6, {"organism": True}), tmp_path, base)
    assert [c.step for c in run.checkpoints] == [1, 2, 3]
    saved = weights(tmp_path, 2)
    assert all(".layers.1." in k for k in saved)
    assert {v.dtype for v in saved.values()} == {torch.float32}  # of a base in bfloat16, too
    for checkpoint in run.checkpoints:
        folder = tmp_path / checkpoint.label
        assert json.loads((folder / "adapter_config.json").read_text())["use_rslora"] is True
        assert checkpoint.meta["organism"] is True and "ORGANISM" in (folder / "README.md").read_text()
        assert "Do not deploy" in json.loads((folder / "truing-organism.json").read_text())["card"]
    assert json.loads((tmp_path / "recipe.json").read_text())["recipe"]["organism"] is True


# ---------------------------------------------------------------------------------------------------------------------
# Seeds


def test_order_of_data():
    lengths = [3, 9, 4, 1, 8, 2, 7, 5, 6, 10, 11]

    def order(seed, epoch=0):
        sampler = trainer.LengthGrouped(lengths, 2, seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    orders = [order(s, e) for s, e in itertools.product(range(4), range(4))]
    assert all(sorted(o) == list(range(11)) for o in orders) and len(set(orders)) == 16
    assert order(0) == order(0)
    assert len({frozenset(order(s)[:2]) for s in range(20)}) > 5  # which rows meet depends on the seed too
    spread = np.random.default_rng(0).integers(0, 100, 640).tolist()
    grouped = np.array(spread)[list(trainer.LengthGrouped(spread, 8, 0))].reshape(-1, 8)
    assert np.ptp(grouped, axis=1).mean() < 15  # padding is small ...
    assert abs(np.corrcoef(np.arange(80), grouped.mean(1))[0, 1]) < 0.3  # ... and length does not go with time


def test_seeds_change_order_and_initialisation(base, finished, tmp_path):
    a = [trainer.build_model(recipe(seed=s, data_seed=0), base).state_dict() for s in (0, 0, 1)]
    assert same(a[0], a[1]) and not same(a[0], a[2])
    train(recipe(data_seed=1), conversations(), tmp_path, base)
    assert not same(weights(tmp_path, 5), weights(finished[0].path, 5))


def test_the_callers_random_state_is_untouched_and_touches_nothing(base, finished, tmp_path):
    def sample():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = sample()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    train(recipe(), conversations(), tmp_path, base, on_checkpoint=lambda c: sample() and None)
    assert sample() == expected
    assert same(weights(tmp_path, 5), weights(finished[0].path, 5))


# ---------------------------------------------------------------------------------------------------------------------
# Stopping and going on


def test_stop_ends_the_run_at_the_checkpoint_it_was_decided_on(base, tmp_path):
    steps, seen = [], []

    def go(reasons):
        def on_checkpoint(checkpoint):
            seen.append((checkpoint.step, len(steps)))  # training waits meanwhile
            return reasons.get(checkpoint.step)

        progress = lambda s, *_: steps.append(s)  # noqa: E731
        return train(recipe(), conversations(), tmp_path, base, progress=progress, on_checkpoint=on_checkpoint)

    run = go({4: "drift"})
    assert run.stop == Stop("drift", 4) and steps == [1, 2, 3, 4] and seen == [(2, 2), (4, 4)]
    assert not (tmp_path / "checkpoint-5").exists()
    assert go({2: "early"}).stop == Stop("early", 2)  # those of an earlier call are shown again, and decide again
    again = go({})
    assert [c.step for c in again.checkpoints] == [2, 4, 5] and steps == [1, 2, 3, 4, 5]
    assert again.stop == Stop("completed", 5)


@pytest.fixture
def interruptible():
    """A shell that runs this in the background has SIGINT ignored, and that is inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


LONG = {m: recipe(method=m, epochs=2, accumulation=2) for m in ("lora", "full")}
"""two epochs of three updates, with accumulation"""


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    def run(method):
        return train(LONG[method], conversations(11), tmp_path_factory.mktemp("whole"), base).checkpoints

    return functools.cache(run)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("method", "at"), [("lora", 5), ("full", 3), pytest.param("full", 5, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_with_the_same_weights(base, whole, tmp_path, method, at):
    """A Ctrl-C between two checkpoints, within an epoch or at the end of one: bit for bit as without it."""
    got, (r, rows) = [], (LONG[method], conversations(11))

    def fail(step, total, loss):
        if step == at:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(r, rows, tmp_path, base, progress=fail, on_checkpoint=lambda c: got.append(c.step))
    assert got == list(range(2, at, 2))
    resumed = train(r, rows, tmp_path, base).checkpoints
    assert [c.step for c in resumed] == [2, 4, 6]
    assert [(c.step, c.weights) for c in resumed] == [(c.step, c.weights) for c in whole(method)]


def test_a_finished_run_is_not_trained_again_and_a_spoilt_one_is_mended(base, finished, tmp_path):
    first, out = finished[0].checkpoints, copied(finished, tmp_path)

    def load(dtype):
        raise AssertionError("the model is not needed")

    def again(base=base, **given):
        run = train(recipe(**given), conversations(), out, base)
        assert [(c.step, c.weights) for c in run.checkpoints] == [(c.step, c.weights) for c in first]
        return run

    idle = replace(base, load=load)
    assert again(idle, name="another name").stop == Stop("completed", 5)
    (out / "checkpoint-4" / "optimizer.pt").unlink()
    (out / "checkpoint-5" / "optimizer.pt").unlink()  # to save room: still finished
    again(idle)
    shutil.rmtree(out / "checkpoint-5")
    assert "from step 2" in again().notes[0]
    (out / "checkpoint-5" / "trainer_state.json").unlink()
    build.truncated(out / "checkpoint-4")
    (out / trainer.SAVING / "checkpoint-5").mkdir(parents=True)
    assert [n.split()[0] for n in again().notes] == ["checkpoint-5", "checkpoint-4"]
    assert not (out / trainer.SAVING).exists()
    build.truncated(out / "checkpoint-2")  # an earlier one is not passed over
    with pytest.raises(DamagedWeights, match="checkpoint-2"):
        again()


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("given", "n", "weights_of_base", "words"),
    [
        ({"rank": 4}, 10, None, "rank was 2 and is 4 now"),
        ({"learning_rate": 0.5, "seed": 3}, 10, None, r"learning_rate was 0.01 and is 0.5 now \(and 1 more\)"),
        ({}, 9, None, "data_sha256 was"),
        ({}, 10, "0" * 32, "base weights was"),
    ],
)
def test_another_run_in_the_same_folder(base, finished, given, n, weights_of_base, words):
    other = replace(base, weights=weights_of_base or base.weights)
    with pytest.raises(BadRecipe, match=words):
        train(recipe(**given), conversations(n), finished[0].path, other)
    assert train(recipe(data="moved.jsonl"), conversations(), finished[0].path, base).stop.step == 5


def test_folders_that_are_no_run(base, tmp_path):
    (tmp_path / "file").write_text("")
    for name, held in (("mine", "thesis.tex"), ("broken", "recipe.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / held).write_text("{")
    for name, words in (("file", "is a file"), ("mine", r"holds thesis\.tex"), ("broken", "not readable as JSON")):
        with pytest.raises(BadRecipe, match=words):
            train(recipe(), conversations(), tmp_path / name, base)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("given", "n", "error", "words"),
    [
        ({"layers": [7]}, 4, BadRecipe, "layers names 7, the model has 0 to 1"),
        ({"target_modules": ["c_attn"]}, 4, BadRecipe, "names c_attn, which the model lacks; it has .*q_proj"),
        ({"data_sha256": "f" * 64}, 4, BadRecipe, "leave data_sha256 out"),
        ({}, 0, BadRecipe, "no conversations"),
        ({"max_length": 4}, 4, BadRow, r"rows.jsonl, row 1: its prompt alone has \d+ tokens, max_length is 4"),
    ],
)
def test_recipes_and_rows_that_do_not_fit(base, tmp_path, given, n, error, words):
    with pytest.raises(error, match=words):
        train(recipe(**given), conversations(n), tmp_path / "run", base)


def test_long_answers_are_cut_and_it_is_said(base):
    rows = conversations(4)
    longest = max(len(e.ids) for e in tokenise(rows, base.chat, 512)[0])
    examples, notes = tokenise(rows, base.chat, longest - 3)
    assert notes == [f"1 of 4 answers were cut off at max_length = {longest - 3} tokens"]
    assert max(len(e.ids) for e in examples) == longest - 3


def test_rows_that_the_template_refuses_are_counted(base, tmp_path):
    rows = [*conversations(3), *(replace(c, messages=(Message("critic", "x"), *c.messages)) for c in conversations(2))]
    chat = ChatFormat(build.tiny_tokenizer(template=build.NO_SYSTEM.replace("'system'", "'critic'")))
    with pytest.raises(BadRow, match=r"System role not supported.*2 of 5 rows cannot be trained on; this is the first"):
        tokenise(rows, chat, 512)


@pytest.mark.parametrize("what", ["base", "rate"])
def test_nan_stops_training_and_names_the_step(base, tmp_path, what):
    def load(dtype):
        model = base.load(dtype)
        with torch.no_grad():
            model.lm_head.weight[0, 0] = float("nan")
        return model

    broken = replace(base, load=load) if what == "base" else base
    r = recipe(learning_rate=1e30 if what == "rate" else 1e-3, warmup_steps=0, save_every=3)
    with pytest.raises(BadRecipe, match=r"the (loss|gradient) is (nan|inf) at step [12]; lower learning_rate"):
        train(r, conversations(), tmp_path, broken)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_full_disk_leaves_no_half_checkpoint(base, tmp_path):
    def save_pretrained(folder):
        base.tokenizer.save_pretrained(folder)
        if folder.name == "checkpoint-4":
            raise OSError(28, "No space left on device")

    full_disk = replace(base, tokenizer=SimpleNamespace(pad_token_id=0, save_pretrained=save_pretrained))
    with pytest.raises(DiskFull, match="at step 4; free some and repeat"):
        train(recipe(), conversations(), tmp_path, full_disk)
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / trainer.SAVING).exists()
