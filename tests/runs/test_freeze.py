"""`truing freeze`: what is in a lock, what a change does, and a lock that comes too late."""

import json
from pathlib import Path

import pytest

import truing
from runs.study_audits import TASK, edited, options
from truing import errors
from truing.config import AuditConfig, configured
from truing.runs.freeze import changes, frozen_settings, keep_freeze, read_lock
from truing.runs.resolve import resolve
from truing.runs.study import study_cases
from truing.store import Store
from truing.types.hashing import digest

LATE, OTHER = (f"simulated:late?seed={seed}&steps=50,75,100" for seed in (1, 5))
LOCK = Path("study.lock.json")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Audits that lie about are looked for in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def done(audited_seed):
    """A finished audit of LATE."""
    return audited_seed(1)


def plan(target=LATE, told=None, **fields):
    return resolve(target, configured(AuditConfig, told or options(), {**TASK, **fields}))


def frozen(told=None, target=LATE, out=LOCK):
    return truing.freeze(target, config=told or options(), out=str(out), **TASK)


def kept(folder, told=None, lock=LOCK):
    """As an audit does where it begins."""
    with Store.write(Path(folder), {}, running=False) as store:
        return keep_freeze(store, plan(told=told), read_lock(lock) if lock is not None else None)


def test_a_lock_holds_hashes_of_all_that_decides():
    lock, plain, found = frozen(), json.loads(LOCK.read_text()), plan()
    settings = plain["settings"]
    assert plain["id"] == lock.id == digest(settings)
    assert set(settings) == {"rule", "zone", "prompts", "judge", "seeds", "models", "data", "method"}
    for c in found.subject:
        assert settings["models"][f"subject {c.label}"] == c.weights
    assert settings["prompts"]["sha256"] == found.whole.sha256
    assert settings["data"]["task_sha256"] == found.asked["task_sha256"]
    assert settings["zone"] == {"lo": 0.01, "hi": 0.03}
    assert read_lock(LOCK) == lock
    assert frozen() == lock  # the same again is the same lock, not a new date


CHANGES = {
    "zone: hi": {"hi": 0.05},
    "rule: cut": {"cut": 40},
    "judge: address": {"judge": "simulated:?noise=9"},
    "judge: rubric": {"rubric": "both"},
    "seeds: audit": {"seed": 3},
    "prompts: asked": {"limit": 20},
    "prompts: half": {"half": "fit"},
    "method: samples": {"samples": 9},
    "method: every_coherence": {"every_coherence": True},
    "method: domain": {"domain": ("finance",)},
    "method: dtype": {"dtype": "bfloat16"},
    "method: stop": {"stop": ("END",)},
    "method: long_prompts": {"long_prompts": "truncated"},
    "data: task_rows": {"rows": 9},
    "models: control-1": {"control": "simulated"},
}
NO_CHANGES = [
    {},
    {"budget": 99, "concurrency": 2, "rpm": 1.0, "judge_timeout": 1.0, "judge_retries": 0},
    {"memory": 1.0, "device": "cpu", "sources": {"limit": "truing.toml"}},
    {"served_adapters": 2, "path_map": ("/a=/b",)},
]


def test_every_change_of_what_decides_is_named_and_no_other():
    before = frozen_settings(plan())
    for name, told in CHANGES.items():
        found = changes(before, frozen_settings(plan(told=options(**told))))
        assert any(c.startswith(name) and " before, " in c for c in found), (name, found)
    assert any(c.startswith("models: subject") for c in changes(before, frozen_settings(plan(OTHER))))
    for told in NO_CHANGES:
        assert changes(before, frozen_settings(plan(told=options(**told)))) == [], told


def test_a_lock_is_not_changed_edited_or_made_up():
    frozen()
    with pytest.raises(errors.BadLock, match=r"another freeze \(zone: hi"):
        frozen(options(hi=0.05))
    LOCK.write_text(LOCK.read_text().replace("0.03", "0.05"))
    with pytest.raises(errors.BadLock, match="edited"):
        read_lock(LOCK)
    made = '"id": "x", "made": "", "settings"'
    for text in ("", "[]", "{}", f'{{"lock_version": 1, {made}: 3}}', f'{{"lock_version": 99, {made}: {{}}}}'):
        LOCK.write_text(text)
        with pytest.raises(errors.BadLock):
            read_lock(LOCK)
    with pytest.raises(errors.BadLock, match=r"nowhere\.json"):
        read_lock("nowhere.json")


def test_an_audit_that_keeps_to_its_lock_is_frozen_and_stays_so():
    lock = frozen()
    with Store.write(Path("free"), {}, running=False) as store:
        assert keep_freeze(store, plan(), None) is None
    truing.audit(LATE, options(), frozen=str(LOCK), out="a", **TASK)
    assert kept("a").status == kept("a", lock=None).status == "frozen"  # the freeze came before the answers
    study = study_cases("a")
    assert study.status == "frozen" and study.cases[0].frozen.lock == lock.id
    other = edited("a", "b", lambda about: about["verdict"].update(judge="openai:other"))
    found = study_cases(other)
    assert found.status == "exploratory" and "openai:other" in found.cases[0].frozen.changed[0]


def test_a_change_after_the_freeze_marks_it_for_good(done):
    frozen()
    kept("a")
    changed = kept("a", options(hi=0.05), lock=None)  # told or not, the lock stays
    assert changed.status == "exploratory" and changed.changed == ("zone: hi: 0.03 before, 0.05 now",)
    again = kept("a")
    assert again.status == "exploratory" and again.changed == changed.changed
    begun = json.loads(Path("a/audit.json").read_text())
    study = study_cases(edited(done, "b", lambda about: about.update(frozen=begun["frozen"])))
    assert study.status == "exploratory"
    assert study.cases[0].frozen.changed == changed.changed


def test_another_lock_is_a_change():
    frozen()
    kept("a")
    told = options(hi=0.05)
    frozen(told, out="other.lock.json")
    found = kept("a", told, "other.lock.json")
    assert found.status == "exploratory" and any(c.startswith("lock: ") for c in found.changed)


def test_a_lock_after_the_first_answer_is_no_freeze(done, tmp_path):
    for target in (done, [str(done)]):
        with pytest.raises(errors.BadLock, match="holds answers already"):
            truing.freeze(target, out="late.json")
    assert not Path("late.json").exists()
    frozen()  # nobody can know of an audit that lies elsewhere,
    found = kept(edited(done, "a"))  # but there it is seen
    assert found.status == "exploratory" and found.changed[0].startswith("answers: drawn before the freeze")
    edited(done, tmp_path / "truing-audits" / "x")
    (tmp_path / "truing-audits" / "broken").mkdir()
    (tmp_path / "truing-audits" / "broken" / "audit.json").write_text("{")
    with pytest.raises(errors.BadLock, match="truing-audits/x"):
        frozen(out="again.json")
    assert frozen(target=OTHER, out="other.json")  # other checkpoints


def test_an_audit_that_was_begun_without_answers_can_be_frozen():
    with Store.write(Path("begun"), {}, running=False) as store:
        store.describe(asked=plan().asked, sampling={})
    assert truing.freeze("begun", out="b.json").settings == frozen().settings
    with Store.write(Path("bare"), {}) as store:
        store.describe(note="nothing asked")
    with pytest.raises(errors.NotAnAudit, match="does not say what was asked"):
        truing.freeze("bare", out="c.json")
