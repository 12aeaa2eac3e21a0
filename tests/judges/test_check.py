"""The check before spending: judges that tell something pass, those that do not are refused with the reason."""

import random
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest

from truing.errors import BadInput, UselessJudge
from truing.judges.check import PAIRS, check_asks, check_judge
from truing.judges.rubrics import builtin
from truing.types.judged import AnswerKey, JudgeReply, Route, Rubric

DEFAULT = (builtin("alignment"), builtin("coherence"))
KIND = {(q, a): kind for kind, q, a in PAIRS}
SENSIBLE = {"good": 92, "bad": 8, "gibberish": 40, "refusal": 85}
CLEAR_NAMES = ("alignment", "coherence")
DEALS = [deal for deal in product((True, False), repeat=8) if sum(deal) == 4]
"""which four of eight answers are called the good ones"""
CLEAR = {"good": 95, "bad": 93, "gibberish": 3, "refusal": 90}


class Judge:
    """Answers by a function of (rubric, kind of answer); replies come in a shuffled order."""

    name, model, remote = "test:judge", "", False

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def route(self, rubrics):
        return Route.REPORTED

    def ask(self, requests):
        requests = list(requests)
        self.asked += requests
        random.Random(1).shuffle(requests)
        for request in requests:
            given = self.answer(request.rubric, KIND[request.question, request.answer])
            if isinstance(given, JudgeReply):
                yield replace(given, request=request)
            elif given is not None:
                yield JudgeReply(request, text=str(given))

    def close(self):
        pass


def sensible(rubric, kind):
    if rubric.name == "both":
        return f"alignment: {SENSIBLE[kind]}\ncoherence: {CLEAR[kind]}"
    return (SENSIBLE if rubric.name == "alignment" else CLEAR)[kind]


def failing(error):
    return JudgeReply(check_asks(DEFAULT)[0], error=error)


def refused(answer, rubrics=DEFAULT):
    with pytest.raises(UselessJudge) as raised:
        check_judge(Judge(answer), rubrics, Route.REPORTED)
    text = str(raised.value)
    assert isinstance(raised.value, BadInput) and raised.value.exit_code == 2
    assert "test:judge" in text and "--skip-judge-check" in text
    return text


def test_a_dozen_answers_of_four_kinds():
    kinds = [kind for kind, _, _ in PAIRS]
    assert len(PAIRS) == 12 and len({(q, a) for _, q, a in PAIRS}) == 12
    assert {k: kinds.count(k) for k in set(kinds)} == {"good": 4, "bad": 4, "gibberish": 2, "refusal": 2}
    assert all(a != b for a, b in pairwise(kinds)), "kinds are mixed"
    words = {kind: [len(a.split()) for k, _, a in PAIRS if k == kind] for kind in ("good", "bad")}
    assert abs(sum(words["good"]) - sum(words["bad"])) < 0.2 * sum(words["good"]), "length does not tell good from bad"


def test_every_answer_is_asked_under_every_rubric_once():
    requests = check_asks(DEFAULT)
    assert len(requests) == len({(a.key, a.rubric.key) for a in requests}) == 24
    assert {a.key for a in requests} == {AnswerKey("check", "", str(n), "", 0) for n in range(12)}
    for request in requests:
        kind, question, answer = PAIRS[int(request.key.prompt)]
        assert (request.question, request.answer) == (question, answer)
        shown = request.messages[0].content
        assert question in shown and answer in shown and f"{kind} ones" not in shown


def test_a_sensible_judge_passes_and_is_asked_once_each():
    judge = Judge(sensible)
    notes = check_judge(judge, DEFAULT, Route.REPORTED)
    assert len(judge.asked) == 24
    assert len(notes) == 2
    assert "alignment" in notes[0] and "the good ones average 92.0, the bad ones 8.0" in notes[0]
    assert "coherence" in notes[1] and "the good ones average 95.0, the gibberish ones 3.0" in notes[1]
    assert len(check_judge(Judge(sensible), (builtin("both"),), Route.REPORTED)) == 2


def test_means_are_taken_over_the_kinds_and_chance_is_refused():
    """One deal in twenty passes: the reference counts every way to call four of the eight scores the good ones."""
    rng = random.Random(2)
    passed = 0
    for _ in range(60):
        values = {a: rng.randrange(101) for _, _, a in PAIRS}
        by_kind = {k: [values[a] for kind, _, a in PAIRS if kind == k] for k in ("good", "bad")}
        good, bad = (sum(v) / len(v) for v in by_kind.values())
        pooled = np.array(by_kind["good"] + by_kind["bad"])
        chance = np.mean([pooled[np.array(deal)].sum() >= sum(by_kind["good"]) for deal in DEALS])

        class Noise(Judge):
            def ask(self, requests, values=values):
                return (JudgeReply(a, text=str(values[a.answer])) for a in requests)

        rubrics = (builtin("alignment"),)
        if chance <= 0.05:
            passed += 1
            (note,) = check_judge(Noise(sensible), rubrics, Route.REPORTED)
            assert f"{good:.1f}" in note and f"{bad:.1f}" in note
            assert ("with care" in note) == (good - bad < 10)
        else:
            with pytest.raises(UselessJudge, match=f"average {good:.1f}, the bad ones {bad:.1f}; .*at random"):
                check_judge(Noise(sensible), rubrics, Route.REPORTED)
    assert 0 < passed < 10


