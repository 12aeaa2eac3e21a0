"""`truing freeze`: what is in a lock, what a change does, and a lock that comes too late."""

import json

import pytest

import truing
from runs.study_audits import TASK, audited, edited, options
from truing import errors
from truing.config import AuditConfig, configured
from truing.runs.freeze import check_frozen, frozen_settings, keep_freeze, note_change, read_lock
from truing.runs.resolve import resolve
from truing.runs.study import study_cases
from truing.store import Store
from truing.types.hashing import digest

LATE = "simulated:late?seed=4&steps=50,75,100"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Audits that lie about are looked for in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "cache"))


def plan(target=LATE, told=None, **fields):
    return resolve(target, configured(AuditConfig, told or options(), {**TASK, **fields}))


def frozen(told=None, target=LATE, **fields):
    told = told or options()
    return truing.freeze(target, config=told, out="study.lock.json", **TASK, **fields)


def test_a_lock_holds_hashes_of_all_that_decides(tmp_path):
    lock = frozen()
    plain = json.loads((tmp_path / "study.lock.json").read_text())
    found = plan()
    assert plain["id"] == lock.id == digest(plain["settings"])
    assert set(plain["settings"]) == {"rule", "zone", "prompts", "judge", "seeds", "models", "data", "method"}
    for c in found.subject:
        assert plain["settings"]["models"][f"subject {c.label}"] == c.weights
    assert plain["settings"]["prompts"]["sha256"] == found.whole.sha256
    assert plain["settings"]["data"]["task_sha256"] == found.asked["task_sha256"]
    assert plain["settings"]["zone"] == {"lo": 0.01, "hi": 0.03}
    assert read_lock("study.lock.json") == lock
    assert frozen() == lock  # the same again is the same lock, not a new date


