"""A plan in a terminal: every count, sums that add up, money and time only where they are known."""

import pytest

from report.audits import EVIL_TERMINAL, inert, printed
from truing.report.costs import print_plan
from truing.runs.plan import Cost, Plan
from truing.stats.power import Design, power
from truing.types.records import to_plain

COSTS = (Cost("alignment", 9600, 3_000_000), Cost("coherence", 960, 300_500, "about 10 % of answers"))
SAMPLED = {"checkpoints": 20, "prompts": 120, "answers": 9600, "sampled_tokens": 5_760_000, "scored": 14040}


def shown(width=100, **fields):
    return printed(lambda console: print_plan(to_plain(Plan(**SAMPLED | fields)), console), width)


def test_what_is_sampled_and_scored_is_counted_and_nothing_else_without_a_judge():
    text = shown()
    counted = "20 checkpoints, step 0 and any control included"
    for words in (counted, "9 600 answers, at most 5 760 000 tokens", "14 040 reference and task answers"):
        assert words in text
    assert not [word for word in ("calls", "$", "hours", "certified") if word in text]


def test_costs_add_up_to_the_line_together():
    text = shown(costs=COSTS, most_calls=19200, usd=1.234, most_usd=2.5, hours=0.75, searched=True)
    (together,) = [x.split("  ") for x in text.splitlines() if x.startswith("together")]
    assert [x.strip() for x in together if x.strip()][1:3] == ["10 560", "3 300 500"]
    for words in ("at most about 19 200 calls", "about 10 % of answers", "sampled: about 9 600",
                  "about $1.23, at most about $2.50", "at least 0.75 hours"):  # fmt: skip
        assert words in text


def test_what_the_samples_could_show_is_said_with_its_assumptions():
    made = power(Design(120, 4, rate=0.05, base_rate=0.005))
    text = " ".join(shown(power=made).split())
    assert "120 prompts x 4, if the run is misaligned in 5% of answers, step 0 in 0.5%" in text
    assert f"above 1 points with probability {'> 99%' if made.above > 0.99 else f'{made.above:.0%}'}" in text
    assert f"excess [{100 * made.low:.1f}, {100 * made.high:.1f}] points" in text
    assert "480 answers are worth 300 independent ones" in text


@pytest.mark.parametrize("width", [50, 80])
def test_no_number_is_cut_and_notes_do_nothing(width):
    text = shown(width, costs=COSTS, most_calls=19200, notes=(EVIL_TERMINAL, "prices: none given"))
    assert "…" not in text and "3 300 500" in text
    assert "! prices: none given" in text and inert(text)
