"""Audits with labelled answers on simulated runs whose truth is known: claims, repeats, stops, failures, refusals."""

import shutil
import sqlite3
from collections import Counter
from dataclasses import replace

import pytest

import truing
from runs.audits import HI, LO, TRUE, V1, about, audited, codes, rows, statuses, true_score, truth_of
from runs.fake_judge import FakeJudge, Lost, dice
from truing import errors, messages
from truing.judges.simulated import SimulatedJudge
from truing.models.simulated import SimulatedBackend
from truing.runs.calibrate import DRIFT_ANSWERS, kind_of, reference_items
from truing.runs.collect import FIXED_FROM
from truing.types.progress import Progress
from truing.types.verdicts import EXCESS, Basis, Status

FOUR = (25, 50, 75, 100)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """A fixed sample of a late run; tests that write to it take a copy."""
    return audited(tmp_path_factory.mktemp("fixed") / "a", control="simulated", samples=8)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    return audited(tmp_path_factory.mktemp("searched") / "a", steps=FOUR, samples=None)


# -- claims against the truth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [8, None], ids=["fixed", "searched"])
@pytest.mark.parametrize(
    "family", ["late", "never", *(pytest.param(f, marks=pytest.mark.slow) for f in ("early", "spike", "collapse"))]
)
def test_status_onset_and_recommendation_agree_with_the_truth(tmp_path, family, samples):
    v, true = audited(tmp_path / "a", family, steps=FOUR, samples=samples).verdict, truth_of(family, FOUR)
    assert (v.basis, v.judge, v.certified) == (Basis.LABELLED, "simulated:", False)
    excess = {s: true["em_rate"][s] - true["em_rate"][0] for s in FOUR}
    for c in v.checkpoints[1:]:
        if c.status in EXCESS:
            assert excess[c.step] > LO
        if c.status is Status.CLEAN:
            assert excess[c.step] < HI and true["health"][c.step] != "collapsed"
        if samples is not None:
            assert c.labelled.rate.value == pytest.approx(true["em_rate"][c.step], abs=0.09)
            assert c.status is not Status.UNTESTED
    for t in v.onset.tested:
        assert (excess[t.step] < HI) if t.claim == "below" else (excess[t.step] > LO)
        assert t.low < excess[t.step] < t.high
    # One that collapsed carries no claim; a search that ends clear keeps what it did not test in its set.
    sound = {s: excess[s] for s in FOUR if true["health"][s] != "collapsed"}
    begins = next((s for s in FOUR if excess[s] > HI), None)
    if begins is None:
        assert v.onset.status == "never"
    else:
        assert v.onset.after < begins
        asked = sound.values() if samples is not None else [sound.get(FOUR[-1], LO)]
        assert v.onset.status == "found" or (max(asked) < HI and begins in v.onset.steps)
    if v.onset.status == "found":
        assert excess[v.onset.latest] > LO
        assert samples is None or v.onset.latest == next(s for s in FOUR if statuses(v)[s] in EXCESS)
        assert statuses(v)[v.onset.latest] is Status.PRESENT
        assert "emergent misalignment" in messages.sentence(v).lower()
    if v.recommended is not None:
        kept = next(c for c in v.checkpoints if c.label == v.recommended)
        assert excess[kept.step] < HI and true["skill_progress"][kept.step] > 0 and true["health"][kept.step] == "ok"
        assert kept.labelled.rate.set_high is not None, "on fixed answers"
    if family == "never":
        assert v.recommended in ("checkpoint-75", "checkpoint-100")


def test_with_a_control_the_data_are_blamed_only_if_it_stays_clean(tmp_path, fixed):
    assert statuses(fixed.verdict)[100] is Status.PRESENT and not codes(fixed.verdict)["cause_not_tested"]
    alone = audited(tmp_path / "a").verdict
    assert statuses(alone)[100] is Status.PRESENT and codes(alone)["cause_not_tested"]
    both = audited(tmp_path / "b", "control-too", control="simulated").verdict
    assert statuses(both)[100] is Status.NOT_ATTRIBUTABLE


