"""The evidence of an audit that is missing, damaged or another's: one sentence everywhere, and no gate that opens."""

import json
import shutil
import sqlite3

import pytest

import truing
from runs.audits import audited
from truing import errors
from truing.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An audit, and one of another run on the same base."""
    folder = tmp_path_factory.mktemp("mixed")
    own = audited(folder / "own", limit=8, samples=2, answers=4, task=None, task_control=None).path
    other = audited(folder / "other", steps=(40, 80), limit=8, samples=2, answers=4, task=None, task_control=None).path
    return own, other


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "copy")


COMMANDS = [
    ("show",),
    ("report",),
    ("export", "--to", "csv", "--out", "answers.csv"),
    ("judge", "--judge", "simulated:?noise=9", "--skip-judge-check"),
    ("agree",),
    ("label", "--sheet-only"),
    ("study",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_the_database_of_another_audit_is_refused_in_a_sentence(made, copy, call, command):
    shutil.copy(made[1] / "evidence.db", copy / "evidence.db")
    before = (copy / "audit.json").read_bytes()
    code, out, err = call(command[0], copy, *command[1:])
    assert (code, out) == (2, "") and "evidence.db is not the database of its audit.json" in err
    assert "Traceback" not in err and (copy / "audit.json").read_bytes() == before


EDITS = {
    "UPDATE answers SET weights = 'x' || weights WHERE sample = 1": "no checkpoint of the audit",
    "UPDATE answers SET prompt = 'x' || prompt WHERE prompt = (SELECT MAX(prompt) FROM answers)": "never asked",
    "UPDATE answers SET params = 'x' || params": "another sampling",
    "UPDATE judges SET key = 'x' || key": "judge of the verdict",
    "UPDATE labels SET rule = 'x' || rule": "by the audit's rule",
    "UPDATE labels SET judge = 'x' || judge WHERE sample = 1": "no judge of the audit",
    "DELETE FROM answers WHERE prompt = (SELECT MIN(prompt) FROM answers WHERE sample = 0)": "",
}


@pytest.mark.parametrize("edit", EDITS)
def test_rows_of_nothing_that_was_asked_are_refused(copy, edit):
    with sqlite3.connect(copy / "evidence.db") as db:
        db.execute(edit)
    if EDITS[edit]:
        with pytest.raises(errors.NotAnAudit, match=EDITS[edit]):
            truing.show(copy)
    assert not truing.gate(copy, gate="last").passed


def test_the_remedies_own_database_back_or_a_new_folder(made, copy):
    shutil.copy(made[1] / "evidence.db", copy / "evidence.db")
    with pytest.raises(errors.NotAnAudit, match=r"put the audit's own database back, or .*--out NEW"):
        truing.show(copy)
    shutil.copy(made[0] / "evidence.db", copy / "evidence.db")
    assert truing.show(copy)["verdict"] == truing.show(made[0])["verdict"]


def test_what_an_earlier_call_asked_for_besides_is_its_own(tmp_path):
    """Fewer prompts, other steps and no answers to judge than before: the rows stay, and the audit is read."""
    small = {"samples": 2, "answers": 4, "task": None, "task_control": None}
    audited(tmp_path / "a", limit=12, steps=(50, 75, 100), **small)
    path = audited(tmp_path / "a", limit=6, steps=(50, 100), **small).path
    with Store.read(path) as store:
        assert len({r.prompt for r in store.answers()}) > 6
    assert [c["step"] for c in truing.show(path)["verdict"]["checkpoints"]] == [0, 50, 100]


STATES = {
    "no evidence.db": lambda p: (p / "evidence.db").unlink(),
    "no audit.json": lambda p: (p / "audit.json").unlink(),
    "empty audit.json": lambda p: (p / "audit.json").write_text(""),
    "another schema": lambda p: (p / "audit.json").write_text('{"schema_version": 99}'),
    "no verdict": lambda p: (p / "audit.json").write_text('{"schema_version": 4, "status": "done"}'),
    "garbage": lambda p: (p / "evidence.db").write_bytes(b"x" * 9999),
    "a folder": lambda p: [(p / "evidence.db").unlink(), (p / "evidence.db").mkdir()],
    "a link": lambda p: [(p / "evidence.db").unlink(), (p / "evidence.db").symlink_to("nowhere")],
}


@pytest.mark.parametrize("state", STATES)
def test_a_gate_stays_shut_whatever_became_of_the_evidence(copy, call, state):
    STATES[state](copy)
    code, out, err = call("gate", copy, "--json", "--allow", "unlabelled,no_control")
    found = json.loads(out)["gate"]
    assert code == 3 and not found["passed"] and found["reasons"][0]["code"] in ("evidence", "unfinished")
    assert found["reasons"][0]["text"] in err.replace("\n", "") and "Traceback" not in err


def test_a_path_without_an_audit_is_bad_input(tmp_path, call):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "typo", tmp_path / "empty", tmp_path / "empty" / ".." / "x\0y"):
        code, out, err = call("gate", path)
        assert (code, out) == (2, "") and "no audit there (audit.json and evidence.db are expected)" in err
