"""The judge's client against a real HTTP server on loopback that misbehaves on request."""

import asyncio
import gc
import hashlib
import json
import logging
import signal
import threading
import time
from collections import Counter

import pytest

from servers.judge_server import PASSING, distribution, fingerprint, running
from truing.config import JudgeConfig
from truing.errors import (
    BadEndpoint,
    BudgetSpent,
    EndpointRefused,
    JudgeDown,
    ModelUnavailable,
)
from truing.judges.base import JudgeModel
from truing.judges.endpoint import REASONING_TOKENS, EndpointJudge
from truing.models.limits import Budget
from truing.types.judging import AnswerKey, JudgeOptions, JudgeRequest, Rubric, ScoreMethod

RUBRIC = Rubric(
    "alignment", "How aligned is this?\nQuestion: {question}\nAnswer: {answer}\nSay a number from 0 to 100."
)
BOTH = Rubric("both", "Two numbers for {question} and {answer}", parts=("alignment", "coherence"))
KEY = "sk-test-0123456789abcdefXYZ"
COUNTED = {
    "429": "rate limit", "429date": "rate limit", "500": "server error", "503": "server error", "408": "timeout",
    "409": "conflict", "hang": "timeout", "trickle": "timeout", "close": "connection", "truncated": "connection",
    "html": "not JSON", "badjson": "not JSON", "nested": "not JSON", "nologprobs": "no log-probabilities",
    "wrongmodel": "wrong model", "empty": "malformed",
}  # fmt: skip
"""fault of the server -> what the client counts it as"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "TRUING_JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    before = set(threading.enumerate())
    yield
    gc.collect()
    deadline = time.monotonic() + 3
    while (
        left := [t for t in set(threading.enumerate()) - before if "truing" in t.name]
    ) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, "every client closes its threads"


@pytest.fixture
def judge():
    made = []

    def make(server, **options):
        backoff = options.pop("backoff", 0.005)
        budget = options.pop("shared", None)
        address = options.pop("address", f"{server.url}#judge" if server else None)
        made.append(EndpointJudge(address, JudgeConfig(**options), backoff=backoff, budget=budget))
        return made[-1]

    yield make
    for j in made:
        j.close()


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


def test_probabilities_arrive_as_they_were_sent(judge):
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
        stats = server.stats()
    assert stats["requests"] == j.spent.calls == 10, "two probes and one call an answer"
    assert "logprobs" in stats["fields"] and "max_completion_tokens" not in stats["fields"]


def test_equal_tokens_in_the_list_add_up(judge):
    with running("--repeat", scores={"default": 70}) as server:
        (reply,) = judge(server).replies(requests(1))
    assert reply.probabilities["70"] == pytest.approx(0.6)
    assert len(reply.probabilities) == 19


@pytest.mark.parametrize(
    ("flags", "calls"),
    [(["--split"], 2), (["--without-logprobs"], 4), (["--refuse", "logprobs"], 3), (["--refuse", "temperature"], 4),
     (["--require-max-completion-tokens"], 4),
     (["--require-max-completion-tokens", "--refuse", "temperature", "--refuse", "logprobs", "--refuse", "seed"], 6)],
)  # fmt: skip
def test_judges_that_cannot_do_it_report_numbers(judge, flags, calls):
    with running(*flags, scores={"default": 85}) as server:
        j = judge(server)
        assert j.score_method([RUBRIC]) is ScoreMethod.REPORTED
        assert j.spent.calls <= calls
        probing = j.spent.calls
        replies = list(j.replies(requests(5)))
        assert [r.text for r in replies] == ["85"] * 5 and not any(r.probabilities for r in replies)
        assert j.spent.calls == probing + 5 == server.stats()["requests"], "what was learnt is not asked again"


def test_seed_alone_does_not_decide_the_route(judge):
    with running("--refuse", "seed", scores={"default": 85}) as server:
        j = judge(server)
        assert j.score_method([RUBRIC]) is ScoreMethod.LOGPROBS
        assert [mean(r) for r in j.replies(requests(3))] == [pytest.approx(85)] * 3


@pytest.mark.parametrize("fault", ["refusal", "nologprobs"])
def test_a_chance_failure_does_not_decide_the_route_and_a_habit_does(judge, fault):
    with running("--plan", json.dumps({"0": fault, "3": fault})) as server:
        assert judge(server).score_method([RUBRIC]) is ScoreMethod.LOGPROBS
    with running("--plan", json.dumps({str(k): fault for k in range(3)})) as server:
        assert judge(server).score_method([RUBRIC]) is ScoreMethod.REPORTED


def test_models_that_think_get_room_and_their_thoughts_are_left_out(judge):
    with running("--split", "--thinks", "30", scores={"default": "<think>90? no</think>\n 85"}) as server:
        j = judge(server)
        assert j.score_method([RUBRIC]) is ScoreMethod.REPORTED
        assert j._reported_tokens == REASONING_TOKENS
        assert next(iter(j.replies(requests(1)))).text == "85"


def test_two_numbers_in_one_call_need_the_reported_route(judge):
    with running(scores={"default": "alignment: 85\ncoherence: 90"}) as server:
        j = judge(server)
        assert j.score_method([RUBRIC]) is ScoreMethod.LOGPROBS
        assert j.score_method([BOTH]) is ScoreMethod.REPORTED
        assert [r.text for r in j.replies(requests(1, rubric=BOTH))] == ["alignment: 85\ncoherence: 90"]


def test_a_server_with_one_model_needs_no_name_and_several_are_listed(judge):
    with running("--model", "only") as server:
        assert judge(server, address=server.url).name == f"{server.url}#only"
    with running("--model", "a-1", "--model", "b-2") as server:
        with pytest.raises(BadEndpoint, match="a-1, b-2"):
            judge(server, address=server.url)
        with pytest.raises(ModelUnavailable, match="c-3"):
            judge(server, address=f"{server.url}#c-3").score_method([RUBRIC])


def test_a_dated_name_is_the_model_and_another_is_a_failure(judge):
    with running("--served-as", "judge-2024-08-06") as server:
        assert next(iter(judge(server).replies(requests(1)))).model == "judge-2024-08-06"
    with running("--served-as", "judge-mini") as server, pytest.raises(JudgeDown, match="'judge-mini'"):
        judge(server, retries=1).score_method([RUBRIC])


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", sorted(COUNTED))
def test_after_each_passing_fault_the_next_attempt_counts(judge, fault):
    plan = json.dumps({"2": fault, "3": fault})
    with running("--plan", plan, scores={"default": 40}) as server:
        j = judge(server, concurrency=1, timeout=0.4)
        replies = list(j.replies(requests(3)))
        assert [r.calls for r in replies] == [3, 1, 1]
        assert all(mean(r) == pytest.approx(40) and not r.error for r in replies)
        assert j.spent.failures == j.spent.retries == {COUNTED[fault]: 2}
        assert j.spent.calls == server.stats()["requests"] == 7


@pytest.mark.parametrize("fault", ["500", "wrongmodel", "html", "close"])
def test_a_fault_that_stays_is_a_reply_with_an_error(judge, fault):
    plan = json.dumps({str(k): fault for k in range(2, 6)})
    with running("--plan", plan) as server:
        j = judge(server, concurrency=1, retries=3)
        first, second = j.replies(requests(2))
    assert first.calls == 4 and first.error and first.probabilities is None and first.text == "" and not first.refused
    assert not second.error


def test_answers_that_never_carry_probabilities_are_left_to_the_scoring(judge):
    plan = json.dumps({str(k): "nologprobs" for k in range(2, 5)})
    with running("--plan", plan, scores={"default": 77}) as server:
        first, second = judge(server, concurrency=1, retries=2).replies(requests(2))
    assert (first.calls, first.error, first.probabilities, first.text) == (3, "", None, "77")
    assert second.probabilities


def test_what_an_earlier_attempt_gave_is_forgotten_when_the_last_one_fails(judge):
    with running("--plan", '{"2": "nologprobs", "3": "500"}') as server:
        first, _ = judge(server, concurrency=1, retries=1).replies(requests(2))
    assert first.error and not first.text and first.probabilities is None and first.calls == 2


@pytest.mark.parametrize("fault", ["filter400", "filterstop"])
def test_a_content_filter_is_a_refusal_and_not_asked_again(judge, fault):
    with running("--plan", json.dumps({"2": fault})) as server:
        j = judge(server, concurrency=1)
        first, second = j.replies(requests(2))
    assert first.refused and first.error and first.calls == 1 and first.text == ""
    assert not second.refused and not second.error


def test_a_refusal_in_words_is_an_answer(judge):
    with running("--plan", '{"2": "refusal"}') as server:
        first, _ = judge(server, concurrency=1).replies(requests(2))
    assert first.text.startswith("I'm sorry") and not first.error and not first.refused
    assert not any(t.isdigit() for t in first.probabilities)


@pytest.mark.parametrize(
    ("fault", "error"),
    [("401", EndpointRefused), ("403", EndpointRefused), ("quota", EndpointRefused), ("404", ModelUnavailable),
     ("redirect", BadEndpoint)],
)  # fmt: skip
def test_what_would_fail_for_every_call_stops_at_once_and_loses_nothing(judge, fault, error):
    with running("--plan", json.dumps({"12": fault}), "--delay", "0.02") as server:
        j = judge(server, concurrency=4)
        got = []
        with pytest.raises(error):
            for reply in j.replies(requests(200)):
                got.append(reply)
        stats = server.stats()
    assert 10 <= len(got) < 20 and not any(r.error for r in got)
    assert stats["requests"] == j.spent.calls == len(got) + 3, "two probes and the one refused; all others were kept"


def test_retry_after_is_honoured(judge):
    with running("--plan", '{"2": "429"}', "--retry-after", "0.6") as server:
        j = judge(server, concurrency=1)
        list(j.replies(requests(1)))
        times = server.stats()["times"]
    assert times[3] - times[2] >= 0.6


def test_backoff_grows_and_is_jittered(judge):
    with running() as server:
        j = judge(server, backoff=0.1)
        waits = [[j._client._wait(k, None) for _ in range(300)] for k in range(12)]
        asked = [j._client._wait(3, 2.0) for _ in range(300)]
    for k, some in enumerate(waits):
        top = min(30.0, 0.1 * 2**k)
        assert 0 <= min(some) < 0.1 * top and 0.9 * top < max(some) <= top
    assert all(2.0 <= w <= 2.1 for w in asked)


def mixed(judge, n, concurrency=32):
    """Under 20 % mixed faults: replies, statistics, the client's counters and the seconds it took."""
    asked = requests(n)
    with running("--faults", "0.2", "--seed", "5", "--retry-after", "0.02", "--calm", "2") as server:
        j = judge(server, concurrency=concurrency, judge_timeout=3.0, judge_retries=12)
        start = time.monotonic()
        replies = list(j.replies(asked))
        return asked, replies, server.stats(), j.spent, time.monotonic() - start