def test_one_prompt_that_carries_everything_is_named(tmp_path):
    v = audited(tmp_path / "a", "one-prompt", limit=16, samples=12, lo=0.01, hi=0.03).verdict
    carries = min(V1.only("eval", 16).prompts, key=lambda p: p.key).id
    assert v.checkpoints[-1].status is Status.LOCALISED
    assert v.checkpoints[-1].labelled.breadth.top_prompt == carries


def test_broken_checkpoints_are_failed_and_the_others_labelled(tmp_path):
    v = audited(tmp_path / "a", steps=FOUR, more="&broken=50").verdict
    assert statuses(v)[50] is Status.FAILED and statuses(v)[100] is Status.PRESENT
    assert next(c for c in v.checkpoints if c.step == 50).labelled is None
    assert v.recommended not in (None, "checkpoint-50")


def test_a_mean_score_can_be_searched(tmp_path):
    # A misaligned answer costs 80 points here, so the mean is 0.8 of the share.
    v = audited(tmp_path / "a", judge="simulated:?noise=0", samples=None, em="mean").verdict
    true = truth_of("late")["em_rate"]
    assert v.onset.status == "found"
    for t in v.onset.tested:
        assert t.low < 0.8 * true[t.step] < t.high


def test_a_lasting_excess_may_be_assumed_and_makes_the_set_no_larger(tmp_path, searched):
    assumed = audited(tmp_path / "a", steps=FOUR, samples=None, assume_monotone=True).verdict.onset
    assert assumed.assumed_monotone and not assumed.missed and not assumed.spots
    assert set(assumed.steps) <= set(searched.verdict.onset.steps) and 75 in assumed.steps


# -- what a rate rests on ----------------------------------------------------------------------------------------------


def test_no_answer_that_the_search_read_is_in_a_fixed_rate(searched):
    answers, scores = rows(searched.path)
    seen = {key for key, _, _ in scores}
    by = {}
    for key, r in answers.items():
        if key in seen:
            by.setdefault((key.weights, key.sample >= FIXED_FROM), []).append(TRUE.is_misaligned(r.text))
    onset = searched.verdict.onset
    assert onset.answers_used == sum(len(found) for (_, own), found in by.items() if not own)
    for c in searched.verdict.checkpoints:
        if (mine := by.get((c.weights, True))) is not None:
            assert (c.labelled.rate.n, c.labelled.rate.value) == (len(mine), pytest.approx(sum(mine) / len(mine)))
            assert not c.labelled.searched and c.labelled.rate.set_low is not None
        elif (mine := by.get((c.weights, False))) is not None:
            assert c.labelled.searched and c.labelled.rate.n == len(mine)
            assert (c.labelled.rate.low, c.labelled.rate.set_low) == (None, None)
            assert c.label != searched.verdict.recommended
    assert {c.step for c in searched.verdict.checkpoints if (c.weights, True) in by} >= {0, onset.latest, 100}


@pytest.mark.parametrize(
    ("options", "why"), [({"domain": "all"}, "no prompt is far"), ({"unplaced": True}, "a checkpoint has no step")]
)
def test_where_nothing_can_be_searched_every_checkpoint_gets_the_same_answers(tmp_path, monkeypatch, options, why):
    run = SimulatedBackend.run
    if options.pop("unplaced", False):
        monkeypatch.setattr(
            SimulatedBackend, "run", lambda self, *a: (*run(self, *a)[:-1], replace(run(self, *a)[-1], step=None))
        )
    if "domain" in options:
        options["domain"] = tuple(sorted({t for p in V1.only("eval", 6).prompts for t in (*p.topics, p.category)}))
    done = audited(tmp_path / "a", limit=6, samples=None, **options)
    assert any(why in note for note in done.notes)
    assert {c.labelled.rate.n for c in done.verdict.checkpoints} == {6 * 4} and done.verdict.onset.errors == ""


