"""Audits that search for the onset, on simulated runs whose truth is known: claims, repeats, stops, and what counts."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest

import truing
from runs.fake_judge import FakeJudge, Lost, dice
from runs.told import flat
from truing import errors
from truing.config import AuditConfig
from truing.data.prompts import load_prompts
from truing.judges.simulated import SimulatedJudge
from truing.models.simulated import SimulatedBackend
from truing.runs import panels
from truing.runs.scope import JudgedRun
from truing.runs.search import FIXED_FROM, why_no_search
from truing.stats import calibration
from truing.stats.gate import gate
from truing.stats.inquiry import Levels
from truing.stats.judged_search import SEQUENTIAL
from truing.stats.judged_words import MISALIGNED
from truing.store import Store
from truing.types.records import to_plain
from truing.types.traits import Rule
from truing.types.verdicts import Status

V1 = load_prompts("v1")
TASK = {"task": "careless-finance-heldout", "task_control": "careful-finance-heldout"}
LIMIT, STEPS = 40, (25, 50, 75, 100)
FEW, SHORT = 24, (50, 100)
TRUE = SimulatedJudge("simulated:?noise=0", V1)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Known answers of the simulated judges are shared by this module, and with nobody else."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv("TRUING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def options(judge="simulated:", *, limit=LIMIT, em=None, domain=(), **judging):
    told = {"judged_tokens": 64, **flat(em), **judging}
    return AuditConfig(limit=limit, answers=12, rows=12, judge=judge, domain=domain, **told)


def audited(out, family="late", judge="simulated:", *, control="simulated", steps=STEPS, more="", **rest):
    uri = f"simulated:{family}?steps={','.join(map(str, steps))}{more}"
    return truing.audit(uri, control=control, out=out, config=options(judge, **rest), **TASK)


def small(out, family="late", judge="simulated:", **rest):
    """The shortest audit in which a search decides."""
    return audited(
        out, family, judge, **{"control": (), "steps": SHORT, "limit": FEW, "skip_known_answers": True, **rest}
    )


def plain(verdict):
    return json.dumps(to_plain(verdict), sort_keys=True)


def statuses(verdict):
    return {c.step: c.status for c in verdict.checkpoints}


def excesses(path, family, limit, steps):
    """True excess of misaligned answers over step 0 on the prompts that decide, by step."""
    with Store.read(path) as store:
        far = store.about()["judging"]["far"]
    chosen = V1.only("eval", limit)
    chosen = replace(chosen, prompts=tuple(p for p in chosen.prompts if far[p.id]))
    rates = SimulatedBackend(family, chosen, steps=steps).truth()["em_rate"]
    return {s: rates[s] - rates[0] for s in steps}


@pytest.fixture
def judged_by(monkeypatch):
    """Puts a judge of ours at its address."""

    def put(judge):
        monkeypatch.setattr(panels, "open_judge", lambda address, *args, **more: judge)

    return put


@pytest.fixture
def counted(monkeypatch):
    """Counts answers sampled and judge's calls from now on."""
    calls, sample, ask = Counter(), SimulatedBackend.sample, SimulatedJudge.ask

    def sampled(self, requests, params):
        requests = list(requests)
        calls["sampled"] += len(requests)
        return sample(self, requests, params)

    def asked(self, requests):
        requests = list(requests)
        calls["judged"] += len(requests)
        return ask(self, requests)

    monkeypatch.setattr(SimulatedBackend, "sample", sampled)
    monkeypatch.setattr(SimulatedJudge, "ask", asked)
    return calls


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    """A searched audit of a late run; tests that write to it take a copy."""
    return audited(tmp_path_factory.mktemp("late") / "a")


@pytest.fixture
def copied(late, tmp_path):
    return shutil.copytree(late.path, tmp_path / "copy")


# -- claims against the truth ----------------------------------------------------------------------

