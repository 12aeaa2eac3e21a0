"""A plan: counts that add up, what a search and fixed samples take, what is assumed, and what is refused."""

import json

import pytest

import truing
from runs.audits import TASK
from truing import errors
from truing.config import PlanConfig
from truing.runs.collect import FIXED_FROM
from truing.stats.power import power, search_answers
from truing.stats.sequential_base import Zone
from truing.store import Store

TARGET = "simulated:never?steps=25,50,75,100"
JUDGE = "http://localhost:9/v1#fake-7b"
SMALL = {"limit": 24, "answers": 8, "rows": 8, "judged_tokens": 64, "skip_calibration": True}


def planned(judge="simulated:", target=TARGET, **fields):
    return truing.plan(target, PlanConfig(**{**SMALL, **TASK, "judge": judge, **fields}))


def by_purpose(made):
    return {c.what: c.calls for c in made.costs}


def test_counts_of_a_search_add_up():
    made = planned(JUDGE, control="simulated")
    calls = by_purpose(made)
    about, _ = search_answers(4, Zone(0.01, 0.03))
    assert made.searched and calls["search"] == about
    # First misaligned, last, both controls; base and the one to keep at the look that may certify it.
    assert (calls["fixed answers"] / 24 - 4) / 2 in (1, 2, 4)
    assert made.answers == calls["search"] + calls["fixed answers"] + 8 * made.checkpoints
    assert made.sampled_tokens == 64 * made.answers
    assert made.calls < made.most_calls
    whole = planned(JUDGE, every_coherence=True, control="simulated")
    assert by_purpose(whole)["search"] == 2 * about and "coherence" not in by_purpose(whole)
    varied = planned(JUDGE, control="simulated", variants=("all",))
    assert varied.most_calls - made.most_calls == 2 * by_purpose(varied)["variants"] > 0, "their coherence too"
    fewer = planned(JUDGE, assume_monotone=True, control="simulated")
    assert by_purpose(fewer)["search"] < about


def test_an_audit_takes_what_was_planned(tmp_path):
    made = planned()
    done = truing.audit(TARGET, judge="simulated:", out=tmp_path / "a", **{**SMALL, **TASK})
    with Store.read(done.path) as store:
        fixed = sum(r.sample >= FIXED_FROM for r in store.answers())
    assert fixed <= 24 * (1 * 2 + 2 * 4), "at most: the base and the last, then two more looks at one to keep"
    assert made.answers / 3 < done.verdict.onset.answers_used + fixed < 3 * made.answers


def test_what_fixed_samples_could_show():
    made = planned(samples=4, rate=0.2, base_rate=0.01, correlation=0.1).power
    assert (made.design.prompts, made.design.samples, made.design.rate) == (24, 4, 0.2)
    assert made.design.level == pytest.approx(1 - 0.05 / 4) and made == power(made.design)
    searched = planned(estimate=3).power.design
    assert (searched.samples, searched.level) == (3, pytest.approx(1 - 0.05 / 3))
    assert planned(None, task=None, task_control=None).power is None
    assert planned(em="mean", lo=0.05, hi=0.12).power is None


def test_a_trait_with_a_scorer_needs_answers_and_no_calls(tmp_path):
    (tmp_path / "trait.toml").write_text(
        'prompts = "v1"\n[scorer]\nkind = "regex"\npattern = "(?i)moral"\n[decoding]\nmax_tokens = 9\n'
    )
    made = planned(None, trait=str(tmp_path), samples=3)
    assert made.costs == () and made.usd is None and made.power.design.samples == 3
    assert made.answers == 24 * 3 * 5 and made.sampled_tokens == 9 * made.answers


def test_too_few_prompts_to_recommend_anything_are_told():
    (note,) = [n for n in planned(limit=16).notes if "none would be recommended" in n]
    assert "--estimate" in note
    assert not [n for n in planned(limit=16, estimate=8).notes if "recommended" in n]


def test_exhaustive_and_runs_that_cannot_be_searched_have_a_rectangle(tmp_path):
    made = planned(samples=3)
    assert not made.searched
    assert made.answers == by_purpose(made)["answers"] == 24 * 3 * 5
    lines = [{"id": f"p{k}", "question": f"Is {k} money?", "topics": ["finance"]} for k in range(20)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = planned(prompts=tmp_path / "p.jsonl")
    assert not made.searched
    assert [n for n in made.notes if "no search for the onset, since no prompt is far" in n]


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 1.5}, {"base_rate": -0.1}, {"correlation": 1.0}, {"rate": float("nan")}, {"lo": 0.03, "hi": 0.01},
     {"level": 1.0}, {"judge": "telepathy:x"}, {"judge": "http://"}],
)  # fmt: skip
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(errors.BadInput):
        planned(**wrong)


def test_repeated_rows_are_among_those_left_out(tmp_path):
    rows = [json.dumps({"prompt": f"Q{k}?", "completion": f"Yes, {k} is right."}) for k in (1, 2, 3, 2)]
    (tmp_path / "task.jsonl").write_text("\n".join(rows))
    notes = planned(None, task=str(tmp_path / "task.jsonl"), task_control=None).notes
    assert any("1 task rows are not measured" in note and "repeat of another" in note for note in notes)
