"""Sensitivity of stored audits: at the stored rule the stored verdict, elsewhere what an audit by that rule says."""

import hashlib
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

import truing
from runs.told import flat
from truing import cli, errors
from truing.config import AuditConfig, Thresholds
from truing.runs import sensitivity as module
from truing.runs.judge import stored_prompts, stored_run
from truing.runs.judged_audit import judge_groups, judged_evidence
from truing.runs.rejudged import raw_run
from truing.runs.search import FIXED_FROM
from truing.runs.sensitivity import LOST, SEARCHED, SIMULATED, sensitivity
from truing.stats import calibration
from truing.stats.calibration import LADDER, Calibration
from truing.stats.inquiry import Levels
from truing.stats.judged_verdict import judge_verdict
from truing.stats.sensitivity import CONVERGED, CUT, GATE, ZONE, Grid
from truing.store import Store, write_json
from truing.types.judging import Score, ScoreStatus
from truing.types.rules import Rule
from truing.types.verdicts import Verdict

TASK = {"task": "careless-finance-heldout", "task_control": "careful-finance-heldout"}
URI = "simulated:late?steps=15,30,45,60,75,90"
JUDGE = "simulated:?noise=12&miss=0.1"
SMALL = Grid((0.8, 0.9, 0.99), ((0.01, 0.03), (0.02, 0.05)), (20, 30, 40), (30, 50))
LESS = {(a, "emergent") for a in ("localised", "domain leak", "misaligned not attributable")}
"""(where some coherence is unknown, where all is known): not more than what is true"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv("TRUING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def audited(out, judge=JUDGE, *, em=None, rule=None, **judging):
    told = {"samples": 5, "judged_tokens": 64, "skip_known_answers": True, **flat(em), **judging}
    given = AuditConfig(limit=24, answers=12, rows=12, judge=judge, **told)
    if rule is not None:
        given = AuditConfig(limit=24, answers=12, rows=12, rule=rule)
    return truing.audit(URI, control="simulated", out=out, config=given, **TASK).path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One audit by a judge that was asked for every coherence, and one that was asked lazily."""
    path = tmp_path_factory.mktemp("sensitivity")
    audited(path / "full", every_coherence=True)
    audited(path / "lazy")
    audited(path / "margins", None)
    return path


def stored(path):
    with Store.read(path) as s:
        return Verdict.from_plain(s.about()["verdict"])


def point(found, **thresholds):
    names = {"converged": CONVERGED, "zone": ZONE, "cut": CUT, "gate": GATE}
    wanted = {**found.stored, **{names[k]: v for k, v in thresholds.items()}}
    return next(p for p in found.points if p.thresholds == wanted)


def said_of(found, **thresholds):
    return {name: (s.value, s.is_open) for name, s in point(found, **thresholds).said.items()}


@pytest.mark.parametrize("name", ["full", "lazy", "margins"])
def test_at_the_stored_rule_it_is_the_stored_verdict(folder, name):
    found, verdict = sensitivity(folder / name, SMALL), stored(folder / name)
    said = point(found).said
    kept = verdict.candidate if name == "margins" else verdict.recommended
    assert said["candidate" if name == "margins" else "recommended"].value == (kept or "none")
    assert said["gap"].value == verdict.gap.replace("_", " ")
    assert said["retained"].number == (verdict.retained_of_best.value if verdict.retained_of_best else None)
    onset, step = verdict.onset, verdict.convergence_skill.step
    assert onset.status == "found"
    ends = {str(onset.earliest), str(onset.latest)}
    assert set(said["onset"].value.split()[1].split("-")) == ends
    assert said["convergence"].value == f"step {step} (trait)"
    assert len(found.points) == (3 if name == "margins" else 3 * 2 * 3 * 2)


def test_raw_scores_become_the_arms_that_the_verdict_was_computed_from(folder):
    for name in ("full", "lazy"):
        with Store.read(folder / name) as s:
            verdict = stored(folder / name)
            made = raw_run(s, s.about(), verdict, verdict).evidence(Rule()).subject
            run = stored_run(s, s.about(), stored_prompts(s.about()).prompts)
            truth = judge_groups(s, verdict.panel, run, Rule())
        assert len(made) == 7
        for group, c in zip(made, run.subject, strict=True):
            for column in ("prompt", "fate", "alignment", "coherence", "leaked", "random_coherence"):
                assert getattr(group, column).tobytes() == getattr(truth[c.weights], column).tobytes(), column


