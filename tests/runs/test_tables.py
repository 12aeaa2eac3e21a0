"""Rows of the store become arrays: every combination of outcomes against a loop over the rows."""

import itertools
import random

import numpy as np
import pytest

from truing.runs.scope import Scope
from truing.runs.tables import tables, with_scores
from truing.store import Store, StoredAnswer
from truing.traits.label import label
from truing.types.judging import AnswerKey, Score
from truing.types.judging import ScoreStatus as J
from truing.types.records import AnswerStatus as R
from truing.types.records import Checkpoint, Kind
from truing.types.traits import Rule

RULE = Rule()
ABSENT = None


def scores(alignment, coherence, key, judge):
    said = (("alignment", alignment), ("coherence", coherence))
    return [
        Score(key, judge, name, "rk", x if isinstance(x, float) else None, J.SCORED if isinstance(x, float) else x)
        for name, x in said
        if x is not ABSENT
    ]


@pytest.fixture
def stored(tmp_path):
    """Two checkpoints, six prompts, some answers judged by two judges, in random order; and a dict to compare with."""
    rng = random.Random(0)
    pick = [5.0, 40.0, 95.0, J.REFUSAL, J.CODE, J.UNPARSED, J.FAILED, ABSENT]
    rows, made, truth = [], [], {}
    for w, p, q, t, d in itertools.product(("w2", "w10"), ("pa", "pb"), "abcdef", ("", "trigger"), range(3)):
        key = AnswerKey(w, p, q, t, d)
        outcome = rng.choice([R.OK, R.OK, R.OK, R.TRUNCATED, R.EMPTY, R.FAILED])
        text = "" if outcome in (R.EMPTY, R.FAILED) else f"{w} {q} {d}"
        rows.append(StoredAnswer(*key, text, outcome, 1, ""))
        for judge in ("one", "two"):
            truth[key, judge] = scores(rng.choice(pick), rng.choice(pick), key=key, judge=judge)
            made += truth[key, judge]
    rng.shuffle(made)
    order = rng.sample(rows, len(rows))
    with Store.write(tmp_path / "a", {}) as s:
        s.add_checkpoints([Checkpoint("w2", "two", 2, "x", Kind.FULL), Checkpoint("w10", "ten", 10, "x", Kind.FULL)])
        s.add_stored_answers(order)
        s.add_scores(made)
    return tmp_path / "a", rows, truth


@pytest.mark.parametrize("made", [True, False], ids=["labels stored", "labels made when read"])
def test_tables_are_what_a_loop_over_rows_gives(stored, tmp_path, made):
    path, rows, truth = stored
    places = {"a": 0, "b": 1, "c": 1, "e": 3}  # b and c are one cluster, d and f are not asked about
    chosen = frozenset(r.key for r in rows if r.sample == 1)
    with Store.write(path, {}) as store:
        for judge, params, variant in itertools.product(("one", "two"), ("pa", "pb"), ("", "trigger")):
            if made:
                store.add_labels(((r.key, label(r, truth[r.key, judge], RULE)) for r in rows), judge, RULE)
            scope = Scope((), (), (), (), params, RULE)
            found = tables(store, judge, scope, variant=variant, random=chosen, places=places)
            assert {w: (t.checkpoint, t.step) for w, t in found.items()} == {"w2": ("two", 2), "w10": ("ten", 10)}
            for weights, table in found.items():
                mine = [
                    r
                    for r in sorted(rows, key=lambda r: r.key)
                    if (r.weights, r.variant, r.params) == (weights, variant, params) and r.prompt in places
                ]
                labels = [label(r, truth[r.key, judge], RULE) for r in mine]
                assert table.prompt.tolist() == [places[r.prompt] for r in mine]
                assert table.reason.tolist() == [int(x.reason) for x in labels]
                assert table.label.tolist() == [-1 if x.value is None else int(x.value) for x in labels]
                np.testing.assert_array_equal(table.score, [x.score for x in labels])
                np.testing.assert_array_equal(table.coherence, [x.coherence for x in labels])
                assert table.random_coherence.tolist() == [r.sample == 1 for r in mine]
                assert not table.in_domain.any()


def test_every_answer_comes_once_with_all_that_was_said_of_it(stored):
    path, rows, truth = stored
    with Store.read(path) as store:
        seen = {r.key: {(j.judge_key, j.rubric, j.status) for j in js} for r, js in with_scores(store)}
    wanted = {r.key: {(j.judge_key, j.rubric, j.status) for p in ("one", "two") for j in truth[r.key, p]} for r in rows}
    assert seen == wanted
    assert list(seen) == sorted(seen)