CHANGES = {
    "zone: hi": options(hi=0.05),
    "rule: cut": options(cut=40),
    "judge: address": options(judge="simulated:?noise=9"),
    "judge: rubric": options(rubric="both"),
    "seeds: audit": options(seed=3),
    "prompts: asked": options(limit=20),
    "prompts: half": options(half="fit"),
    "method: samples": options(samples=9),
    "method: every_coherence": options(every_coherence=True),
    "method: domain": options(domain=("finance",)),
    "method: dtype": options(dtype="bfloat16"),
    "method: stop": options(stop=("END",)),
    "method: long_prompts": options(long_prompts="truncated"),
    "data: task_rows": options(rows=9),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_named(name):
    lock = frozen()
    told = CHANGES[name]
    found = check_frozen(lock, frozen_settings(plan(told=told)))
    assert found.status == "exploratory"
    assert any(c.startswith(name) and " before, " in c for c in found.changed), found.changed


def test_other_weights_or_a_control_are_a_change():
    lock = frozen()
    other = plan("simulated:late?seed=5&steps=50,75,100")
    assert any(c.startswith("models: subject") for c in check_frozen(lock, frozen_settings(other)).changed)
    more = plan(control="simulated")
    assert any("control-1" in c for c in check_frozen(lock, frozen_settings(more)).changed)


@pytest.mark.parametrize(
    "told",
    [
        options(),
        options(budget=99, concurrency=2, rpm=1.0, judge_timeout=1.0, judge_retries=0),
        options(memory=1.0, device="cpu", sources={"limit": "truing.toml"}),
        options(served_adapters=2, path_map=("/a=/b",)),
    ],
)
def test_what_decides_nothing_may_change(told):
    found = check_frozen(frozen(), frozen_settings(plan(told=told)))
    assert (found.status, found.changed) == ("frozen", ())


def test_an_audit_that_was_begun_can_be_frozen(tmp_path):
    frozen()
    with Store.write(tmp_path / "a", {}, running=False) as store:
        store.describe(asked=plan().asked, sampling={})
    assert truing.freeze(tmp_path / "a", out="begun.json").id == read_lock("study.lock.json").id


def test_a_lock_is_not_changed_edited_or_made_up(tmp_path):
    frozen()
    with pytest.raises(errors.BadLock, match=r"another freeze \(zone: hi"):
        frozen(options(hi=0.05))
    file = tmp_path / "study.lock.json"
    plain = json.loads(file.read_text())
    plain["settings"]["zone"]["hi"] = 0.05
    file.write_text(json.dumps(plain))
    with pytest.raises(errors.BadLock, match="edited"):
        read_lock(file)
    for text in ("", "[]", "{}", '{"lock_version": 1, "id": "x", "made": "", "settings": 3}', '{"lock_version": 99, '
                 '"id": "x", "made": "", "settings": {}}'):  # fmt: skip
        file.write_text(text)
        with pytest.raises(errors.BadLock):
            read_lock(file)
    with pytest.raises(errors.BadLock, match=r"nowhere\.json"):
        read_lock("nowhere.json")


def kept(folder, told=None, lock="study.lock.json", target=LATE):
    """As an audit does where it begins."""
    told = told or options()
    with Store.write(folder, {}, running=False) as store:
        return keep_freeze(store, plan(target, told), lock)


def test_an_audit_that_keeps_to_its_lock_is_frozen_and_stays_so(tmp_path):
    frozen()
    folder = tmp_path / "a"
    assert kept(folder).status == "frozen"
    audited(folder, 4)
    assert kept(folder).status == "frozen"  # answers are there now; the freeze came first
    assert kept(folder, lock=None).status == "frozen"
    study = study_cases(folder)
    assert study.status == "frozen" and study.cases[0].frozen.lock == read_lock("study.lock.json").id


def test_a_change_after_the_freeze_marks_it_for_good(tmp_path):
    frozen()
    folder = tmp_path / "a"
    kept(folder)
    changed = kept(folder, options(hi=0.05), lock=None)  # told or not, the lock stays
    assert changed.status == "exploratory" and changed.changed == ("zone: hi: 0.03 before, 0.05 now",)
    again = kept(folder)
    assert again.status == "exploratory" and again.changed == changed.changed
    audited(folder, 4)
    study = study_cases(folder)
    assert study.status == "exploratory"
    assert study.cases[0].frozen.changed == changed.changed


def test_another_lock_is_a_change(tmp_path):
    frozen()
    folder = tmp_path / "a"
    kept(folder)
    told = options(hi=0.05)
    truing.freeze(LATE, config=told, out="other.lock.json", **TASK)
    found = kept(folder, told, "other.lock.json")
    assert found.status == "exploratory" and any(c.startswith("lock: ") for c in found.changed)


def test_a_lock_after_the_first_answer_is_no_freeze(tmp_path):
    folder = audited(tmp_path / "a", 4)
    with pytest.raises(errors.BadLock, match="holds answers already"):
        truing.freeze(folder, out="late.json")
    with pytest.raises(errors.BadLock):
        truing.freeze([str(folder)], out="late.json")
    assert not (tmp_path / "late.json").exists()
    frozen()  # nobody can know of an audit that lies elsewhere,
    found = kept(folder)  # but there it is seen
    assert found.status == "exploratory" and found.changed[0].startswith("answers: drawn before the freeze")


def test_answers_in_an_audit_nearby_are_seen(tmp_path):
    audited(tmp_path / "truing-audits" / "x", 4)
    (tmp_path / "truing-audits" / "broken").mkdir()
    (tmp_path / "truing-audits" / "broken" / "audit.json").write_text("{")
    with pytest.raises(errors.BadLock, match="truing-audits/x"):
        frozen()
    assert frozen(target="simulated:late?seed=5&steps=50,75,100")  # other checkpoints


def test_an_audit_that_was_begun_without_answers_can_be_frozen(tmp_path):
    done = audited(tmp_path / "done", 4)
    about = json.loads((done / "audit.json").read_text())
    with Store.write(tmp_path / "begun", about["identity"]) as store:
        store.describe(asked=about["asked"])
    assert truing.freeze(tmp_path / "begun", out="b.json").settings == frozen().settings
    with Store.write(tmp_path / "bare", {}) as store:
        store.describe(note="nothing asked")
    with pytest.raises(errors.NotAnAudit, match="does not say what was asked"):
        truing.freeze(tmp_path / "bare", out="c.json")


def test_a_verdict_by_another_judge_is_exploratory_in_a_study(tmp_path):
    frozen()
    kept(tmp_path / "a")
    audited(tmp_path / "a", 4)
    other = edited(tmp_path / "a", tmp_path / "b", lambda about: about["verdict"].update(judge="openai:other"))
    found = study_cases(other)
    assert found.status == "exploratory" and "openai:other" in found.cases[0].frozen.changed[0]


def test_a_later_change_can_be_noted(tmp_path):
    frozen()
    kept(tmp_path / "a")
    with Store.write(tmp_path / "a", {}, running=False) as store:
        assert note_change(store, "judge: address", "x", "x").status == "frozen"
        assert note_change(store, "judge: address", "x", "y").changed == ("judge: address: x before, y now",)
    with Store.write(tmp_path / "free", {}, running=False) as store:
        assert note_change(store, "judge", "x", "y") is None
        assert keep_freeze(store, plan(), None) is None