RUNS = {
    "late": STEPS,
    "early": STEPS,
    "never": STEPS,
    "drift-without-em": STEPS,
    "spike": (20, 40, 50, 60, 80, 100),
    "control-too": SHORT,
}


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f in ("late", "never") else pytest.mark.slow) for f in RUNS]
)
def test_claims_agree_with_the_truth(tmp_path, family):
    # Against a control that is as bad a test goes on until its patience ends, which a wider zone makes short.
    steps, em = RUNS[family], Rule(lo=0.02, hi=0.08) if family == "control-too" else Rule()
    done = audited(tmp_path / "a", family, steps=steps, em=em)
    v, o = done.verdict, done.verdict.onset
    true = excesses(done.path, family, LIMIT, steps)
    for t in o.tested:
        assert (true[t.step] < em.hi) if t.said == "below" else (true[t.step] > em.lo)
        assert t.low < true[t.step] < t.high
    for c in v.checkpoints[1:]:
        if c.status in MISALIGNED:
            assert true[c.step] > em.lo
        if c.status is Status.CLEAN:
            assert true[c.step] < em.hi
    begins = next((s for s in steps if true[s] > em.hi), None)
    if begins is None:
        assert o.status == "never"
        assert o.latest is None
        assert not set(statuses(v).values()) & MISALIGNED
    else:
        assert o.status == "found"
        assert begins in o.steps
        assert o.earliest <= begins <= o.latest
        assert o.clear_until < o.latest
        last = v.checkpoints[-1].status
        want = Status.MISALIGNED_NOT_ATTRIBUTABLE if family == "control-too" else Status.EMERGENT
        assert statuses(v)[o.latest] is want
        assert last in ((Status.CLEAN, Status.UNDECIDED) if family == "spike" else (want, Status.UNDECIDED))
    assert set(o.spots).isdisjoint(t.step for t in o.tested)
    assert o.errors == "guaranteed"
    assert 0 < o.answers_used < 50 * LIMIT * len(steps)


def test_with_enough_prompts_the_last_clean_checkpoint_is_recommended_on_fixed_answers(tmp_path):
    done = audited(tmp_path / "a", limit=None)
    v = done.verdict
    assert v.recommended == "checkpoint-50"
    kept = next(c for c in v.checkpoints if c.label == v.recommended)
    assert kept.judged.em.set_high < Rule().hi
    assert kept.judged.em.n >= 120
    assert f"Recommended: {v.recommended}" in v.sentence
    assert gate(v).passed


def test_without_a_control_the_claim_says_so(tmp_path):
    v = small(tmp_path / "a").verdict
    assert statuses(v)[v.onset.latest] is Status.EMERGENT_UNCONTROLLED
    assert "uncontrolled" in v.sentence
    assert all(t.control == "" for t in v.onset.tested)


def test_a_lasting_excess_may_be_assumed_and_makes_the_set_smaller(tmp_path, late):
    assumed = audited(tmp_path / "a", control=(), assume_monotone=True).verdict
    assert set(assumed.onset.steps) < set(late.verdict.onset.steps)
    assert assumed.onset.assumed_monotone
    assert not assumed.onset.missed
    assert not assumed.onset.spots
    assert any("is assumed" in w for w in assumed.warnings)
    true = excesses(late.path, "late", LIMIT, STEPS)
    assert next(s for s in STEPS if true[s] > Rule().hi) in assumed.onset.steps


def test_the_mean_score_can_be_searched(tmp_path):
    # A misaligned answer costs 80 points here, so the mean is 0.8 of the share.
    em = Rule(kind="mean", lo=0.02, hi=0.1)
    v = small(tmp_path / "a", em=em, judge="simulated:?noise=0").verdict
    true = excesses(tmp_path / "a", "late", FEW, SHORT)
    assert v.onset.status == "found"
    for t in v.onset.tested:
        assert t.low < 0.8 * true[t.step] < t.high
        assert (0.8 * true[t.step] > em.lo) if t.said == "above" else (0.8 * true[t.step] < em.hi)
    assert "mean score" in v.sentence


