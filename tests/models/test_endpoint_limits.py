"""Rates, budget, breaker and prices, without a clock and without a network."""

import random
import threading

import pytest

from truing.errors import BadEndpoint
from truing.models.limits import FAILED_AT_FIRST, FAILED_IN_A_ROW, Breaker, Bucket, Budget, Limits, Taken, load_prices
from truing.models.limits import price_of as price_of_model
from truing.types.judging import JudgeOptions


@pytest.mark.parametrize("rate", [1.0, 60.0, 500.0, 6000.0])
def test_a_bucket_never_lets_more_through_in_any_minute_and_wastes_nothing(rate):
    rng, bucket, now = random.Random(0), Bucket(rate), 100.0
    sent = []
    for _ in range(800):
        now += rng.expovariate(rate / 60 * 2)  # asks come twice as fast as allowed, in bursts
        sent.append(now + bucket.reserve(1, now))
    assert sent == sorted(sent)
    for k in range(len(sent)):
        assert sum(sent[k] <= t < sent[k] + 60 - 1e-6 for t in sent[k:]) <= max(rate, 1)
    assert (len(sent) - 1) / (sent[-1] - sent[0]) == pytest.approx(rate / 60, rel=0.02)


def test_a_bucket_of_tokens_counts_sizes_and_takes_refunds():
    bucket = Bucket(6000)  # 100 a second
    assert bucket.reserve(500, now=10.0) == 0
    assert bucket.reserve(100, now=10.0) == pytest.approx(5.0)
    bucket.refund(300)  # the first needed only 200
    assert bucket.reserve(1, now=10.0) == pytest.approx(3.0)
    assert bucket.reserve(1, now=1000.0) == 0, "what was not used long ago is no debt and no credit"
    assert bucket.reserve(1, now=1000.0) == pytest.approx(0.01)
    assert Bucket(None).reserve(1e9, 0.0) == 0


def test_calls_are_never_exceeded_from_many_threads():
    budget = Budget(calls=1000)
    taken = []

    def spend():
        while budget.take(0.0) is Taken.YES:
            taken.append(1)
            budget.settle(0.0, 0.0)

    threads = [threading.Thread(target=spend) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(taken) == budget.calls == 1000


def test_money_is_held_at_the_estimate_and_settled_at_the_price():
    budget = Budget(usd=1.0)
    assert [budget.take(0.4) for _ in range(3)] == [Taken.YES, Taken.YES, Taken.WAIT]
    budget.settle(0.4, 0.1)
    assert budget.take(0.4) is Taken.YES
    assert budget.take(0.2) is Taken.WAIT
    budget.settle(0.4, 0.4)
    budget.settle(0.4, 0.4)
    assert budget.take(0.2) is Taken.NO, "nothing is in flight that could still give money back"
    assert budget.take(0.1 - 1e-9) is Taken.YES
    budget.give_back(0.1 - 1e-9)
    assert (budget.calls, budget.usd) == (3, pytest.approx(0.9))


def test_the_breaker_opens_after_the_first_eight_or_the_last_twenty():
    breaker = Breaker()
    assert [breaker.record(False) for _ in range(FAILED_AT_FIRST)] == [False] * 7 + [True]
    assert not breaker.record(True), "afresh after it has opened"
    assert [breaker.record(False) for _ in range(FAILED_IN_A_ROW)] == [False] * 19 + [True]
    rng = random.Random(1)
    breaker = Breaker()
    breaker.record(True)
    assert not any(breaker.record(rng.random() > 0.5) for _ in range(1000)), "half of them failing is no outage"


def test_prices_are_read_with_dots_in_names(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text(
        '[gpt-4o]\ninput = 2.5\noutput = 10\n["a/b-1.5"]\ninput=1\noutput=2\n[gpt-4.1-mini]\ninput=0.4\noutput=1.6'
    )
    prices = load_prices(str(path))
    assert set(prices) == {"gpt-4o", "a/b-1.5", "gpt-4.1-mini"}
    assert prices["gpt-4.1-mini"].of(1_000_000, 500_000) == pytest.approx(0.4 + 0.8)
    with pytest.raises(BadEndpoint, match="no price for 'gpt-5'"):
        price_of_model("gpt-5", str(path))
    assert price_of_model("anything", None) is None


@pytest.mark.parametrize(
    "text",
    ["[m]\ninput='1'\noutput=1", "[m]\ninput=1", "[m]\ninput=-1\noutput=1", "[m]\ninput=nan\noutput=1",
     "input=1\noutput=1", "[m]\ninput=true\noutput=1", "[m]\ninput=1\noutput=1\ncached=1", "not toml ["],
)  # fmt: skip
def test_tables_that_are_no_prices_are_refused(tmp_path, text):
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(BadEndpoint, match=r"prices\.toml"):
        load_prices(str(path))


@pytest.mark.parametrize(
    "changes",
    [{"budget_calls": 0}, {"budget_calls": -3}, {"budget_usd": 0.0, "prices": "p"}, {"budget_usd": -1.0, "prices": "p"},
     {"budget_usd": 1.0}, {"budget_usd": float("nan"), "prices": "p"}, {"rpm": 0}, {"tpm": -1}, {"timeout": 0},
     {"concurrency": 0}, {"retries": -1}],
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused(changes):
    with pytest.raises(BadEndpoint):
        Limits.of(JudgeOptions(**changes))
