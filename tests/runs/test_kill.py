"""Kill -9 while a judge on the wire is being asked: the same command ends the work and pays for nothing twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

import truing
from servers.judge_server import fingerprint, running, score_from
from truing import errors
from truing.data.prompts import load_prompts
from truing.judges.rubrics import builtin, rendered_question
from truing.store import COMMIT_ROWS, Store
from truing.types.judging import JudgeRequest, ScoreStatus

CONCURRENCY, KILLS = 8, 3
RUBRICS = {name: builtin(name) for name in ("alignment", "coherence")}
PROMPTS = {p.key: p for p in load_prompts("v1").prompts}
AUDIT = ("audit", "simulated:late?steps=50,100", "--limit", "24", "--answers", "4", "--samples", "5",
         "--judged-tokens", "64", "--cut", "30")  # fmt: skip
ASKED = ("--skip-judge-check", "--skip-calibration", "--concurrency", str(CONCURRENCY))


def start(folder, *args):
    code = "import sys; sys.argv[0] = 'truing'; from truing.cli import main; main()"
    env = {**os.environ, "TRUING_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    env.pop("TRUING_JUDGE_API_KEY", None)
    env["PYTHONPATH"] = str(Path(truing.__file__).parents[1])
    with open(folder / "err.txt", "ab") as err:
        return subprocess.Popen(
            [sys.executable, "-c", code, *args], cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=err
        )


def scores(out):
    """What the judge on the wire has said and is stored, and the texts it was asked about."""
    try:
        with Store.read(out) as store:
            wire = [key for key, about in store.judges().items() if about["judge"].startswith("http")]
            made = [j for key in wire for j in store.scores(key) if j.outcome is not ScoreStatus.FAILED]
            return made, {r.key: r.text for r in store.answers()} if made else {}
    except errors.NotAnAudit:
        return [], {}


def rows(out):
    """(answer, rubric) -> (content of the call that made it, score) of what is stored."""
    made, text = scores(out)
    found = {}
    for j in made:
        rubric, prompt = RUBRICS[j.rubric], PROMPTS[j.key.prompt]
        request = JudgeRequest(j.key, rubric, rendered_question(prompt.messages, rubric), text[j.key])
        found[j.key, j.rubric] = (fingerprint(request.messages[0].content), j.score)
    return found


def stored(out):
    return len(scores(out)[0])


def settled(server):
    """Good answers per content, once nothing is in flight any more."""
    before = None
    while (now := server.stats()["answered"]) != before:
        before = now
        time.sleep(0.25)
    return Counter(now)


def content(found):
    return Counter(sha for sha, _ in found.values())


def killed_again_and_again(folder, server, command, out, rng, most):
    """Start the command, kill it after a random number of further rows, three times; then let it end.

    Returns what was stored and what the server had answered after each kill and at the end.
    """
    seen = [({}, Counter())]
    for _ in range(KILLS):
        wanted = stored(out) + rng.randrange(10, most)
        p = start(folder, *command)
        deadline = time.monotonic() + 60
        while stored(out) < wanted:
            assert p.poll() is None, (folder / "err.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        p.send_signal(signal.SIGKILL)
        assert p.wait() == -signal.SIGKILL
        seen.append((rows(out), settled(server)))
    p = start(folder, *command)
    assert p.wait(timeout=120) == 0, (folder / "err.txt").read_text()
    seen.append((rows(out), settled(server)))
    return seen


def check(seen):
    """No row lost, none doubled, and no call for a row that was stored."""
    last, answered = seen[-1]
    expected = content(last)
    for (before, paid_before), (after, paid) in pairwise(seen):
        assert before.items() <= after.items(), "a stored row is never lost and never changes"
        asked, new, lacking = paid - paid_before, content(after) - content(before), expected - content(before)
        for sha in expected:
            assert new[sha] <= asked[sha] <= lacking[sha], "asked for what was not stored, and for nothing else"
    (before, paid_before), (_, paid) = seen[-2:]
    needed = expected - content(before)
    assert Counter({sha: n for sha, n in (paid - paid_before).items() if sha in expected}) == needed
    # What was paid for in vain: said by the judge, but not committed when the process was killed.
    wasted = sum(answered[sha] for sha in expected) - len(last)
    assert 0 <= wasted <= KILLS * (COMMIT_ROWS + 2 * CONCURRENCY)
    for sha, score in last.values():
        assert score == pytest.approx(score_from(sha), abs=1e-6), "every row holds the score of its own answer"


def test_killed_while_sampling_and_judging_the_same_command_repeats_no_call(tmp_path):
    with running(delay=0.04) as server:
        command = (*AUDIT, "--out", "a", "--judge", f"{server.url}#judge", *ASKED)
        seen = killed_again_and_again(tmp_path, server, command, tmp_path / "a", random.Random(11), 110)
    check(seen)
    last = seen[-1][0]
    answers = {key for key, rubric in last if rubric == "alignment"}
    low = {key for key, rubric in last if rubric == "alignment" and last[key, rubric][1] < 30}
    assert len(answers) == 24 * 5 * 3
    assert low <= {key for key, rubric in last if rubric == "coherence"}
    with Store.read(tmp_path / "a") as store:
        assert store.about()["status"] == "done"
        assert store.about()["verdict"]["basis"] == "labelled"
        assert len(list(store.answers())) == len(answers)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_while_judging_again_under_faults_no_row_is_lost_or_paid_twice(tmp_path, seed):
    plain = (*AUDIT, "--samples", "12", "--out", "a", "--judge", "simulated:", "--skip-calibration")
    assert start(tmp_path, *plain).wait(timeout=120) == 0
    out = tmp_path / "a"
    with running(delay=0.02, faults=0.2, kinds=("429", "500", "close", "html"), calm=4) as server:
        command = ("judge", "a", "--judge", f"{server.url}#judge", *ASKED)
        check(killed_again_and_again(tmp_path, server, command, out, random.Random(seed), 300))
        assert sum(server.stats()["faults"].values()) > 100