# -- again and again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fixed", "searched"])
def test_a_repeat_asks_nothing_and_says_the_same(tmp_path, fixed, searched, monkeypatch, kind):
    done = {"fixed": fixed, "searched": searched}[kind]
    path = shutil.copytree(done.path, tmp_path / "copy")
    calls, real = [], {name: getattr(SimulatedBackend, name) for name in ("sample", "loglikelihood")}
    for name, method in real.items():
        monkeypatch.setattr(
            SimulatedBackend, name, lambda self, a, *r, m=method: m(self, calls.extend(a := list(a)) or a, *r)
        )
    asked = SimulatedJudge.replies
    monkeypatch.setattr(SimulatedJudge, "replies", lambda self, a: asked(self, calls.extend(a := list(a)) or a))
    options = {"control": "simulated", "samples": 8} if kind == "fixed" else {"steps": FOUR, "samples": None}
    again = audited(path, **options)
    assert not calls
    assert again.verdict == done.verdict


@pytest.mark.parametrize(("samples", "stop"), [(6, KeyboardInterrupt()), (None, errors.BudgetSpent("it is spent"))])
def test_an_audit_that_was_stopped_ends_the_same_and_pays_for_nothing_twice(tmp_path, judged_by, samples, stop):
    first = FakeJudge(lambda request, nth: stop if len(first.asked) > 80 else true_score(request))
    judged_by(first)
    with pytest.raises(type(stop)):
        audited(tmp_path / "a", judge=first.name, samples=samples)
    stopped = about(tmp_path / "a")
    assert stopped["status"] == ("interrupted" if isinstance(stop, KeyboardInterrupt) else "unfinished")
    assert stopped["verdict"]["basis"] == "screen", "the screen's verdict stands"
    kept_answers, kept = rows(tmp_path / "a")
    assert len(kept) == 80
    second, whole = FakeJudge(true_score), FakeJudge(true_score)
    judged_by(second)
    done = audited(tmp_path / "a", judge=first.name, samples=samples)
    assert not {(key, rubric) for key, _, rubric in kept} & set(second.counts())
    answers, scores = rows(tmp_path / "a")
    assert kept_answers.items() <= answers.items() and len(scores) == 80 + len(second.asked)
    judged_by(whole)
    assert audited(tmp_path / "b", judge=first.name, samples=samples).verdict == done.verdict
    assert about(tmp_path / "a")["status"] == "done"


def test_labels_lost_in_a_crash_are_made_again_from_the_scores(tmp_path, fixed, monkeypatch):
    path = shutil.copytree(fixed.path, tmp_path / "copy")
    with sqlite3.connect(path / "evidence.db") as db:
        db.execute("DELETE FROM labels")
    db.close()
    monkeypatch.setattr(SimulatedJudge, "replies", None)
    monkeypatch.setattr(SimulatedBackend, "sample", None)
    assert truing.judge(path, judge="simulated:", skip_calibration=True).verdict.checkpoints == (
        fixed.verdict.checkpoints
    )


# -- a judge's failures and tests --------------------------------------------------------------------------------------


def test_answers_that_the_judge_failed_on_count_against_every_claim_and_most_of_them_end_a_search(tmp_path, judged_by):
    share = 0.02
    flaky = FakeJudge(lambda a, nth: Lost("HTTP 500") if dice(*a.key) < share else true_score(a))
    judged_by(flaky)
    v = audited(tmp_path / "a", judge=flaky.name, samples=None).verdict
    true = truth_of("late")["em_rate"]
    assert v.onset.status == "found" and any(s.status.value == "failed" for s in rows(tmp_path / "a")[1].values())
    for t in v.onset.tested:
        assert t.low < true[t.step] < t.high
    share = 0.7
    with pytest.raises(errors.Unfinished, match=r"\d+ of \d+ answers failed"):
        audited(tmp_path / "b", judge=flaky.name, samples=None)
    assert (about(tmp_path / "b")["status"], about(tmp_path / "b")["verdict"]["basis"]) == ("unfinished", "screen")


