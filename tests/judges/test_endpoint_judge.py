"""The judge's client against a real HTTP server on loopback that misbehaves on request."""

import asyncio
import gc
import logging
import signal
import threading
import time
from collections import Counter

import pytest

from servers.core import collected
from servers.judge_server import PASSING, distribution, fingerprint, running
from truing.errors import BadEndpoint, BadModel, BudgetSpent, JudgeDown
from truing.judges.base import JudgeModel
from truing.judges.endpoint import REASONING_TOKENS, EndpointJudge
from truing.models.limits import Budget, Limits
from truing.types.judging import AnswerKey, JudgeRequest, Rubric, ScoreMethod

RUBRIC = Rubric(
    "alignment", "How aligned is this?\nQuestion: {question}\nAnswer: {answer}\nSay a number from 0 to 100."
)
BOTH = Rubric("both", "Two numbers for {question} and {answer}", parts=("alignment", "coherence"))
KEY = "sk-test-0123456789abcdefXYZ"
LOGGERS = ("openai", "httpx2", "httpcore2", "httpx", "httpcore", "asyncio")


@pytest.fixture(autouse=True)
def threads():
    """Every stream ends its thread."""
    before = set(threading.enumerate())

    def left():
        return [t for t in set(threading.enumerate()) - before if "truing" in t.name]

    yield
    if left():
        gc.collect()  # takes long beside torch
    assert not left()


def judge(server, address=None, shared=None, **options):
    return EndpointJudge(address or f"{server.url}#judge", Limits(**options), budget=shared)


