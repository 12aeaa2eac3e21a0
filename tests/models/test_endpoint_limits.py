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

    def waits(*units):
        for n in units:
            yield rate.wait
            rate.take(n)

    assert [*waits(1, 1, 1, 1, 10, 1)] == pytest.approx([0, 0, 0.05, 0.15, 0.25, 1.25], abs=0.02)
    assert [rate.wait for _ in range(9)] == pytest.approx([1.35] * 9, abs=0.02), "asking takes nothing"
    free = Rate(None)
    free.take(10**9)
    assert free.wait == 0


def test_a_budget_tells_that_it_is_spent_before_anything_is_waited_for():
    budget = Budget(calls=1, usd=1.0)
    budget.check(0.5)
    assert budget.calls == 0 and budget.take(0.5)
    with pytest.raises(BudgetSpent):
        budget.check(0.5)


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
    path.write_text("[gpt-4]\ninput=30\noutput=60\n[gpt-4.1]\ninput=2\noutput=8\n[gpt-4.1.nano]\ninput=1\noutput=3")
    assert [price_of(m, str(path)) for m in ("gpt-4", "gpt-4.1", "gpt-4.1.nano")] == [(30, 60), (2, 8), (1, 3)], (
        "nested"
    )
    for missing in ("gpt-5", "gpt-4.1.input"):
        with pytest.raises(BadEndpoint, match=rf"no price for '{missing}' \(it has: gpt-4, gpt-4\.1, gpt-4\.1\.nano\)"):
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
