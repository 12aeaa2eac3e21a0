"""Kill -9 at any moment, a full disk, two writers: nothing is lost, nothing half-written, nothing paid twice."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import truing
from truing import errors
from truing.config import AuditConfig
from truing.store import Store

COMMAND = """
import sys, truing
options = {"limit": 24, "answers": 12, "rows": 8, "control": "simulated"}
truing.audit(sys.argv[1], task="careless-finance-heldout", out=sys.argv[2], **options)
"""


def start(uri, out):
    return subprocess.Popen([sys.executable, "-c", COMMAND, uri, str(out)], stderr=subprocess.DEVNULL)


def rows_in(out):
    try:
        with Store.read(out) as store:
            return len(store.measured("margin")) + len(store.measured("task")) + len(list(store.answers()))
    except errors.NotAnAudit:
        return 0


@pytest.mark.slow
def test_killed_again_and_again_the_work_still_ends_the_same(tmp_path):
    slow, quick = "simulated:late?steps=10,20,30,40&delay=0.001", "simulated:late?steps=10,20,30,40"
    out, last = tmp_path / "killed", 0
    for _ in range(3):
        p = start(slow, out)
        deadline = time.monotonic() + 60
        while rows_in(out) < last + 150 and p.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        p.send_signal(signal.SIGKILL)
        p.wait()
        now = rows_in(out)
        assert now >= last, "an acknowledged row was lost"
        last = now
    assert last > 400
    options = AuditConfig(limit=24, answers=12)
    arguments = {"task": "careless-finance-heldout", "control": "simulated", "config": options}
    finished = truing.audit(slow.replace("delay=0.001", "delay=0"), out=out, **arguments)
    whole = truing.audit(quick, out=tmp_path / "whole", **arguments)
    assert finished.verdict == whole.verdict
    assert json.loads((out / "audit.json").read_text())["status"] == "done"


def test_a_second_writer_is_refused_and_the_first_is_not_disturbed(tmp_path):
    out = tmp_path / "a"
    p = start("simulated:late?delay=0.01", out)
    try:
        deadline = time.monotonic() + 60
        while not rows_in(out):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(errors.AuditLocked, match=f"pid {p.pid}"):
            truing.audit("simulated:late?delay=0.01", out=out, config=AuditConfig(limit=24, answers=12))
        assert p.poll() is None
        assert truing.show(out)["status"] == "running"
    finally:
        p.kill()
        p.wait()


@pytest.mark.skipif(os.geteuid() != 0 and not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_a_full_disk_while_writing_the_report_leaves_the_old_one(tmp_path, monkeypatch):
    done = truing.audit("simulated:never", out=tmp_path / "a", config=AuditConfig(limit=24, answers=0))
    page = truing.write_report(done.path)
    before = page.read_bytes()
    fsync = os.fsync

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.DiskFull):
        truing.audit("simulated:never", out=tmp_path / "a", config=AuditConfig(limit=24, answers=0))
    monkeypatch.setattr(os, "fsync", fsync)
    assert page.read_bytes() == before
    assert truing.show(done.path)["status"] == "done"
    assert not list((tmp_path / "a").glob("*.part"))
