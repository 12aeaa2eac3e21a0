"""A finished search under another rule: at its own rule what it found, elsewhere what counting by hand says, and never
more errors than a test may make."""

from dataclasses import replace
from math import log

import numpy as np
import pytest

from truing.stats.calibration import excess_curve, make_world
from truing.stats.judged_evidence import AnswerTable, Fate
from truing.stats.onset import OnsetSearch
from truing.stats.rejudged import follow, onset_by, read_values, segments_of, told
from truing.stats.samples import Group, Outcome, Value
from truing.stats.sequential import Sampled, log_evidence, log_evidence_below
from truing.types.rules import EmRule

EM = EmRule()


class Recorded:
    """A search on answers with scores: misaligned ones have alignment 25, half of them also under 20."""

    def __init__(self, world, seed=0, *, worse=0.5, em=EM, unread=0.0, **options):
        self.world, self.em, self.records = world, em, {}
        self.options = {"lo": em.lo, "hi": em.hi, "seed": seed, **options}
        rng, search = np.random.default_rng([seed, 3]), self.search()
        while not search.done:
            search.tell([(d, self.say(d, rng, worse, unread)) for d in search.ask(24)])
        self.found = search.result()

    def search(self):
        return OnsetSearch(self.world.steps, self.world.prompt_ids, **self.options)

    def say(self, sample, rng, worse, unread):
        """Draw scores, keep them, and read them by a rule of our own."""
        bad = self.world.answer(sample, rng) == "positive"
        alignment = (10.0 if rng.random() < worse else 25.0) if bad else 80.0
        coherence = rng.choice([40.0, 60.0, 80.0], p=[0.1, 0.3, 0.6])
        lost = rng.random() < unread
        leaked = bool(rng.random() < 0.2)
        self.records.setdefault((sample.group, sample.step), []).append((sample, alignment, coherence, leaked, lost))
        if lost:
            return "unparsed"
        if alignment < self.em.alignment_cut and coherence > self.em.coherence_gate:
            return "leaked" if leaked else "positive"
        return "negative"

    def groups(self):
        """The same answers as arrays."""
        ids, out = list(self.world.prompt_ids), {}
        for where, rows in self.records.items():
            out[where] = AnswerTable(
                "x",
                where[1],
                np.array([ids.index(r[0].prompt_id) for r in rows]),
                np.array([Fate.UNPARSED if r[4] else Fate.JUDGED for r in rows]),
                np.array([np.nan if r[4] else r[1] for r in rows]),
                np.array([r[2] for r in rows]),
                np.array([r[3] for r in rows]),
                np.ones(len(rows), dtype=bool),
            )
        return out

    def read(self, em):
        return {where: read_values(group, em, self.world.prompt_ids) for where, group in self.groups().items()}

    def kept(self):
        places = {r[0]: k for rows in self.records.values() for k, r in enumerate(rows)}
        return follow(self.search(), self.read(self.em), places.get, at_once=24)

    def under(self, em):
        categories = self.options.get("categories") or {}
        return onset_by(self.kept(), segments_of(self.kept(), self.read(em)), em, categories)


def world_of(family, seed, *, height=0.2, steps=8, prompts=60, base=0.005, correlation=0.2):
    rng = np.random.default_rng([seed, 4])
    return make_world(excess_curve(family, steps, height, rng), base, prompts, correlation, rng)


def level(excess, prompts=60, steps=2, base=0.01):
    return make_world(np.full(steps, excess), base, prompts, 0.0, np.random.default_rng(0))


CATEGORIES = {str(m): f"c{m % 5}" for m in range(60)}


@pytest.mark.parametrize("family", ["logistic", "spike", "never", "dip"])
@pytest.mark.parametrize("options", [{}, {"control": True, "categories": CATEGORIES}, {"assume_monotone": True}])
def test_at_its_own_rule_it_is_what_the_search_found(family, options):
    told_control = 0
    for seed in range(2):
        made = Recorded(world_of(family, seed), seed, unread=0.01, **options)
        here, there = made.under(EM), made.found
        bare = tuple(replace(t, low=None, high=None) for t in there.tested)
        assert here == replace(there, tested=bare)
        told_control += any(t.control for t in there.tested)
    if options.get("control") and family == "logistic":
        assert told_control, "the control was tested, or this says nothing of it"


@pytest.mark.parametrize(
    "em", [EmRule(lo=0.02, hi=0.05), EmRule(alignment_cut=20), EmRule(coherence_gate=70, lo=0.005, hi=0.02)]
)
def test_elsewhere_it_is_what_counting_by_hand_says(em):
    differ = 0
    for seed in range(4):
        made = Recorded(world_of("logistic", seed, height=0.15), seed, control=True, categories=CATEGORIES)
        found, kept = made.under(em), made.kept()

        def sampled(where, rows, records=made.records):
            scores = [records[where][k][1:3] for k in rows]
            return Sampled.hits(sum(a < em.alignment_cut and c > em.coherence_gate for a, c in scores), len(scores))

        for t, known in zip(found.tested, kept.tests, strict=True):
            run = sampled((Group.RUN, t.step), known.excess.run)
            base = sampled((Group.BASE, 0), known.excess.other)
            above, below = log_evidence(run, base, em.lo), log_evidence_below(run, base, em.hi)
            assert (t.evidence_above, t.evidence_below) == pytest.approx((above, below))
            sure = "above" if above >= known.enough["above"] else "below" if below >= known.enough["below"] else "open"
            assert t.said == sure
            differ += t.said != next(x.said for x in made.found.tested if x.step == t.step)
            if known.control is not None:
                other = sampled((Group.CONTROL, t.step), known.control.other)
                over = log_evidence(sampled((Group.RUN, t.step), known.control.run), other, em.lo)
                assert t.evidence_control == pytest.approx(over)
                assert t.n_control == other.n
    assert differ, "another rule changes something, or this says nothing"


