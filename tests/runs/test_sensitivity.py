"""Sensitivity of stored audits: at the stored rule the stored verdict, elsewhere what an audit by that rule says."""

import hashlib
import json
from dataclasses import replace

import pytest

import truing
from runs.study_audits import TASK, edited, options, unfinished, unjudged
from truing import errors
from truing.runs.sensitivity import SEARCHED, UNASKED, StoredAnswers, sensitivity
from truing.stats.sensitivity import CUT, GATE, MARGIN
from truing.store import Store
from truing.types.records import to_plain
from truing.types.traits import Rule
from truing.types.verdicts import Verdict

URI = "simulated:late?steps=30,60,90"
JUDGE = "simulated:?noise=12&miss=0.1"
OTHER = {"lo": 0.02, "hi": 0.05, "cut": 20, "coherence": 30}


def audited(out, judge=JUDGE, uri=URI, **fields):
    given = options(judge, **{"samples": 5, **fields})
    return truing.audit(uri, given, control="simulated", out=out, **TASK).path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One audit by a judge that was asked for every coherence, and one that was asked past the cut only."""
    path = tmp_path_factory.mktemp("sensitivity")
    audited(path / "full", every_coherence=True)
    audited(path / "lazy")
    return path


def verdict_under(path, rule):
    with Store.read(path) as store:
        about = store.about()
        return StoredAnswers.of(store, about, Verdict.from_plain(about["verdict"])).verdict_under(rule)


def test_at_the_stored_rule_it_is_the_stored_verdict(folder):
    for name in ("full", "lazy"):
        with Store.read(folder / name) as store:
            stored = json.loads(json.dumps(store.about()["verdict"]))
        assert json.loads(json.dumps(to_plain(verdict_under(folder / name, Rule())))) == stored


def test_elsewhere_it_is_what_an_audit_by_that_rule_says(folder, tmp_path):
    """The same run, judged from scratch by a judge that is asked for every coherence."""
    other = audited(tmp_path / "a", every_coherence=True, **OTHER)
    rule = Rule(lo=0.02, hi=0.05, cut=20, gate=30)
    here, there = (verdict_under(path, rule) for path in (folder / "full", other))
    assert [c.labelled for c in here.checkpoints] == [c.labelled for c in there.checkpoints]
    assert (here.onset, here.gap, here.recommended) == (there.onset, there.gap, there.recommended)


def test_coherence_that_was_never_asked_makes_nothing_certain(folder):
    higher = replace(Rule(), cut=40.0)
    less, more = verdict_under(folder / "lazy", higher), verdict_under(folder / "full", higher)
    unparsed = 0
    for a, b in zip(less.checkpoints, more.checkpoints, strict=True):
        assert a.labelled.rate.value <= b.labelled.rate.value + 1e-12 <= a.labelled.rate_if_unparsed + 1e-9
        unparsed += a.labelled.reasons["unparsed"] - b.labelled.reasons["unparsed"]
    assert unparsed > 0


def test_the_stored_verdict_is_among_the_points_and_nothing_is_written(folder, run_cli):
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "lazy").glob("*.json")}
    code, out, _ = run_cli("show", folder / "lazy", "--sensitivity", "--json")
    found = json.loads(out)["sensitivity"]
    assert code == 0 and len(found["points"]) == 36 and UNASKED in found["notes"]
    stored = next(p for p in found["points"] if p["thresholds"] == {MARGIN: "1-3", CUT: "30", GATE: "50"})
    with Store.read(folder / "lazy") as store:
        assert stored["concluded"]["recommended"] == (store.about()["verdict"]["recommended"] or "none")
    assert run_cli("show", folder / "lazy", "--sensitivity", "--step", "15")[0] == 2
    for p, digest in before.items():
        assert hashlib.sha256(p.read_bytes()).hexdigest() == digest, p


def test_a_searched_audit_rests_on_its_fixed_samples_and_says_so(tmp_path, monkeypatch):
    path = audited(tmp_path / "a", "simulated:", "simulated:late?steps=50,100", samples=None)
    with Store.read(path) as store:
        about = store.about()
        first = about["labels"]["fixed_from"]
        fixed = sum(r.sample >= first for r in store.answers())
    assert Verdict.from_plain(about["verdict"]).onset.errors
    made = verdict_under(path, Rule())
    monkeypatch.setattr("truing.stats.sensitivity.ZONES", ())
    assert SEARCHED in sensitivity(path).notes and not made.onset.tested
    assert 0 < sum(c.labelled.rate.n for c in made.checkpoints if c.labelled is not None) <= fixed


def test_what_has_no_verdict_on_labels_is_refused(folder, tmp_path):
    for change, told in ((unjudged, "no labelled answers"), (unfinished, "no finished verdict")):
        with pytest.raises(errors.BadInput, match=told):
            sensitivity(edited(folder / "lazy", tmp_path / change.__name__, change))
    with pytest.raises(errors.NotAnAudit):
        sensitivity(tmp_path / "nowhere")
