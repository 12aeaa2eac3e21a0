"""A plan in a terminal: every count, sums that add up, money and time only where they are known."""

import io

import pytest
from rich.console import Console

from truing.base.records import to_plain
from truing.study.plan import Cost, Plan
from truing.view.costs import print_plan
from view.audits import EVIL_TERMINAL

COSTS = (Cost("alignment", 9600, 3_000_000), Cost("coherence", 960, 300_500, "about 10 % of answers"))


def shown(width=100, **fields):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    made = Plan(
        **{"checkpoints": 20, "prompts": 120, "answers": 9600, "sampled_tokens": 5_760_000, "scored": 14040} | fields
    )
    print_plan(to_plain(made), console)
    return console.file.getvalue()


def numbers(text, start):
    (found,) = [x for x in text.splitlines() if x.startswith(start)]
    return [x for x in found.removeprefix(start).split("  ") if x.strip()]


def test_what_is_sampled_and_scored_is_counted():
    text = shown()
    assert "20 models" in text
    assert "9 600 answers, at most 5 760 000 tokens" in text
    assert "14 040 reference and task answers" in text


def test_without_a_judge_there_is_no_table_no_money_no_time():
    text = shown()
    assert "judge" not in text.replace("without a judge", "")
    assert "$" not in text
    assert "hours" not in text


def test_costs_add_up_to_the_line_together():
    text = shown(costs=COSTS, most_calls=19200)
    assert [x.strip() for x in numbers(text, "alignment")] == ["9 600", "3 000 000"]
    together = [x.strip() for x in numbers(text, "together")]
    assert together[:2] == ["10 560", "3 300 500"]
    assert "at most 19 200 calls" in text
    assert "about 10 % of answers" in text


def test_money_and_hours_are_said_with_their_bounds():
    text = shown(costs=COSTS, usd=1.234, most_usd=2.5, hours=0.75)
    assert "about $1.23, at most $2.50" in text
    assert "at least 0.75 hours" in text


def test_notes_are_shown_and_do_nothing():
    text = shown(notes=(EVIL_TERMINAL, "prices: none given"))
    assert "! prices: none given" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold red]" in text


@pytest.mark.parametrize("width", [50, 80])
def test_no_number_is_cut_in_a_narrow_terminal(width):
    text = shown(width, costs=COSTS, most_calls=19200)
    assert "…" not in text
    assert "3 300 500" in text
