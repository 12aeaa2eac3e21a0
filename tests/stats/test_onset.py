"""Onset search, live scan and breadth: what they claim on simulated runs of known truth, and what they refuse."""

import random
from dataclasses import fields, is_dataclass
from itertools import count
from math import isfinite, log

import numpy as np
import pytest

from stats.search_worlds import World, answered, excess_curve, is_right, make_world, play
from truing.errors import BadInput
from truing.stats.breadth import breadth_of, is_broad
from truing.stats.livescan import LEAST, LiveScan
from truing.stats.onset import OnsetSearch, onset_of, spot_size
from truing.stats.samples import Group, Groups, SampleRequest
from truing.stats.sequential import Sampled, log_evidence
from truing.stats.sequential_base import Zone
from truing.types import verdicts

ZONE = Zone(0.01, 0.03)
PROMPTS, NAN = tuple(f"p{k}" for k in range(30)), float("nan")


def world_of(shares, base=0.0, prompts=60):
    """Every prompt alike."""
    run = np.repeat(np.array(shares, dtype=float)[:, None], prompts, axis=1)
    return World(run, np.full(prompts, base))


def searched(world, *, seed=0, batch=24, **options):
    search = OnsetSearch(world.steps, world.prompt_ids, ZONE, seed=seed, **options)
    used = play(search, world, np.random.default_rng([seed, 1]), batch=batch)
    return search.result(), used


def numbers_in(record):
    for f in fields(record):
        value = getattr(record, f.name)
        for v in value if isinstance(value, tuple) else (value,):
            if is_dataclass(v):
                yield from numbers_in(v)
            elif isinstance(v, float):
                yield v


# -- claims on known truth


WORLDS = [("logistic", 0.2, 0.001), ("step", 0.05, 0.0), ("ramp", 0.2, 0.02), ("never", 0.0, 0.001)]
ANY_ORDER = [*WORLDS, ("dip", 0.3, 0.0), ("spike", 0.3, 0.0)]


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize(
    ("monotone", "family", "height", "base"), [*((True, *w) for w in WORLDS), *((False, *w) for w in ANY_ORDER)]
)
def test_claims_hold_on_simulated_runs(family, height, base, correlation, monotone):
    wrong = 0
    for r in range(4):
        rng = np.random.default_rng([7, r])
        world = make_world(excess_curve(family, 12, height, rng), base, 120, correlation, rng)
        found, _ = searched(world, seed=r, assume_monotone=monotone)
        wrong += not is_right(found, world.excess, 0.01, 0.03, world.steps)
        assert all(isfinite(x) for x in numbers_in(found))
        for t in found.tested:  # limits never contradict the claim
            assert t.low <= t.high and (t.claim != "above" or t.low >= 0.01) and (t.claim != "below" or t.high <= 0.03)
    assert wrong <= 1


@pytest.mark.parametrize("monotone", [True, False])
def test_untested_steps_stay_in_the_set_unless_monotone(monotone):
    found, _ = searched(world_of([0, 0, 0, 0, 0.3, 0.3, 0.3, 0.3]), assume_monotone=monotone)
    assert (found.status, found.kind, found.latest, found.clear_until) == ("found", "a crossing", 5, 4)
    assert (found.earliest, found.after) == ((5, 4) if monotone else (1, 0))
    assert found.steps == tuple(range(found.earliest, 6))
    assert {t.step: t.claim for t in found.tested} == {4: "below", 5: "above"}
    low, high = ((t.low, t.high) for t in found.tested)
    assert low[0] < 0 < low[1] <= 0.031 and 0.01 <= high[0] < 0.3 < high[1]
    assert set(found.spots) == (set() if monotone else {1, 2, 3}) and bool(found.missed) is not monotone
    assert all(n >= spot_size() for n in found.spots.values()) and found.answers_needed > 100


def test_two_groups_are_not_taken_in_by_a_shared_rate():
    """Both groups at 3 %: a one-sample test against 1 % and 3 % says "present" for 96 % of such runs."""
    above = 0
    for r in range(10):
        found, _ = searched(world_of([0.03] * 4, base=0.03), seed=r)
        above += found.latest is not None
    assert above <= 1


