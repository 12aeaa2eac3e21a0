"""The store: what was acknowledged survives, nothing is stored twice, and a foreign folder is never touched."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from truing import errors
from truing.store import SCHEMA_VERSION, Measurement, Store, write_json
from truing.types.records import Answer, AnswerStatus, Checkpoint, Kind, Message, Prompt, Request, SamplingParams

PROMPT = Prompt("p1", (Message("user", "hello"),))
CKPT = Checkpoint("w1", "checkpoint-2", 2, "file:x", Kind.ADAPTER, meta={"rank": 8})
PARAMS = SamplingParams()


def answer(sample, text="hi", outcome=AnswerStatus.OK):
    return Answer(Request(CKPT, PROMPT, sample), text, outcome, 3)


def test_rows_come_back_as_they_went_in(tmp_path):
    with Store.write(tmp_path / "a", {"base": "b"}) as s:
        s.add_checkpoints([CKPT])
        s.add_measurements([Measurement("w1", "margin", "misaligned|q", "p1", -1.5, 20, {"outcome": "ok"})])
        s.add_answers([answer(0, "<script>"), answer(1, "", AnswerStatus.EMPTY)], PARAMS)
    r = Store.read(tmp_path / "a")
    assert r.checkpoints() == [CKPT]
    (m,) = r.measurements("margin")
    assert (m.value, m.n, m.meta) == (-1.5, 20, {"outcome": "ok"})
    assert [x.text for x in r.answers()] == ["<script>", ""]
    assert r.tallies() == {("w1", PROMPT.key): {"ok": 1, "empty": 1}}


def test_the_draw_is_part_of_the_key_and_a_repeat_is_free(tmp_path):
    requests = [Request(CKPT, PROMPT, d) for d in range(50)]
    with Store.write(tmp_path / "a", {}) as s:
        s.add_answers((answer(d, f"text {d}") for d in range(30)), PARAMS)
        assert [a.sample for a in s.missing(requests, PARAMS)] == list(range(30, 50))
        s.add_answers((answer(d, "another") for d in range(30)), PARAMS)
        assert len({x.text for x in s.answers()}) == 30
        assert sum(s.tallies()[("w1", PROMPT.key)].values()) == 30
        assert len(s.missing(requests, SamplingParams(temperature=0.5))) == 50


def test_failed_answers_are_asked_again(tmp_path):
    with Store.write(tmp_path / "a", {}) as s:
        s.add_answers([answer(0, "", AnswerStatus.FAILED)], PARAMS)
        assert len(s.missing([Request(CKPT, PROMPT, 0)], PARAMS)) == 1


def test_nan_never_enters(tmp_path):
    with Store.write(tmp_path / "a", {}) as s, pytest.raises(ValueError, match="NaN"):
        s.add_measurements([Measurement("w1", "loss", "x", "1", float("nan"))])


def test_second_writer_is_refused_and_named(tmp_path):
    with Store.write(tmp_path / "a", {}):
        with pytest.raises(errors.AuditLocked, match=f"pid {os.getpid()}"):
            Store.write(tmp_path / "a", {})
        assert Store.read(tmp_path / "a").about()["status"] == "running"
    Store.write(tmp_path / "a", {}).close()


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
    a = tmp_path / "a"
    Store.write(a, {}).close()
    db = sqlite3.connect(a / "evidence.db")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    for opened in (lambda: Store.read(a), lambda: Store.write(a, {})):
        with pytest.raises(errors.NotAnAudit):
            opened()
    b = tmp_path / "b"
    Store.write(b, {}).close()
    about = json.loads((b / "audit.json").read_text())
    write_json(b / "audit.json", {**about, "schema_version": SCHEMA_VERSION + 1})
    with pytest.raises(errors.NotAnAudit):
        Store.read(b)


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


def test_full_disk_keeps_what_was_committed(tmp_path):
    with Store.write(tmp_path / "a", {}) as s:
        s.add_measurements([Measurement("w", "k", "n", "first", 1.0)])
        s.flush()
        s._db.execute("PRAGMA max_page_count = 40")
        big = [Measurement("w", "k", "n", str(i), 1.0, 1, {"pad": "x" * 2000}) for i in range(400)]
        with pytest.raises(errors.DiskFull, match="free some"):
            s.add_measurements(big)
        s._db.rollback()
    assert [m.item for m in Store.read(tmp_path / "a").measurements("k")] == ["first"]


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


def test_a_late_row_is_committed_without_another_write(tmp_path):
    with Store.write(tmp_path / "a", {}) as s:
        s.flush()
        s.add_measurements([Measurement("w", "k", "n", "1", 1.0)])
        deadline = time.monotonic() + 20
        reader = Store.read(tmp_path / "a")
        while not reader.measured("k"):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_failed_answer_is_replaced_by_a_good_one_and_a_good_one_never(tmp_path):
    with Store.write(tmp_path / "a", {}) as s:
        s.add_answers([answer(0, "", AnswerStatus.FAILED)], PARAMS)
        s.add_answers([answer(0, "good")], PARAMS)
        s.add_answers([answer(0, "late")], PARAMS)
        assert [r.text for r in s.answers()] == ["good"]
        counts = s.tallies()[("w1", PROMPT.key)]
        assert {k: n for k, n in counts.items() if n} == {"ok": 1}


def test_a_folder_with_odd_characters_and_one_that_cannot_be_made(tmp_path):
    neutral = tmp_path / "a #1 ?x=100%"
    Store.write(neutral, {}).close()
    assert Store.read(neutral).measured("k") == set()
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.NotAnAudit):
        Store.write(tmp_path / "file" / "a", {})
