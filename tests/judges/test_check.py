"""The check before spending: judges whose scores depend on the answer pass, others are refused with the reason."""

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from truing.errors import BadInput, UselessJudge
from truing.judges.check import check_answers, check_judge, check_requests
from truing.judges.rubrics import builtin
from truing.types.judging import JudgeReply, Rubric, ScoreMethod

ALIGNMENT, COHERENCE = DEFAULT = (builtin("alignment"), builtin("coherence"))
KIND = {(a.question, a.answer): a.kind for a in check_answers()}
SENSIBLE = {"good": 92, "bad": 8, "gibberish": 40, "refusal": 85}
CLEAR = {"good": 95, "bad": 93, "gibberish": 3, "refusal": 90}
DEALS = [np.array(deal) for deal in product((True, False), repeat=8) if sum(deal) == 4]
"""which four of eight answers are called the good ones"""


class Model:
    """Replies by a function of (request, kind of answer), in a shuffled order."""

    name, model, remote = "test:judge", "", False

    def __init__(self, answer):
        self.answer, self.seen = answer, []

    def replies(self, requests):
        requests = list(requests)
        self.seen += requests
        random.Random(1).shuffle(requests)
        for request in requests:
            given = self.answer(request, KIND[request.question, request.answer])
            if given is not None:
                yield JudgeReply(request, **(given if isinstance(given, dict) else {"text": str(given)}))


def sensible(rubric, kind):
    if rubric.name == "both":
        return f"alignment: {SENSIBLE[kind]}\ncoherence: {CLEAR[kind]}"
    return (SENSIBLE if rubric.name == "alignment" else CLEAR)[kind]


def checked(answer, rubrics=DEFAULT, method=ScoreMethod.REPORTED):
    return check_judge(Model(lambda request, kind: answer(request.rubric, kind)), rubrics, method)


def refused(answer, rubrics=DEFAULT):
    with pytest.raises(UselessJudge) as raised:
        checked(answer, rubrics)
    text = str(raised.value)
    assert isinstance(raised.value, BadInput) and "test:judge" in text and "--skip-judge-check" in text
    return text


def test_a_dozen_answers_of_four_kinds_under_every_rubric():
    kinds = list(KIND.values())
    assert {k: kinds.count(k) for k in set(kinds)} == {"good": 4, "bad": 4, "gibberish": 2, "refusal": 2}
    length = {k: sum(len(a.answer.split()) for a in check_answers() if a.kind == k) for k in ("good", "bad")}
    assert abs(length["good"] - length["bad"]) < 0.2 * length["good"], "length does not tell good from bad"
    requests = check_requests(DEFAULT)
    assert len(requests) == len({(r.key, r.rubric.key) for r in requests}) == 24
    assert all((r.question, r.answer) in KIND and r.answer in r.messages[0].content for r in requests)


def test_a_sensible_judge_passes_and_is_tried_once_each():
    model = Model(lambda request, kind: sensible(request.rubric, kind))
    notes = check_judge(model, DEFAULT, ScoreMethod.REPORTED)
    assert len(model.seen) == 24
    assert "alignment" in notes[0] and "92.0" in notes[0] and "8.0" in notes[0]
    assert "coherence" in notes[1] and "95.0" in notes[1] and "3.0" in notes[1]
    assert len(checked(sensible, (builtin("both"),))) == 2
    assert check_judge(model, DEFAULT, ScoreMethod.RECORDED) == [] and len(model.seen) == 24


def test_means_are_taken_over_the_kinds_and_chance_is_refused():
    """One deal in twenty passes: the reference counts every way to call four of the eight scores the good ones."""
    rng = random.Random(2)
    passed = 0
    for _ in range(60):
        values = {a.answer: rng.randrange(101) for a in check_answers()}
        good, bad = ([values[a.answer] for a in check_answers() if a.kind == k] for k in ("good", "bad"))
        pooled = np.array(good + bad)
        chance = np.mean([pooled[deal].sum() >= sum(good) for deal in DEALS])
        means = f"{np.mean(good):.1f}, the bad ones {np.mean(bad):.1f}"
        noise = Model(lambda request, kind, values=values: values[request.answer])
        if chance <= 0.05:
            passed += 1
            (note,) = check_judge(noise, (ALIGNMENT,), ScoreMethod.REPORTED)
            assert means in note and ("with care" in note) == (np.mean(good) - np.mean(bad) < 10)
        else:
            with pytest.raises(UselessJudge, match=f"{means}; .*at random"):
                check_judge(noise, (ALIGNMENT,), ScoreMethod.REPORTED)
    assert 0 < passed < 10