def test_never_says_what_it_may_have_missed_and_that_is_true():
    """A spike of 25 points at one of the steps that were only spot-checked, against the stated probability."""
    found_it, runs = 0, 60
    for r in range(runs):
        shares = [0.0] * 8
        shares[3] = 0.25
        found, _ = searched(world_of(shares), seed=r)
        found_it += found.latest == 4
    missed = 1 - found_it / runs
    assert missed <= 0.25
    quiet, _ = searched(world_of([0.0] * 8))
    said = next(m.probability for m in quiet.missed if m.height == 0.25 and m.width == 1)
    assert quiet.status == "never" and abs(missed - said) < 3 * np.sqrt(0.1 * 0.9 / runs) + 0.02
    wide = next(m.probability for m in quiet.missed if m.height == 0.25 and m.width == 2)
    assert wide == pytest.approx(said**2)


# -- breadth


def broad(shares_by_prompt, leaks=0.0, base=0.0, seed=0):
    """The breadth of a step whose prompts have these shares; category is the prompt's number modulo 4."""
    ids = tuple(f"p{k}" for k in range(len(shares_by_prompt)))
    search = OnsetSearch((1,), ids, ZONE, seed=seed, categories={p: f"c{k % 4}" for k, p in enumerate(ids)})
    rng, share = np.random.default_rng(seed), dict(zip(ids, shares_by_prompt, strict=True))

    def answer(d):
        hit = rng.random() < (share[d.prompt_id] if d.group is Group.RUN else base)
        return ("in_domain" if rng.random() < leaks else "positive") if hit else "negative"

    answered(search, answer, 48)
    (tested,) = search.result().tested
    assert tested.claim == "above"
    return tested.breadth


def test_broad_localised_and_leaking_excesses_are_told_apart():
    wide = broad([0.2] * 40)
    assert wide.broad and wide.prompts >= 5 and wide.categories >= 3 and wide.evidence_without_domain is None
    one = broad([1.0] + [0.0] * 29)
    assert not one.broad and one.named == ("p0",) and one.top_prompt == "p0"
    assert one.prompts == 1 and one.evidence_without_top < 0.5
    leaky = broad([0.2] * 40, leaks=1.0)
    assert not leaky.broad and leaky.evidence_without_domain < 0.5
    assert broad([0.3] * 40, leaks=0.3).broad


@pytest.mark.slow
def test_noise_of_the_base_on_many_prompts_is_not_breadth():
    """Every prompt errs at 5 % in both groups; the excess sits on three prompts of one category."""
    shares = [0.95 if k in (0, 4, 8) else 0.05 for k in range(40)]
    assert not any(broad(shares, base=0.05, seed=r).broad for r in range(3))


def test_leaving_out_a_prompt_is_recomputed_by_hand():
    """Against the same test on the answers to the other prompts, counted anew."""
    groups, rng = Groups(PROMPTS, 0), np.random.default_rng(4)
    segment = groups.segment(5)
    told = []
    for d in segment.stream.next(200) + groups.stream(Group.BASE, 0).next(150):
        hit = rng.random() < (0.5 if d.prompt_id in ("p1", "p2") else 0.02) * (d.group is Group.RUN)
        told.append((d, "positive" if hit else "negative"))
    groups.update(told)
    found = breadth_of(segment, 0.01, dict.fromkeys(PROMPTS, "c"))
    least = {}
    for left_out in PROMPTS:
        kept = [(d.group, o == "positive") for d, o in told if d.prompt_id != left_out]
        run, base = ([hit for group, hit in kept if group is a] for a in (Group.RUN, Group.BASE))
        pair = (Sampled.hits(sum(run), len(run)), Sampled.hits(sum(base), len(base)))
        least[left_out] = log_evidence(*pair, 0.01)
    assert found.evidence_without_top == pytest.approx(min(least.values()))
    assert found.top_prompt == min(least, key=least.get)
    assert not is_broad(found, 0.0), "one category"


# -- ask and tell