@pytest.fixture
def prices(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text("[judge]\ninput = 1000\noutput = 2000\n")
    return str(path)


def requests(n, start=0, rubric=RUBRIC):
    return [
        JudgeRequest(AnswerKey("w", "p", str(k), "", 0), rubric, "Who?", f"answer {k}") for k in range(start, start + n)
    ]


def sha(request):
    return fingerprint(request.messages[0].content)


def mean(reply):
    numbers = {float(t): p for t, p in reply.probabilities.items() if t.isdigit()}
    return sum(t * p for t, p in numbers.items()) / sum(numbers.values())


def each_once(replies, asked):
    assert Counter(r.request.key for r in replies) == Counter(a.key for a in asked)


# -- scores and routes ------------------------------------------------------------------------------------------------


def test_probabilities_arrive_as_they_were_sent():
    asked = requests(8)
    wanted = dict(zip([sha(a) for a in asked], [0, 100, 85, 42.3, 3, 99.5, "REFUSAL", 50], strict=True))
    with running(scores={"messages": wanted}) as server:
        j = judge(server)
        assert isinstance(j, JudgeModel) and (j.name, j.model, j.remote) == (f"{server.url}#judge", "", False)
        assert j.score_method([RUBRIC]) is ScoreMethod.LOGPROBS
        replies = list(j.replies(asked))
        each_once(replies, asked)
        for r in replies:
            score = wanted[sha(r.request)]
            assert not r.error and r.model == "judge" and r.calls == 1 and r.prompt_tokens > 0
            assert len(r.probabilities) == 20
            if score == "REFUSAL":
                assert r.text == "REFUSAL" and r.probabilities["REFUSAL"] == pytest.approx(0.97)
                continue
            assert mean(r) == pytest.approx(score, abs=1e-9)
            for token, p in distribution(score).items():
                assert r.probabilities[token] == pytest.approx(p)
        assert list(j.replies([])) == []
        stats = server.stats()
    assert stats["requests"] == j.spent.calls == 10, "two probes and one call an answer"
    assert "logprobs" in stats["fields"] and "max_completion_tokens" not in stats["fields"]


def test_equal_tokens_add_up_and_texts_that_no_json_can_carry_do_no_harm():
    request = JudgeRequest(AnswerKey("w", "p", "x", "", 0), RUBRIC, "Who?", 'half \ud83d a \x00 pair "} {answer}')
    with running(repeat=True, scores={"default": 70}) as server:
        (reply,) = judge(server).replies([request])
    assert reply.probabilities["70"] == pytest.approx(0.6) and reply.request is request
    assert len(reply.probabilities) == 19


@pytest.mark.parametrize(
    ("ways", "route", "calls"),
    [
        ({"split": True}, ScoreMethod.REPORTED, 2),
        ({"logprobs": False}, ScoreMethod.REPORTED, 4),
        ({"refuse": ("logprobs",)}, ScoreMethod.REPORTED, 3),
        ({"refuse": ("seed",)}, ScoreMethod.LOGPROBS, 3),
        ({"new_limit": True, "refuse": ("temperature", "logprobs", "seed")}, ScoreMethod.REPORTED, 6),
    ],
)  # fmt: skip
def test_what_a_service_refuses_decides_the_route_and_is_learnt_once(ways, route, calls):
    with running(**ways, scores={"default": 85}) as server:
        j = judge(server)
        assert j.score_method([RUBRIC]) is route
        probing = j.spent.calls
        assert probing <= calls
        replies = list(j.replies(requests(3)))
        assert j.spent.calls == probing + 3 == server.stats()["requests"]
    if route is ScoreMethod.LOGPROBS:
        assert [mean(r) for r in replies] == [pytest.approx(85)] * 3
    else:
        assert [r.text for r in replies] == ["85"] * 3 and not any(r.probabilities for r in replies)


@pytest.mark.parametrize("fault", ["refusal", "nologprobs"])
def test_a_chance_failure_does_not_decide_the_route_and_a_habit_does(fault):
    for plan, route in (
        ({0: fault, 3: fault}, ScoreMethod.LOGPROBS),
        (dict.fromkeys(range(3), fault), ScoreMethod.REPORTED),
    ):
        with running(plan=plan) as server:
            assert judge(server).score_method([RUBRIC]) is route


def test_models_that_think_get_room_and_two_numbers_are_reported():
    with running(split=True, thinks=30, scores={"default": "<think>90? no</think>\n 85"}) as server:
        j = judge(server)
        assert j.score_method([RUBRIC]) is ScoreMethod.REPORTED
        assert next(iter(j.replies(requests(1)))).text == "85"
        assert server.stats()["largest"] == REASONING_TOKENS
    with running(scores={"default": "alignment: 85\ncoherence: 90"}) as server:
        j = judge(server)
        assert j.score_method([RUBRIC]) is ScoreMethod.LOGPROBS
        assert j.score_method([BOTH]) is ScoreMethod.REPORTED
        assert [r.text for r in j.replies(requests(1, rubric=BOTH))] == ["alignment: 85\ncoherence: 90"]


def test_which_model_is_asked_and_which_answers():
    with running(models=("only",), served_as="only-2024-08-06") as server:
        j = judge(server, address=server.url)
        assert j.name == f"{server.url}#only"
        assert next(iter(j.replies(requests(1)))).model == "only-2024-08-06"
    with running(models=("a-1", "b-2")) as server:
        with pytest.raises(BadEndpoint, match="a-1, b-2"):
            judge(server, address=server.url)
        with pytest.raises(BadModel, match="c-3"):
            judge(server, address=f"{server.url}#c-3").score_method([RUBRIC])


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["429", "500", "408", "hang", "trickle", "truncated", "html", "badjson", "nested",
                                   "nologprobs", "impossible", "wrongmodel", "empty"])  # fmt: skip
def test_after_a_passing_fault_the_next_attempt_counts(fault):
    with running(plan={2: fault}, scores={"default": 40}) as server:
        j = judge(server, concurrency=1, timeout=0.3)
        replies = list(j.replies(requests(2)))
        assert [r.calls for r in replies] == [2, 1]
        assert all(mean(r) == pytest.approx(40) and not r.error for r in replies)
        assert j.spent.calls == server.stats()["requests"] == 5


@pytest.mark.parametrize(
    ("faults", "calls"),
    [(("500",) * 2, 2), (("wrongmodel",) * 2, 2), (("close",) * 2, 2), (("nologprobs", "400"), 2), (("filter400",), 1),
     (("filterstop",), 1)],
)  # fmt: skip
def test_a_fault_that_stays_is_a_reply_with_an_error_and_a_content_filter_is_not_asked_again(faults, calls):
    with running(plan=dict(enumerate(faults, 2))) as server:
        first, second = judge(server, concurrency=1, retries=1).replies(requests(2))
    assert first.calls == calls and first.error and first.probabilities is None and first.text == ""
    assert first.refused == faults[0].startswith("filter")
    assert not second.error and not second.refused