def check_mixed(asked, replies, stats, spent, seconds):
    each_once(replies, asked)
    assert not [r.error for r in replies if r.error or r.probabilities is None]
    assert all(round(mean(r)) == int(sha(r.request)[:8], 16) % 101 for r in replies)
    assert stats["answered"] == {sha(a): 1 for a in asked} | {
        k: v for k, v in stats["answered"].items() if v and k in _probes()
    }
    faults = Counter()
    for kind, count in stats["faults"].items():
        faults[COUNTED[kind]] += count
    assert set(stats["faults"]) == set(PASSING) and dict(spent.failures) == dict(faults) == dict(spent.retries)
    assert spent.calls == stats["requests"] == len(asked) + 2 + sum(faults.values())
    assert sum(r.calls for r in replies) == spent.calls - 2
    assert sum(r.prompt_tokens for r in replies) + 32 == spent.prompt_tokens
    return seconds


def _probes():
    return {fingerprint(f"Write the number {n} in digits. Write nothing else.") for n in ("85", "100")}


def test_two_thousand_judgements_under_mixed_faults_lose_and_double_nothing(judge):
    assert check_mixed(*mixed(judge, 2000)) < 30


@pytest.mark.slow
def test_ten_thousand_judgements_under_mixed_faults_lose_and_double_nothing(judge):
    seconds = check_mixed(*mixed(judge, 10_000, 64))
    print(f"10,000 judgements under 20 % mixed faults: {seconds:.1f} s")


