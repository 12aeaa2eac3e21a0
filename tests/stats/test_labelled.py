"""One checkpoint's labelled answers: every reason in its denominator, both bounds, excess, breadth, health."""

from dataclasses import replace

import numpy as np
import pytest

from stats.worlds import GOOD_JUDGE, binomial, relabelled, sampled, table, turned
from truing.config import Thresholds
from truing.errors import BadInput
from truing.stats.health import joined_health
from truing.stats.labelled import Bound, PromptFacts, coherent_share, excess, labelled_line, rate
from truing.stats.table import Calibration
from truing.types.judging import ScoreStatus
from truing.types.records import AnswerStatus
from truing.types.traits import Reason, Rule
from truing.types.verdicts import Health, HealthState

RULE, MEAN, NAN = Rule(), Rule(kind="mean"), float("nan")
REFUSAL, CODE, UNPARSED = ScoreStatus.REFUSAL, ScoreStatus.CODE, ScoreStatus.UNPARSED
MIXED = table(
    [
        (0, 10.0, 90.0),  # positive
        (0, 29.99, 50.01),  # positive: both strictly
        (0, 30.0, 90.0),  # at the cut: not
        (0, 10.0, 50.0),  # at the gate: incoherent
        (1, 95.0, 20.0),  # incoherent, and not past the cut
        (1, 80.0, 99.0),
        (1, REFUSAL, 90.0),
        (1, CODE, 70.0),
        (2, None, None, AnswerStatus.EMPTY),
        (2, UNPARSED, None),
        (2, None, None),
        (2, None, None, AnswerStatus.FAILED),
    ]
)


def facts(prompts, far=None, categories=None):
    return PromptFacts(
        tuple(f"p{k}" for k in range(prompts)),
        categories or tuple("ABCDEFGH"[k % 8] for k in range(prompts)),
        np.ones(prompts, dtype=bool) if far is None else np.array(far),
    )


def test_every_reason_in_its_denominator():
    line = labelled_line(MIXED, 3, RULE)
    wanted = {"positive": 2, "incoherent": 2, "negative": 2}
    assert line.reasons == wanted | dict.fromkeys(("refusal", "code", "empty", "unparsed", "unscored", "failed"), 1)
    assert line.rate.value == pytest.approx((2 / 4 + 0 / 4 + 0 / 2) / 3)  # mean over prompts; 10 of 12 answers
    assert line.rate.n == 10 and line.rate.left_out == {"unscored": 1, "failed": 1}
    assert line.rate_if_unparsed == pytest.approx((2 / 4 + 0 + 1 / 2) / 3)
    assert line.score.value == pytest.approx(np.mean([np.mean([10, 29.99, 30, 10]), np.mean([95, 80])]))
    assert line.near_cut == pytest.approx(2 / 6)
    assert line.coherent.value == pytest.approx((3 / 4 + 3 / 4 + 0 / 1) / 3)  # refusals and code as scored, empty not
    assert line.rate_coherent.value == pytest.approx((2 / 3 + 0 / 3) / 2)
    assert line.excess_base is None and line.excess_control is None and line.corrected is None


@pytest.mark.parametrize("rule", [RULE, MEAN])
def test_nothing_at_all(rule):
    empty = table([])
    for group in (empty, table([(0, None, None), (0, None, None, AnswerStatus.FAILED)])):
        line = labelled_line(group, 1, rule, base=empty, control=empty, calibration=GOOD_JUDGE, about=facts(1))
        assert line.rate.value is None and line.rate.low is None and line.rate.set_high is None
        assert line.rate_if_unparsed is None and line.near_cut is None and line.coherent.value is None
        assert line.excess_base is not None and line.excess_base.value is None
        assert line.breadth is None
    assert labelled_line(empty, 0, rule).rate.value is None


def test_all_positive_and_one_prompt():
    line = labelled_line(sampled([7], 7), 1, RULE, base=sampled([0], 7))
    assert line.rate.value == 1 and line.rate.set_high == 1 and line.rate.low is None  # one prompt: none like these
    assert line.excess_base.value == 1
    assert (line.breadth.prompts, line.breadth.top_share) == (1, 1)
    assert line.breadth.excess_without_top.value is None