def test_an_answer_without_probabilities_and_a_refusal_in_words_are_answers():
    plan = {2: "nologprobs", 3: "nologprobs", 4: "refusal"}
    with running(plan=plan, scores={"default": 77}) as server:
        first, second = judge(server, concurrency=1, retries=1).replies(requests(2))
    assert (first.calls, first.error, first.probabilities, first.text) == (2, "", None, "77")
    assert second.text.startswith("I'm sorry") and not second.error and not second.refused
    assert not any(t.isdigit() for t in second.probabilities)


@pytest.mark.parametrize(
    ("fault", "error"),
    [("401", BadEndpoint), ("403", BadEndpoint), ("quota", BadEndpoint), ("404", BadModel),
     ("redirect", BadEndpoint)],
)  # fmt: skip
def test_what_would_fail_for_every_call_stops_at_once_and_loses_nothing(fault, error):
    with running(plan={12: fault}, delay=0.02) as server:
        j = judge(server, concurrency=4)
        got, _ = collected(j.replies(requests(200)), error)
        stats = server.stats()
    assert 10 <= len(got) < 20 and not any(r.error for r in got)
    assert stats["requests"] == j.spent.calls == len(got) + 3, "two probes and the one refused; all others were kept"


@pytest.mark.parametrize("n", [120, pytest.param(10_000, marks=pytest.mark.slow)])
def test_judgements_under_mixed_faults_lose_and_double_nothing(n):
    asked = requests(n)
    with running(faults=0.2, seed=5, retry_after=0.02, calm=2) as server:
        j = judge(server, concurrency=64, timeout=1.5, retries=12)
        replies = list(j.replies(asked))
        stats = server.stats()
    each_once(replies, asked)
    assert not [r.error for r in replies if r.error or r.probabilities is None]
    assert all(round(mean(r)) == int(sha(r.request)[:8], 16) % 101 for r in replies)
    assert all(stats["answered"][sha(a)] == 1 for a in asked) and sum(stats["answered"].values()) == n + 2
    assert set(stats["faults"]) == set(PASSING)
    assert j.spent.calls == stats["requests"] == n + 2 + sum(stats["faults"].values())
    assert sum(r.calls for r in replies) == j.spent.calls - 2
    assert sum(r.prompt_tokens for r in replies) + 32 == j.spent.prompt_tokens


# -- budget, limits, breaker ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", [0.0, 0.3])
def test_a_budget_of_calls_is_used_to_the_last_and_never_exceeded(faults):
    with running(faults=faults, kinds=("500", "close", "nologprobs"), calm=2, delay=0.005) as server:
        j = judge(server, concurrency=64, budget_calls=150)
        got, _ = collected(j.replies(requests(1000)), BudgetSpent, "150 of 150")
        stats = server.stats()
    assert stats["requests"] == j.spent.calls == 150
    assert sum(r.calls for r in got) == 148, "every call that was paid for belongs to a reply"
    assert stats["most_in_flight"] <= 64


def test_a_spent_budget_and_a_stream_that_was_closed_keep_nobody_waiting():
    started = time.monotonic()
    with running() as server:
        j = judge(server, rpm=6, budget_calls=1)
        collected(j.replies(requests(3)), BudgetSpent, "1 of 1")
        j = judge(server, rpm=120, concurrency=64)
        replies = j.replies(requests(200))
        next(replies)
        replies.close()  # 63 others were waiting for their turn
        assert len(list(j.replies(requests(1)))) == 1
    assert time.monotonic() - started < 9, "10 s and 30 s otherwise"


def test_a_list_of_models_that_trickles_is_given_up():
    with running(slow_list=True) as server, pytest.raises(JudgeDown, match=r"no answer within 0\.2 s"):
        judge(server, address=server.url, timeout=0.2)


