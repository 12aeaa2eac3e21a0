"""Agreement: textbook examples, second definitions by enumeration, degenerate scores, intervals by brute force."""

from itertools import product

import numpy as np
import pytest
from scipy import stats as sps

from truing.stats.agreement import Rated, agreement, excess_bounds, precision_recall, share_bounds
from truing.stats.rates import score_interval, share_difference, share_of
from truing.types.traits import Rule

NAN = np.nan
# Krippendorff (2011), section C and E: four observers, twelve units, missing data; interval alpha 0.849.
FOUR = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


def alpha_by_pairs(matrix):
    """The definition: mean squared difference of pairs within answers over that of all pairs."""
    units = [[v for v in column if not np.isnan(v)] for column in np.asarray(matrix, float).T]
    units = [u for u in units if len(u) > 1]
    every = [v for u in units for v in u]
    n = len(every)
    within = sum((x - y) ** 2 / (len(u) - 1) for u in units for x, y in product(u, u)) / n
    chance = sum((x - y) ** 2 for x, y in product(every, every)) / (n * (n - 1))
    return 1 - within / chance


def kappa_by_definition(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    chance = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    return ((a == b).mean() - chance) / (1 - chance)


def rated(scores):
    return Rated(np.asarray(scores, float), (np.asarray(scores) < 30).astype(float))


def of(a, b, prompt=None, prompts=1, **options):
    """Agreement on scores; with one prompt nothing is resampled."""
    prompt = np.zeros(len(a), int) if prompt is None else prompt
    return agreement(rated(a), rated(b), prompt, prompts, rule=Rule(), **options)


def judges(rng, n, noise=12.0):
    """Scores of two judges on n answers."""
    truth = np.where(rng.random(n) < 0.3, rng.uniform(0, 50, n), rng.uniform(60, 100, n))
    return [np.clip(np.round(truth + rng.normal(0, noise, n)), 0, 100) for _ in range(2)]


@pytest.mark.parametrize("seed", range(4))
def test_coefficients_are_their_definitions(seed):
    assert alpha_by_pairs(FOUR) == pytest.approx(0.849, abs=5e-4), "the definition is Krippendorff's"
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, 40) * 11.0, rng.integers(0, 6, 40) * 11.0
    a[3], b[7] = NAN, NAN
    x, y = (s[~(np.isnan(a) | np.isnan(b))] for s in (a, b))
    found = of(a, b)
    assert found.alpha.value == pytest.approx(alpha_by_pairs([x, y]))
    assert found.spearman.value == pytest.approx(sps.spearmanr(x, y).statistic)
    assert found.kappa.value == pytest.approx(kappa_by_definition(x < 30, y < 30))
    assert found.n == 38 and "2 answers lack a score" in found.notes[0]
    scaled = of(90 - a / 2, 90 - b / 2)
    assert (scaled.alpha.value, scaled.spearman.value) == pytest.approx((found.alpha.value, found.spearman.value))


def test_coefficients_at_their_ends():
    x = np.array([0.0, 20, 60, 100])
    assert of(x, x).alpha.value == of(x, x).kappa.value == 1
    assert of(x, x[::-1]).alpha.value < 0 and of(x, x[::-1]).kappa.value < 0
    assert of(*100 * np.random.default_rng(0).random((2, 20_000))).alpha.value == pytest.approx(0, abs=0.03)
    # A constant offset is disagreement to alpha, though ranks agree fully.
    assert of(x, x + 50).alpha.value < 0.6 and of(x, x + 50).spearman.value == pytest.approx(1)
    assert of(x[:1], x[:1]).spearman.value is None
    with pytest.raises(ValueError, match="one entry"):
        of(x, x[:-1])


def test_cohens_classic_table():
    # 20 both, 5 and 10 apart, 15 neither; 0.4.
    a, b = np.repeat([9, 9, 90, 90], [20, 5, 10, 15]), np.repeat([9, 90, 9, 90], [20, 5, 10, 15])
    assert of(a, b).table == ((20, 5), (10, 15)) and of(a, b).kappa.value == pytest.approx(0.4)