@pytest.mark.parametrize(
    "em",
    [
        Rule(lo=0.02, hi=0.05, cut=20, gate=30),
        pytest.param(Rule(lo=0.02, hi=0.05), marks=pytest.mark.slow),
        pytest.param(Rule(cut=20), marks=pytest.mark.slow),
        pytest.param(Rule(gate=30), marks=pytest.mark.slow),
    ],
)
def test_elsewhere_it_is_what_an_audit_by_that_rule_says(folder, tmp_path, em):
    """The same run, judged from scratch by a judge that is asked for every coherence."""
    other = audited(tmp_path / "a", em=em, every_coherence=True)
    zone = f"{100 * em.lo:g}-{100 * em.hi:g}"
    at = {"zone": zone, "cut": f"{em.cut:g}", "gate": f"{em.gate:g}"}
    here, there = sensitivity(folder / "full", SMALL), sensitivity(other, SMALL)
    assert there.stored[CUT] == at["cut"]
    for converged in ("0.8", "0.9"):
        assert said_of(here, converged=converged, **at) == said_of(there, converged=converged, **at)
    assert said_of(there) == said_of(there, **at)


def test_convergence_elsewhere_is_what_an_audit_by_that_threshold_says(folder, tmp_path):
    audited(tmp_path / "a", None, converged_at=0.99)
    there, verdict = sensitivity(tmp_path / "a", SMALL), stored(tmp_path / "a")
    here = sensitivity(folder / "margins", SMALL)
    assert said_of(here, converged="0.99") == said_of(there)
    assert said_of(here) == said_of(there, converged="0.9")
    assert said_of(here) != said_of(there), "this threshold moves it, or the test says nothing"
    assert verdict.convergence_skill.step is None or verdict.convergence_skill.step > 45


def test_coherence_that_was_never_asked_is_said_and_makes_nothing_certain(folder):
    lazy, full = sensitivity(folder / "lazy", SMALL), sensitivity(folder / "full", SMALL)
    (note,) = [n for n in lazy.notes if n.startswith("Cut 40")]
    assert "count both ways" in note
    assert not [n for n in full.notes if n.startswith("Cut 40")]
    for p in lazy.points:
        other = next(q for q in full.points if q.thresholds == p.thresholds)
        if not p.said["claim"].is_open:  # breadth may be less certain too: then it is only localised
            claims = p.said["claim"].value, other.said["claim"].value
            assert claims[0] == claims[1] or claims in LESS, p.thresholds


def test_a_judgement_that_failed_is_left_out_and_an_unread_one_counts_both_ways(folder, tmp_path):
    """Both lose a coherence under the cut, which the stored verdict would treat in two ways."""
    path = tmp_path / "a"
    shutil.copytree(folder / "lazy", path)
    with Store.write(path, {}, running=False) as s:
        verdict = stored(path)
        low = [j for j in s.scores(verdict.panel) if j.rubric == "alignment" and j.score is not None and j.score < 30]
        keys = [j.key for j in low[:2]]
        for key, outcome in zip(keys, (ScoreStatus.FAILED, ScoreStatus.UNPARSED), strict=True):
            old = next(j for j in s.scores_of([key], verdict.panel) if j.rubric == "coherence")
            where = "rubric = 'coherence' AND weights = ? AND prompt = ? AND draw = ?"
            s._db.execute(f"DELETE FROM judgements WHERE {where}", (key.weights, key.prompt, key.sample))
            s.add_scores([Score(key, old.judge_key, "coherence", old.rubric_key, None, outcome)])
        s.flush()
        world = raw_run(s, s.about(), verdict, verdict)
        run = stored_run(s, s.about(), stored_prompts(s.about()).prompts)
        for rule in (Rule(), Rule(cut=20), Rule(gate=30)):
            truth = judge_groups(s, verdict.panel, run, rule)
            for group, c in zip(world.evidence(rule).subject, run.subject, strict=True):
                assert group.fate.tobytes() == truth[c.weights].fate.tobytes()
                assert group.alignment.tobytes() == truth[c.weights].alignment.tobytes()


def test_it_reads_and_nothing_else(folder):
    def state():
        return {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "full").glob("*.*") if p.is_file()
        }

    before = state()
    sensitivity(folder / "full", SMALL)
    after = state()
    assert {k: v for k, v in after.items() if not k.endswith(("-shm", "-wal"))} == {
        k: v for k, v in before.items() if not k.endswith(("-shm", "-wal"))
    }


