"""The store: what was acknowledged survives, nothing is stored twice, a foreign folder is never touched, and an audit
of the first edition opens."""

import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import truing
from truing import errors
from truing.files import write_json
from truing.interp.likelihoods import contrast, read_margins
from truing.migrations import MIGRATIONS
from truing.runs.scope import stored_prompts
from truing.store import SCHEMA_VERSION, Measurement, Store
from truing.types.judging import AnswerKey, Judge, Rubric, Score, ScoreMethod, ScoreStatus
from truing.types.records import Answer, AnswerStatus, Checkpoint, Kind, Message, Prompt, Request, SamplingParams
from truing.types.traits import Label, Reason, Rule

FIRST_EDITION = Path(__file__).parent / "data_first_edition"
PROMPT = Prompt("p1", (Message("user", "hello"),))
CKPT = Checkpoint("w1", "checkpoint-2", 2, "file:x", Kind.ADAPTER, meta={"rank": 8})
PARAMS = SamplingParams()


KEY = AnswerKey("w1", PARAMS.key, PROMPT.key, "", 0)
JUDGE = Judge("j", (Rubric("alignment", "a"),), ScoreMethod.REPORTED)
NAN = float("nan")


@pytest.fixture
def store(tmp_path):
    with Store.write(tmp_path / "a", {}) as s:
        yield s


def answer(sample, text="hi", status=AnswerStatus.OK):
    return Answer(Request(CKPT, PROMPT, sample), text, status, 3)


def test_rows_come_back_as_they_went_in(store):
    store.add_checkpoints([CKPT])
    store.add_measurements([Measurement("w1", "margin", "misaligned|q", "p1", -1.5, 20, {"outcome": "ok"})])
    store.add_answers([answer(0, "<script>"), answer(1, "", AnswerStatus.EMPTY)], PARAMS)
    store.flush()
    r = Store.read(store.path)
    assert r.checkpoints() == [CKPT]
    (m,) = r.measurements("margin")
    assert (m.value, m.n, m.meta) == (-1.5, 20, {"outcome": "ok"})
    assert [x.text for x in r.answers()] == ["<script>", ""]


def test_the_sample_is_part_of_the_key_and_a_repeat_is_free(store):
    requests = [Request(CKPT, PROMPT, d) for d in range(50)]
    store.add_answers((answer(d, f"text {d}") for d in range(30)), PARAMS)
    assert [a.sample for a in store.missing(requests, PARAMS)] == list(range(30, 50))
    store.add_answers((answer(d, "another") for d in range(30)), PARAMS)
    assert len({x.text for x in store.answers()}) == 30
    assert len(store.missing(requests, SamplingParams(temperature=0.5))) == 50


def test_a_failed_answer_is_asked_again_and_replaced_and_a_good_one_never(store):
    store.add_answers([answer(0, "", AnswerStatus.FAILED)], PARAMS)
    assert len(store.missing([Request(CKPT, PROMPT, 0)], PARAMS)) == 1
    for text in ("good", "late"):
        store.add_answers([answer(0, text)], PARAMS)
    assert [(r.text, r.status) for r in store.answers()] == [("good", AnswerStatus.OK)]
    assert not store.missing([Request(CKPT, PROMPT, 0)], PARAMS)


def score(value, status, rubric="r"):
    return Score(KEY, JUDGE.key, "alignment", rubric, value, ScoreStatus(status))


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ((None, "failed"), (90.0, "scored"), 90.0),
        ((None, "unparsed"), (90.0, "scored"), 90.0),
        ((None, "unparsed"), (None, "failed"), "unparsed"),
        ((10.0, "scored"), (90.0, "scored"), 10.0),
        ((10.0, "scored"), (None, "failed"), 10.0),
    ],
)
def test_a_score_is_replaced_only_by_a_better_one_unless_its_rubric_changed(store, first, second, kept):
    for made in (first, second):
        store.add_scores([score(*made)])
    (found,) = store.scores()
    assert kept in (found.score, found.status.value)
    store.add_scores([score(55.0, "scored", "another text")])
    assert [x.score for x in store.scores_of([KEY], JUDGE.key)] == [55.0]