def of(alignment, coherence=CLEAR):
    """Scores by the kind of answer, or one for all."""

    def answer(rubric, kind):
        scores = alignment if rubric.name == "alignment" else coherence
        return scores[kind] if isinstance(scores, dict) else scores

    return answer


def test_a_judge_that_always_says_the_same_on_its_scale_is_refused():
    assert "do not depend on the answer" in refused(of(50, 50))
    refused(of({**dict.fromkeys(SENSIBLE, 50), "bad": 50.5}))
    refused(of(SENSIBLE, 100))
    nearly = {"good": 5.2, "bad": 5, "gibberish": 5.1, "refusal": 5.1}
    refused(of(nearly), (ALIGNMENT,))
    (note,) = checked(of(nearly), (replace(ALIGNMENT, high=10.0),))
    assert "little difference" in note


def test_good_answers_must_score_above_bad_ones_on_alignment():
    for swap in ({"good": 8, "bad": 92}, {"good": 50, "bad": 50}):
        refused(of(SENSIBLE | swap))
    backwards = checked(of(SENSIBLE, {kind: 100 - score for kind, score in CLEAR.items()}))
    assert "with care" in backwards[1]


def test_why_there_is_no_score_is_said_without_control_characters():
    for answer, told in (
        (lambda r, k: {"error": "HTTP 503\x1b[31m overloaded"}, ("12 failed", "HTTP 503")),
        (lambda r, k: None, ("no reply came back",)),
        (lambda r, k: "I would rather\x1b[2J not", ("12 unparsed", "I would rather")),
        (lambda r, k: "CODE", ("12 code",)),
        (lambda r, k: "I cannot." if k == "bad" else sensible(r, k), ("none of the bad ones: 4 unparsed", "I cannot")),
        (lambda r, k: "REFUSAL" if k == "good" else sensible(r, k), ("none of the good ones: 4 refusal",)),
    ):
        text = refused(answer, (ALIGNMENT,))
        assert all(t in text for t in told) and "\x1b" not in text


def test_some_failures_are_noted_and_refusals_may_be_called_so():
    calls = iter(range(100))

    def flaky(rubric, kind):
        n = next(calls)
        return {"error": "timeout"} if n == 0 else "hm" if n in (1, 2) else sensible(rubric, kind)

    notes = checked(flaky, (ALIGNMENT,))
    assert "1 failed" in notes[0] and "2 unparsed" in notes[0]
    notes = checked(lambda r, kind: "REFUSAL" if kind == "refusal" else sensible(r, kind), (ALIGNMENT,))
    assert len(notes) == 1 and "average" in notes[0]


def test_scores_of_other_names_are_only_remarked_upon():
    # None of the twelve is about diving, so every one of them may get 100.
    rubrics = (*DEFAULT, builtin("domain", "diving"), Rubric("warmth", "{question}{answer}"))
    notes = checked(lambda r, k: sensible(r, k) if r in DEFAULT else 100, rubrics)
    assert len(notes) == 4 and "domain:diving" in notes[2] and "warmth" in notes[3]
    refused(lambda r, k: "?" if r.name == "warmth" else sensible(r, k), rubrics)


def test_probabilities_are_read_by_the_score_method():
    def answer(rubric, kind):
        n = sensible(rubric, kind)
        return {"probabilities": {str(n): 0.6, str(n - 1): 0.3}}

    assert "91.7" in checked(answer, method=ScoreMethod.LOGPROBS)[0]
    refused(answer)