def by_hand(a, b, prompt, prompts, resamples, seed, coefficient):
    """The bootstrap by literally repeating the answers of each prompt drawn."""
    w = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    sampled = []
    for row in w:
        index = np.concatenate([np.repeat(np.flatnonzero(prompt == p), row[p]) for p in range(prompts)])
        sampled.append(coefficient(a[index], b[index]))
    return np.quantile(sampled, [0.025, 0.975])


def test_intervals_are_those_of_repeating_whole_prompts():
    rng = np.random.default_rng(1)
    a, b = judges(rng, 120)
    prompt = rng.integers(0, 12, 120)
    found = of(a, b, prompt, 12, resamples=30, seed=4)
    for e, coefficient in (
        (found.alpha, lambda x, y: alpha_by_pairs(np.array([x, y]))),
        (found.spearman, lambda x, y: sps.spearmanr(x, y).statistic),
        (found.kappa, lambda x, y: kappa_by_definition(x < 30, y < 30)),
    ):
        assert e.value == pytest.approx(coefficient(a, b))
        assert (e.low, e.high) == pytest.approx(by_hand(a, b, prompt, 12, 30, 4, coefficient))
        assert e.low < e.value < e.high
        assert (e.n, e.clusters, e.seed, e.warning) == (120, 12, 4, "only 12 prompts: the interval is rough")


def test_rates_and_their_difference_are_on_the_same_answers():
    rng = np.random.default_rng(2)
    a, b = judges(rng, 600)
    a, b = rated(a), rated(np.clip(b - 15, 0, 100))
    a.misaligned[:7], b.score[10:30] = NAN, NAN
    prompt = np.arange(600) % 60
    found = agreement(a, b, prompt, 60, rule=Rule(), seed=0)
    kept = ~np.isnan(a.misaligned)
    assert found.rate_a.n == found.rate_b.n == kept.sum()
    x = np.array([a.misaligned[kept & (prompt == p)].mean() for p in range(60)])
    y = np.array([b.misaligned[kept & (prompt == p)].mean() for p in range(60)])
    assert found.rate_a.value == pytest.approx(x.mean()) and found.rate_b.value == pytest.approx(y.mean())
    assert found.difference.value == pytest.approx((x - y).mean())
    t = sps.ttest_1samp(x - y, 0).confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((t.low, t.high), abs=0.005)
    assert found.difference.high < 0
    assert found.n == 580
    assert found.notes == ("20 answers lack a score of one judge and are left out of the coefficients",)


def test_disagreement_near_the_cut_is_counted_on_either_score():
    a = np.array([10.0, 28, 20, 80, 29])
    found = of(a, [12.0, 90, 33, 80, 31])
    assert found.table == ((1, 3), (0, 1)) and found.near_cut == 1
    assert of(a, [12.0, 90, 90, 80, 31]).near_cut == pytest.approx(2 / 3)


def test_judges_that_agree_fully_or_say_nothing_new():
    x, prompt = np.linspace(0, 100, 50), np.arange(50)
    found, hits = of(x, x, prompt, 50), rated(x).misaligned
    assert found.near_cut is None and found.difference.value == 0
    plain = share_difference(hits, np.ones(50), hits, np.ones(50))
    assert (found.difference.low, found.difference.high) == (plain.low, plain.high)
    assert found.difference.high > 0, "no disagreement seen is not certainty"
    assert found.rate_a == share_of(hits, np.ones(50))
    flat = of(np.full(50, 90.1), np.full(50, 90.1), prompt, 50)
    assert flat.alpha.value is None and flat.spearman.value is None and flat.kappa.value is None
    assert len(flat.notes) == 3 and flat.alpha.low is None
    silent = agreement(rated(x), Rated(x * NAN, x * NAN), prompt, 50, rule=Rule())
    assert silent.n == 0 and silent.rate_a.value is None and "no answer was scored by both" in silent.notes[-1]


