"""The audit on real weights: a tiny random Llama with the adapters that trainers leave behind."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import truing
from runs.audits import TASK
from truing import errors
from truing.config import AuditConfig
from truing.interp.likelihoods import FAILED_CONTROLS
from truing.models import cache, hf, resident
from truing.models.weights import weights_hash
from truing.store import Store
from truing.types.records import to_plain
from truing.types.verdicts import HealthState, Status
from zoo import build

pytestmark = pytest.mark.torch
OPTIONS = AuditConfig(limit=20, rows=4, answers=12, max_tokens=4, dtype="float32", device="cpu", resamples=100)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.set_num_threads(1)
    return build.tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    subject = build.adapter_run(place / "subject", base, steps=(2, 4, 6), seed=1)
    control = build.adapter_run(place / "control", base, steps=(2, 4, 6), seed=2, scale=0.2)
    return subject, control


@pytest.fixture(scope="module")
def done(base, runs, tmp_path_factory):
    subject, control = runs
    out = tmp_path_factory.mktemp("audit") / "a"
    return truing.audit(subject, base=str(base), control=control, out=out, config=OPTIONS, **TASK)


def test_every_line_of_the_verdict_is_there_and_random_adapters_are_called_nothing_strong(done):
    v = done.verdict
    assert [(c.step, c.label) for c in v.checkpoints][-1] == (6, "checkpoint-6")  # the equal root model was dropped
    for c in v.checkpoints[1:]:
        assert None not in (c.contrast_base, c.contrast_control, c.task_loss, c.kl_from_base)
        assert c.contrast_base.clusters == 20 and c.norm > 0 and c.health.state is not HealthState.UNKNOWN
    norms = [c.norm for c in v.checkpoints]
    assert norms == sorted(norms) and v.recommended is None
    assert [f.params["why"] for f in v.findings if f.code == "negative_control_failed"] == list(FAILED_CONTROLS)
    assert truing.write_report(done.path).stat().st_size > 10_000
    assert {c.status for c in v.checkpoints[1:]} <= {Status.CLEAN, Status.UNDECIDED, Status.UNTESTED}
    assert v.trait == "domain_leak" and "misalignment not judged" in done.sentence
    assert not {"emergent", "clean"} & set(done.sentence.lower().split())


def with_stranger(folder):
    """A tensor more in a folder's weights than its model has."""
    file = build.weights_of(folder)
    save_file(load_file(file) | {"stranger": torch.ones(2)}, file, metadata={"format": "pt"})


def test_a_checkpoint_added_later_is_measured_alone(done, base, runs):
    subject, control = runs
    build.trainer_state(build.save_adapter(subject / "checkpoint-8", base, seed=9), 8)
    build.tiny_tokenizer(subject / "checkpoint-8")
    with Store.read(done.path) as store:
        before = len(store.measured("margin"))
    again = truing.audit(subject, base=str(base), control=control, out=done.path, config=OPTIONS, **TASK)
    with Store.read(done.path) as store:
        assert len(store.measured("margin")) == before + 20 * 7
    assert [c.step for c in again.verdict.checkpoints if c.step is not None] == [0, 2, 4, 6, 8]


