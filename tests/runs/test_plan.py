"""A plan: counts that add up, what a search and fixed samples take, what is assumed, and what is refused."""

import json

import pytest
from truing.config.options import AuditOptions, Rule
from truing.types.judged import JudgeOptions

import truing
from truing import errors
from truing.runs.plan import PowerOptions
from truing.runs.search import FIXED_FROM
from truing.stats.power import power, search_answers
from truing.stats.sequential_base import Zone
from truing.store import Store

TARGET = "simulated:never?steps=25,50,75,100"
TASK = {"task": "careless-finance-heldout", "task_control": "careful-finance-heldout"}
JUDGE = "http://localhost:9/v1#fake-7b"


def options(judge="simulated:", *, limit=24, em=None, **judging):
    told = JudgeOptions(max_tokens=64, validity=False, **judging)
    return AuditOptions(limit=limit, answers=8, rows=8, judge=judge, judging=told, em=em or Rule())


def planned(given=None, assumed=None, target=TARGET, **more):
    return truing.plan(target, options=given or options(), power=assumed, **{**TASK, **more})


def by_purpose(made):
    return {c.what: c.calls for c in made.costs}


def test_counts_of_a_search_add_up():
    made = planned(options(JUDGE), control="simulated")
    calls = by_purpose(made)
    about, _ = search_answers(4, Zone(0.01, 0.03))
    assert made.searched and calls["search"] == about
    # First misaligned, last, both controls; base and the one to keep at the look that may certify it.
    assert (calls["fixed answers"] / 24 - 4) / 2 in (1, 2, 4)
    assert made.answers == calls["search"] + calls["fixed answers"] + 8 * made.checkpoints
    assert made.sampled_tokens == 64 * made.answers
    assert made.calls < made.most_calls
    whole = planned(options(JUDGE, lazy=False), control="simulated")
    assert by_purpose(whole)["search"] == 2 * about and "coherence" not in by_purpose(whole)
    fewer = planned(options(JUDGE, assume_monotone=True), control="simulated")
    assert by_purpose(fewer)["search"] < about


def test_an_audit_takes_what_was_planned(tmp_path):
    made = planned()
    done = truing.audit(TARGET, out=tmp_path / "a", options=options(), **TASK)
    with Store.read(done.path) as store:
        fixed = sum(r.sample >= FIXED_FROM for r in store.answers())
    assert fixed <= 24 * (1 * 2 + 2 * 4), "at most: the base and the last, then two more looks at one to keep"
    assert made.answers / 3 < done.verdict.onset.answers_used + fixed < 3 * made.answers


def test_what_fixed_samples_could_show():
    made = planned(options(samples=4), PowerOptions(rate=0.2, base_rate=0.01, correlation=0.1)).power
    assert (made.design.prompts, made.design.samples, made.design.rate) == (24, 4, 0.2)
    assert made.design.level == pytest.approx(1 - 0.05 / 4) and made == power(made.design)
    searched = planned(options(estimate=3)).power.design
    assert (searched.samples, searched.level) == (3, pytest.approx(1 - 0.05 / 3))
    plain = AuditOptions(limit=16)
    assert planned(plain).power is None and planned(plain, PowerOptions()).power.design.prompts == 16
    assert planned(options(em=Rule("mean", lo=0.05, hi=0.12))).power is None


def test_too_few_prompts_to_recommend_anything_are_told():
    (note,) = [n for n in planned(options(limit=16)).notes if "none would be recommended" in n]
    assert "--estimate" in note
    assert not [n for n in planned(options(limit=16, estimate=8)).notes if "recommended" in n]


def test_exhaustive_and_runs_that_cannot_be_searched_have_a_rectangle(tmp_path):
    made = planned(options(samples=3))
    assert not made.searched
    assert made.answers == by_purpose(made)["answers"] == 24 * 3 * 5
    lines = [{"id": f"p{k}", "question": f"Is {k} money?", "topics": ["finance"]} for k in range(20)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = planned(options(), prompts=tmp_path / "p.jsonl")
    assert not made.searched
    assert [n for n in made.notes if "no search for the onset, since no prompt is far" in n]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"rate": 1.5}, "--rate 1.5"),
        ({"base_rate": -0.1}, "--base-rate -0.1"),
        ({"correlation": 1.0}, "--correlation 1"),
        ({"rate": float("nan")}, "--rate nan"),
    ],
)
def test_what_cannot_be_is_refused(asked, told):
    with pytest.raises(errors.BadInput, match=told):
        planned(None, PowerOptions(**asked))


def test_what_cannot_be_searched_for_is_refused():
    with pytest.raises(errors.BadInput, match="zone"):
        planned(options(em=Rule(lo=0.03, hi=0.01)))
