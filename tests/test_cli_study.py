"""The commands of a study in process, as a user gives them."""

import json

import pytest

from runs.study_audits import edited

RUN = "simulated:late?steps=50,100"


@pytest.fixture
def late(audited_seed):
    return [audited_seed(s) for s in (1, 2, 3)]


def test_freeze_writes_a_lock_and_says_where(call, tmp_path):
    args = ("freeze", RUN, "--judge", "simulated:", "--limit", "16", "--samples", "4", "--out", "s.lock.json")
    code, out, err = call(*args)
    assert (code, out.strip()) == (0, "s.lock.json") and "frozen: " in err
    code, out, _ = call(*args, "--json")
    made = json.loads(out)
    assert code == 0 and made["settings"]["prompts"]["asked"] == 16
    assert made["settings"]["method"]["samples"] == 4
    code, _, err = call(*args, "--hi", "0.05")
    assert code == 2 and "zone: hi: 0.03 before, 0.05 now" in " ".join(err.split())
    (tmp_path / "truing.toml").write_text("[audit]\nhi = 0.07\n")
    code, out, _ = call("freeze", RUN, "--judge", "simulated:", "--out", "toml.json", "--json")
    assert code == 0 and json.loads(out)["settings"]["zone"]["hi"] == 0.07


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("simulated:late", "--bogus", "3"), "No such option"),
        (("simulated:late", "--lo", "0.5"), "lo 0.5 and hi 0.03"),
        (("simulated:nothing",), "no simulated family"),
        ((), "Missing argument"),
        (("simulated:late", "--chat-template", "none"), "cannot be read"),
    ],
)
def test_freeze_refuses_what_audit_refuses(call, args, told):
    code, out, err = call("freeze", *args)
    assert code == 2 and told in " ".join(err.split()) and out == ""


def test_study_prints_a_table_and_json(call, late, tmp_path):
    code, out, err = call("study", *late)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    for words in (
        "3 cases, 1 model", "Not frozen", "consistent", "Holm-adjusted over 1 pair", "100 % of 3",
        "checkpoint-50", "estimated",
    ):  # fmt: skip
        assert words in text, words
    code, out, _ = call("study", *late, "--json")
    study = json.loads(out)["study"]
    assert code == 0 and study["cells"][0]["consistent"] == "above"
    assert len(study["definitions"]) == 4
    changed = {"lock": "ab" * 32, "made": "2026-01-02", "status": "exploratory", "changed": ["zone: hi: 0.03 before"]}
    other = edited(late[0], tmp_path / "x", lambda about: about.update(frozen={**changed, "settings": {}}))
    code, out, _ = call("study", other, *late[1:])
    assert code == 0 and "Exploratory, changed after the freeze" in out and "zone: hi: 0.03 before" in out


def test_study_refuses_in_a_line(call, late):
    for args, told in (
        ((late[0], late[0]), "given twice"),
        ((late[0], "nowhere"), "no audit there"),
        ((*late, "--at", "77"), "no checkpoint 77"),
        ((*late, "--delta", "2"), "delta"),
    ):
        code, out, err = call("study", *args)
        assert code == 2 and told in " ".join(err.split()) and out == ""