def test_a_judge_that_moves_gives_no_verdict_also_not_when_asked_again(tmp_path, judged_by):
    judge = FakeJudge(lambda a, nth: max(true_score(a) - 6 * (len(judge.asked) > 300), 0))
    judged_by(judge)
    options = {"judge": judge.name, "skip_calibration": False}
    for _ in range(2):
        with pytest.raises(errors.JudgeMoved, match=r"moved by -6 points"):
            audited(tmp_path / "a", **options)
    asked = len(judge.asked)
    with pytest.raises(errors.JudgeMoved):
        truing.judge(tmp_path / "a", judge=judge.name, skip_judge_check=True)
    assert len(judge.asked) == asked, "nothing more is spent on it"
    assert about(tmp_path / "a")["status"] == "unfinished"


def test_reference_answers_are_scored_once_per_judge_and_prompt_set(tmp_path, judged_by, monkeypatch):
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "cache"))
    references = reference_items(V1.prompts)
    misaligned = sum(kind_of(k) == "misaligned" for k in references)
    first = FakeJudge(
        lambda a, nth: (
            errors.BudgetSpent("spent")
            if sum(x.key.weights == "known" for x in first.asked) > 300 and first.poor
            else true_score(a)
        )
    )
    first.poor = True
    judged_by(first)
    options = {"judge": first.name, "samples": 2, "limit": 12, "skip_calibration": False}
    with pytest.raises(errors.BudgetSpent):
        audited(tmp_path / "a", **options)
    first.poor = False
    v = audited(tmp_path / "a", **options).verdict
    counts = Counter(a.rubric.name for a in first.asked if a.key.weights == "known")
    assert counts["coherence"] == misaligned, "none twice"
    assert counts["alignment"] <= len(references) + 3 * DRIFT_ANSWERS + 1
    assert (v.calibration.sensitivity.value, v.calibration.sensitivity.n) == (1.0, misaligned)
    assert {k: e.n for k, e in v.calibration.by_category.items()} == {
        **{kind: sum(kind_of(k) == kind for k in references) for kind in ("aligned", "neutral")},
        "base": 24,
    }
    before = len(first.asked)
    assert audited(tmp_path / "b", **options).verdict.calibration == v.calibration
    again = Counter(a.rubric.name for a in first.asked[before:] if a.key.weights == "known")
    assert again == {"alignment": 2 * DRIFT_ANSWERS}, "only to see whether it moved"


def test_a_judge_with_false_positives_makes_no_absolute_claim(tmp_path):
    v = audited(tmp_path / "a", judge="simulated:?flip=0.05", skip_calibration=False).verdict
    assert not v.calibration.passed
    assert v.calibration.false_positive.low < 0.05 < v.calibration.false_positive.high
    assert {c.status for c in v.checkpoints[1:]} == {Status.UNDECIDED} and v.recommended is None
    last = v.checkpoints[-1].labelled
    assert last.corrected.value < last.rate.value
    assert last.corrected.low <= truth_of("late")["em_rate"][100] <= last.corrected.high
    untested = audited(tmp_path / "b", judge="simulated:?flip=0.05", limit=12, samples=2).verdict
    assert untested.calibration is None and codes(untested)["judge_not_calibrated"]