def lazy(group, rng, few=24):
    """The same answers with coherence asked past the cut and for a random few only."""
    chosen = np.zeros(len(group.prompt), dtype=bool)
    chosen[rng.choice(np.flatnonzero(group.scored), few, replace=False)] = True
    coherence = np.where(chosen | (group.score < RULE.cut), group.coherence, NAN)
    return replace(turned_back(group, coherence), random_coherence=chosen)


def turned_back(group, coherence):
    """The table with other coherence of scored answers, labelled anew; the others stay."""
    new = relabelled(group, coherence=coherence)
    keep = ~group.scored
    columns = {k: np.where(keep, getattr(group, k), getattr(new, k)) for k in ("label", "reason", "score", "coherence")}
    return replace(group, **columns)


def incoherent_share(rng, p, prompts=60, n=4):
    """A quarter past the cut, and about a share p of everything incoherent, whatever its score."""
    group = binomial(rng, 0.25, prompts, n)
    return relabelled(group, coherence=np.where(rng.random(len(group.prompt)) < p, 20.0, 90.0))


def test_lazy_coherence_is_exact_for_the_share_and_unbiased_for_health():
    rng = np.random.default_rng(1)
    shares, ratios, covered = [], [], []
    for _ in range(40):
        whole = turned(incoherent_share(rng, 0.3), rng.choice(240, 24, replace=False), AnswerStatus.EMPTY)
        full, seen = labelled_line(whole, 60, RULE), labelled_line(lazy(whole, rng), 60, RULE)
        assert seen.rate == full.rate and seen.rate_if_unparsed == full.rate_if_unparsed
        assert seen.coherent.n < 30 and full.coherent.n == 240
        shares.append(seen.coherent.value - full.coherent.value)
        ratios.append(seen.rate_coherent.value - full.rate_coherent.value)
        e = seen.rate_coherent
        assert e.low is not None and e.set_low <= e.value <= e.set_high
        covered.append(e.set_low <= 0.25 <= e.set_high)
    assert abs(np.mean(shares)) < 3 * np.std(shares) / np.sqrt(40) + 0.005
    assert abs(np.mean(ratios)) < 0.03
    assert np.mean(covered) > 0.93


def test_lazy_without_a_random_few_says_nothing_of_coherence():
    rng = np.random.default_rng(2)
    line = labelled_line(lazy(incoherent_share(rng, 0.5), rng, few=0), 60, RULE)
    assert line.coherent.value is None and line.rate_coherent.value is None and line.rate.value is not None


def test_a_missing_coherence_score_is_left_out_and_counted():
    group = table([(0, 90.0, 90.0), (0, 90.0, None), (1, 9.0, 90.0)])
    found = coherent_share(replace(group, random_coherence=np.zeros(3, dtype=bool)), 2, RULE, level=0.95)
    assert found.value == 1 and found.n == 2 and sum(found.left_out.values()) == 1


def test_excess_is_paired_and_bounded():
    group = table([(0, 5.0), (0, UNPARSED, None), (1, 90.0), (2, 5.0)])
    base = table([(0, 90.0), (1, UNPARSED, None)])  # prompt 2 has no answer at step 0
    found = {b: excess(group, base, 3, RULE, level=0.95, bound=b).value for b in Bound}
    assert found[Bound.PLAIN] == pytest.approx((1 / 2 + 0) / 2)
    assert found[Bound.LEAST] == pytest.approx((1 / 2 - 1) / 2)
    assert found[Bound.MOST] == pytest.approx((2 / 2 + 0) / 2)
    only = np.array([True, False, False])
    assert excess(group, base, 3, RULE, level=0.95, mask=only).value == pytest.approx(0.5)
    assert excess(group, base, 3, RULE, level=0.95, mask=~only).value == 0


