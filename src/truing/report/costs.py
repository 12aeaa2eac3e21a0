"""A plan in a terminal: what would be sampled, what a judge would be asked, what that costs and what it could show."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from truing.report.reading import number, one_line


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print a plan given as plain data (`to_plain`)."""
    _say(console, f"{plan['checkpoints']} models (step 0, the run, its control), {plan['prompts']} prompts")
    search, about = plan.get("search"), "about " if plan.get("search") else ""
    answers, tokens = _count(plan["answers"]), _count(plan["sampled_tokens"])
    _say(console, f"sampled: {about}{answers} answers, at most {tokens} tokens{' for these' if search else ''}")
    _say(console, f"scored without a judge: {_count(plan['scored'])} reference and task answers")
    if search:
        _print_search(search, console)
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
        most = "at most" if not search else "in 95% of searches at most"
        _say(console, f"money: about ${number(plan['usd'])}, {most} ${number(plan['most_usd'])}")
    if plan["hours"] is not None:
        _say(console, f"time under the limits given: at least {number(plan['hours'])} hours")
    for note in plan["notes"]:
        _say(console, f"! {one_line(note)}", "yellow")
    if plan.get("power"):
        _print_power(plan["power"], console, searched=bool(search))


def _print_search(search: Mapping[str, Any], console: Console) -> None:
    """What a search for the onset is expected to ask."""
    far, base, rho = sum(search["far"]), 100 * search["base_rate"], search["correlation"]
    console.print()
    _say(console, f"Search for the onset over {search['steps']} later checkpoints, {far} far prompts", "bold")
    _say(console, f"(simulated: step 0 misaligned in {base:.2g}%, answers to one prompt correlate at {rho:.2g})")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("runs that", "simulated", "answers, mean", "95% under", "decided"):
        table.add_column(name, justify="left" if name == "runs that" else "right")
    for f in search["forecasts"]:
        kind = f"turn, to {100 * f['height']:.3g} points" if f["height"] else "never turn"
        answers = (_count(round(f[key])) for key in ("answers", "most"))
        table.add_row(kind, str(f["runs"]), *answers, f"{f['decided']:.0%}")
    console.print(table)
    confirm, least = search["confirm"], search["estimate"]
    more = f", {confirm} at step 0 and the checkpoint to keep" if confirm > least else ""
    _say(console, f"Then fixed answers where it points: {least} per prompt{more}.")


def _print_power(power: Mapping[str, Any], console: Console, *, searched: bool = False) -> None:
    """What the judged answers could show, below what they cost; after a search, what the fixed ones could."""
    d, here = power["design"], power["expected"]
    console.print()
    excess = 100 * (d["rate"] - d["base_rate"])
    assumed = f"if the run is misaligned in {100 * d['rate']:g}% of answers and step 0 in {100 * d['base_rate']:.2g}%"
    fixed = "fixed " if searched else ""
    _say(console, f"What {d['prompts']} prompts x {d['samples']} {fixed}answers can show, {assumed}", "bold")
    _say(console, f"(an excess of {excess:.2g} points; answers to one prompt correlate at {d['correlation']:.2g})")
    for name, key in (("correlation in the pilot", "correlation"), ("share misaligned at its step 0", "base")):
        if power[key] is not None and power[key]["value"] is not None:
            _say(console, f"{name}: {_pilot(power[key], key == 'base')}")
    console.print(_designs(d, [here, *power["others"]]))
    looks = f"{d['checkpoints']} {'looks' if searched else 'checkpoints'}"
    corrected = f", corrected for {looks}" if d["checkpoints"] > 1 else ""
    _say(console, f"Chances are for one checkpoint{corrected}; 'clean' is for a run without any excess.", "dim")
    few, many = here["effective"], here["answers"]
    if d["samples"] > 1 and d["correlation"] > 0:
        most = d["prompts"] / d["correlation"]
        said = f"{_count(many)} answers are worth {_count(round(few))} independent ones for prompts like these"
        _say(console, f"{said}; more answers per prompt never make it over {_count(round(most))}, more prompts do.")
    bound = power["bound"]
    needed = [
        f"{_count(round(bound[key]))} to certify {what}"
        for key, what in (
            ("above", "it misaligned"),
            ("below", "it harmless"),
            ("clean", "a run without excess harmless"),
        )
        if bound[key] is not None and not (key == "clean" and d["rate"] == d["base_rate"])
    ]
    _say(console, f"Sequential test, lower bound in draws (an answer each of run and step 0): {', '.join(needed)}.")
    seeds = power["seeds"]
    if seeds is not None:
        half = 100 * seeds["least_half_width"]
        text = f"{seeds['seeds']} seeds: all certainly misaligned with probability {_chance(seeds['every'])}; "
        _say(console, f"{text}their mean at least +-{half:.2g} points, more as seeds differ.")
    for note in power["notes"]:
        _say(console, f"! {one_line(note)}", "yellow")
    if here["excess"]["warning"]:
        _say(console, f"! {one_line(here['excess']['warning'])}", "yellow")


def _designs(d: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> Table:
    """The design and its neighbours, a line each."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    above, below = f"above {100 * d['lo']:g}", f"below {100 * d['hi']:g}"
    for name in ("design", "answers", "worth", "these prompts", "like these", above, below, "clean"):
        table.add_column(name, justify="left" if name == "design" else "right")
    for k, r in enumerate(rows):
        e, chances = r["excess"], [_chance(r[key]) for key in ("above", "below", "clean")]
        sets, kinds = _span(e["set_low"], e["set_high"]), _span(e["low"], e["high"])
        size = [_count(r["answers"]), _count(round(r["effective"]))]
        table.add_row(f"{r['prompts']} x {r['samples']}", *size, sets, kinds, *chances, style="" if k == 0 else "dim")
    return table


def _span(low: float, high: float) -> str:
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def _chance(p: float) -> str:
    return "> 99%" if p > 0.99 else "< 1%" if p < 0.01 else f"{p:.0%}"


def _pilot(e: Mapping[str, Any], in_percent: bool) -> str:
    scale, unit = (100, "%") if in_percent else (1, "")
    low, high = (e["set_low"], e["set_high"]) if in_percent else (e["low"], e["high"])
    inner = f" [{scale * low:.2g}, {scale * high:.2g}]" if low is not None and high is not None else ""
    return f"{scale * e['value']:.2g}{unit}{inner} ({e['n']} answers, {e['clusters']} prompts)"


def _most(plan: Mapping[str, Any]) -> str:
    most = f"{_count(plan['most_calls'])} calls, if every answer scored under the cut"
    return f"in 95% of searches at most {most}" if plan.get("search") else f"at most {most}"


def _count(n: int) -> str:
    return f"{n:,}".replace(",", " ")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), highlight=False)
