"""An audit that came from elsewhere: its links, its damage, a place that is only read, and what its words may do."""

import copy
import json
import os
import random
import shutil
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import truing
from report.audits import make_audit
from truing import database, errors
from truing.store import SCHEMA_VERSION, Measurement, Store


@pytest.fixture(scope="module")
def received(tmp_path_factory):
    folder = make_audit(tmp_path_factory.mktemp("received") / "a", "emergent")
    with closing(sqlite3.connect(folder / "evidence.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder


@pytest.fixture
def mine(received, tmp_path):
    return shutil.copytree(received, tmp_path / "audit")


@pytest.fixture
def listener():
    """A port on which nobody may call."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.accept()


def refused(run_cli, *command):
    code, _, err = run_cli(*command)
    assert code == 2 and err.startswith("error: ") and "Traceback" not in err, (command, code, err)
    return err


# -- links ------------------------------------------------------------------------------------------------------------


def test_nothing_is_written_through_a_link_in_an_audit(mine, tmp_path, run_cli):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("report.html", "report.html.part", "labels.csv.part", "audit.json.part", "answers.csv"):
        (mine / name).symlink_to(victim)
    assert run_cli("report", mine)[0] == 0 and run_cli("export", mine, "--to", "csv")[0] == 0
    assert not (mine / "report.html").is_symlink() and "<html" in (mine / "report.html").read_text()
    (mine / "writer.lock").unlink(missing_ok=True)
    (mine / "writer.lock").symlink_to(victim)
    assert "writer.lock: is a link; remove it" in refused(run_cli, "label", mine, "--n", "4")
    (mine / "writer.lock").unlink()  # as the message says
    assert run_cli("label", mine, "--n", "4")[0] == 0 and len((mine / "labels.csv").read_text().splitlines()) == 5
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
def test_a_database_that_is_a_link_is_not_opened(mine, tmp_path, run_cli, end):
    other = shutil.copy(mine / "evidence.db", tmp_path / "other") if not end else tmp_path / "other"
    Path(f"{mine}/evidence.db{end}").unlink(missing_ok=True)
    Path(f"{mine}/evidence.db{end}").symlink_to(other)
    for command in (("show", mine), ("label", mine, "--n", "4")):
        assert "is a link; copy the file itself" in refused(run_cli, *command)


@pytest.mark.parametrize("name", ["audit.json", "evidence.db"])
def test_a_pipe_is_not_waited_for(mine, run_cli, name):
    (mine / name).unlink()
    os.mkfifo(mine / name)
    assert "no audit there" in refused(run_cli, "show", mine)


def test_a_view_or_a_trigger_in_a_database_does_not_run(mine, run_cli):
    with closing(sqlite3.connect(mine / "evidence.db")) as db:
        db.execute("CREATE TRIGGER t AFTER INSERT ON scores BEGIN DELETE FROM answers; END")
    assert "holds the trigger 't'" in refused(run_cli, "show", mine)


# -- a place that is only read ----------------------------------------------------------------------------------------


def test_an_audit_where_nothing_can_be_written_is_read_with_what_only_its_log_holds(mine, tmp_path, monkeypatch):
    there = tmp_path / "there"
    with closing(sqlite3.connect(mine / "evidence.db")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("INSERT INTO measurements VALUES ('w', 'late', 'n', 'i', 1.5, 1, '{}')")
        db.commit()
        shutil.copytree(mine, there)  # with the row in the log alone
    (there / "evidence.db-shm").unlink()
    opened = sqlite3.connect

    def connect(address, *args, **options):
        if str(there) in str(address) and "immutable" not in address:
            raise sqlite3.OperationalError("unable to open database file")
        return opened(address, *args, **options)

    monkeypatch.setattr(database.sqlite3, "connect", connect)
    monkeypatch.setattr(database.os, "access", lambda *_: False)
    with Store.read(there) as store:
        assert list(store.measurements("late")) == [Measurement("w", "late", "n", "i", 1.5)]
        assert len(list(store.answers())) > 0
    (there / "evidence.db-wal").unlink()
    with Store.read(there) as store:
        assert list(store.measurements("late")) == [] and len(list(store.answers())) > 0
    assert sorted(p.name for p in there.glob("evidence.db*")) == ["evidence.db"]


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE answers",
        "UPDATE answers SET status = 'weird'",
        "UPDATE answers SET text = x'ff'",
        "UPDATE answers SET text = CAST(x'ff' AS TEXT)",
        "UPDATE scores SET meta = '{'",
        "UPDATE scores SET meta = '[1]'",
        "UPDATE scores SET value = 1e999",
        "UPDATE judges SET about = '{}'",
        "UPDATE judges SET key = 'another'",
        "UPDATE checkpoints SET kind = 'x'",
        "UPDATE checkpoints SET step = 'many'",
    ],
)
def test_a_damaged_row_is_said_in_a_sentence(mine, run_cli, tmp_path, statement):
    with closing(sqlite3.connect(mine / "evidence.db")) as db:
        db.execute(statement)
        db.commit()
    assert "damaged" in refused(run_cli, "export", mine, "--to", "csv", "--out", tmp_path / "x.csv")


@pytest.mark.parametrize("size", [0, 50, 5000])
def test_a_cut_database_is_said_in_a_sentence(mine, run_cli, tmp_path, size):
    os.truncate(mine / "evidence.db", size)
    assert "damaged" in refused(run_cli, "export", mine, "--to", "csv", "--out", tmp_path / "x.csv")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0" * 4000,
        "[1]",
        "[" * 100_000,
        '{"schema_version": ' + "9" * 5000 + "}",
        '{"schema_version": 0}',
        '{"schema_version": true, "status": "done"}',
        '{"schema_version": 3, "status": "done", "kind": "import"}',
        json.dumps({"schema_version": SCHEMA_VERSION, "status": "done", "verdict": 5}),
    ],
)
def test_an_audit_json_that_is_none_is_said_in_a_sentence(mine, run_cli, text):
    (mine / "audit.json").write_text(text)
    assert "audit.json" in refused(run_cli, "show", mine)
    code, _, err = run_cli("gate", mine)
    assert code == 3 and "audit.json" in err and "Traceback" not in err, "there is an audit, and it does not pass"


def test_whatever_is_changed_in_audit_json_it_is_shown_or_refused_in_a_sentence(mine, run_cli, tmp_path):
    whole, rng = json.loads((mine / "audit.json").read_text()), random.Random(1)

    def places(value, way=()):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value[:1]):
            yield (*way, key)
            if isinstance(part, (dict, list)):
                yield from places(part, (*way, key))

    commands = (("show", mine), ("gate", mine), ("export", mine, "--to", "csv", "--out", tmp_path / "x.csv"))
    refusals = 0
    for place in rng.sample(list(places(whole)), 60):
        about = copy.deepcopy(whole)
        part = about
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = rng.choice([None, 5, "x", [1], {"a": 1}, [None], 10**30, 1e308])
        (mine / "audit.json").write_text(json.dumps(about))
        code, _, err = run_cli(*rng.choice(commands))
        assert code in (0, 2, 3) and "Traceback" not in err, (place, err)
        refusals += code == 2
    assert refusals > 10


def test_names_that_no_system_takes_are_no_audits(run_cli):
    for name in ("a" * 5000, "a\0b", "a/" * 3000):
        refused(run_cli, "show", name)


# -- hosts ------------------------------------------------------------------------------------------------------------


def test_a_received_audit_names_no_judge_that_is_called(tmp_path, monkeypatch, listener):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRUING_JUDGE_API_KEY", "sk-secret")
    options = {"judge": listener, "prompts": "v1", "limit": 4, "skip_calibration": True}
    with Store.write(Path("begun"), {}, running=False) as store:
        store.describe(asked={"targets": ["simulated:late"], "options": options})
    assert truing.freeze("begun", out="lock.json").settings["judge"]["address"] == listener
    with pytest.raises(errors.BadInput, match="--judge is needed"):
        truing.judge("begun")