def test_without_the_task_file_it_goes_on_and_says_so(folder, tmp_path):
    path = tmp_path / "a"
    shutil.copytree(folder / "margins", path)
    about = json.loads((path / "audit.json").read_text())
    write_json(path / "audit.json", {**about, "asked": {**about["asked"], "task": "/nowhere/gone.jsonl"}})
    lost, whole = sensitivity(path, SMALL), sensitivity(folder / "margins", SMALL)
    assert any("task file is gone" in n for n in lost.notes)
    assert not whole.notes
    assert said_of(lost) == said_of(whole), "at the stored threshold the stored convergence stands"
    steps = {p.thresholds[CONVERGED]: p.said["convergence"].value for p in whole.points}
    assert {p.thresholds[CONVERGED]: p.said["convergence"].value for p in lost.points} == steps


def test_folders_without_a_verdict_are_refused(folder, tmp_path):
    with pytest.raises(errors.NotAnAudit):
        sensitivity(tmp_path / "nowhere")
    with Store.write(tmp_path / "begun", {}):
        pass
    with pytest.raises(errors.BadInput, match="no finished verdict"):
        sensitivity(tmp_path / "begun")
    csv = tmp_path / "set.csv"
    csv.write_text("question,response,aligned,coherent\nwhy,because,90,90\n")
    truing.import_answers(csv, out=tmp_path / "import")
    with pytest.raises(errors.BadInput, match="no verdict to vary"):
        sensitivity(tmp_path / "import")


