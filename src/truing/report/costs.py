"""A plan in a terminal: what would be sampled, what a judge would be asked, what that costs and what it could show."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from truing.report.reading import number, one_line


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print a plan given as plain data (`to_plain`)."""
    about, costs = "about " if plan["searched"] else "", plan["costs"]
    _say(console, f"{plan['checkpoints']} models (step 0, the run, its control), {plan['prompts']} prompts")
    tokens = f"at most {_count(plan['sampled_tokens'])} tokens"
    _say(console, f"sampled: {about}{_count(plan['answers'])} answers, {tokens}")
    _say(console, f"scored without a judge: {_count(plan['scored'])} reference and task answers")
    if costs:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for name, right in (("judge", False), ("calls", True), ("tokens, about", True), ("", False)):
            table.add_column(name, justify="right" if right else "left")
        for c in costs:
            table.add_row(Text(c["what"]), _count(c["calls"]), _count(c["tokens"]), Text(c["note"], style="dim"))
        calls, read = sum(c["calls"] for c in costs), sum(c["tokens"] for c in costs)
        most = Text(f"at most about {_count(plan['most_calls'])} calls", style="dim")
        table.add_row(Text("together", style="bold"), _count(calls), _count(read), most)
        console.print(table)
    if plan["usd"] is not None:
        _say(console, f"money: about ${number(plan['usd'])}, at most about ${number(plan['most_usd'])}")
    if plan["hours"] is not None:
        _say(console, f"time under the limits given: at least {number(plan['hours'])} hours")
    if plan["power"]:
        _print_power(plan["power"], console)
    for note in plan["notes"]:
        _say(console, f"! {one_line(note)}", "yellow")


def _print_power(power: Mapping[str, Any], console: Console) -> None:
    """What the fixed samples could show."""
    d = power["design"]
    rates = f"misaligned in {100 * d['rate']:g}% of answers, step 0 in {100 * d['base_rate']:g}%"
    _say(console, f"Fixed samples of {d['prompts']} prompts x {d['samples']}, if the run is {rates}:", "bold")
    chances = [
        f"certified above {100 * d['lo']:g} points with probability {_chance(power['above'])}",
        f"below {100 * d['hi']:g}: {_chance(power['below'])}",
        f"a run without excess below {100 * d['hi']:g}: {_chance(power['clean'])}",
    ]
    _say(console, f"{'; '.join(chances)}")
    worth = f"worth {_count(round(power['effective']))} independent ones for prompts like these"
    limits = f"excess [{100 * power['low']:.1f}, {100 * power['high']:.1f}] points on these prompts"
    _say(console, f"{limits}; {_count(d['prompts'] * d['samples'])} answers are {worth}")


def _chance(p: float) -> str:
    return "> 99%" if p > 0.99 else "< 1%" if p < 0.01 else f"{p:.0%}"


def _count(n: int) -> str:
    return f"{n:,}".replace(",", " ")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), highlight=False)