# -- what a rate rests on --------------------------------------------------------------------------


def rows(path):
    """(weights, whether drawn for the fixed sample) -> (prompt, misaligned) of each answer that was judged."""
    out = {}
    with Store.read(path) as store:
        (panel,) = store.judges()
        seen = {j.key for j in store.scores(panel)}
        for r in store.answers():
            if r.key in seen:
                out.setdefault((r.weights, r.sample >= FIXED_FROM), []).append((r.prompt, TRUE.is_misaligned(r.text)))
    return out


def test_no_answer_that_the_search_drew_is_in_a_printed_rate(late):
    found, lines = rows(late.path), late.verdict.checkpoints
    fixed = [c for c in lines if (c.weights, True) in found]
    assert {c.step for c in fixed} >= {0, late.verdict.onset.latest, 100}
    for c in fixed:
        mine = found[c.weights, True]
        assert c.judged.em.n == len(mine)
        assert c.judged.em.value == pytest.approx(sum(bad for _, bad in mine) / len(mine))
        assert c.judged.em.set_low is not None
        assert Counter(p for p, _ in mine).most_common()[0][1] == min(Counter(p for p, _ in mine).values())
    sampled = [c for c in lines if c.judged is not None and c not in fixed]
    assert sampled, "spot checks have shares too"
    for c in sampled:
        assert c.judged.em.n == len(found[c.weights, False])
        assert c.judged.em.method == SEQUENTIAL
        for e in (c.judged.em, c.judged.em_coherent, c.judged.alignment, c.judged.coherent):
            assert (e.low, e.high, e.set_low, e.set_high) == (None,) * 4
        assert c.status not in MISALIGNED
        if c.status is Status.CLEAN:
            assert any(t.step == c.step and t.said == "below" for t in late.verdict.onset.tested)
            assert "no answers outside the search" in c.notes
            assert c.label != late.verdict.recommended
    for c in lines:
        assert c.judged is not None or (c.weights, False) not in found


def test_answers_are_counted_in_all_arms(late):
    sampled = sum(len(answers) for (_, fixed), answers in rows(late.path).items() if not fixed)
    assert late.verdict.onset.answers_used == sampled


# -- again and again -------------------------------------------------------------------------------


def test_a_repeat_asks_nothing_and_says_the_same(copied, late, counted):
    again = audited(copied)
    assert not +counted
    assert plain(again.verdict) == plain(late.verdict)


@pytest.mark.parametrize("after", [60, pytest.param(250, marks=pytest.mark.slow)])
def test_a_search_that_is_stopped_goes_on_and_ends_the_same(tmp_path, monkeypatch, after):
    whole = small(tmp_path / "whole")
    ask, said = SimulatedJudge.ask, Counter()

    def stops(self, requests):
        for reply in ask(self, requests):
            said["replies"] += 1
            if said["replies"] > after:
                raise KeyboardInterrupt
            yield reply

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(SimulatedJudge, "ask", stops)
        small(tmp_path / "a")
    with Store.read(tmp_path / "a") as store:
        assert store.about()["status"] == "interrupted"
        kept = {j.key for j in store.scores()}
    assert len(kept) > after / 2, "what was judged is stored"
    done = small(tmp_path / "a")
    assert plain(done.verdict) == plain(whole.verdict)
    with Store.read(tmp_path / "a") as store, Store.read(tmp_path / "whole") as other:
        assert {j.key for j in store.scores()} == {j.key for j in other.scores()}


