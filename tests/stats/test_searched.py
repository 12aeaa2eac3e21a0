"""What a search says of checkpoints and runs, from tests made by hand: statuses, lines, the onset, the verdict."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from stats.worlds import decided, labelled_of, sampled, screened_of
from truing.stats.status import SEQUENTIAL, sequential_line, untested_breadth
from truing.stats.status import tested_status as status_of
from truing.stats.table import Calibration
from truing.types import verdicts
from truing.types.traits import Rule
from truing.types.verdicts import Convergence, HealthState, Onset, SequentialBreadth, Status

EM, ENOUGH, STEPS, PROMPTS = Rule(), 3.5, (10, 20, 30), 120
NAMES = dict(zip(STEPS, ("a", "b", "c"), strict=True))
BROAD = SequentialBreadth(12, 5, "p3", 5.0, None, ("p3", "p7"), 130, True, 5.0)


def finished(step=10, claim="above", **fields):
    """A finished test of a step."""
    given = {
        "above": {"evidence_above": 5.0, "evidence_below": -4.0, "rate_run": 0.2, "low": 0.05, "high": 0.4},
        "below": {"evidence_above": -4.0, "evidence_below": 5.0, "rate_run": 0.0, "low": -0.05, "high": 0.028},
        "inconclusive": {"evidence_above": 0.1, "evidence_below": 0.2, "rate_run": 0.02, "low": -0.01, "high": 0.06},
    }[claim]
    about = {"enough": ENOUGH, "n_run": 98, "n_reference": 149, "rate_reference": 0.0}
    return verdicts.Tested(**{"step": step, "claim": claim, **about, **given, **fields})


def codes(findings):
    return {f.code: f.params for f in findings}


# -- statuses


def test_below_is_clean_and_inconclusive_is_undecided_with_its_limits():
    status, why = status_of(finished(claim="below"))
    assert status is Status.CLEAN and codes(why)["certified_below"] == {"rate": 0.0, "n": 98, "n_base": 149}
    status, why = status_of(finished(claim="inconclusive"))
    found = codes(why)["left_inconclusive"]
    assert status is Status.UNDECIDED and (found["low"], found["high"]) == (-0.01, 0.06)


NARROW = {
    "broad": (BROAD, Status.PRESENT, None),
    "few prompts": (replace(BROAD, prompts=4, broad=False), Status.LOCALISED, "few_prompts"),
    "few categories": (replace(BROAD, categories=2, broad=False), Status.LOCALISED, "few_prompts"),
    "one prompt": (
        replace(BROAD, evidence_without_top=ENOUGH - 0.1, broad=False), Status.LOCALISED, "top_prompt_tested"
    ),
    "top few": (replace(BROAD, evidence_without_few=1.0, broad=False), Status.LOCALISED, "top_few"),
    "domain": (
        replace(BROAD, evidence_without_domain=ENOUGH - 0.1, broad=False), Status.IN_DOMAIN_ONLY, "in_domain_only"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("breadth", "control"), list(product(NARROW, ("above", "inconclusive", "below", ""))))
def test_above_is_only_as_strong_as_control_and_breadth_allow(breadth, control):
    found, status, code = NARROW[breadth]
    said, why = status_of(finished(control=control, n_control=113 if control else 0, breadth=found))
    short = control in ("inconclusive", "below")
    assert said is (Status.NOT_ATTRIBUTABLE if short else status)
    wanted = {
        "certified_above",
        code,
        "control_not_exceeded" if short else None,
        None if control else "cause_not_tested",
    }
    assert set(codes(why)) == wanted - {None}


def test_a_step_above_whose_breadth_was_not_tested_is_told_apart():
    tests = [finished(), finished(breadth=BROAD), finished(claim="below"), finished(claim="inconclusive")]
    assert [untested_breadth(t) for t in tests] == [True, False, False, False]


# -- lines


def test_a_line_of_the_search_has_shares_but_only_intervals_that_hold_at_every_look():
    group = sampled([3, 1, 0, 0], 5)
    line = sequential_line(group, 4, EM, finished(rate_reference=0.05), level=0.95)
    assert (line.rate.value, line.rate.n, line.reasons["positive"]) == (pytest.approx(4 / 20), 20, 4)
    for e in (line.rate, line.rate_coherent, line.score, line.coherent):
        assert (e.low, e.high, e.set_low, e.set_high, e.method) == (*(None,) * 4, SEQUENTIAL)
    e = line.excess_base
    assert e.value == pytest.approx(0.15) and (e.set_low, e.set_high, e.low, e.high) == (0.05, 0.4, None, None)
    assert (e.n, e.method, line.breadth, line.corrected) == (98 + 149, SEQUENTIAL, None, None)
    nothing = finished(claim="inconclusive", n_run=0, rate_run=None, rate_reference=None)
    assert all(sequential_line(group, 4, EM, t, level=0.95).excess_base is None for t in (None, nothing))


# -- the verdict


def onset(tests, **fields):
    given = {"answers_used": 700, "answers_needed": 300, "errors": "guaranteed", "spots": {}, **fields}
    return replace(Onset("undecided", "a crossing", None, None, None), tested=tuple(tests), **given)


def group(share, each, name, step):
    """A table of `each` answers to every prompt, this share of them positive, spread over all prompts."""
    hits = np.floor((np.arange(PROMPTS) + 1) * share * each).astype(int)
    return sampled(np.diff(hits, prepend=0), each, name=name, step=step)


def few(hits, n=16):
    """n answers, one to each of the first prompts, the first `hits` of them positive."""
    answered = (np.arange(PROMPTS) < n).astype(int)
    return np.where(np.arange(PROMPTS) < hits, answered, 0), answered


def concluded(search, *, fixed=None, searched=None, control=None, states=None, **fields):
    """The verdict of a run with steps 10, 20, 30 whose base has three fixed answers to each prompt."""
    learned = Convergence("skill", "converged", 30, 20)
    run = screened_of(["base", *NAMES.values()], [0, *STEPS], [0.0, 0.4, 0.8, 1.0], states=states, learned=learned)
    fixed = {s: group(share, 3, NAMES[s], s) for s, share in (fixed or {}).items()}
    read = tuple(sampled(*answers, name=NAMES[s], step=s) for s, answers in (searched or {}).items())
    control = {s: group(share, 3, f"control-{s}", s) for s, share in (control or {}).items()}
    subject = [group(0.0, 3, "base", 0), *fixed.values()]
    return decided(labelled_of(subject, PROMPTS, search=search, searched=read, control=control, **fields), run)


@pytest.mark.parametrize("claims", list(product(("above", "below", "inconclusive", ""), repeat=3)))
def test_the_onset_of_every_pattern_of_tests(claims):
    """Against the definition: latest is the first certainly above, earliest the first not certainly below."""
    named = dict(zip(STEPS, claims, strict=True))
    search = onset([finished(s, c) for s, c in named.items() if c])
    found = concluded(search, searched={s: few(0) for s in STEPS}).onset
    latest = next((s for s, c in named.items() if c == "above"), None)
    earliest = next((s for s, c in named.items() if c != "below"), None)
    assert (found.latest, found.earliest) == (latest, earliest)
    if earliest is not None:
        assert found.after == max([0, *(s for s in STEPS if s < earliest)])
        assert found.steps == tuple(s for s in STEPS if s >= earliest and (latest is None or s <= latest))
    never = earliest is None or (latest is None and "inconclusive" not in claims and claims[-1] == "below")
    assert found.status == ("found" if latest is not None else "never" if never else "undecided")
    certified = [s for s, c in named.items() if c == "below" and (latest is None or s < latest)]
    assert found.clear_until == max(certified, default=0)
    later = [c for s, c in named.items() if latest is not None and s > latest]
    whole = latest is not None and all(c == "above" for c in later)
    assert found.sustained is (False if "below" in later else True if whole else None)
    assert (found.answers_used, found.answers_needed, found.errors) == (700, 300, "guaranteed")


FOUND = onset([finished(20, "below"), finished(30, control="above", n_control=113, breadth=BROAD)], spots={10: 16})


def test_the_search_decides_statuses_and_the_fixed_sample_gives_the_numbers():
    v = concluded(FOUND, fixed={20: 0.0, 30: 0.2}, searched={10: few(0), 20: few(1), 30: few(9)}, control={30: 0.0})
    base, spot, clear, bad = v.checkpoints
    assert [c.status for c in v.checkpoints] == [Status.CLEAN, Status.UNTESTED, Status.CLEAN, Status.PRESENT]
    assert codes(spot.findings)["spot_checked"] == {"n": 16} and spot.labelled.searched and not bad.labelled.searched
    assert (clear.labelled.rate.n, bad.labelled.rate.n) == (3 * PROMPTS, 3 * PROMPTS)
    assert bad.labelled.rate.value == pytest.approx(0.2) and base.labelled.rate.set_low is not None
    assert (v.onset.earliest, v.onset.latest, v.onset.clear_until) == (10, 30, 20) and v.recommended == "b"
    assert codes(v.findings)["searched"]["untested"] == ["a"]


def test_a_clean_checkpoint_is_recommended_only_on_answers_outside_the_search():
    without = concluded(FOUND, fixed={30: 0.2}, searched={10: few(0), 20: few(0)}, control={30: 0.0})
    worse = concluded(FOUND, fixed={20: 0.025, 30: 0.2}, searched={10: few(0)}, control={30: 0.0})
    for v, code in ((without, "no_fixed_answers"), (worse, "unconfirmed")):
        assert v.checkpoints[2].status is Status.CLEAN and code in codes(v.checkpoints[2].findings)
        assert v.recommended is None
    against = concluded(FOUND, fixed={20: 0.3, 30: 0.2}, searched={10: few(0)}, control={30: 0.0})
    assert against.checkpoints[2].status is Status.UNDECIDED
    assert "contradicted" in codes(against.checkpoints[2].findings)


def test_a_later_step_above_rests_on_its_own_fixed_answers():
    both = onset([finished(10, control="above", n_control=80, breadth=BROAD), finished(30)], latest=10)
    alone = concluded(both, searched={10: few(9), 30: few(9)}).checkpoints[3]
    assert alone.status is Status.NOT_ATTRIBUTABLE and codes(alone.findings)["breadth_tested_at"] == {"step": 10}
    fixed = concluded(both, fixed={30: 0.3}, searched={10: few(9), 30: few(9)}, control={30: 0.0})
    assert fixed.checkpoints[3].status is Status.PRESENT


def test_a_step_that_broke_stands_for_nothing():
    states = [HealthState.OK] * 3 + [HealthState.COLLAPSED]
    v = concluded(FOUND, fixed={20: 0.0, 30: 0.2}, searched={10: few(0)}, control={30: 0.0}, states=states)
    assert v.checkpoints[3].status is Status.UNDECIDED and v.checkpoints[3].health.broken
    assert v.onset.latest is None and v.onset.status != "found" and v.onset.tested == FOUND.tested
    assumed = onset([finished(20, "below"), finished(30)], clear_until=20, assumed_monotone=True)
    found = concluded(assumed, searched={s: few(0) for s in STEPS}).onset
    assert (found.earliest, found.latest, found.after) == (30, 30, 20)
    states = [HealthState.OK] * 2 + [HealthState.COLLAPSED, HealthState.OK]
    found = concluded(assumed, searched={s: few(0) for s in STEPS}, states=states).onset
    assert (found.earliest, found.latest) == (10, 30)


def test_nothing_is_found_or_excluded_under_a_judge_that_failed_its_calibration():
    poor = Calibration((198, 200), {"aligned": (12, 240), "neutral": (24, 480), "base": (10, 200)})
    for search in (FOUND, onset([finished(s, "below") for s in STEPS])):
        v = concluded(search, fixed={30: 0.2}, searched={10: few(0)}, control={30: 0.0}, calibration=poor)
        assert {c.status for c in v.checkpoints[1:]} <= {Status.UNDECIDED, Status.UNTESTED}
        assert v.onset.status == "undecided"


def test_what_was_read_is_not_said_to_be_not_asked():
    v = concluded(replace(FOUND, spots={}), fixed={30: 0.2}, searched={10: few(2, 40)}, control={30: 0.0})
    assert codes(v.checkpoints[1].findings) == {"looked_at": {"n": 40}} and v.checkpoints[1].labelled.rate.n == 40
    v = concluded(replace(FOUND, spots={}), fixed={30: 0.2}, control={30: 0.0})
    assert set(codes(v.checkpoints[1].findings)) == {"not_requested"}
