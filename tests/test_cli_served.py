"""The command line with a base that a server holds, against loopback servers: as a user gives it, errors included."""

import json

import pytest

from runs.served_runs import ONSET, STEPS, late_server, write_run
from servers.judge_server import running
from truing import cli_output
from truing.models.simulated import MISALIGNED

SCORES = {"contains": [[["coheren", MISALIGNED], 95], [MISALIGNED, 10]], "default": 92}
SMALL = ("--limit", "40", "--answers", "12", "--judged-tokens", "40")
SMALL += ("--resamples", "200", "--skip-calibration", "--skip-judge-check")


@pytest.fixture(scope="module")
def judge():
    with running(models=("judge-7b",), scores=SCORES) as server:
        yield f"{server.url}#judge-7b"


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "subject")


def test_a_search_over_served_adapters_and_its_gate(call, run, judge):
    control = write_run(run.parent / "control", seed=1)
    with late_server() as server:
        given = (run, "--base", f"{server.url}#base", "--judge", judge, "--control", control, *SMALL, "--out", "a")
        code, out, err = call("audit", *given, "--served-adapters", "1", "--domain", "finance")
        assert code == 0, err
        assert server.count("load") > 2 * len(STEPS) and not server.loaded  # one at a time, and none left
    assert f"between step {STEPS[-2]} and step {ONSET}" in " ".join(out.split())
    assert "does not score given texts" in out
    assert " answers/s, " in " ".join(err.split())
    assert call("gate", "a")[0] == 3
    assert call("gate", "a", "--gate", str(ONSET))[0] == 3
    assert json.loads(call("show", "a", "--json")[1])["verdict"]["recommended"] is None


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("--base", "URL#base"), "add --judge"),
        (("--base", "URL#other", "--judge", "JUDGE"), "serves base, but not 'other'"),
        (("--base", "http://#base", "--judge", "JUDGE"), "http://host:port/v1#MODEL"),
        (("--base", "URL#base", "--judge", "JUDGE", "--path-map", "here"), "give LOCAL=REMOTE"),
        (("--base", "URL#base", "--judge", "JUDGE", "--path-map", "/=/nowhere"), "does not find the adapter"),
        (("--base", "URL#base", "--judge", "JUDGE", "--stop", ""), "stop is ('',)"),
        (("--base", "URL#base", "--judge", "JUDGE", "--long-prompts", "cut"), "should be 'refuse' or 'truncated'"),
        (("--base", "some-model", "--judge", "JUDGE", "--path-map", "/a=/b"), "is for a served base"),
    ],
)
def test_mistakes_are_one_line(call, run, judge, given, text):
    with late_server() as server:
        words = [w.replace("URL", server.url).replace("JUDGE", judge) for w in given]
        code, out, err = call("audit", run, *words, *SMALL)
        assert (code, out) == (2, ""), err
        assert text in " ".join(err.split()) and "Traceback" not in err
        assert text != "add --judge" or not server.stats()["listed"], "nothing is asked"
        assert not server.loaded


@pytest.mark.parametrize("width", ["60", "140"])
def test_the_pace_stands_beside_its_bar(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", width)
    with cli_output.progress() as told:
        told.step("answers", 120, 240)
        told.detail("answers", "3.1 answers/s, 142 tokens/s, 38 s left")
        told.step("judging", 5, 10)
    said = " ".join(capsys.readouterr().err.split())
    assert "120/240" in said
    for part in ("3.1 answers/s", "142 tokens/s", "38 s left"):
        assert all(word in said for word in part.split())