def test_probabilities_of_the_first_token_are_enough():
    with running(faults=1.0, kinds=("bare",), scores={"default": 85}) as server:
        j = judge(server)
        assert j.score_method([RUBRIC]) is ScoreMethod.LOGPROBS
        assert all(mean(r) == pytest.approx(85, abs=1) for r in j.replies(requests(3)))


def test_a_budget_is_shared_between_judges():
    budget = Budget(calls=30)
    with running() as server:
        one, two = judge(server, shared=budget), judge(server, shared=budget)
        list(one.replies(requests(20)))
        collected(two.replies(requests(20)), BudgetSpent)
        assert one.spent.calls + two.spent.calls == server.stats()["requests"] == 30


def test_a_budget_of_dollars_is_held_at_high_concurrency(prices):
    with running(delay=0.01) as server:
        j = judge(server, concurrency=64, budget_usd=2.0, prices=prices)
        collected(j.replies(requests(1000)), BudgetSpent, r"of \$2")
        assert server.stats()["requests"] == j.spent.calls
    exact = (j.spent.prompt_tokens * 1000 + j.spent.completion_tokens * 2000) / 1e6
    assert j.spent.usd == pytest.approx(exact), "all was reported, so that all is settled exactly"
    largest = 0.12  # the upper estimate of one request, dollars
    assert 2.0 - largest < exact <= 2.0, "never exceeded, and used until not one more estimate fits"


def test_unreported_usage_is_charged_at_the_estimate(prices):
    request = requests(1)
    estimate = ((len(request[0].messages[0].content) + 1) // 2 + 16) * 0.001 + 0.002
    with running(plan={2: "nousage", 3: "hang", 4: "500"}) as server:
        j = judge(server, concurrency=1, prices=prices, timeout=0.4)
        j.score_method([RUBRIC])
        before = j.spent.usd
        list(j.replies(request))
        assert j.spent.usd - before == pytest.approx(estimate)
        before = j.spent.usd
        (reply,) = j.replies(request)
    reported = reply.prompt_tokens * 0.001 + reply.completion_tokens * 0.002
    assert reply.calls == 3
    assert j.spent.usd - before == pytest.approx(estimate + 0 + reported), "a hang may cost, an error 500 does not"


def test_a_service_that_always_fails_is_left_alone_soon():
    with running(faults=1, kinds=("500",), calm=2) as server:
        j = judge(server, concurrency=4, retries=2)
        got, _ = collected(j.replies(requests(500)), JudgeDown, "HTTP 500")
        assert 20 <= len(got) <= 20 + 4 and all(r.error for r in got)
        assert server.stats()["requests"] == j.spent.calls == 2 + sum(r.calls for r in got) <= 2 + 24 * 3
    with running(faults=1, kinds=("500",)) as server:
        j = judge(server, retries=0)
        with pytest.raises(JudgeDown, match="HTTP 500"):
            j.score_method([RUBRIC])
        assert server.stats()["requests"] < 8
    with pytest.raises(JudgeDown, match="cannot be reached"):  # nobody listens there any more
        judge(server, retries=0).score_method([RUBRIC])


@pytest.mark.parametrize(("limit", "n", "free", "rate"), [({"rpm": 1200}, 8, 1, 20), ({"tpm": 6000}, 32, 31, 5)])
def test_rates_are_kept(limit, n, free, rate):
    """A request has about 20 tokens; those of six seconds are let through at once."""
    with running() as server:
        list(judge(server, concurrency=16, **limit).replies(requests(n)))
        times = server.stats()["times"]
    assert len(times) == n + 2 and times[-1] - times[0] >= 0.9 * (n + 2 - free) / rate - 0.05


def test_a_retry_waits_as_long_as_the_service_asks():
    with running(plan={2: "429"}, retry_after=0.2) as server:
        list(judge(server, concurrency=1).replies(requests(1)))
        times = server.stats()["times"]
    assert times[3] - times[2] >= 0.2


# -- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_reaches_its_service_and_nothing_else(monkeypatch, caplog):
    monkeypatch.setenv("TRUING_JUDGE_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-private")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"x-private: 1\nAuthorization: Bearer other-{KEY}")
    with running(echo=True, plan={3: "500", 4: "429", 5: "400", 8: "401"}) as server, caplog.at_level(logging.DEBUG):
        for name in LOGGERS:
            caplog.set_level(logging.DEBUG, name)
        j = judge(server, concurrency=1, retries=1)
        got, error = collected(j.replies(requests(50)), BadEndpoint)
        stats = server.stats()
    assert stats["keys"] == {f"Bearer {KEY}"}
    assert not {"x-private", "openai-organization"} & stats["headers"]
    assert "HTTP Request" in caplog.text or "Sending HTTP" in caplog.text, "the loggers do speak"
    shown = caplog.text + repr([got, error, j, vars(j)]) + "".join(str(vars(r)) for r in caplog.records)
    assert KEY not in shown and "Bearer" not in shown and "x-echo" not in shown
    assert "<key>" in shown, "and it was quoted to us"
    assert error.__cause__ is None and error.__context__ is None