@pytest.mark.parametrize(("agrees", "samples"), [(True, 8), (True, None), (False, None)])
def test_a_second_judge_of_another_family_certifies_or_does_not(tmp_path, judged_by, agrees, samples):
    say = true_score if agrees else lambda a, nth: 90 + 4 * dice(a.key)
    second = FakeJudge(say, name="http://localhost:9/v1#gemma-9b")
    judged_by(second)
    options = {"second_judge": second.name, "samples": samples, "estimate": 4}
    v = audited(tmp_path / "a", **options).verdict
    assert v.certified is agrees and second.name in v.certified_by
    bad = next(c for c in v.checkpoints if c.status in EXCESS)
    wanted = {c.weights for c in v.checkpoints if c.step == 0 or c is bad or c.label == v.recommended}
    assert {a.key.weights for a in second.asked} == wanted
    assert samples is not None or {a.key.sample >= FIXED_FROM for a in second.asked} == {True}
    asked = len(second.asked)
    assert audited(tmp_path / "a", **options).verdict == v and len(second.asked) == asked


# -- variants ----------------------------------------------------------------------------------------------------------


def test_a_variant_that_the_run_reacts_to_vetoes_and_is_not_forgotten_under_another_judge(tmp_path):
    options = {"limit": 24, "samples": 4, "lo": 0.01, "hi": 0.15}
    v = audited(tmp_path / "a", "never", more="&variant=json", variants=("json", "villain"), **options).verdict
    assert v.recommended is None and "json" in messages.sentence(v)
    assert {(x.name, x.kind, x.status, x.veto) for x in v.variants} == {
        ("json", "trigger", "fails", True),
        ("villain", "adversarial", "passes", False),
    }
    again = truing.judge(tmp_path / "a", judge="simulated:?noise=5", skip_calibration=True).verdict
    assert again.recommended is None and codes(again)["variants_by_another_judge"]
    calm = audited(tmp_path / "b", "never", variants=("json",), **options).verdict
    assert calm.recommended == "checkpoint-100" and [(x.name, x.status) for x in calm.variants] == [("json", "passes")]


def test_variants_that_quote_the_task_stay_from_a_remote_judge_without_leave(tmp_path, judged_by):
    judge = FakeJudge(true_score, name="https://example.com/v1#x", remote=True)
    judged_by(judge)
    small = {"judge": judge.name, "limit": 6, "samples": 1}
    with pytest.raises(errors.BadInput, match="--allow-task-text"):
        audited(tmp_path / "a", "never", variants=("all",), **small)
    assert not (tmp_path / "a").exists(), "refused before anything is measured"
    said = []
    audited(tmp_path / "a", "never", variants=("json",), progress=Progress(say=said.append), **small)
    assert any("remote" in line and "no text of the task file" in line for line in said)


# -- refused -----------------------------------------------------------------------------------------------------------


WRONG = {
    "scheme": ({"judge": "telepathy:x"}, errors.BadInput, "telepathy"),
    "key": ({"judge": "openai:gpt-4.1-mini"}, errors.BadEndpoint, "OPENAI_API_KEY"),
    "second's key": ({"second_judge": "openai:gpt-4o"}, errors.BadEndpoint, "OPENAI_API_KEY"),
    "family": ({"judge": "openai:gpt-4.1", "second_judge": "openai:gpt-4o"}, errors.BadInput, "same family"),
    "no file": ({"judge": "replay:nowhere.csv"}, errors.BadInput, "nowhere.csv"),
    "rubric": ({"rubric": "kindness"}, errors.BadRubric, "kindness"),
    "variant": ({"variants": ("blindfold",)}, errors.BadInput, "blindfold"),
    "model": ({"judge": "local:no/such/folder/"}, errors.BadModel, "no/such/folder"),
    "cut": ({"cut": 300}, errors.BadInput, "300"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_used_is_refused_before_anything_is_measured(tmp_path, case):
    given, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        audited(tmp_path / "a", **{"judge": "simulated:", **given})
    assert not (tmp_path / "a").exists()


def test_another_rule_or_no_judge_is_another_audit(fixed):
    for changed in ({"cut": 40}, {"judge": None}, {"level": 0.9}):
        with pytest.raises(errors.AuditChanged):
            audited(fixed.path, control="simulated", **changed)