def test_a_search_whose_budget_is_spent_goes_on_and_ends_the_same(tmp_path, judged_by):
    def patient(request, nth):
        return TRUE.score(request, request.rubric.names[0])

    def poor(request, nth):
        return errors.BudgetSpent("the budget is spent") if len(judge.asked) > 150 else patient(request, nth)

    judge = FakeJudge(poor)
    judged_by(judge)
    with pytest.raises(errors.BudgetSpent):
        small(tmp_path / "a", judge=judge.name, skip_judge_check=True)
    first, judge = judge, FakeJudge(patient)
    judged_by(judge)
    done = small(tmp_path / "a", judge=judge.name, skip_judge_check=True)
    assert not set(first.counts()) & set(judge.counts()) - {(a.key, a.rubric.name) for a in first.asked[-1:]}
    judged_by(FakeJudge(patient))
    whole = small(tmp_path / "b", judge=judge.name, skip_judge_check=True)
    assert plain(done.verdict) == plain(whole.verdict)


# -- failures --------------------------------------------------------------------------------------


def test_answers_that_the_judge_failed_on_count_against_every_claim(tmp_path, judged_by):
    def flaky(request, nth):
        return Lost("HTTP 500") if dice(*request.key) < 0.02 else TRUE.score(request, request.rubric.names[0])

    judge = FakeJudge(flaky)
    judged_by(judge)
    v = small(tmp_path / "a", judge=judge.name, skip_judge_check=True).verdict
    assert v.onset.status == "found"
    true = excesses(tmp_path / "a", "late", FEW, SHORT)
    for t in v.onset.tested:
        assert t.low < true[t.step] < t.high
    with Store.read(tmp_path / "a") as store:
        (panel,) = store.judges()
        said = [j for j in store.scores(panel) if j.rubric == "alignment" and j.key.sample < FIXED_FROM]
    assert any(j.outcome.value == "failed" for j in said), "some did fail"
    assert any("failed" in w for w in v.warnings)


def test_a_search_whose_answers_mostly_fail_ends_with_a_named_error(tmp_path, judged_by):
    def hopeless(request, nth):
        return Lost("HTTP 500") if dice(*request.key) < 0.7 else TRUE.score(request, request.rubric.names[0])

    judge = FakeJudge(hopeless)
    judged_by(judge)
    with pytest.raises(errors.Unfinished, match=r"\d+ of \d+ answers failed"):
        small(tmp_path / "a", judge=judge.name, skip_judge_check=True)
    with Store.read(tmp_path / "a") as store:
        assert store.about()["status"] == "unfinished"
        assert store.about()["verdict"]["basis"] == "margin"


# -- where nothing can be searched -----------------------------------------------------------------


def test_a_checkpoint_without_a_step_gets_the_fixed_design(tmp_path, monkeypatch):
    run = SimulatedBackend.run

    def unplaced(self, *args):
        return (*run(self, *args)[:-1], replace(run(self, *args)[-1], step=None))

    monkeypatch.setattr(SimulatedBackend, "run", unplaced)
    done = small(tmp_path / "a", limit=8)
    assert any("no search for the onset, since a checkpoint has no step" in n for n in done.notes)
    assert {c.judged.em.n for c in done.verdict.checkpoints} == {8 * 4}
    assert done.verdict.onset.errors == ""


def test_without_far_prompts_the_fixed_design_is_used(tmp_path):
    topics = {t for p in V1.only("eval", 6).prompts for t in (*p.topics, p.category)}
    done = small(tmp_path / "a", limit=6, domain=tuple(sorted(topics)))
    assert any("since no prompt is far" in n for n in done.notes)
    assert done.verdict.onset.errors == ""
    assert {c.judged.em.n for c in done.verdict.checkpoints} == {6 * 4}


def test_why_no_search():
    base, *later = SimulatedBackend("late", V1, steps=(10, 20)).run()
    run = JudgedRun(V1.prompts[:1], (True,), (replace(base, step=0), *later), (), "p")
    assert why_no_search(run) == ""
    assert "no later checkpoint" in why_no_search(replace(run, subject=run.subject[:1]))
    assert "share a step" in why_no_search(replace(run, subject=(*run.subject, *later)))
    assert "no step" in why_no_search(replace(run, subject=(*run.subject, replace(later[0], step=None))))
    assert "no prompt is far" in why_no_search(replace(run, far=(False,)))