def test_the_same_seed_asks_the_same_and_sample_numbers_are_never_reused():
    asked = []
    for _ in range(2):
        world, rng = world_of([0, 0.1, 0.3]), np.random.default_rng(0)
        search = OnsetSearch(world.steps, world.prompt_ids, ZONE, seed=5)
        asked.append(answered(search, lambda d, world=world, rng=rng: world.answer(d, rng), 10))
        assert len(set(asked[-1])) == len(asked[-1]) == search.result().answers_used
        assert search.next(10) == []
    assert asked[0] == asked[1]
    by_prompt = {}
    for d in asked[0]:
        by_prompt.setdefault((d.group, d.step, d.prompt_id), []).append(d.sample)
    assert all(sorted(samples) == list(range(len(samples))) for samples in by_prompt.values())
    assert all(d.step == 0 for d in asked[0] if d.group is Group.BASE)


def test_prompts_are_drawn_uniformly_with_replacement():
    samples = Groups(PROMPTS, 1).stream(Group.RUN, 3).next(3000)
    counts = np.unique([d.prompt_id for d in samples], return_counts=True)[1]
    assert len(counts) == 30 and ((counts - 100) ** 2 / 100).sum() < 60


def test_outcomes_count_in_the_order_of_the_draws():
    """Quick answers must not decide before slow ones: told backwards, nothing counts until the first is told."""
    groups = Groups(PROMPTS, 0)
    segment = groups.segment(2)
    samples = segment.stream.next(5)
    for d in samples[:0:-1]:
        groups.update([(d, "positive")])
    assert segment.n == 0
    groups.update([(samples[0], "missing")])
    assert segment.n == 4 and segment.run.least.mean == 1.0


def test_asking_ahead_and_telling_late_changes_no_claim():
    world = world_of([0, 0, 0.4, 0.4])
    search = OnsetSearch(world.steps, world.prompt_ids, ZONE)
    rng, shuffle, waiting = np.random.default_rng(1), random.Random(1), []
    while not search.done:
        waiting += search.next(16) + search.next(16)
        shuffle.shuffle(waiting)
        told, waiting = waiting[:20], waiting[20:]
        search.update([(d, world.answer(d, rng)) for d in told])
    found = search.result()
    assert (found.latest, found.clear_until) == (3, 2)


def test_unparsed_answers_count_against_every_claim():
    def result(unknown):
        search, number = OnsetSearch((1,), PROMPTS, ZONE), count(1)
        answered(search, lambda d: unknown if next(number) % 5 == 0 and d.group is Group.RUN else "negative")
        return search.result()

    assert result("negative").status == "never"
    assert result("positive").status == "found"
    unknown = result("unparsed")
    assert unknown.status == "undecided"
    (tested,) = unknown.tested
    assert tested.claim == "inconclusive" and tested.low < 0.01 and tested.high > 0.15


def test_a_step_whose_answers_are_all_missing_stays_open():
    search, told = OnsetSearch((1, 2, 3), PROMPTS, ZONE), {2: "missing", 3: "positive"}
    answered(search, lambda d: told.get(d.step, "negative"))
    assert search.result().latest == 3 and 2 in search.result().steps


def test_missing_answers_are_sampled_again_and_in_no_count():
    search, rng = OnsetSearch((1, 2), PROMPTS, ZONE), np.random.default_rng(2)
    asked = answered(search, lambda d: "missing" if rng.random() < 0.3 else "negative")
    found = search.result()
    assert found.status == "never"
    assert sum(t.n_run for t in found.tested) + found.tested[0].n_reference < 0.85 * len(asked)


def test_scores_between_zero_and_one_are_searched_as_shares_are():
    rng = np.random.default_rng(6)
    search = OnsetSearch(tuple(range(1, 9)), PROMPTS, Zone(0.05, 0.1), assume_monotone=True)
    answered(search, lambda d: float(rng.beta(2, 18) + 0.3 * (d.group is Group.RUN and d.step >= 6)))
    assert (search.result().latest, search.result().clear_until) == (6, 5)