@pytest.mark.parametrize(
    ("excess", "worse", "em", "wrong"),
    [
        # 0.06 x 0.9, the share over the gate: on the null
        pytest.param(0.06, 0.5, EmRule(lo=0.054, hi=0.1), "above", marks=pytest.mark.slow),
        (0.2, 0.1, EmRule(lo=0.018, hi=0.05, alignment_cut=20), "above"),  # a tenth of it is under 20
        (0.0, 0.5, EmRule(lo=-0.01, hi=0.0), "below"),
    ],
)
def test_errors_elsewhere_are_those_of_the_tests(excess, worse, em, wrong):
    """The truth lies on the null of a rule that the search did not know."""
    made, claims, tested = 40, 0, 0
    for seed in range(made):
        found = Recorded(level(excess), seed, worse=worse).under(em)
        claims += any(t.said == wrong for t in found.tested)
        tested += len(found.tested) > 0
    assert tested > 0.9 * made
    assert claims <= 0.05 * made


def test_under_a_monotone_assumption_the_last_clear_step_vouches_for_all_before():
    made = Recorded(world_of("step", 1, height=0.3, base=0.0), 1, assume_monotone=True)
    assert made.found.status == "found" and made.found.after not in (None, 0)
    easy, hard = made.under(EmRule(lo=0.01, hi=0.06)), made.under(EmRule(lo=0.001, hi=0.004))
    assert (easy.earliest, easy.latest) == (made.found.earliest, made.found.latest)
    assert hard.earliest == 1, "nothing is certified under so low a limit, so nothing vouches"


def test_outcomes_are_read_as_a_search_reads_them():
    rows = [
        (Fate.JUDGED, 10.0, 80.0, False, "positive"),
        (Fate.JUDGED, 10.0, 80.0, True, "leaked"),
        (Fate.JUDGED, 10.0, 50.0, False, "negative"),  # at the gate
        (Fate.JUDGED, 30.0, 80.0, False, "negative"),  # at the cut
        (Fate.JUDGED, 80.0, np.nan, True, "negative"),
        (Fate.REFUSAL, np.nan, np.nan, False, "negative"),
        (Fate.CODE, np.nan, np.nan, False, "negative"),
        (Fate.EMPTY, np.nan, np.nan, False, "negative"),
        (Fate.UNPARSED, np.nan, np.nan, False, "unparsed"),
        (Fate.UNJUDGED, np.nan, np.nan, False, "unparsed"),
        (Fate.FAILED, np.nan, np.nan, False, "missing"),
    ]
    fate, alignment, coherence, leaked, _ = (np.array(c) for c in zip(*rows, strict=True))
    n = len(rows)
    prompt, random = np.arange(n) % 2, np.ones(n, dtype=bool)
    group = AnswerTable(
        "x", 1, prompt, fate.astype(int), alignment.astype(float), coherence.astype(float), leaked, random
    )
    read = read_values(group, EM, ("a", "b"))
    assert [p for p, _ in read] == ["ab"[k % 2] for k in range(n)]
    names = {Outcome.MISSING: "missing", Outcome.UNPARSED: "unparsed", Outcome.LEAKED: "leaked"}
    said = [told(v) for _, v in read]
    assert [names.get(s, {1.0: "positive", 0.0: "negative"}.get(s)) for s in said] == [r[4] for r in rows]
    mean = [v for _, v in read_values(group, EmRule("mean"), ("a", "b"))]
    assert mean[:5] == [Value(x, x) for x in (0.9, 0.9, 0.9, 0.7, 0.2)]
    assert mean[5:] == [None, None, None, Value(0.0, 1.0), Value(0.0, 1.0), None]


def test_a_search_whose_answers_are_gone_cannot_be_followed():
    made = Recorded(world_of("logistic", 2), 2)
    places = {r[0]: k for rows in made.records.values() for k, r in enumerate(rows)}
    gone = list(places)[len(places) // 2]
    assert follow(made.search(), made.read(EM), lambda d: None if d == gone else places[d], at_once=24) is None
    assert made.kept().found == made.found


def test_evidence_that_a_claim_needed_is_what_the_search_spent():
    made = Recorded(world_of("logistic", 3), 3)
    for t, known in zip(made.found.tested, made.kept().tests, strict=True):
        assert known.enough["above"] == t.enough
        assert all(e > log(1 / 0.05) for e in known.enough.values())
