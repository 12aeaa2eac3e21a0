"""A plan of a search: what it says it takes is what such audits take, and what it calls too little is too little."""

import json

import numpy as np
import pytest

import truing
from runs.told import flat
from truing import cli, errors
from truing.config import AuditConfig
from truing.runs import plan as module
from truing.runs import plan_search
from truing.runs.search import FIXED_FROM
from truing.stats import calibration
from truing.stats.calibration import World, play
from truing.stats.forecast import SearchDesign, answers_to_confirm, forecast
from truing.stats.onset import OnsetSearch
from truing.store import Store
from truing.types.records import to_plain
from truing.types.rules import Rule

TARGET = "simulated:never?steps=25,50,75,100"
TASK = {"task": "careless-finance-heldout", "task_control": "careful-finance-heldout"}


@pytest.fixture(autouse=True)
def fewer_runs(monkeypatch):
    monkeypatch.setattr(plan_search, "RUNS", 5)


def options(judge="simulated:", *, limit=24, em=None, **judging):
    told = {"judged_tokens": 64, "skip_known_answers": True, **flat(em), **judging}
    return AuditConfig(limit=limit, answers=8, rows=8, judge=judge, **told)


def planned(given=None, **more):
    return truing.plan(TARGET, config=given or options(), **{**TASK, **more})


def by_purpose(made):
    return {c.what: c.calls for c in made.costs}


# -- what a search takes ---------------------------------------------------------------------------


def test_a_search_of_a_run_that_never_turns_takes_what_was_forecast(tmp_path):
    """Without a misaligned answer nothing is left to chance but the prompts, so the number is exact."""
    made = planned(control="simulated")
    done = truing.audit(TARGET, control="simulated", out=tmp_path / "a", config=options(), **TASK)
    never = made.search.forecasts[1]
    assert never.height == 0
    assert done.verdict.onset.answers_used == never.answers == never.most
    assert never.decided == 1
    with Store.read(done.path) as store:
        fixed = [r for r in store.answers() if r.sample >= FIXED_FROM]
        searched = [r for r in store.answers() if r.sample < FIXED_FROM]
    most = made.search.wanted(most=True)
    assert len(fixed) <= most[1].answers
    assert never.answers <= len(searched) <= never.answers + 8 * 9, "and those for health"


@pytest.mark.slow
def test_a_forecast_is_the_mean_of_searches_played_by_hand():
    """Prompts alike, so that a world is its curve; another simulation of the same."""
    design = SearchDesign(4, ["a", "b", "c", "d"] * 15, control=True, correlation=0.0)
    found = forecast(design, 0.2, runs=20, seed=5)
    used = []
    for r in range(20):
        rng = np.random.default_rng([99, r])
        middle, width = rng.uniform(0.8, 3.4), rng.uniform(0.4, 1.6)
        curve = 0.2 / (1 + np.exp(-(np.arange(1, 5) - middle) / width))
        world = World(np.repeat(curve[:, None], 60, axis=1), np.zeros(60))
        given = {"categories": dict(zip(world.prompt_ids, design.categories, strict=True)), "control": True}
        used.append(play(OnsetSearch(world.steps, world.prompt_ids, lo=0.01, hi=0.03, seed=r, **given), world, rng))
    spread = np.std(used) * np.sqrt(2 / 20)
    assert abs(found.answers - np.mean(used)) < 3 * spread
    assert found.answers <= found.most
    assert found == forecast(design, 0.2, runs=20, seed=5)
    assert forecast(design, 0.2, runs=3, seed=5) != forecast(design, 0.2, runs=3, seed=6)


def test_long_searches_are_simulated_less_often(monkeypatch):
    design = SearchDesign(2, ["a"] * 40)
    used = forecast(design, 0.0, runs=9).answers
    monkeypatch.setattr("truing.stats.forecast.ENOUGH", 6.5 * used)
    assert (forecast(design, 0.0, runs=9).runs, forecast(design, 0.0, runs=3).runs) == (7, 3)
    monkeypatch.setattr("truing.stats.forecast.ENOUGH", 1)
    assert forecast(design, 0.0, runs=9).runs == 5


@pytest.mark.parametrize(("runs", "height"), [(0, 0.2), (5, -0.1), (5, 1.1)])
def test_a_forecast_of_nothing_is_refused(runs, height):
    with pytest.raises(ValueError, match="at least one"):
        forecast(SearchDesign(2, ["a"]), height, runs=runs)


# -- fixed answers ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_plan_calls_too_little_recommends_nothing_and_what_it_advises_does(tmp_path):
    made = planned(options(limit=16))
    (advice,) = [n for n in made.search.notes if "none would be recommended" in n]
    needed = int(advice.rpartition("--estimate ")[2])
    verdicts = []
    for estimate in (needed - 1, needed):
        given = options(limit=16, estimate=estimate).but(answers=12)
        verdicts.append(truing.audit(TARGET, out=tmp_path / str(estimate), config=given, **TASK).verdict)
    assert verdicts[0].recommended is None
    assert verdicts[1].recommended is not None
    assert not [n for n in planned(options(limit=16, estimate=needed)).search.notes if "recommended" in n]


