"""Plans too large are refused before any work, with what they would be; a search's work grows with what it reads."""

from pathlib import Path

import pytest

import truing
from truing import errors

LATE = "simulated:late?steps=50,100"
HUGE = "1" + "0" * 9
WORDS = ("audit", LATE, "--judge", "simulated:", "--limit", "12")


@pytest.mark.parametrize("verb", ["audit", "plan", "freeze"])
@pytest.mark.parametrize(
    ("given", "answers"),
    [
        (("--samples", HUGE), 3 * 12 * 10**9 + 36),
        (("--samples", HUGE, "--control", LATE), 5 * 12 * 10**9 + 60),
        (("--estimate", HUGE), 8 * 12 * 10**9 + 36),
        (("--samples", "9000", "--variants", "all"), None),
        (("--most-answers", "100"), 8 * 12 + 36),
    ],
)
def test_a_plan_too_large_is_refused_with_its_answers_and_hours(call, verb, given, answers):
    where = {"audit": ("--out", "a"), "plan": (), "freeze": ("--out", "lock")}[verb]
    code, out, err = call(verb, *WORDS[1:], *given, *where)
    assert code == 2 and not out and not list(Path().iterdir())
    assert "checkpoints to 12 prompts (about " in err and "--most-answers" in err
    assert answers is None or (f"{answers:,} answers" in err and f"about {answers // 36000:,} hours" in err)


def test_its_remedies_work(call):
    for more in (("--samples", "1"), ("--most-answers", "200")):
        given = ("--most-answers", "100", "--answers", "0")
        assert call("plan", *WORDS[1:], *given, "--estimate", "2")[0] == 2
        assert call("plan", *WORDS[1:], *given, *more)[0] == 0


@pytest.mark.parametrize("steps", [range(1, 10**4 + 2), [10**13]])
def test_a_simulated_run_has_so_many_steps_at_most(steps):
    with pytest.raises(errors.BadModel, match="give at most 10,000, the last at most 1e\\+12"):
        truing.audit(f"simulated:late?steps={','.join(map(str, steps))}")


@pytest.mark.parametrize("option", [{"resamples": 10**9}, {"concurrency": 10**9}])
def test_what_would_fill_the_memory_is_out_of_range(option):
    with pytest.raises(errors.BadInput, match="less than or equal"):
        truing.audit(LATE, **option)
