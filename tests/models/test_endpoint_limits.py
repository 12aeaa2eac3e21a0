"""Budget, breaker and prices, without a clock and without a network."""

import random
import threading

import pytest

from truing.errors import BadEndpoint, BudgetSpent
from truing.models.limits import FAILED_AT_FIRST, FAILED_IN_A_ROW, Breaker, Budget, Limits, Rate, price_of


def test_calls_are_never_exceeded_from_many_threads():
    budget = Budget(calls=1000)
    taken = []

    def spend():
        with pytest.raises(BudgetSpent):
            while budget.take(0.0):
                taken.append(1)
                budget.settle(0.0, 0.0)

    threads = [threading.Thread(target=spend) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(taken) == budget.calls == 1000


def test_money_is_held_at_the_estimate_and_settled_at_the_price():
    budget = Budget(usd=1.0)
    assert [budget.take(0.4) for _ in range(3)] == [True, True, False]
    budget.settle(0.4, 0.1)
    assert budget.take(0.4)
    assert not budget.take(0.2), "what is in flight may still give money back"
    budget.settle(0.4, 0.4)
    budget.settle(0.4, 0.4)
    with pytest.raises(BudgetSpent, match=r"\$0.9000 of \$1"):
        budget.take(0.2)
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


def test_rates_let_some_through_at_once_and_the_rest_one_after_the_other():
    rate = Rate(600, ahead=0.15)  # ten a second
    assert [rate.book(1) for _ in range(4)] == pytest.approx([0, 0, 0.05, 0.15], abs=0.02)
    assert [rate.book(10), rate.book(1)] == pytest.approx([0.25, 1.25], abs=0.02)
    assert [Rate(None).book(10**9) for _ in range(2)] == [0, 0]


def test_prices_are_read_with_dots_in_names_and_what_is_none_is_refused(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text(
        '[gpt-4o]\ninput = 2.5\noutput = 10\n["a/b-1.5"]\ninput=1\noutput=2\n[gpt-4.1-mini]\ninput=0.4\noutput=1.6'
    )
    assert [price_of(m, str(path)) for m in ("gpt-4o", "a/b-1.5")] == [(2.5, 10), (1, 2)]
    assert price_of("gpt-4.1-mini", str(path)).of(1_000_000, 500_000) == pytest.approx(0.4 + 0.8)
    rows = ("input='1'", "", "input=-1", "input=nan", "input=true", "cached=1\ninput=1")
    for text in (*(f"[m]\noutput=1\n{row}" for row in rows), "[m]\ninput=1", "input=1\noutput=1", "not toml ["):
        (tmp_path / "wrong.toml").write_text(text)
        with pytest.raises(BadEndpoint, match=r"wrong\.toml"):
            price_of("m", str(tmp_path / "wrong.toml"))
    for missing in ("gpt-5", "gpt-4o.input.x"):
        with pytest.raises(BadEndpoint, match=f"no price for '{missing}'"):
            price_of(missing, str(path))
    assert price_of("anything", None) is None


@pytest.mark.parametrize(
    "changes",
    [{"budget_calls": 0}, {"budget_calls": -3}, {"budget_usd": 0.0, "prices": "p"}, {"budget_usd": -1.0, "prices": "p"},
     {"budget_usd": 1.0}, {"budget_usd": float("nan"), "prices": "p"}, {"rpm": 0}, {"tpm": -1}, {"timeout": 0},
     {"concurrency": 0}],
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused(changes):
    with pytest.raises(BadEndpoint):
        Limits(**changes)