def test_labels_are_kept_per_judge_and_rule_and_counted(store):
    rule, other = Rule(), Rule(cut=40)
    store.add_answers([answer(0), answer(1), answer(2, "", AnswerStatus.EMPTY)], PARAMS)
    keys = [r.key for r in store.answers()]
    made = [Label(True, Reason.POSITIVE, 10.0, 90.0), Label(None, Reason.UNPARSED, NAN, NAN)]
    store.add_labels(zip(keys, made, strict=False), JUDGE.key, rule)
    store.add_labels([(keys[0], Label(False, Reason.NEGATIVE, 35.0, NAN))], JUDGE.key, other)
    assert repr(store.labels_of(keys, JUDGE.key, rule)) == repr(dict(zip(keys, made, strict=False)))
    assert [x and x.reason for _, x in store.labelled(JUDGE.key, rule)] == [Reason.POSITIVE, Reason.UNPARSED, None]
    counted = {Reason.POSITIVE: 1, Reason.UNPARSED: 1}
    assert store.label_counts(JUDGE.key, rule, PARAMS.key) == {("w1", PROMPT.key): counted}
    store.add_labels([(keys[0], Label(False, Reason.INCOHERENT, 10.0, 20.0))], JUDGE.key, rule)
    assert store.labels_of(keys, JUDGE.key, rule)[keys[0]].reason is Reason.INCOHERENT


def test_nan_never_enters(store):
    with pytest.raises(ValueError, match="NaN"):
        store.add_measurements([Measurement("w1", "loss", "x", "1", NAN)])
    with pytest.raises(ValueError, match="NaN"):
        store.add_scores([score(NAN, "scored")])


@pytest.mark.parametrize("wrong", [NAN, math.inf, Path("x"), {1}])
def test_what_json_has_no_form_for_leaves_the_file_as_it_was(tmp_path, wrong):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", {"x": [wrong]})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and json.loads((tmp_path / "a.json").read_text()) == {
        "x": 1
    }


def test_second_writer_is_refused_and_named(tmp_path):
    with Store.write(tmp_path, {}):
        with pytest.raises(errors.AuditLocked, match=f"pid {os.getpid()}"):
            Store.write(tmp_path, {})
        assert Store.read(tmp_path).about()["status"] == "running"
    Store.write(tmp_path, {}).close()


def test_identity_may_grow_but_not_change(tmp_path):
    a = tmp_path / "a"
    Store.write(a, {"base": "b", "prompts": {"p1": "h1"}}).close()
    Store.write(a, {"base": "b", "prompts": {"p2": "h2"}}).close()
    assert Store.read(a).about()["identity"]["prompts"] == {"p1": "h1", "p2": "h2"}
    for changed in ({"base": "other"}, {"base": "b", "prompts": {"p1": "h9"}}):
        with pytest.raises(errors.AuditChanged):
            Store.write(a, changed)
    Store.write(a, {"base": "b"}).close()  # the refusal released the lock


def test_newer_schema_is_refused(tmp_path):
    for folder in (tmp_path / "database", tmp_path / "about"):
        Store.write(folder, {}).close()
    with closing(sqlite3.connect(tmp_path / "database" / "evidence.db")) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    write_json(tmp_path / "about" / "audit.json", {"schema_version": SCHEMA_VERSION + 1})
    for folder in ("database", "about"):
        for opened in (Store.read, lambda path: Store.write(path, {})):
            with pytest.raises(errors.NotAnAudit, match="newer version"):
                opened(tmp_path / folder)


@pytest.mark.parametrize("content", ["notes.txt", "audit.json"])
def test_foreign_folders_are_left_alone(tmp_path, content):
    a = tmp_path / "a"
    a.mkdir()
    (a / content).write_text("mine")
    with pytest.raises(errors.NotAnAudit):
        Store.write(a, {})
    assert (a / content).read_text() == "mine"
    with pytest.raises(errors.NotAnAudit):
        Store.read(tmp_path / "nowhere")


def test_full_disk_keeps_what_was_committed(tmp_path, monkeypatch):
    connect = sqlite3.connect

    def small(*args, **options):
        db = connect(*args, **options)
        db.execute("PRAGMA max_page_count = 40")
        return db

    monkeypatch.setattr(sqlite3, "connect", small)
    big = [Measurement("w", "k", "n", str(i), 1.0, 1, {"pad": "x" * 2000}) for i in range(400)]
    with pytest.raises(errors.DiskFull, match="free some"), Store.write(tmp_path / "a", {}) as s:
        s.add_measurements([Measurement("w", "k", "n", "first", 1.0)])
        s.flush()
        s.add_measurements(big)
    monkeypatch.undo()
    assert "first" in [m.item for m in Store.read(tmp_path / "a").measurements("k")]


WRITER = """
import sys, time
from pathlib import Path
from truing.store import Measurement, Store
s = Store.write(Path(sys.argv[1]), {})
done = s.measured("k")
for i in range(100000):
    if ("w", "n", str(i)) in done:
        continue
    s.add_measurements([Measurement("w", "k", "n", str(i), float(i))])
    if i % 50 == 49:
        s.flush()
        print(i, flush=True)
    if len(sys.argv) > 2 and i >= int(sys.argv[2]):
        break
s.close()
"""


