"""The commands of a study in process, as a user gives them."""

import json

import pytest

from runs.study_audits import audited, edited
from truing.store import Store


@pytest.fixture
def call(run_cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path.parent / "cache"))

    return run_cli


def test_freeze_writes_a_lock_and_says_where(call, tmp_path):
    args = ("simulated:late?steps=50,100", "--judge", "simulated:", "--limit", "16", "--samples", "4")
    code, out, err = call("freeze", *args, "--out", "s.lock.json")
    assert (code, out.strip()) == (0, "s.lock.json") and "frozen: " in err
    code, out, _ = call("freeze", *args, "--out", "s.lock.json", "--json")
    made = json.loads(out)
    assert code == 0 and made["settings"]["prompts"]["asked"] == 16
    assert made["settings"]["method"]["samples"] == 4
    code, _, err = call("freeze", *args, "--hi", "0.05", "--out", "s.lock.json")
    assert code == 2 and "zone: hi: 0.03 before, 0.05 now" in " ".join(err.split())
    (tmp_path / "truing.toml").write_text('[audit]\nhi = 0.07\njudge = "simulated:"\n')
    code, out, _ = call("freeze", "simulated:late?steps=50,100", "--out", "toml.json", "--json")
    assert code == 0 and json.loads(out)["settings"]["zone"]["hi"] == 0.07


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("simulated:late", "--bogus", "3"), "No such option"),
        (("simulated:late", "--lo", "0.5"), "lo 0.5 and hi 0.03"),
        (("simulated:nothing",), "no simulated family"),
        ((), "Missing argument"),
    ],
)
def test_freeze_refuses_what_audit_refuses(call, args, told):
    code, out, err = call("freeze", *args)
    assert code == 2 and told in " ".join(err.split()) and out == ""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli-study")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("TRUING_CACHE", str(folder / "cache"))
        return [audited(folder / f"a{s}", s) for s in (1, 2, 3)]


def test_study_prints_a_table_and_json(call, made):
    code, out, err = call("study", *made)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    for words in (
        "3 cases, 1 model", "Not frozen", "consistent", "Holm-adjusted over 1 recipe", "100 % of 3",
        "checkpoint-50", "estimated",
    ):  # fmt: skip
        assert words in text, words
    code, out, _ = call("study", *made, "--json")
    study = json.loads(out)["study"]
    assert code == 0 and study["cells"][0]["consistent"] == "above"
    assert len(study["definitions"]) == 4


def test_study_refuses_in_a_line(call, made, tmp_path):
    for args, told in (
        ((made[0], made[0]), "given twice"),
        ((made[0], "nowhere"), "no audit there"),
        ((*made, "--at", "77"), "no checkpoint 77"),
        ((*made, "--delta", "2"), "delta"),
    ):
        code, out, err = call("study", *args)
        assert code == 2 and told in " ".join(err.split()) and out == ""


def test_an_exploratory_audit_is_marked_in_the_table(call, made, tmp_path):
    other = edited(made[0], tmp_path / "x", lambda about: None)
    changed = {"lock": "ab" * 32, "made": "2026-01-02", "status": "exploratory", "changed": ["zone: hi: 0.03 before"]}
    with Store.write(other, {}, running=False) as store:
        store.describe(frozen={**changed, "settings": {}})
    code, out, _ = call("study", other, *made[1:])
    assert code == 0 and "Exploratory, changed after the freeze" in out and "zone: hi: 0.03 before" in out


def test_options_of_audit_that_freeze_cannot_read_are_told(call, tmp_path):
    code, _, err = call("freeze", "simulated:late", "--chat-template", tmp_path / "none")
    assert code == 2 and "cannot be read" in " ".join(err.split())