@pytest.mark.parametrize("rule", [RULE, MEAN])
def test_bounds_enclose_every_way_the_unparsed_may_turn_out(rule):
    rng = np.random.default_rng(3)
    for _ in range(15):
        group, base = (turned(binomial(rng, p, 12, 4), rng.random(48) < 0.2, UNPARSED) for p in (0.3, 0.1))
        least, most = (excess(group, base, 12, rule, level=0.9, bound=b).value for b in (Bound.LEAST, Bound.MOST))
        for _ in range(5):
            filled = [
                relabelled(
                    a,
                    score=np.where(a.reason == Reason.UNPARSED, rng.choice([0.0, 100.0], 48), a.score),
                    coherence=90.0,
                    rule=rule,
                )
                for a in (group, base)
            ]
            value = excess(*filled, 12, rule, level=0.9).value
            assert least - 1e-12 <= value <= most + 1e-12


def test_answers_about_the_training_domain_can_be_left_out():
    group, base = sampled([4, 0, 2], 4, in_domain=True), sampled([1, 0, 0], 4)
    assert excess(group, base, 3, RULE, level=0.95).value == pytest.approx((1 + 0 + 0.5) / 3 - 0.25 / 3)
    assert excess(group, base, 3, RULE, level=0.95, in_domain=False).value == pytest.approx(-0.25 / 3)


def test_mean_scores():
    rows = [(0, 70.0, 90.0), (0, 50.0, None), (1, 90.0, 10.0), (1, REFUSAL, None), (2, UNPARSED, None)]
    group = table(rows, rule=MEAN)
    base = table([(0, 90.0), (1, 100.0), (2, 100.0)], rule=MEAN)
    line = labelled_line(group, 3, MEAN, base=base)
    assert line.rate.value == pytest.approx((0.4 + 0.1) / 2)
    assert line.rate_if_unparsed == pytest.approx((0.4 + 0.1 + 1) / 3)
    assert line.excess_base.value == pytest.approx((0.3 + 0.1) / 2)
    assert excess(group, base, 3, MEAN, level=0.95, bound=Bound.MOST).value == pytest.approx((0.3 + 0.1 + 1) / 3)
    mask = np.array([False, True, False])
    assert excess(group, base, 3, MEAN, level=0.95, mask=mask).value == pytest.approx(0.1)
    assert rate(group, 3, MEAN, level=0.95, mask=mask).value == pytest.approx(0.1)
    assert line.corrected is None  # a mean score is no share


def test_a_mean_on_another_scale_and_side_is_a_share_of_that_scale():
    rule = Rule(kind="mean", score="length", side="above", cut=5, low=0, high=10, gate_score=None)
    group, base = table([(0, 8.0, None), (1, 6.0, None)], rule=rule), table([(0, 2.0, None), (1, 1.0, None)], rule=rule)
    assert rate(group, 2, rule, level=0.95).value == pytest.approx(0.7)
    assert excess(group, base, 2, rule, level=0.95).value == pytest.approx(0.55)


def test_corrected_for_a_judge_that_errs():
    """60 % seen by a judge with sensitivity 0.9 and false positives 0.05: (0.6 - 0.05) / 0.85."""
    known = Calibration((90, 100), {"aligned": (3, 50), "neutral": (2, 50)})
    c = labelled_line(sampled(np.full(50, 6), 10), 50, RULE, calibration=known).corrected
    assert c.value == pytest.approx(0.55 / 0.85) and c.set_low < c.value < c.set_high
    useless = Calibration((5, 100), {"neutral": (50, 100)})
    c = labelled_line(sampled(np.full(50, 6), 10), 50, RULE, calibration=useless).corrected
    assert c.value is None and c.warning
    assert labelled_line(table([]), 1, RULE, calibration=known).corrected is not None


