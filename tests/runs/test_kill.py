"""Kill -9 at any moment, a full disk, two writers: nothing is lost, half written or paid for twice."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

import truing
from runs.audits import V1, about
from servers.judge_server import fingerprint, running, score_from
from truing import errors
from truing.config import AuditConfig
from truing.judges.rubrics import builtin, rendered_question
from truing.store import COMMIT_ROWS, Store
from truing.types.judging import JudgeRequest, ScoreStatus

CONCURRENCY = 8
RUBRICS = {name: builtin(name) for name in ("alignment", "coherence")}
PROMPTS = {p.key: p for p in V1.prompts}
SMALL = ("--limit", "16", "--answers", "4", "--judged-tokens", "64", "--cut", "30", "--resamples", "100")
AUDIT = ("audit", "simulated:late?steps=50,100", *SMALL, "--out", "a")
ASKED = ("--skip-judge-check", "--skip-calibration", "--concurrency", str(CONCURRENCY))


def start(folder, *args):
    code = "import sys; sys.argv[0] = 'truing'; from truing.cli import main; main()"
    env = {**os.environ, "TRUING_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = str(Path(truing.__file__).parents[1])
    with open(folder / "err.txt", "ab") as err:
        return subprocess.Popen(
            [sys.executable, "-c", code, *args], cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=err
        )


def killed(folder, command, count, more):
    """Start a command, and kill it once `count()` has grown by `more`."""
    wanted = count() + more
    p, deadline = start(folder, *command), time.monotonic() + 60
    try:
        while count() < wanted and p.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        p.send_signal(signal.SIGKILL)
    finally:
        p.kill()
        assert p.wait() == -signal.SIGKILL, (folder / "err.txt").read_text()
    assert count() >= wanted


def ended(folder, *command, within=120):
    assert start(folder, *command).wait(timeout=within) == 0, (folder / "err.txt").read_text()


def rows(out):
    """(answer, rubric) -> (content of the call that made it, score), of what the judge on the wire said."""
    if not (out / "audit.json").exists():
        return {}
    with Store.read(out) as store:
        wire = [key for key, found in store.judges().items() if found["judge"].startswith("http")]
        made = [s for key in wire for s in store.scores(key) if s.status is not ScoreStatus.FAILED]
        text = {r.key: r.text for r in store.answers()} if made else {}
    found = {}
    for s in made:
        rubric = RUBRICS[s.rubric]
        request = JudgeRequest(s.key, rubric, rendered_question(PROMPTS[s.key.prompt].messages, rubric), text[s.key])
        found[s.key, s.rubric] = (fingerprint(request.messages[0].content), s.score)
    return found


def settled(server):
    """Good answers per content, once nothing is in flight any more."""
    before = None
    while (now := server.stats()["answered"]) != before:
        before = now
        time.sleep(0.25)
    return Counter(now)


def killed_and_ended(folder, server, command, seed, most, kills=2):
    """What was stored, and what the server had answered, at first, after each kill and at the end."""
    out, rng, seen = folder / "a", random.Random(seed), [({}, Counter())]
    for _ in range(kills):
        killed(folder, command, lambda: len(rows(out)), rng.randrange(10, most))
        seen.append((rows(out), settled(server)))
    ended(folder, *command)
    return [*seen, (rows(out), settled(server))]


def content(found):
    return Counter(sha for sha, _ in found.values())


def check(seen, kills=None):
    """No row lost, none doubled, and no call for a row that was stored."""
    kills = len(seen) - 2 if kills is None else kills
    last, answered = seen[-1]
    expected = content(last)
    for (before, paid_before), (after, paid) in pairwise(seen):
        assert before.items() <= after.items(), "a stored row is never lost and never changes"
        asked, new, lacking = paid - paid_before, content(after) - content(before), expected - content(before)
        for sha in expected:
            assert new[sha] <= asked[sha], "a score is what was said"
            if kills < len(seen):
                assert asked[sha] <= lacking[sha], "asked for what was not stored, and for nothing else"
    (before, paid_before), (_, paid) = seen[-2:]
    assert Counter({s: n for s, n in (paid - paid_before).items() if s in expected}) == expected - content(before)
    # What was paid for in vain: said by the judge, but not committed when the process was killed.
    assert 0 <= sum(answered[s] for s in expected) - len(last) <= kills * (COMMIT_ROWS + 2 * CONCURRENCY)
    for sha, score in last.values():
        assert score == pytest.approx(score_from(sha), abs=1e-6), "every row holds the score of its own answer"


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_while_sampling_and_judging_the_same_command_repeats_no_call(tmp_path, kills):
    with running(delay=0.03) as server:
        command = (*AUDIT, "--samples", "4", "--judge", f"{server.url}#judge", *ASKED)
        seen = killed_and_ended(tmp_path, server, command, 11, 50, kills)
    check(seen)
    last = seen[-1][0]
    answers = {key for key, rubric in last if rubric == "alignment"}
    low = {key for key, rubric in last if rubric == "alignment" and last[key, rubric][1] < 30}
    assert len(answers) == 16 * 4 * 3 and low <= {key for key, rubric in last if rubric == "coherence"}
    done = about(tmp_path / "a")
    assert (done["status"], done["verdict"]["basis"]) == ("done", "labelled")


@pytest.mark.slow
def test_killed_while_judging_again_under_faults_no_row_is_lost_or_paid_twice(tmp_path):
    ended(tmp_path, *AUDIT, "--samples", "12", "--judge", "simulated:", "--skip-calibration")
    with running(delay=0.02, faults=0.2, kinds=("429", "500", "close", "html"), calm=4) as server:
        command = ("judge", "a", "--judge", f"{server.url}#judge", *ASKED)
        check(killed_and_ended(tmp_path, server, command, 0, 200))
        assert sum(server.stats()["faults"].values()) > 50


def scored(out):
    """How many scores are stored, without reading them."""
    if not (out / "evidence.db").exists():
        return 0
    with closing(sqlite3.connect(f"file:{out / 'evidence.db'}?mode=ro", uri=True)) as db:
        return db.execute("SELECT COUNT(*) FROM scores WHERE status != 'failed'").fetchone()[0]


@pytest.mark.slow
def test_ten_thousand_judgements_and_two_hundred_kills(tmp_path):
    every = ("--limit", "40", "--samples", "50", "--answers", "4", "--judged-tokens", "32", "--resamples", "50")
    audit = ("audit", "simulated:late?steps=25,50,75,100", *every, "--out", "a")
    ended(tmp_path, *audit, "--judge", "simulated:", "--skip-calibration")
    out, rng, kills = tmp_path / "a", random.Random(0), 0
    with running(delay=0.15, faults=0.2, kinds=("429", "500", "close", "html"), calm=4) as server:
        command = ("judge", "a", "--judge", f"{server.url}#judge", *ASKED)
        seen = [({}, settled(server))]
        while kills < 200:
            killed(tmp_path, command, lambda: scored(out), rng.randrange(5, 40))
            kills += 1
            if kills % 20 == 0:  # what each life found is compared for the lives in between together
                seen.append((rows(out), settled(server)))
        server.delay = 0
        ended(tmp_path, *command, within=900)  # what 200 lives have left, a fifth of it with faults
        seen.append((rows(out), settled(server)))
        faults = sum(server.stats()["faults"].values())
    check(seen, kills)
    assert len(seen[-1][0]) >= 10_000 and faults > 1500


def test_a_second_process_is_refused_and_the_first_goes_on(tmp_path):
    with running(delay=0.5) as server:
        command = (*AUDIT, "--samples", "4", "--judge", f"{server.url}#judge", *ASKED)
        first = start(tmp_path, *command)
        while not rows(tmp_path / "a") and first.poll() is None:
            time.sleep(0.05)
        second = start(tmp_path, *command)
        assert second.wait(timeout=60) == 2 and f"pid {first.pid}" in (tmp_path / "err.txt").read_text()
        server.delay = 0
        assert first.wait(timeout=60) == 0 and about(tmp_path / "a")["status"] == "done"


@pytest.mark.slow
def test_killed_while_measuring_the_work_still_ends_the_same(tmp_path):
    task = ("--task", "careless-finance-heldout", "--rows", "8", "--control", "simulated")
    command = ("audit", "simulated:late?steps=10,20,30,40&delay=0.001", *SMALL, *task)

    def measured():
        if not (tmp_path / "a" / "audit.json").exists():
            return 0
        with Store.read(tmp_path / "a") as store:
            return len(store.measured("margin")) + len(store.measured("task")) + len(list(store.answers()))

    for _ in range(2):
        killed(tmp_path, (*command, "--out", "a"), measured, 150)
    ended(tmp_path, *command, "--out", "a")
    ended(tmp_path, *command, "--out", "b")
    assert about(tmp_path / "a")["verdict"] == about(tmp_path / "b")["verdict"]


def test_a_full_disk_or_a_second_writer_leave_the_audit_and_its_report_as_they_were(tmp_path, monkeypatch):
    config = AuditConfig(limit=24, answers=0, resamples=100)
    done = truing.audit("simulated:never?steps=50", out=tmp_path / "a", config=config)
    page = truing.write_report(done.path)
    before = page.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m, pytest.raises(errors.DiskFull):
        m.setattr(os, "fsync", full)
        truing.audit("simulated:never?steps=50", out=tmp_path / "a", config=config)
    with Store.write(done.path, {}, running=False), pytest.raises(errors.AuditLocked):
        truing.audit("simulated:never?steps=50", out=tmp_path / "a", config=config)
    assert page.read_bytes() == before and truing.show(done.path)["status"] == "done"
    assert not list(done.path.glob("*.part"))