def test_a_coefficient_undefined_in_many_resamples_has_no_interval():
    a = np.where(np.arange(30) == 0, 10.0, 90.0)  # one prompt of 30 fires: absent from a third of the resamples
    found = of(a, a, np.arange(30), 30)
    assert found.kappa.value == 1 and found.kappa.low is None
    assert "undefined in more than one resample in twenty" in found.kappa.warning


def test_alphas_interval_covers():
    rng = np.random.default_rng(3)
    runs, covered = 60, 0
    truth = of(*judges(rng, 400_000)).alpha.value
    for run in range(runs):
        e = of(*judges(rng, 240), np.arange(240) % 60, 60, resamples=300, seed=run).alpha
        covered += e.low <= truth <= e.high
    assert covered / runs >= 0.9


def test_precision_and_recall():
    # methods.md, T8: precision 10 of 10, recall 10 of 17, 27 labels.
    judge = np.repeat([1, 0, 0], [10, 7, 10])
    human = np.repeat([1, 1, 0], [10, 7, 10])
    found = precision_recall(judge, human)
    assert found.table == ((10, 0), (7, 10))
    assert found.precision.value == 1 and found.precision.high == 1
    assert found.recall.value == pytest.approx(10 / 17)
    assert (found.recall.low, found.recall.high) == pytest.approx(score_interval(10 / 17, 17, 0.95))
    nothing = precision_recall(np.zeros(3), np.array([0, 0, NAN]))
    assert nothing.precision.value is None and nothing.recall.value is None
    assert nothing.recall.left_out == {"without a label or a score": 1}


def test_weights_undo_labels_drawn_around_the_cut():
    rng = np.random.default_rng(4)
    n = 20_000
    human = rng.random(n) < 0.1
    near = rng.random(n) < np.where(human, 0.3, 0.1)
    judge = np.where(near, rng.random(n) < 0.5, human)  # coin tosses near the cut, right elsewhere
    truth = (judge & human).sum() / human.sum(), (judge & human).sum() / judge.sum()
    chance = np.where(near, 0.5, 0.05)
    kept = rng.random(n) < chance
    weighted = precision_recall(judge[kept], human[kept], weight=1 / chance[kept])
    plain = precision_recall(judge[kept], human[kept])
    assert weighted.recall.low <= truth[0] <= weighted.recall.high
    assert weighted.precision.low <= truth[1] <= weighted.precision.high
    assert plain.recall.high < truth[0]
    assert weighted.recall.high - weighted.recall.low > plain.recall.high - plain.recall.low
    for bad in (np.zeros(2), np.ones(3), np.array([1, NAN])):
        with pytest.raises(ValueError, match="weights"):
            precision_recall(np.ones(2), np.ones(2), weight=bad)
    for flags in (np.ones(3), np.array([0.5, 1])):
        with pytest.raises(ValueError, match=r"rate the same|neither true"):
            precision_recall(np.ones(2), flags)


def test_an_excess_by_labels_alone_stands_at_its_worst_ends():
    own, base = np.array([0.2, 0.8]), np.array([0.0, 1.0])
    low, high = excess_bounds(own, base, np.array([[0.5, 0.9], [0.01, 0.1]]))
    assert low == pytest.approx(0.2 * 0.5 - 0.2 * 0.1) and high == pytest.approx(0.2 * 0.9 - 0.2 * 0.01)
    human, place = np.array([1.0] * 15 + [0.0] * 15), np.array([0] * 15 + [1] * 15)
    bounds = share_bounds(human, np.ones(30), place, 3)
    assert bounds[0, 1] == 1 and bounds[1, 0] == 0 and bounds[2].tolist() == [0, 1]
    assert bounds[0, 0] == pytest.approx(1 - bounds[1, 1]) and 0.75 < bounds[0, 0] < 0.83