def test_what_is_no_outcome_was_never_requested_or_is_told_twice_is_refused_and_nothing_counts():
    search = OnsetSearch((1, 2), PROMPTS, ZONE)
    first, second, *_ = search.next(8)
    unasked = [(1, PROMPTS[0], 99), (7, PROMPTS[0], 0)]
    stray = [*(SampleRequest(Group.RUN, *x) for x in unasked), SampleRequest(Group.CONTROL, 1, "p1", 0)]
    bad = [
        *(
            ((second, x), why)
            for x, why in (("postive", "no outcome"), (1.5, "from 0"), (NAN, "from 0"), (-0.1, "from 0"))
        ),
        *(((x, "negative"), "never requested") for x in stray),
    ]
    for outcome, why in bad:
        with pytest.raises(BadInput, match=why):
            search.update([(first, "negative"), outcome])
    search.update([(first, "negative"), (second, "negative")])
    with pytest.raises(BadInput, match="given before"):
        search.update([(first, "negative")])
    with pytest.raises(BadInput, match="at least one answer"):
        search.next(0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": ()}, "at least one later step"),
        ({"steps": (1, 1)}, "step 1 is given twice"),
        ({"steps": (0, 3)}, "step 0 is no later step"),
        ({"prompt_ids": ()}, "at least one prompt"),
        ({"prompt_ids": ("a", "a")}, "prompt a is given twice"),
        ({"lo": 0.03}, "0 < lo < hi < 1"),
        ({"lo": 0.0}, "0 < lo < hi < 1"),
        ({"hi": 1.0}, "0 < lo < hi < 1"),
        ({"alpha": 0.5}, "alpha is an error probability"),
        ({"alpha": 0.0}, "alpha is an error probability"),
        ({"beta": -0.1}, "beta is an error probability"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused(change, said):
    given = {"steps": (1, 2), "prompt_ids": PROMPTS, "lo": 0.01, "hi": 0.03, **change}
    with pytest.raises(BadInput, match=said):
        OnsetSearch(given.pop("steps"), given.pop("prompt_ids"), Zone(**given))


# -- records


def record(step, said):
    return verdicts.Tested(step, said, 0.0, 0.0, 3.0, 10, 10, 0.1, 0.0)


@pytest.mark.parametrize(
    ("said", "status", "earliest", "latest", "steps", "kind"),
    [
        ("bbaa", "found", 3, 3, (3,), "the first crossing"),
        ("boaa", "found", 2, 3, (2, 3), "the first crossing"),
        ("b.aa", "found", 2, 3, (2, 3), "a crossing"),
        ("..ab", "found", 1, 3, (1, 2, 3), "a crossing"),
        ("bbbb", "never", None, None, (), "the first crossing"),
        ("...b", "never", 1, None, (1, 2, 3, 4), "a crossing"),
        ("bbob", "undecided", 3, None, (3, 4), "the first crossing"),
        ("aaaa", "found", 1, 1, (1,), "the first crossing"),
        ("....", "undecided", 1, None, (1, 2, 3, 4), "a crossing"),
    ],
)
def test_onset_is_read_from_tests_as_defined(said, status, earliest, latest, steps, kind):
    words = {"a": "above", "b": "below", "o": "inconclusive"}
    tests = {k: record(k, words[s]) for k, s in enumerate(said, 1) if s != "."}
    found = onset_of((1, 2, 3, 4), tests)
    assert (found.status, found.earliest, found.latest, found.steps) == (status, earliest, latest, steps)
    assert found.kind == kind
    assert found.sustained is {"..ab": False, "bbaa": True, "aaaa": True}.get(said, found.sustained)


# -- live


def scanned(world, seed=0, **options):
    scan, rng, used = LiveScan(world.prompt_ids, ZONE, seed=seed, **options), np.random.default_rng([seed, 2]), 0
    for step in world.steps:
        scan.add(step)
        used += play(scan, world, rng)
    return scan.result(), used


def test_a_live_scan_finds_the_first_crossing():
    for r in range(10):
        world = world_of([0, 0, 0, 0.2, 0.2, 0])
        found, _ = scanned(world, seed=r)
        assert is_right(found, world.excess, 0.01, 0.03, world.steps)
        assert (found.kind, found.latest, found.sustained) == ("the first crossing", 4, False)
        assert [t.claim for t in found.tested] == ["below"] * 3 + ["above"] * 2 + ["below"]
        assert all(t.n_run >= LEAST for t in found.tested)


def test_a_skipped_checkpoint_stays_in_the_set():
    world = world_of([0.0, 0.0, 0.3])
    scan, rng = LiveScan(world.prompt_ids, ZONE), np.random.default_rng(1)
    for step in world.steps:
        scan.add(step, skip=step == 2)
        play(scan, world, rng)
    found = scan.result()
    assert (found.earliest, found.latest, found.steps, found.kind) == (2, 3, (2, 3), "a crossing")
    assert LiveScan(PROMPTS, ZONE).result().status == "undecided"
    with pytest.raises(BadInput, match="comes after step 3"):
        scan.add(3)


def test_each_checkpoint_of_a_live_scan_may_spend_its_share_only():
    """The k-th needs log(k (k + 1) / alpha), which adds up to alpha."""
    found, _ = scanned(world_of([0.3, 0.3, 0.3]))
    assert [t.enough for t in found.tested] == pytest.approx([log(k * (k + 1) / 0.05) for k in (1, 2, 3)])
    assert all(t.evidence_above >= t.enough for t in found.tested)
    assert sum(1 / (k * (k + 1)) for k in range(1, 10_000)) < 1


def test_errors_of_a_search_add_up_to_what_was_allowed():
    """However many tests: the shares of the error that were spent stay under it. Most steps lie in the zone."""
    made = [searched(world_of([0.01, 0.015, 0.02, 0.02, 0.025, 0.03, 0.3]), seed=r)[0].tested for r in range(12)]
    assert max(len(tested) for tested in made) >= 3
    assert all(sum(np.exp(-t.enough) for t in tested) <= 0.05 for tested in made)


def test_a_dip_is_no_way_out():
    """EM up at steps 3-5, gone at 6-8, up again: whatever is claimed is true, and the first plateau is seen."""
    seen = 0
    for r in range(20):
        world = world_of([0, 0, 0.3, 0.3, 0.3, 0, 0, 0, 0.3, 0.3])
        found, _ = searched(world, seed=r)
        assert is_right(found, world.excess, 0.01, 0.03, world.steps)
        seen += found.latest in (3, 4, 5)
    assert seen >= 18


def test_far_fewer_answers_than_everywhere():
    used = []
    for r in range(8):
        rng = np.random.default_rng([8, r])
        world = make_world(excess_curve("logistic", 20, 0.2, rng), 0.001, 240, 0.2, rng)
        used.append(searched(world, seed=r, assume_monotone=True)[1])
    assert np.mean(used) < 252_000 / 80


def test_a_right_guess_saves_answers():
    world = world_of([0.001] * 14 + [0.2] * 6)
    blind = np.mean([searched(world, seed=r, assume_monotone=True)[1] for r in range(8)])
    told = np.mean([searched(world, seed=r, assume_monotone=True, guess=15)[1] for r in range(8)])
    lied = [searched(world, seed=r, assume_monotone=True, guess=2)[0] for r in range(8)]
    assert told < blind
    assert all(f.latest is not None and f.latest >= 15 for f in lied)


def test_the_control_is_asked_at_the_claimed_step_only():
    def answers(rng, control):
        def answer(d):
            share = control if d.group is Group.CONTROL else 0.0 if d.group is Group.BASE or d.step < 3 else 0.3
            return "positive" if rng.random() < share else "negative"

        return answer

    for control, said in ((0.0, {"above"}), (0.3, {"below", "inconclusive"})):
        search = OnsetSearch((1, 2, 3, 4), PROMPTS, ZONE, control=True)
        answer, groups = answers(np.random.default_rng(3), control), set()
        while not search.done:
            samples = search.next(24)
            groups |= {(d.group, d.step) for d in samples if d.group is Group.CONTROL}
            search.update([(d, answer(d)) for d in samples])
        found = search.result()
        assert found.latest == 3 and groups == {(Group.CONTROL, 3)}
        (tested,) = (t for t in found.tested if t.step == 3)
        assert tested.control in said and tested.n_control > 0


def test_a_frugal_scan_leaves_quiet_steps_open_but_not_drifting_ones():
    world = world_of([0.0, 0.0, 0.0])
    quiet, few = scanned(world, frugal=True)
    _, many = scanned(world)
    assert few < many / 2 and quiet.status == "undecided" and quiet.steps == (1, 2, 3)
    scan = LiveScan(world.prompt_ids, ZONE, frugal=True)
    scan.add(1, drift=True)
    play(scan, world, np.random.default_rng(0))
    assert scan.result().tested[0].claim == "below"