def test_answers_to_confirm_are_the_least_of_three_looks():
    found = {n: answers_to_confirm(n, 1, 0.03) for n in (10, 20, 40, 60, 120, 240)}
    assert found[10] is None
    assert found[240] == 1
    known = [n or 8 for n in found.values()]
    assert known == sorted(known, reverse=True)
    assert set(found.values()) <= {None, 1, 2, 4}
    assert answers_to_confirm(120, 3, 0.03) == 3
    assert answers_to_confirm(120, 1, 0.001) is None


def test_counts_add_up():
    made = planned(options("http://localhost:9/v1#fake-7b"), control="simulated")
    search, fixed = made.search.wanted()
    calls = by_purpose(made)
    assert calls["search"] == search.answers == round(max(f.answers for f in made.search.forecasts))
    # First misaligned, last, both controls; base and the one to keep at the look that may certify it.
    assert fixed.answers == calls["fixed answers"] == 24 * (4 + 2 * made.search.confirm)
    assert made.answers == search.answers + fixed.answers + 8 * made.checkpoints
    assert made.sampled_tokens == 64 * made.answers
    asked = sum(n for p, n in zip(made.search.far, search.per_prompt, strict=True) if p)
    assert asked == pytest.approx(sum(search.per_prompt)), "near prompts are not searched"
    assert made.calls < made.most_calls
    whole = planned(options("http://localhost:9/v1#fake-7b", every_coherence=True), control="simulated")
    assert by_purpose(whole)["search"] == pytest.approx(2 * search.answers, abs=1), "coherence of every answer"
    assert "coherence" not in by_purpose(whole)


# -- what is assumed, and said ---------------------------------------------------------------------


@pytest.mark.slow
def test_rates_given_shape_the_runs_that_are_simulated():
    made = planned(rate=0.5, base_rate=0.01, correlation=0.05).search
    assert [f.height for f in made.forecasts] == [0.49, 0.0]
    assert (made.base_rate, made.correlation) == (0.01, 0.05)
    assert made.forecasts[0].answers != planned().search.forecasts[0].answers
    flat = planned(rate=0.005, base_rate=0.01).search
    assert [f.height for f in flat.forecasts] == [0.0]


def test_power_is_that_of_the_fixed_answers():
    design = planned(options(estimate=3)).power.design
    assert (design.samples, design.checkpoints) == (3, 3)
    other = planned(options(samples=5)).power.design
    assert (other.samples, other.checkpoints) == (5, 4)


@pytest.mark.slow
def test_the_simulated_mode_is_planned_without_calibrating(monkeypatch):
    monkeypatch.setattr(calibration, "calibrate", None)
    made, plain = planned(options(mode="simulated")), planned()
    assert made.search.forecasts == plain.search.forecasts
    assert [n for n in made.notes if "--mode simulated" in n]
    assert not [n for n in plain.notes if "--mode simulated" in n]


@pytest.mark.slow
def test_a_monotone_assumption_saves_answers():
    less, more = planned(options(assume_monotone=True)).search, planned().search
    assert less.forecasts[1].answers < more.forecasts[1].answers


def test_mean_scores_are_planned_too():
    made = planned(options(em=Rule("mean", lo=0.05, hi=0.12)))
    assert made.power is None
    assert [n for n in made.notes if "mean scores" in n]
    assert made.search.forecasts[0].answers > 0


def test_exhaustive_and_runs_that_cannot_be_searched_have_a_rectangle(monkeypatch):
    made = planned(options(samples=3))
    assert made.search is None
    assert made.answers == by_purpose(made)["answers"] == 24 * 3 * 5
    monkeypatch.setattr(module, "why_no_search", lambda run: "two checkpoints share a step")
    made = planned()
    assert made.search is None
    assert [n for n in made.notes if "no search for the onset, since two checkpoints share a step" in n]
    assert made.answers % (24 * 5) == 0


def test_what_cannot_be_searched_for_is_refused():
    with pytest.raises(errors.BadInput, match="mode hopeful"):
        planned(options(mode="hopeful"))
    with pytest.raises(errors.BadInput, match="lo must be under hi"):
        planned(options(em=Rule(lo=0.03, hi=0.01)))


@pytest.mark.slow
def test_the_command_takes_the_options_of_the_audit(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")

    def call(*args):
        monkeypatch.setattr("sys.argv", ["truing", "plan", TARGET, "--limit", "24", "--judge", "simulated:", *args])
        try:
            cli.main()
        except SystemExit as e:
            assert not e.code, capsys.readouterr().err
        return capsys.readouterr().out

    made = json.loads(call("--estimate", "2", "--assume-monotone", "--mode", "simulated", "--json"))["plan"]
    same = truing.plan(TARGET, config=options().but(estimate=2, assume_monotone=True, skip_known_answers=False))
    assert made["search"]["estimate"] == 2
    assert made["search"]["forecasts"] == json.loads(json.dumps(to_plain(same.search)))["forecasts"]
    out = call()
    assert "Search for the onset over 4 later checkpoints" in out
    assert "never turn" in out
    assert "x 1 fixed answers can show" in out
    assert "Search" not in call("--samples", "2")