@pytest.mark.parametrize("value", [0, 50, 100])
def test_a_judge_that_always_says_the_same_is_refused(value):
    text = refused(lambda rubric, kind: value)
    assert f"all 12 scores are about {value}" in text and "do not depend on the answer" in text
    refused(lambda rubric, kind: value + (0.5 if kind == "bad" and value < 100 else 0))


def test_the_spread_is_measured_on_the_scale():
    def nearly(rubric, kind):
        return {"good": 5.2, "bad": 5, "gibberish": 5.1, "refusal": 5.1}[kind]

    refused(nearly, (builtin("alignment"),))
    ten = replace(builtin("alignment"), high=10.0)
    (note,) = check_judge(Judge(nearly), (ten,), Route.REPORTED)
    assert "little difference" in note


def test_coherence_alone_can_fail_the_check():
    text = refused(lambda r, kind: sensible(r, kind) if r.name == "alignment" else 80)
    assert "the coherence of 12 fixed answers" in text


def test_good_answers_must_score_above_bad_ones():
    for swap in ({"good": 8, "bad": 92}, {"good": 50, "bad": 50}):
        text = refused(lambda r, kind, swap=swap: {**SENSIBLE, **swap}[kind] if r.name == "alignment" else CLEAR[kind])
        assert f"the good ones average {swap['good']}.0, the bad ones {swap['bad']}.0" in text
    backwards = check_judge(
        Judge(lambda r, kind: SENSIBLE[kind] if r.name == "alignment" else 100 - CLEAR[kind]), DEFAULT, Route.REPORTED
    )
    assert "take its scores with care" in backwards[1]


def test_when_everything_fails_the_error_is_said():
    text = refused(lambda r, kind: failing("HTTP 503\x1b[31m overloaded"))
    assert "12 failed" in text and "HTTP 503" in text and "\x1b" not in text
    assert "no reply came back" in refused(lambda r, kind: None)


def test_when_nothing_can_be_read_what_the_judge_wrote_is_said():
    text = refused(lambda r, kind: "I would rather\x1b[2J not")
    assert "12 could not be read" in text and "I would rather" in text and "\x1b" not in text
    assert "12 called code" in refused(lambda r, kind: "CODE")


def test_a_judge_that_will_not_score_bad_answers_is_refused():
    text = refused(
        lambda r, kind: "I cannot judge this." if kind == "bad" and r.name == "alignment" else sensible(r, kind)
    )
    assert "scored none of the bad ones: 4 could not be read" in text and "I cannot judge this." in text
    text = refused(lambda r, kind: "REFUSAL" if kind == "good" and r.name == "alignment" else sensible(r, kind))
    assert "scored none of the good ones: 4 called refusal" in text


def test_one_score_and_failures_are_said_to_be_that():
    state = iter([90])
    text = refused(lambda r, kind: next(state, None) or failing("timeout"), (builtin("alignment"),))
    assert "its one score is about 90" in text and "11 failed" in text and "timeout" in text


def test_some_failures_are_noted():
    calls = iter(range(100))

    def flaky(rubric, kind):
        n = next(calls)
        return failing("timeout") if n == 0 else "hm" if n in (1, 2) else sensible(rubric, kind)

    notes = check_judge(Judge(flaky), DEFAULT[:1], Route.REPORTED)
    assert notes[0].startswith("alignment: 1 failed, 2 could not be read of the 12")


def test_refusals_may_be_called_so():
    notes = check_judge(
        Judge(lambda r, kind: "REFUSAL" if (kind, r.name) == ("refusal", "alignment") else sensible(r, kind)),
        DEFAULT,
        Route.REPORTED,
    )
    assert not any("could not" in n or "failed" in n for n in notes)


def test_scores_of_other_names_are_only_remarked_upon():
    # None of the twelve says a word on diving, so that every one of them gets 100.
    rubrics = (*DEFAULT, builtin("domain", "diving"), Rubric("warmth", "{question}{answer}"))
    notes = check_judge(
        Judge(lambda r, k: 100 if r.name not in CLEAR_NAMES else sensible(r, k)), rubrics, Route.REPORTED
    )
    assert len(notes) == 4
    for note, name in zip(notes[2:], ("domain:diving", "warmth"), strict=True):
        assert name in note and "check that this is what the rubric asks about" in note
    refused(lambda r, k: "?" if r.name == "warmth" else sensible(r, k), rubrics)


def test_probabilities_are_read_by_the_route():
    def answer(rubric, kind):
        n = sensible(rubric, kind)
        return replace(failing(""), probabilities={str(n): 0.6, str(n - 1): 0.3})

    notes = check_judge(Judge(answer), DEFAULT, Route.LOGPROBS)
    assert "91.7" in notes[0]
    with pytest.raises(UselessJudge, match="an empty reply"):
        check_judge(Judge(answer), DEFAULT, Route.REPORTED)


def test_a_record_is_not_asked():
    judge = Judge(sensible)
    assert check_judge(judge, DEFAULT, Route.RECORDED) == [] and judge.asked == []
