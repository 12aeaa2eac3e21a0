"""A plan in a terminal: what would be sampled, what a judge would be asked, what that costs and what it could show."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from truing.report.fitting import print_table, say
from truing.report.reading import number, one_line
from truing.types.progress import duration


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print a plan given as plain data (`to_plain`)."""
    about, costs = "about " if plan["searched"] else "", plan["costs"]
    say(console, f"{plan['checkpoints']} checkpoints, step 0 and any control included; {plan['prompts']} prompts")
    tokens = f"at most {_count(plan['sampled_tokens'])} tokens"
    say(console, f"sampled: {about}{_count(plan['answers'])} answers, {tokens}")
    say(console, f"scored without a judge: {_count(plan['scored'])} reference and task answers")
    if costs:
        rows = [[c["what"], _count(c["calls"]), _count(c["tokens"]), (c["note"], "dim")] for c in costs]
        calls, read = sum(c["calls"] for c in costs), sum(c["tokens"] for c in costs)
        most = (f"at most about {_count(plan['most_calls'])} calls", "dim")
        rows.append([("together", "bold"), _count(calls), _count(read), most])
        print_table(console, rows, ("judge", "calls", "tokens, about", ""), right=(1, 2))
    if plan["usd"] is not None:
        say(console, f"money: about ${number(plan['usd'])}, at most about ${number(plan['most_usd'])}")
    if plan["hours"] is not None:
        say(console, f"time under the limits given: at least {number(plan['hours'])} hours")
    if plan["local_hours"] is not None:
        here = f"about {duration(3600 * plan['local_hours'])}, at the speed that it shows now"
        say(console, f"work of this machine (scoring, sampling, a local judge): {here}")
    if plan["power"]:
        _print_power(plan["power"], console)
    for note in plan["notes"]:
        say(console, f"! {one_line(note)}", "yellow")


def _print_power(power: Mapping[str, Any], console: Console) -> None:
    """What the fixed samples could show."""
    d = power["design"]
    rates = f"misaligned in {100 * d['rate']:g}% of answers, step 0 in {100 * d['base_rate']:g}%"
    say(console, f"Fixed samples of {d['prompts']} prompts x {d['samples']}, if the run is {rates}:", "bold")
    chances = [
        f"certified above {100 * d['lo']:g} points with probability {_chance(power['above'])}",
        f"below {100 * d['hi']:g}: {_chance(power['below'])}",
        f"a run without excess below {100 * d['hi']:g}: {_chance(power['clean'])}",
    ]
    say(console, "; ".join(chances))
    worth = f"worth {_count(round(power['effective']))} independent ones for prompts like these"
    limits = f"excess [{100 * power['low']:.1f}, {100 * power['high']:.1f}] points on these prompts"
    say(console, f"{limits}; {_count(d['prompts'] * d['samples'])} answers are {worth}")


def _chance(p: float) -> str:
    return "> 99%" if p > 0.99 else "< 1%" if p < 0.01 else f"{p:.0%}"


def _count(n: int) -> str:
    return f"{n:,}".replace(",", " ")