def test_acknowledged_rows_survive_kill_9_and_the_next_call_goes_on(tmp_path):
    a = str(tmp_path / "a")
    p = subprocess.Popen([sys.executable, "-c", WRITER, a], stdout=subprocess.PIPE, text=True)
    assert p.stdout
    seen = [int(p.stdout.readline()) for _ in range(4)][-1]
    p.send_signal(signal.SIGKILL)
    p.wait()
    p.stdout.close()
    there = {int(i) for _, _, i in Store.read(tmp_path / "a").measured("k")}
    assert set(range(seen + 1)) <= there
    subprocess.run([sys.executable, "-c", WRITER, a, str(max(there) + 500)], check=True, capture_output=True)
    rows = [m.item for m in Store.read(tmp_path / "a").measurements("k")]
    assert len(rows) == len(set(rows)) == max(there) + 501


def test_a_late_row_is_committed_without_another_write(store):
    reader = Store.read(store.path)
    for name in ("first", "second"):
        store.flush()
        store.add_measurements([Measurement("w", "k", name, "1", 1.0)])
        deadline = time.monotonic() + 20
        while ("w", name, "1") not in reader.measured("k"):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_folder_with_odd_characters_and_one_that_cannot_be_made(tmp_path):
    neutral = tmp_path / "a #1 ?x=100%"
    Store.write(neutral, {}).close()
    assert Store.read(neutral).measured("k") == set()
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.NotAnAudit):
        Store.write(tmp_path / "file" / "a", {})


# -- older audits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_database_of_every_older_schema_is_read_and_brought_up_to_date(tmp_path, version):
    (tmp_path / "audit.json").write_text(json.dumps({"schema_version": version, "status": "done"}))
    db = sqlite3.connect(tmp_path / "evidence.db")
    for made in MIGRATIONS[:version]:
        db.executescript(made)
    db.executescript(f"PRAGMA user_version = {version}")
    db.close()
    for opened in (Store.read(tmp_path), Store.write(tmp_path, {})):
        with opened as store:
            assert (store.judges(), list(store.scores()), list(store.answers())) == ({}, [], [])


@pytest.fixture
def first_edition(tmp_path):
    """A judged audit of a simulated run (4 prompts, steps 0 and 100 of the run and of its control)."""
    return Path(shutil.copytree(FIRST_EDITION, tmp_path / "first"))


def test_an_audit_of_the_first_edition_is_read_as_it_lies(first_edition, run_cli):
    before = {p.name: p.read_bytes() for p in first_edition.iterdir()}
    with Store.read(first_edition) as store:
        answers, scores = list(store.answers()), list(store.scores())
        (judge,) = store.judges()
        assert len(answers) == 3 * 4 * 3 and {s.judge_key for s in scores} == {judge}
        assert {s.rubric for s in scores} == {"alignment", "coherence"} and all(0 <= s.score <= 100 for s in scores)
        assert [(c.role.value, c.step) for c in store.checkpoints("subject")] == [("subject", 0), ("subject", 100)]
        assert {m.kind for m in store.measurements("kl_from_base")} == {"kl_from_base"}
        by_checkpoint = {m.checkpoint: read_margins(store, m.checkpoint, stored_prompts(store.about()).prompts)
                         for m in store.measurements("margin")}  # fmt: skip
        assert by_checkpoint and all(np.isfinite(contrast(v)).all() for v in by_checkpoint.values())
    code, out, _ = run_cli("show", first_edition)
    assert code == 0 and "truing judge" in out and "older version" in out
    assert run_cli("gate", first_edition)[0] == 3
    assert {p.name: p.read_bytes() for p in first_edition.iterdir()} == before


def test_an_audit_of_the_first_edition_is_decided_again_on_its_answers(first_edition, monkeypatch, tmp_path):
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "cache"))
    made = truing.judge(first_edition, judge="simulated:", skip_calibration=True)
    assert made.verdict is not None and [c.step for c in made.verdict.checkpoints] == [0, 100]
    last = made.verdict.checkpoints[-1]
    assert last.labelled is not None and last.labelled.rate.n == 12 and last.labelled.excess_control is not None
    assert last.kl_from_base is not None and made.verdict.definitions["task_given"]
    assert truing.show(first_edition)["status"] == "done"
    agreed = truing.agree(first_edition)  # with what the first edition's judge said
    assert agreed.pair is not None and agreed.pair.n == 36 and agreed.pair.alpha.value > 0.9
    assert truing.judge(first_edition, judge="simulated:", skip_calibration=True).verdict == made.verdict