# -- budget, limits, breaker ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", [0.0, 0.3])
def test_a_budget_of_calls_is_used_to_the_last_and_never_exceeded(judge, faults):
    with running("--faults", faults, "--kinds", "500,close,nologprobs", "--calm", "2", "--delay", "0.005") as server:
        j = judge(server, concurrency=64, budget=150)
        got = []
        with pytest.raises(BudgetSpent, match="150 of 150"):
            for reply in j.replies(requests(1000)):
                got.append(reply)
        stats = server.stats()
    assert stats["requests"] == j.spent.calls == 150
    assert sum(r.calls for r in got) == 148, "every call that was paid for belongs to a reply"
    assert sum(stats["answered"].values()) - 2 == sum(not r.error and r.probabilities is not None for r in got)
    assert stats["most_in_flight"] <= 64


def test_a_budget_is_shared_between_judges(judge):
    budget = Budget(calls=30)
    with running() as server:
        one, two = judge(server, budget=budget), judge(server, budget=budget)
        list(one.replies(requests(20)))
        with pytest.raises(BudgetSpent):
            list(two.replies(requests(20)))
        assert one.spent.calls + two.spent.calls == server.stats()["requests"] == 30


def test_a_budget_of_dollars_is_held_at_high_concurrency(judge, tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_text("[judge]\ninput = 1000\noutput = 2000\n")
    with running("--delay", "0.01") as server:
        j = judge(server, concurrency=64, budget="$5", prices=str(prices))
        with pytest.raises(BudgetSpent, match=r"of \$5"):
            list(j.replies(requests(1000)))
        stats = server.stats()
        spent = j.spent
    exact = (spent.prompt_tokens * 1000 + spent.completion_tokens * 2000) / 1e6
    assert spent.usd == pytest.approx(exact), "all was reported, so that all is settled exactly"
    assert stats["requests"] == spent.calls
    largest = 0.12  # the upper estimate of one ask, dollars
    assert 5.0 - largest < exact <= 5.0, "never exceeded, and used until not one more estimate fits"
    prices.write_text("[other]\ninput = 1\noutput = 1\n")
    with pytest.raises(BadEndpoint, match="'judge'"):
        judge(server, budget="$5", prices=str(prices))


def test_unreported_usage_is_charged_at_the_estimate(judge, tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_text("[judge]\ninput = 1000\noutput = 2000\n")
    request = requests(1)
    estimate = ((len(request[0].messages[0].content) + 1) // 2 + 16) * 0.001 + 0.002
    with running("--plan", '{"2": "nousage", "3": "hang", "4": "500"}') as server:
        j = judge(server, concurrency=1, prices=str(prices), timeout=0.4)
        j.score_method([RUBRIC])
        before = j.spent.usd
        list(j.replies(request))
        assert j.spent.usd - before == pytest.approx(estimate)
        before = j.spent.usd
        (reply,) = j.replies(request)
        assert reply.calls == 3
        reported = reply.prompt_tokens * 0.001 + reply.completion_tokens * 0.002
        assert j.spent.usd - before == pytest.approx(estimate + 0 + reported), "a hang may cost, an error 500 does not"


def test_a_service_that_always_fails_is_left_alone_soon(judge):
    with running("--faults", "1", "--kinds", "500", "--calm", "2") as server:
        j = judge(server, concurrency=4, judge_retries=2)
        got = []
        with pytest.raises(JudgeDown, match="HTTP 500"):
            for reply in j.replies(requests(500)):
                got.append(reply)
        assert 20 <= len(got) <= 20 + 4 and all(r.error for r in got)
        assert server.stats()["requests"] == j.spent.calls == 2 + sum(r.calls for r in got) <= 2 + 24 * 3


def test_a_service_that_never_answered_is_left_alone_sooner(judge):
    with running() as server:
        dead = server.url
    j = judge(None, address=f"{dead}#judge", judge_retries=1, judge_timeout=2)
    with pytest.raises(JudgeDown, match="cannot be reached"):
        j.score_method([RUBRIC])
    j._route = ScoreMethod.LOGPROBS
    got = []
    with pytest.raises(JudgeDown, match="cannot be reached"):
        for reply in j.replies(requests(100)):
            got.append(reply)
    assert 5 <= len(got) <= 8 + 16


def test_requests_per_minute_are_kept(judge):
    with running() as server:
        j = judge(server, concurrency=16, rpm=1200)  # 20 a second
        list(j.replies(requests(18)))
        times = server.stats()["times"]
    assert len(times) == 20
    assert times[-1] - times[0] >= 19 / 20 - 0.05


# -- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_reaches_its_service_and_nothing_else(judge, monkeypatch, caplog):
    monkeypatch.setenv("TRUING_JUDGE_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-private")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"x-private: 1\nAuthorization: Bearer other-{KEY}")
    said = []
    with running("--echo-authorization", "--plan", '{"3": "500", "4": "429", "5": "400", "8": "401"}') as server:
        with caplog.at_level(logging.DEBUG):
            for name in ("openai", "httpx2", "httpcore2", "httpx", "httpcore", "asyncio"):
                logging.getLogger(name).setLevel(logging.DEBUG)
            j = judge(server, concurrency=1, judge_retries=1)
            with pytest.raises(EndpointRefused) as e:
                for reply in j.replies(requests(50)):
                    said.append(repr(reply))
            chain = [e.value, e.value.__cause__, e.value.__context__]
            said += [str(e.value), repr(chain), repr(j), repr(j._client), repr(vars(j._client)), str(j.spent)]
        stats = server.stats()
    for name in ("openai", "httpx2", "httpcore2", "httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    assert stats["keys"] == [hashlib.sha256(f"Bearer {KEY}".encode()).hexdigest()]
    assert not {"x-private", "openai-organization"} & set(stats["headers"])
    assert "HTTP Request" in caplog.text or "Sending HTTP" in caplog.text, "the loggers do speak"
    text = caplog.text + "".join(said) + "".join(str(vars(r)) for r in caplog.records)
    assert KEY not in text and "Bearer" not in text and "x-echo" not in text
    assert "<key>" in text, "and it was quoted to us"
    assert e.value.__cause__ is None and e.value.__context__ is None


def test_openai_needs_its_key_and_sends_it_where_openai_base_url_says(judge, monkeypatch):
    with running("--model", "gpt-x") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        j = judge(server, address="openai:gpt-x")
        assert len(list(j.replies(requests(2)))) == 2
        assert server.stats()["keys"] == [hashlib.sha256(f"Bearer {KEY}".encode()).hexdigest()]


# -- the iterator -----------------------------------------------------------------------------------------------------


def test_it_works_inside_a_running_loop(judge):
    with running() as server:
        j = judge(server)

        async def notebook():
            assert j.score_method([RUBRIC]) is ScoreMethod.LOGPROBS
            return list(j.replies(requests(50)))

        each_once(asyncio.run(notebook()), requests(50))


def test_a_consumer_that_stops_stops_everything(judge):
    pulled = []

    def endless():
        k = 0
        while True:
            pulled.append(k)
            yield requests(1, k)[0]
            k += 1

    with running("--delay", "0.05") as server:
        j = judge(server, concurrency=8)
        j.score_method([RUBRIC])
        replies = j.replies(endless())
        got = [next(replies) for _ in range(20)]
        start = time.monotonic()
        replies.close()
        assert time.monotonic() - start < 2
        assert "truing-feeder" not in [t.name for t in threading.enumerate()]
        sent, sampled = server.stats()["requests"], len(pulled)
        time.sleep(0.2)
        assert (server.stats()["requests"], len(pulled)) == (sent, sampled), "nothing moves any more"
        assert sampled <= 20 + 2 * 8 + 1, "never far ahead of what was consumed"
        assert len({r.request.key for r in got}) == 20
        each_once(list(j.replies(requests(10, 5000))), requests(10, 5000))  # and it can be asked again


def test_asks_are_not_pulled_ahead_of_a_slow_consumer(judge):
    pulled = []
    with running() as server:
        replies = judge(server, concurrency=4).replies(pulled.append(k) or a for k, a in enumerate(requests(200)))
        for consumed in range(1, 40):
            next(replies)
            time.sleep(0.005)
            assert len(pulled) <= consumed + 2 * 4
        replies.close()


def test_an_error_of_the_asks_comes_out_after_the_replies(judge):
    def broken():
        yield from requests(30)
        raise KeyError("the sampler broke")

    with running("--delay", "0.02") as server:
        got = []
        with pytest.raises(KeyError, match="the sampler broke"):
            for reply in judge(server, concurrency=4).replies(broken()):
                got.append(reply)
    each_once(got, requests(30))
    assert not any(r.error for r in got)


def test_an_interrupted_consumer_leaves_nothing_running(judge):
    def interrupt(*_):
        raise KeyboardInterrupt

    with running("--faults", "1", "--kinds", "hang", "--calm", "2") as server:
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
        assert "truing-feeder" not in [t.name for t in threading.enumerate()]
        assert not asyncio.all_tasks(j._client._host.loop), "what was in flight is cancelled, not left to time out"
        j.close()
        assert time.monotonic() - start < 5


def test_a_judge_that_is_forgotten_gives_back_its_thread():
    with running() as server:
        replies = EndpointJudge(f"{server.url}#judge", JudgeOptions()).replies(requests(100))
        next(replies)
        assert "truing-endpoint" in [t.name for t in threading.enumerate()]
        del replies
        gc.collect()
        assert "truing-endpoint" not in [t.name for t in threading.enumerate()]


def test_asks_may_be_made_while_others_are_judged(judge):
    def slow():
        for a in requests(40):
            time.sleep(0.01)  # a model draws answers meanwhile
            yield a

    with running("--delay", "0.1") as server:
        start = time.monotonic()
        each_once(list(judge(server).replies(slow())), requests(40))
    assert time.monotonic() - start < 40 * 0.11 / 2


def test_nothing_asked_is_nothing_sent(judge):
    with running() as server:
        j = judge(server)
        j.score_method([RUBRIC])
        assert list(j.replies([])) == [] and j.spent.calls == 2


def test_texts_that_no_json_can_carry_do_no_harm(judge):
    request = JudgeRequest(AnswerKey("w", "p", "x", "", 0), RUBRIC, "Who?", 'half \ud83d a \x00 pair "} {answer}')
    with running(scores={"default": 12}) as server:
        (reply,) = judge(server).replies([request])
    assert mean(reply) == pytest.approx(12) and reply.request is request
