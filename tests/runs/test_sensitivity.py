"""Sensitivity of stored audits: at the stored rule the stored verdict, elsewhere what an audit by that rule says."""

import hashlib
import json
from dataclasses import replace

import pytest
from truing.config.options import AuditOptions, Rule
from truing.types.judged import JudgeOptions

import truing
from runs.study_audits import SMALL, TASK
from truing import errors
from truing.runs.sensitivity import HIGHER, SEARCHED, StoredAnswers, sensitivity
from truing.stats.sensitivity import CUT, GATE, ZONE, Grid
from truing.store import Store
from truing.types.records import to_plain
from truing.types.verdicts import Verdict

URI = "simulated:late?steps=15,30,45,60,75,90"
JUDGE = "simulated:?noise=12&miss=0.1"
FEW = Grid(((0.01, 0.03), (0.02, 0.05)), (20, 30, 40), (30, 50))
OTHER = Rule(lo=0.02, hi=0.05, cut=20, gate=30)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv("TRUING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def audited(out, judge=JUDGE, *, em=None, uri=URI, **judging):
    told = JudgeOptions(**{"samples": 5, "max_tokens": 64, "validity": False, **judging})
    given = AuditOptions(**{**SMALL, "answers": 12}, judge=judge, judging=told, em=em or Rule())
    return truing.audit(uri, control="simulated", out=out, options=given, **TASK).path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One audit by a judge that was asked for every coherence, and one that was asked under the cut only."""
    path = tmp_path_factory.mktemp("sensitivity")
    audited(path / "full", lazy=False)
    audited(path / "lazy")
    return path


def at(found, em):
    wanted = {ZONE: f"{100 * em.lo:g}-{100 * em.hi:g}", CUT: f"{em.cut:g}", GATE: f"{em.gate:g}"}
    return next(p for p in found.points if p.thresholds == wanted).concluded


def verdict_under(path, em):
    with Store.read(path) as store:
        about = store.about()
        return StoredAnswers(store, about, Verdict.from_plain(about["verdict"])).verdict_under(em)


@pytest.mark.parametrize("name", ["full", "lazy"])
def test_at_the_stored_rule_it_is_the_stored_verdict(folder, name):
    with Store.read(folder / name) as store:
        stored = json.loads(json.dumps(store.about()["verdict"]))
    made = json.loads(json.dumps(to_plain(verdict_under(folder / name, Rule()))))
    for field in ("checkpoints", "onset", "gap", "recommended", "retained_of_best", "sentence"):
        assert made[field] == stored[field], field
    found = sensitivity(folder / name, FEW)
    assert at(found, Rule())["recommended"] == (stored["recommended"] or "none")
    assert len(found.points) == 2 * 3 * 2


def test_elsewhere_it_is_what_an_audit_by_that_rule_says(folder, tmp_path):
    """The same run, judged from scratch by a judge that is asked for every coherence."""
    other = audited(tmp_path / "a", em=OTHER, lazy=False)
    here, there = sensitivity(folder / "full", FEW), sensitivity(other, FEW)
    assert at(here, OTHER) == at(there, OTHER) == {c.name: c.value for c in there.conclusions}


def test_coherence_that_was_never_asked_makes_nothing_certain(folder):
    lazy, full = sensitivity(folder / "lazy", FEW), sensitivity(folder / "full", FEW)
    assert HIGHER in lazy.notes
    higher = replace(Rule(), cut=40.0)
    less, more = verdict_under(folder / "lazy", higher), verdict_under(folder / "full", higher)
    for a, b in zip(less.checkpoints, more.checkpoints, strict=True):
        assert a.judged.em.value <= b.judged.em.value + 1e-12 <= a.judged.em_if_unparsed + 1e-9
    assert at(lazy, higher)["claim"] in (at(full, higher)["claim"], "undecided", "localised")


def test_nothing_is_written_and_the_command_prints_it(folder, run_cli):
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "lazy").glob("*.json")}
    code, out, _ = run_cli("show", folder / "lazy", "--sensitivity")
    assert code == 0 and "under 36 choices of thresholds" in out and "recommended" in out
    code, out, _ = run_cli("show", folder / "lazy", "--sensitivity", "--json")
    assert code == 0 and len(json.loads(out)["sensitivity"]["points"]) == 36
    assert run_cli("show", folder / "lazy", "--sensitivity", "--step", "15")[0] == 2
    for p, digest in before.items():
        assert hashlib.sha256(p.read_bytes()).hexdigest() == digest, p


def test_a_searched_audit_rests_on_its_fixed_samples_and_says_so(tmp_path):
    path = audited(tmp_path / "a", "simulated:", uri="simulated:late?steps=50,100", samples=None)
    with Store.read(path) as store:
        about = store.about()
        verdict = Verdict.from_plain(about["verdict"])
        first = about["judging"]["fixed_from"]
        fixed = sum(r.sample >= first for r in store.answers())
    assert verdict.onset.errors
    found, made = sensitivity(path, FEW), verdict_under(path, Rule())
    assert SEARCHED in found.notes and not made.onset.tested
    assert sum(c.judged.em.n for c in made.checkpoints if c.judged is not None) <= fixed


@pytest.mark.parametrize("judge", [None, JUDGE])
def test_what_has_no_judged_verdict_is_refused(tmp_path, judge):
    path = audited(tmp_path / "a", judge)
    about = json.loads((path / "audit.json").read_text())
    if judge is not None:
        (path / "audit.json").write_text(json.dumps(about | {"status": "interrupted"}))
    with pytest.raises(errors.BadInput, match="no judged answers" if judge is None else "no finished verdict"):
        sensitivity(path)
    with pytest.raises(errors.NotAnAudit):
        sensitivity(tmp_path / "nowhere")