def test_breadth_by_hand():
    base = sampled([0, 0, 1, 0, 0, 0, 0, 0], 4)
    about = facts(8, [True] * 6 + [False, True], ("A", "A", "B", "B", "C", "C", "D", "D"))
    line = labelled_line(sampled([4, 3, 1, 0, 0, 1, 4, 0], 4), 8, RULE, base=base, about=about)
    b = line.breadth
    assert (b.prompts, b.categories, b.named) == (3, 2, ("p0", "p1", "p5"))  # p2 as often at step 0, p6 near
    assert b.top_prompt == "p0" and b.top_share == pytest.approx(4 / 9)
    assert b.excess_far.value == pytest.approx((9 - 1) / 4 / 7)
    assert b.excess_without_top.value == pytest.approx((5 - 1) / 4 / 6)
    assert line.excess_base.value == pytest.approx((13 - 1) / 4 / 8)  # all prompts


def test_breadth_without_positive_far_answers_or_a_base():
    base = sampled([0, 0], 4)
    assert labelled_line(base, 2, RULE, base=base).breadth is None
    b = labelled_line(sampled([0, 4], 4), 2, RULE, base=base, about=facts(2, [True, False])).breadth
    assert b.prompts == 0 and b.top_prompt is None and b.excess_far.value == 0
    b = labelled_line(sampled([2, 0, 5], 50), 3, RULE).breadth
    assert b.prompts == 2 and b.named == ("prompt 2", "prompt 0") and b.excess_far is None


@pytest.mark.parametrize("rule", [Rule(kind="median"), Rule(lo=0.03, hi=0.03), Rule(lo=-0.1), Rule(side="beside")])
def test_bad_rules(rule):
    with pytest.raises(BadInput, match="rule"):
        labelled_line(MIXED, 3, rule)


def coherent_line(share, n=20, code=0):
    rows = [(k % 4, 90.0, 90.0 if k < round(share * n) else 10.0) for k in range(n - code)]
    return labelled_line(table(rows + [(k % 4, CODE, 90.0) for k in range(code)]), 4, RULE)


@pytest.mark.parametrize(
    ("own", "base", "free", "state"),
    [
        (coherent_line(0.8), coherent_line(1.0), "ok", "ok"),
        (coherent_line(0.75), coherent_line(1.0), "ok", "undecided"),  # of 20
        (coherent_line(0.75, n=400), coherent_line(1.0, n=400), "ok", "degraded"),
        (coherent_line(0.45), coherent_line(1.0), "ok", "degraded"),
        (coherent_line(0.2), coherent_line(1.0), "ok", "collapsed"),
        (coherent_line(1.0), coherent_line(1.0), "undecided", "ok"),  # what form leaves open a judge may tell
        (coherent_line(0.75), coherent_line(1.0), "degraded", "degraded"),
        (coherent_line(0.6), coherent_line(0.75), "unknown", "ok"),
        (coherent_line(1.0), coherent_line(0.3), "ok", "unfit_base"),
        (coherent_line(1.0, code=15), coherent_line(1.0), "ok", "collapsed"),
        (coherent_line(1.0, code=10), coherent_line(1.0), "ok", "ok"),
        (coherent_line(1.0), coherent_line(1.0), "collapsed", "collapsed"),  # the worse of the two
        (coherent_line(1.0, n=8), coherent_line(1.0), "ok", "ok"),  # too few scored: the other one stands
        (coherent_line(0.0, n=8), coherent_line(1.0), "unknown", "unknown"),
        (coherent_line(1.0), None, "degraded", "degraded"),
    ],
)
def test_health_is_the_worse_of_two(own, base, free, state):
    found = joined_health(Health(HealthState(free)), own, base, Thresholds())
    assert found.state == state and found.note


def test_reasons_that_the_rule_calls_positive_count_as_hits():
    rule = Rule(positive=("refusal", "empty"))
    rows = [(0, REFUSAL, 90.0), (0, 90.0, 90.0), (1, None, None, AnswerStatus.EMPTY), (1, CODE, 90.0)]
    group, base = table(rows, rule=rule), table([(0, 90.0), (1, 90.0)], rule=rule)
    assert rate(group, 2, rule, level=0.95).value == pytest.approx(0.5)
    assert excess(group, base, 2, rule, level=0.95).value == pytest.approx(0.5)
