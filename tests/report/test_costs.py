"""A plan in a terminal: every count, sums that add up, money and time only where they are known."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from truing.stats.forecast import Forecast

from report.audits import EVIL_TERMINAL
from truing.report.costs import print_plan
from truing.runs.plan import Cost, Plan
from truing.runs.plan_search import SearchPlan
from truing.stats.power import Design, power
from truing.types.records import to_plain
from truing.types.verdicts import Estimate

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


DESIGN = Design(120, 4, rate=0.05, base_rate=0.005, correlation=0.2, checkpoints=10, seeds=3)


def test_without_power_nothing_is_said_of_it():
    assert "can show" not in shown(costs=COSTS, most_calls=19200)


def test_every_design_has_its_line_with_both_intervals_and_three_chances():
    made = power(DESIGN)
    text = shown(120, power=made)
    assert "What 120 prompts x 4 answers can show" in text
    for e in (made.expected, *made.others):
        (line,) = [x for x in text.splitlines() if x.startswith(f"{e.prompts} x {e.samples} ")]
        x = e.excess
        assert f"[{100 * x.set_low:.1f}, {100 * x.set_high:.1f}]" in line
        assert f"[{100 * x.low:.1f}, {100 * x.high:.1f}]" in line
        assert f"{e.effective:.0f}" in line
        assert line.count("%") == 3
    assert "corrected for 10 checkpoints" in text
    assert "480 answers are worth 300 independent ones" in text
    assert "never make it over 600" in text  # 120 / 0.2


def test_the_bound_is_called_a_bound_and_seeds_are_said():
    text = " ".join(shown(100, power=power(DESIGN)).split())
    bound = power(DESIGN).bound
    assert "lower bound in draws" in text
    assert f"{bound.above:.0f} to certify it misaligned" in text
    assert f"{bound.clean:.0f} to certify a run without excess harmless" in text
    assert "to certify it harmless" not in text  # an excess of 4.5 points is not
    assert "3 seeds: all certainly misaligned with probability" in text
    clean = " ".join(shown(100, power=power(replace(DESIGN, rate=0.005, seeds=1))).split())
    assert "to certify it harmless" in clean and "without excess harmless" not in clean and "seeds" not in clean


def test_a_pilot_is_shown_with_its_intervals():
    made = replace(
        power(DESIGN),
        correlation=Estimate(0.18, 0.05, 0.41, n=480, clusters=120),
        base=Estimate(0.0125, 0.002, 0.03, 0.004, 0.026, n=480, clusters=120),
        notes=("rate assumed", EVIL_TERMINAL),
    )
    text = " ".join(shown(100, power=made).split())
    assert "correlation in the pilot: 0.18 [0.05, 0.41] (480 answers, 120 prompts)" in text
    assert "share misaligned at its step 0: 1.2% [0.4, 2.6] (480 answers, 120 prompts)" in text
    assert "! rate assumed" in text and "\x1b" not in text
    none = replace(made, correlation=Estimate(None, None, None, warning="no answer is misaligned"), base=None)
    assert "in the pilot" not in shown(100, power=none)


def test_the_power_table_fits_a_terminal():
    text = shown(80, power=power(replace(DESIGN, prompts=240, samples=50)))
    assert "…" not in text
    assert [x for x in text.splitlines() if x.startswith("480 x 25 ")]


SEARCH = SearchPlan(
    steps=20,
    far=(True, True, False),
    forecasts=(Forecast(0.2, 20, 1234.4, 3050.0, 0.95), Forecast(0.0, 20, 842.0, 842.0, 1.0)),
    base_rate=0.005,
    correlation=0.2,
    estimate=1,
    confirm=4,
    compared=4,
)


def test_a_search_has_a_line_for_each_kind_of_run_and_calls_its_figures_simulated():
    text = shown(search=SEARCH, costs=COSTS, most_calls=19200, usd=1.0, most_usd=2.0, power=power(DESIGN))
    assert "20 later checkpoints, 2 far prompts" in text
    assert "(simulated: step 0 misaligned in 0.5%, answers to one prompt correlate at 0.2)" in text
    assert [x.strip() for x in numbers(text, "turn, to 20 points")] == ["20", "1 234", "3 050", "95%"]
    assert [x.strip() for x in numbers(text, "never turn")] == ["20", "842", "842", "100%"]
    assert "1 per prompt, 4 at step 0 and the checkpoint to keep" in text
    flat = " ".join(text.split())
    assert "sampled: about 9 600 answers" in flat
    assert "in 95% of searches at most 19 200 calls" in flat
    assert "in 95% of searches at most $2" in flat
    assert "x 4 fixed answers can show" in flat
    assert "corrected for 10 looks" in flat
    plain = " ".join(shown(costs=COSTS, most_calls=19200, power=power(DESIGN)).split())
    assert "search" not in plain.lower() and "looks" not in plain and "about 9 600" not in plain


def test_a_search_fits_a_narrow_terminal():
    text = shown(50, search=replace(SEARCH, confirm=1))
    assert "…" not in text
    assert "3 050" in text
    assert "1 per prompt." in " ".join(text.split())