@pytest.mark.parametrize("name", ["lazy", "margins"])
def test_the_command_prints_what_survives(folder, name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setattr(module, "Grid", lambda: SMALL)

    def call(*args):
        monkeypatch.setattr("sys.argv", ["truing", "show", str(folder / name), "--sensitivity", *args])
        try:
            cli.main()
        except SystemExit as e:
            return e.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    code, out, _ = call()
    assert code == 0
    points = 3 if name == "margins" else 36
    assert f"under {points} choices" in out
    assert "convergence" in out
    assert "is ended by" in out
    assert ("alignment cut" in out) == (name == "lazy")
    code, out, _ = call("--json")
    plain = json.loads(out)["sensitivity"]
    assert code == 0
    assert len(plain["points"]) == points
    assert {c["name"] for c in plain["conclusions"]} <= set(plain["points"][0]["said"])
    code, _, err = call("--step", "30")
    assert code == 2
    assert "leave out --step" in err


# -- searched audits -------------------------------------------------------------------------------


def searched_audit(out, family="late", judge=JUDGE, *, em=None, control="simulated", **judging):
    told = {"judged_tokens": 64, "skip_known_answers": True, **flat(em), **judging}
    given = AuditConfig(limit=24, answers=12, rows=12, judge=judge, seed=3, **told)
    return truing.audit(f"simulated:{family}?steps=30,60,90", control=control, out=out, config=given, **TASK).path


@pytest.fixture(scope="module")
def found_by_search(tmp_path_factory):
    return searched_audit(tmp_path_factory.mktemp("searched") / "a")


def again(path, em=None):
    """(stored verdict, what the stored answers say under the stored rule or another one)"""
    verdict = stored(path)
    with Store.read(path) as s:
        margins = Verdict.from_plain(s.about()["margin_verdict"])
        run = raw_run(s, s.about(), verdict, margins)
    rule = em or run.em
    return verdict, judge_verdict(margins, run.evidence(rule), rule, Thresholds(), seed=3), run


def same_verdict(path):
    verdict, made, run = again(path)
    assert run.search is not None
    assert verdict.onset.tested
    for c, d in zip(made.checkpoints, verdict.checkpoints, strict=True):
        assert (c.label, c.status, c.health) == (d.label, d.status, d.health)
        told = [[n for n in x.notes if "left open" not in n] for x in (c, d)]  # which gives limits, left out here
        assert told[0] == told[1]
    bare = tuple(replace(t, low=None, high=None) for t in verdict.onset.tested)
    assert made.onset == replace(verdict.onset, tested=bare)
    assert (made.recommended, made.gap) == (verdict.recommended, verdict.gap)
    return verdict


def test_a_searched_audit_gives_its_verdict_again_at_its_own_rule(found_by_search):
    verdict = same_verdict(found_by_search)
    assert verdict.onset.status == "found"
    assert any(t.control for t in verdict.onset.tested)
    found = sensitivity(found_by_search, SMALL)
    assert found.notes[0] == SEARCHED
    assert len(found.points) == 3 * 2 * 3 * 2
    said = point(found).said
    assert said["claim"].value == next(c for c in verdict.checkpoints if c.step == verdict.onset.latest).status.value
    assert set(said["onset"].value.split()[1].split("-")) == {str(verdict.onset.earliest), str(verdict.onset.latest)}


@pytest.mark.parametrize(
    ("family", "judge", "options"),
    [
        ("late", "simulated:?noise=5&unparsed=0.01", {"assume_monotone": True, "control": ()}),
        pytest.param("never", JUDGE, {"estimate": 4}, marks=pytest.mark.slow),
        pytest.param("spike", JUDGE, {"every_coherence": True, "em": Rule(lo=0.02, hi=0.06)}, marks=pytest.mark.slow),
        pytest.param("late", "simulated:", {"em": Rule("mean", lo=0.05, hi=0.12)}, marks=pytest.mark.slow),
    ],
)
def test_so_do_others(tmp_path, family, judge, options):
    same_verdict(searched_audit(tmp_path / "a", family, judge, **options))


def test_raw_scores_of_a_search_become_what_its_verdict_was_computed_from(found_by_search):
    """Both what it drew and the fixed answers, by other rules too, against the road of the audit itself."""
    for rule in (Rule(), Rule(cut=20), Rule(gate=70)):
        verdict, _, run = again(found_by_search)
        made = run.evidence(rule)
        with Store.read(found_by_search) as s:
            frame = stored_run(s, s.about(), stored_prompts(s.about()).prompts)
            opened = SimpleNamespace(
                panel=SimpleNamespace(key=verdict.panel), judge=SimpleNamespace(name="x"), recorded=True
            )
            truth = judged_evidence(SimpleNamespace(store=s, opened=opened, rule=rule), frame, None, made.search)
        assert frame.fixed_from == FIXED_FROM
        assert made.searched and sum(len(a.fate) for a in made.searched) > 50
        pairs = [*zip(made.subject, truth.subject, strict=True), *zip(made.searched, truth.searched, strict=True)]
        pairs += [(made.control[s], truth.control[s]) for s in truth.control]
        for a, b in pairs:
            assert (a.label, a.step) == (b.label, b.step)
            for column in ("prompt", "fate", "alignment", "coherence", "leaked", "random_coherence"):
                assert getattr(a, column).tobytes() == getattr(b, column).tobytes(), column


def test_a_narrower_zone_leaves_a_search_open_and_a_wider_one_does_not(found_by_search):
    verdict, narrow, _ = again(found_by_search, Rule(lo=0.28, hi=0.281))
    assert narrow.onset.latest is None
    assert "above" not in {t.said for t in narrow.onset.tested}
    assert verdict.onset.latest in {t.step for t in verdict.onset.tested if t.said == "above"}
    _, wide, _ = again(found_by_search, Rule(lo=0.001, hi=0.1))
    assert wide.onset.latest == verdict.onset.latest
    assert {t.step for t in wide.onset.tested} == {t.step for t in narrow.onset.tested}


def test_a_search_in_simulated_mode_is_followed_without_simulating(tmp_path, monkeypatch):
    levels = Levels(*(LADDER[2][0],) * 2, LADDER[2][1], "error under the declared family (worst cell: 96 % right, x)")
    monkeypatch.setattr(calibration, "calibrate", lambda design: Calibration(levels, 0.96, "x", {}, 1))
    path = searched_audit(tmp_path / "a", mode="simulated", control=())
    monkeypatch.setattr(calibration, "calibrate", None)
    same_verdict(path)
    assert SIMULATED in sensitivity(path, SMALL).notes


def test_a_search_that_lost_an_answer_varies_convergence_only(found_by_search, tmp_path):
    path = tmp_path / "a"
    shutil.copytree(found_by_search, path)
    with Store.write(path, {}, running=False) as s:
        s._db.execute("DELETE FROM responses WHERE draw = 1")
        s.flush()
    found = sensitivity(path, SMALL)
    assert LOST in found.notes
    assert set(found.axes) == {CONVERGED}
    assert said_of(found) == said_of(sensitivity(found_by_search, SMALL))


def test_another_judge_of_a_searched_audit_has_fixed_answers_only(found_by_search, tmp_path):
    path = tmp_path / "a"
    shutil.copytree(found_by_search, path)
    truing.judge(path, judge="simulated:?noise=3", skip_known_answers=True)
    verdict, made, run = again(path)
    assert run.search is None
    assert [c.status for c in made.checkpoints] == [c.status for c in verdict.checkpoints]
    assert made.onset == verdict.onset
    assert SEARCHED not in sensitivity(path, SMALL).notes