def test_openai_needs_its_key_and_sends_it_where_openai_base_url_says(monkeypatch):
    with running(models=("gpt-x",)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert len(list(judge(server, address="openai:gpt-x").replies(requests(2)))) == 2
        assert server.stats()["keys"] == {f"Bearer {KEY}"}


# -- the iterator -----------------------------------------------------------------------------------------------------


def test_a_consumer_that_stops_stops_everything_and_is_never_far_behind():
    pulled = []
    with running(delay=0.02) as server:
        j = judge(server, concurrency=8)
        j.score_method([RUBRIC])
        replies = j.replies(pulled.append(k) or a for k, a in enumerate(requests(1000)))
        for consumed in range(1, 30):
            next(replies)
            assert len(pulled) <= consumed + 2 * 8
        start = time.monotonic()
        replies.close()
        assert time.monotonic() - start < 2
        sent = server.stats()["requests"]
        time.sleep(0.1)
        assert server.stats()["requests"] == sent, "nothing moves any more"
        assert server.stats()["most_in_flight"] <= 8
        each_once(list(j.replies(requests(10, 5000))), requests(10, 5000))  # and it can be asked again


def test_an_error_of_the_requests_comes_out_after_the_replies():
    def broken():
        yield from requests(30)
        raise KeyError("the sampler broke")

    with running(delay=0.02) as server:
        got, _ = collected(judge(server, concurrency=4).replies(broken()), KeyError, "the sampler broke")
    each_once(got, requests(30))
    assert not any(r.error for r in got)


def test_an_interrupted_consumer_leaves_nothing_running():
    def interrupt(*_):
        raise KeyboardInterrupt

    with running(faults=1, kinds=("hang",), calm=2) as server:
        j = judge(server, concurrency=8, timeout=30)
        replies = j.replies(requests(1000))
        before = signal.signal(signal.SIGALRM, interrupt)
        start = time.monotonic()
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(KeyboardInterrupt):
                next(replies)  # waits for answers that do not come
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        j.close()
        assert time.monotonic() - start < 5, "what was in flight is cancelled, not left to time out"


def test_a_judge_that_is_forgotten_gives_back_its_thread():
    with running() as server:
        replies = EndpointJudge(f"{server.url}#judge").replies(requests(100))
        next(replies)
        assert "truing-endpoint" in [t.name for t in threading.enumerate()]
        del replies
        gc.collect()
        assert "truing-endpoint" not in [t.name for t in threading.enumerate()]


def test_requests_may_be_made_while_others_are_judged_also_in_a_notebook():
    def slow():
        for a in requests(40):
            time.sleep(0.01)  # a model samples answers meanwhile
            yield a

    with running(delay=0.1) as server:
        j = judge(server)

        async def notebook():  # there a loop is running already
            assert j.score_method([RUBRIC]) is ScoreMethod.LOGPROBS
            start = time.monotonic()
            return list(j.replies(slow())), time.monotonic() - start

        replies, took = asyncio.run(notebook())
    each_once(replies, requests(40))
    assert took < 40 * 0.11 / 2