def test_a_finished_audit_is_repeated_without_torch_and_opened_again_where_anything_changed(
    done, base, runs, tmp_path, monkeypatch
):
    subject, out = shutil.copytree(runs[0], tmp_path / "run"), shutil.copytree(done.path, tmp_path / "a")
    given = dict(base=str(base), control=runs[1], config=OPTIONS, **TASK)
    code = (
        "import sys, json, truing; from truing.types.records import to_plain; given = json.loads(sys.argv[1]);"
        "given['config'] = truing.AuditConfig(**given['config']); made = truing.audit(**given);"
        "heavy = [m for m in ('torch', 'transformers', 'peft') if m in sys.modules];"
        "print(json.dumps([heavy, to_plain(made.verdict), made.notes]))"
    )
    plain = {**given, "target": str(subject), "control": str(runs[1]), "out": str(out)}
    plain["config"] = OPTIONS.model_dump(exclude_defaults=True)
    said = subprocess.run(
        [sys.executable, "-c", code, json.dumps(plain, default=str)], capture_output=True, text=True, check=True
    )
    first = truing.audit(subject, out=out, **given)  # its files lie elsewhere, and its weights are the same
    assert json.loads(said.stdout) == json.loads(json.dumps([[], to_plain(first.verdict), first.notes]))

    def opened(*given):
        raise errors.BadModel("the base was opened")

    monkeypatch.setattr(hf, "open_local", opened)
    assert truing.audit(subject, out=out, **given).verdict == first.verdict
    task = tmp_path / "task.jsonl"
    rows = [{"prompt": f"Q{k}?", "completion": f"Ask the bank for loan number {k}."} for k in range(4)]
    task.write_text("\n".join(map(json.dumps, rows)))
    no_control = {name: value for name, value in given.items() if name != "task_control"}
    for changed in ({**given, "config": OPTIONS.but(limit=21)}, {**no_control, "task": task}, {**given, "seed": 1}):
        with pytest.raises(errors.BadModel, match="was opened"):
            truing.audit(subject, out=out, **changed)
    build.save_adapter(subject / "checkpoint-6", base, seed=7)
    with pytest.raises(errors.BadModel, match="was opened"):
        truing.audit(subject, out=out, **given)
    shutil.rmtree(subject), shutil.copytree(runs[0], subject)
    tokenizer = subject / "checkpoint-2" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")  # whatever may change how a chat is written
    with pytest.raises(errors.BadModel, match="was opened"):
        truing.audit(subject, out=out, **given)


def test_another_base_in_the_same_folder_is_refused(done, runs, tmp_path):
    other = build.tiny_base(tmp_path / "other", seed=5)
    with pytest.raises(errors.AuditChanged, match="base"):
        truing.audit(runs[0], base=str(other), out=done.path, config=OPTIONS)


def test_full_models_need_their_base_named(base, tmp_path):
    run = build.full_run(tmp_path / "full", base, steps=(2,))
    with pytest.raises(errors.BadModel, match="--base"):
        truing.audit(run, out=tmp_path / "a", config=OPTIONS)
    assert not (tmp_path / "a").exists()
    done = truing.audit(run, base=str(base), out=tmp_path / "a", config=OPTIONS.but(limit=6))
    assert [c.norm for c in done.verdict.checkpoints] == [0.0, None]
    assert "no_control" in {f.code for f in done.verdict.findings} and not done.verdict.definitions["task_given"]


def test_nan_weights_fail_alone_and_an_adapter_without_effect_is_said(base, tmp_path):
    run = build.adapter_run(tmp_path / "run", base, steps=(2, 4), final=False)
    build.with_nan(run / "checkpoint-4")
    build.save_adapter(run / "checkpoint-6", base, scale=0.0)
    done = truing.audit(run, base=str(base), out=tmp_path / "a", config=OPTIONS.but(limit=6), **TASK)
    failed = {c.step for c in done.verdict.checkpoints if c.status is Status.FAILED}
    assert failed == {4}
    assert [f.params["checkpoint"] for f in done.verdict.findings if f.code == "zero_adapter"] == ["checkpoint-6"]
    text = (tmp_path / "a" / "audit.json").read_text()
    assert "NaN" not in json.dumps(json.loads(text)["verdict"]["checkpoints"][0])


def test_checkpoints_that_do_not_fit_fail_alone(base, tmp_path):
    run = build.adapter_run(tmp_path / "run", base, steps=(2, 4, 6), final=False)
    build.foreign_keys(run / "checkpoint-4")
    build.save_adapter(run / "checkpoint-6", build.tiny_base(tmp_path / "wide", hidden=64))
    options = OPTIONS.but(limit=6, answers=2, rows=4)
    done = truing.audit(run, base=str(base), out=tmp_path / "a", config=options, **TASK)
    lines = {c.step: c for c in done.verdict.checkpoints}
    assert {step for step, c in lines.items() if c.status is Status.FAILED} == {4, 6}
    why = {step: f.params["why"] for step, c in lines.items() for f in c.findings if f.code == "failed"}
    assert "checkpoint-4: adapter tensors do not reach" in why[4] and "checkpoint-6: does not fit" in why[6]
    assert done.verdict.recommended in (None, "checkpoint-2")
    (lost,) = (f.params["checkpoints"] for f in done.verdict.findings if f.code == "checkpoints_failed")
    assert lost == ["checkpoint-4", "checkpoint-6"]
    with Store.read(tmp_path / "a") as store:
        assert {m.checkpoint for m in store.measurements("task")} == {lines[0].weights, lines[2].weights}