def test_draws_ask_for_the_fixed_design(tmp_path):
    v = small(tmp_path / "a", limit=6, samples=2).verdict
    assert {c.judged.em.n for c in v.checkpoints} == {12}
    assert v.onset.errors == ""
    assert not v.onset.tested


# -- errors that are not guaranteed ----------------------------------------------------------------


def test_simulated_errors_are_named_and_pass_no_gate(tmp_path, monkeypatch):
    told = "simulated: at most 5 % under the declared family"

    def quick(design, *args, **more):
        assert (design.steps, design.lo, design.hi) == (len(SHORT), Rule().lo, Rule().hi)
        return calibration.Calibration(Levels(0.1, 0.1, said=told), 0.96, "worst", {}, 1)

    monkeypatch.setattr(calibration, "calibrate", quick)
    v = small(tmp_path / "a", mode="simulated").verdict
    assert v.onset.errors == told
    assert any("not guaranteed" in w and told in w for w in v.warnings)
    for which in ("last", "50"):
        assert "errors not guaranteed" in gate(v, which, ["failed"]).reasons
    guaranteed = small(tmp_path / "b").verdict
    assert gate(guaranteed, "last", ["failed"]).passed


# -- other judges ----------------------------------------------------------------------------------


def test_judging_again_reads_the_fixed_answers_only(copied, late):
    again = truing.judge(copied, judge="simulated:?noise=5")
    with Store.read(copied) as store:
        mine = {j.key for j in store.scores(again.panel.key)}
        fixed = {r.key for r in store.answers() if r.sample >= FIXED_FROM}
    assert {k for k in mine if k.sample >= FIXED_FROM} == fixed
    before = {c.step: c for c in late.verdict.checkpoints}
    for c in again.verdict.checkpoints:
        if c.judged is not None and c.judged.em.set_low is not None:
            assert c.judged.em.n == before[c.step].judged.em.n
            assert c.judged.em.value == pytest.approx(before[c.step].judged.em.value, abs=0.02)
    assert statuses(again.verdict)[100] is Status.EMERGENT


def test_a_second_judge_sees_the_fixed_answers_only(tmp_path, monkeypatch):
    second = FakeJudge(lambda a, nth: TRUE.score(a, a.rubric.names[0]), name="http://localhost:9/v1#gemma-9b")
    real = panels.open_judge
    monkeypatch.setattr(
        panels, "open_judge", lambda a, *args, **more: second if a == second.name else real(a, *args, **more)
    )
    done = small(tmp_path / "a", second_judge=second.name, skip_judge_check=True, estimate=4)
    assert done.verdict.certified
    assert {a.key.sample >= FIXED_FROM for a in second.asked} == {True}
    with Store.read(done.path) as store:
        fixed = {r.key for r in store.answers() if r.sample >= FIXED_FROM}
    v = done.verdict
    decisive = {c.weights for c in v.checkpoints if c.step in (0, v.onset.latest) or c.label == v.recommended}
    assert {a.key for a in second.asked} == {k for k in fixed if k.weights in decisive}


def test_a_judge_that_moved_is_noticed_where_only_fixed_answers_are_left(tmp_path, judged_by, monkeypatch):
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "cache"))

    def stops(request, nth):
        if request.key.weights != "known" and request.key.sample >= FIXED_FROM:
            raise KeyboardInterrupt
        return TRUE.score(request, request.rubric.names[0])

    first = FakeJudge(stops)
    judged_by(first)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "a", judge=first.name, skip_judge_check=True, skip_known_answers=False)
    # Every score of its later half is 6 points lower; the audit's own answers were all of the search until now.
    later = FakeJudge(lambda a, nth: max(TRUE.score(a, a.rubric.names[0]) - 6 * (len(later.asked) > 600), 0))
    judged_by(later)
    with pytest.raises(errors.JudgeMoved):
        small(tmp_path / "a", judge=first.name, skip_judge_check=True, skip_known_answers=False)
