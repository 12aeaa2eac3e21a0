"""A plan in a terminal: what would be sampled, what a judge would be asked, what that costs."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from truing.view.reading import number, one_line


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print a plan given as plain data (`to_plain`)."""
    _say(console, f"{plan['checkpoints']} models (step 0, the run, its control), {plan['prompts']} prompts")
    answers, tokens = _count(plan["answers"]), _count(plan["sampled_tokens"])
    _say(console, f"sampled: {answers} answers, at most {tokens} tokens")
    _say(console, f"scored without a judge: {_count(plan['scored'])} reference and task answers")
    costs = plan["costs"]
    if costs:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for name, right in (("judge", False), ("calls", True), ("tokens, about", True), ("", False)):
            table.add_column(name, justify="right" if right else "left")
        for c in costs:
            table.add_row(Text(c["what"]), _count(c["calls"]), _count(c["tokens"]), Text(c["note"], style="dim"))
        calls, read = sum(c["calls"] for c in costs), sum(c["tokens"] for c in costs)
        table.add_row(Text("together", style="bold"), _count(calls), _count(read), Text(_most(plan), style="dim"))
        console.print()
        console.print(table)
    if plan["usd"] is not None:
        _say(console, f"money: about ${number(plan['usd'])}, at most ${number(plan['most_usd'])}")
    if plan["hours"] is not None:
        _say(console, f"time under the limits given: at least {number(plan['hours'])} hours")
    for note in plan["notes"]:
        _say(console, f"! {one_line(note)}", "yellow")


def _most(plan: Mapping[str, Any]) -> str:
    return f"at most {_count(plan['most_calls'])} calls, if every answer scored under the cut"


def _count(n: int) -> str:
    return f"{n:,}".replace(",", " ")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), highlight=False)
