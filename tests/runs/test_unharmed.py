"""A finished audit under commands that fail early: its files stay as they were."""

import shutil
from pathlib import Path

import pytest

LATE = "simulated:late?steps=50,100"
TASK = ("--task", "careless-finance-heldout", "--task-control", "careful-finance-heldout")
FAST = ("--limit", "24", "--answers", "12", "--rows", "8", "--judged-tokens", "64", "--samples", "6")
FAST += ("--domain", "chess", "--skip-calibration", "--skip-judge-check", "--lo", "0.02", "--hi", "0.12")
JUDGE = ("--judge", "simulated:", "--resamples", "200")
WORDS = (LATE, *TASK, *FAST, *JUDGE, "--out", "a")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder that holds a finished audit, `a`; only copies may be changed."""
    import truing
    from runs.audits import audited

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("TRUING_CACHE", str(folder / "cache"))
        truing.write_report(audited(folder / "a").path)
    return folder


@pytest.fixture
def there(finished, call):
    """A copy of it in the working folder."""
    shutil.copytree(finished / "a", "a")
    return Path("a")


FAILING = {
    "a lock that is not there": ("--frozen", "missing.json"),
    "prompts that are not there": ("--prompts", "missing.jsonl"),
    "a task that is not there": ("--task", "missing.jsonl"),
    "a run that is not there": (LATE, "missing"),
    "a family that is not there": (LATE, "simulated:missing"),
    "a judge of no kind": ("--judge", "nonsense:x"),
    "no judge where there was one": ("--judge",),
    "a judge without an address": ("--judge", "replay:missing.csv"),
    "a second judge of no kind": ("--second-judge", "nonsense:x"),
    "a second judge of the same family": ("--second-judge", "simulated:"),
    "no such trait": ("--trait", "missing"),
    "a gate word of no kind": ("--allow", "missing"),
    "a policy that is not there": ("--policy", "missing.toml"),
    "no such variant": ("--variants", "missing"),
    "a rubric that is not there": ("--rubric", "missing.txt"),
    "another zone": ("--hi", "0.2"),
    "another cut": ("--cut", "40"),
    "another domain": ("--domain", "finance"),
    "another threshold": ("--min-prompts", "3"),
}


def asked(given):
    """The words of the audit, with an option in the place of the same one."""
    words = list(WORDS)
    if given[0] in words:
        at = words.index(given[0])
        del words[at : at + (1 if given[0] == LATE else 2)]
    return ("audit", *words, *(given[1:] if given[0] == LATE or len(given) == 1 else given))


def test_a_call_that_fails_early_leaves_a_finished_audit_as_it_was(there, call):
    before = {p.name: p.read_bytes() for p in there.iterdir() if p.suffix in (".json", ".html")}
    for name, given in FAILING.items():
        code, _, err = call(*asked(given))
        assert code == 2, (name, err)
        assert {p.name: p.read_bytes() for p in there.iterdir() if p.suffix in (".json", ".html")} == before, name
    for words in (
        ("--judge", "nonsense:x"),
        ("--judge", "replay:missing.csv"),
        ("--judge", "simulated:", "--rubric", "x"),
    ):
        assert call("judge", "a", "--judge", *words)[0] == 2
        assert (there / "audit.json").read_bytes() == before["audit.json"], words