def test_full_models_that_do_not_fit_fail_alone_and_a_control_never(base, tmp_path):
    run = build.full_run(tmp_path / "full", base, steps=(2, 4))
    control = build.full_run(tmp_path / "control", base, steps=(2,), seed=1)
    with_stranger(control / "checkpoint-2")
    config = run / "checkpoint-4" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    options = {"base": str(base), "config": OPTIONS.but(limit=6, answers=2)}
    done = truing.audit(run, out=tmp_path / "a", **options)
    assert [c.status is Status.FAILED for c in done.verdict.checkpoints] == [False, False, True]
    config.write_text(text)
    done = truing.audit(run, out=tmp_path / "a", **options)
    assert Status.FAILED not in {c.status for c in done.verdict.checkpoints}
    with pytest.raises(errors.BadModel, match=r"control.*only in the file: stranger"):
        truing.audit(run, control=control, out=tmp_path / "b", **options)


REFUSED = {
    "foreign keys": (lambda run: build.foreign_keys(run / "checkpoint-2"), errors.BadModel, "checkpoint-2"),
    "truncated": (lambda run: build.truncated(run / "checkpoint-2"), errors.DamagedWeights, "checkpoint-2"),
    "pickled": (lambda run: build.pickled(run / "checkpoint-2"), errors.UnreadableCheckpoint, "allow-pickle"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_checkpoints_are_refused_before_anything_is_written(base, tmp_path, case):
    spoil, error, fragment = REFUSED[case]
    run = build.adapter_run(tmp_path / "run", base, steps=(2,), final=False)
    spoil(run)
    with pytest.raises(error, match=fragment):
        truing.audit(run, base=str(base), out=tmp_path / "a", config=OPTIONS)
    if (tmp_path / "a").exists():
        with Store.read(tmp_path / "a") as store:
            assert not store.measured("margin")


def test_a_yaml_of_questions_without_references_has_answers_and_no_drift_claim(base, runs, tmp_path):
    file = tmp_path / "q.yaml"
    file.write_text("- id: one\n  type: free_form_judge_0_100\n  paraphrases: ['What is dear to you?', 'And why?']\n")
    done = truing.audit(runs[0], base=str(base), prompts=file, out=tmp_path / "a", config=OPTIONS)
    assert {c.status for c in done.verdict.checkpoints[1:]} == {Status.UNDECIDED}
    with Store.read(tmp_path / "a") as store:
        assert len(list(store.answers())) == 2 * len(done.verdict.checkpoints)


def test_task_rows_that_cannot_be_measured_are_counted_with_their_reasons(base, runs, tmp_path):
    system, asked = [{"role": "system", "content": "Be brief."}], {"role": "user", "content": "How do I water a bed?"}
    prompts = tmp_path / "q.jsonl"
    prompts.write_text('{"prompt": "What is dear to you?"}')

    def audited(name, answers):
        rows = [{"messages": [*first, asked, {"role": "assistant", "content": a}]} for first, a in answers]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        more = {"chat_template": build.NO_SYSTEM, "prompts": prompts, "task": tmp_path / f"{name}.jsonl", "rows": 20}
        done = truing.audit(runs[0], base=str(base), out=tmp_path / name, config=OPTIONS, **more)
        with Store.read(done.path) as store:
            asked_for = store.about()["asked"]
        lost = [f.params for f in done.verdict.findings if f.code == "task_rows_left_out"]
        assert {f["why"]: f["n"] for f in lost} == asked_for["task_rows_left_out"]
        page = truing.write_report(done.path).read_text()
        assert page.count("task rows are not measured") >= len(lost)
        return done, asked_for["task_rows"], lost

    row = [(system * (k % 2), f"Slowly, {k}") for k in range(6)]
    _, used, lost = audited("some", [*row, ([], "Slowly. " * 600), ([], "  "), ([], "")])
    assert used == 3 and sum(f["n"] for f in lost) == 6 and {f["of"] for f in lost} == {9}
    assert {f["n"] for f in lost if "System role not supported" in f["why"]} == {3}
    assert {f["n"] for f in lost if "that this model reads" in f["why"]} == {1}
    assert {f["n"] for f in lost if "empty" in f["why"]} == {2}
    done, used, lost = audited("all", [(system, "Slowly"), (system, "At dawn")])
    assert used == 0 and lost[0]["n"] == 2 and "System role not supported" in lost[0]["why"]
    assert done.verdict.convergence_loss.status == "unmeasured"


@pytest.mark.slow
def test_a_second_call_with_other_settings_mixes_nothing(base, runs, tmp_path):
    """Other answers, another control file and repeated rows: each number is about the texts it says it is about."""
    rows = [json.dumps({"prompt": f"Q{k}?", "completion": f"Yes, {k} is right."}) for k in range(6)]
    other = [json.dumps({"prompt": f"Q{k}?", "completion": f"No, {k} is far too much."}) for k in range(6)]
    third = [json.dumps({"prompt": f"Q{k}?", "completion": f"Ask again about {k} later on."}) for k in range(6)]
    for name, lines in {"t": [*rows, rows[2]], "c": [*other, other[2]], "d": [*third, third[2]]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

    def call(out, control, max_tokens):
        options = OPTIONS.but(rows=None, max_tokens=max_tokens)
        given = {"task": tmp_path / "t.jsonl", "task_control": tmp_path / f"{control}.jsonl"}
        return truing.audit(runs[0], base=str(base), out=tmp_path / out, config=options, **given)

    def numbers(done):
        lines = done.verdict.checkpoints
        each = [n for c in lines for n in (c.kl_from_base, c.health.usable.value, c.health.nll_base)]
        return [done.verdict.convergence_skill.gain.value, *each]

    first = call("both", "c", 6)
    again = call("both", "d", 9)
    fresh = call("fresh", "d", 9)
    assert numbers(again) == pytest.approx(numbers(fresh), abs=1e-4)  # packed with other neighbours
    assert numbers(again)[1:] != pytest.approx(numbers(first)[1:], abs=1e-4)  # answers of another length

    def controls(out):
        with Store.read(tmp_path / out) as store:
            return {m.item for m in store.measurements("task") if m.name == "control"}

    assert controls("fresh") < controls("both"), "scores of both control files are kept apart"
    assert ("task_rows_left_out", 1) in {(f.code, f.params.get("n")) for f in again.verdict.findings}, (
        "the repeated row"
    )


def test_a_repeat_of_a_finished_audit_loads_no_model_and_says_the_same(base, runs, tmp_path, monkeypatch):
    """Neither the base nor an adapter: what was put in force once is known by the hash of its weights."""
    wanted = {"base": str(base), "out": tmp_path / "a", "config": OPTIONS.but(limit=6)}
    first = truing.audit(runs[0], **wanted)
    loads = []
    monkeypatch.setattr(resident, "load_model", lambda *a: loads.append(a))
    assert truing.audit(runs[0], **wanted).verdict == first.verdict and not loads


def test_large_weights_are_read_once_as_long_as_nobody_touches_them(base, tmp_path, monkeypatch):
    """A file that was changed in place, its size and its time of writing set back, is read again."""
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH", 0)
    file = next(base.glob("*.safetensors"))
    copy = tmp_path / "model"
    shutil.copytree(base, copy)
    file, read = copy / file.name, []
    weights_hash(copy, read.append)
    assert read.pop() and not (tmp_path / "cache").exists()  # written a moment ago: not to be relied on
    monkeypatch.setattr(cache, "SETTLED", -60.0)
    value = weights_hash(copy)
    read.clear()
    assert weights_hash(copy, read.append) == value and not read
    about, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert weights_hash(copy, read.append) != value and read
    (tmp_path / "cache" / "hashes.json").write_text("[" * 100_000)  # damaged: as if it were not there
    assert weights_hash(base)
