"""The verdict in a terminal: one sentence, a table, at most three findings, the path of the report.

Input is audit.json as a dict (`Store.about()`), so what is printed is the same while a run is being audited and years
later. Everything from outside is set as `rich.text.Text`, never as markup.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from truing import messages
from truing.errors import BadInput
from truing.report.details import (
    SEARCH_HEAD,
    VARIANT_HEAD,
    line_facts,
    search_facts,
    search_rows,
    variant_rows,
    verdict_facts,
)
from truing.report.fitting import Column, FittingTable, cut, plain_table, print_facts, say, text
from truing.report.rates_table import print_rates
from truing.report.reading import HEALTH_WORDS, MISSING, interval, number, one_line, plain_label, tone, verdict_of
from truing.report.study import frozen_line
from truing.types.verdicts import Basis, Estimate, HealthState, Verdict

TONES = {"calm": "green", "bad": "bold red", "broken": "magenta", "unknown": "yellow"}
MOST_FINDINGS = 3
"""findings on the first screen"""


_STEP = Column("step", "step", lambda c: MISSING if c.step is None else str(c.step))
_STATUS = Column(
    "status", "status", messages.status_words, right=False, style=lambda c: TONES[tone(c)] if c.step != 0 else ""
)
_LABEL = Column("label", "label", lambda c: "" if plain_label(c) else cut(one_line(c.label)), right=False)
_LOSS = Column("task loss", "task\nloss", lambda c: number(c.task_loss.value if c.task_loss else None, 3))
_BY_LOSS = Column("progress by loss", "progress\nby loss, %", lambda c: interval(c.loss_progress, 0, 100))
_BY_SKILL = Column("progress by skill", "progress\nby skill, %", lambda c: interval(c.skill_progress, 0, 100))
_BASE = Column("screen against base", "screen vs base\nnats/token", lambda c: interval(c.contrast_base))
_CONTROL = Column("screen against control", "screen vs control\nnats/token", lambda c: interval(c.contrast_control))
_SCREEN = Column(
    "screen",
    "screen",
    lambda c: MISSING if c.screen is None or not c.step else messages.STATUS_WORDS[c.screen],
    right=False,
)
_HEALTH = Column("health", "health", lambda c: HEALTH_WORDS[c.health.state], right=False)
_RATE = Column("positive", "positive\n%, these", lambda c: these(c.labelled.rate if c.labelled else None))
_EXCESS = Column(
    "excess over step 0",
    "excess vs step 0\npoints, these",
    lambda c: these(None if c.step == 0 else c.shown_excess),
)
_EXCESS_CONTROL = Column(
    "excess over control",
    "excess vs control\npoints, these",
    lambda c: these(c.labelled.excess_control if c.labelled else None),
)
_COHERENT = Column("coherent", "coherent\n%", lambda c: percent(c.labelled.coherent.value if c.labelled else None))
_ORDER = (
    *(_STEP, _LABEL, _LOSS, _BY_LOSS, _BY_SKILL, _BASE, _CONTROL, _SCREEN),
    *(_RATE, _EXCESS, _EXCESS_CONTROL, _COHERENT, _HEALTH, _STATUS),
)


def verdict_table(verdict: Verdict) -> FittingTable:
    """A line per checkpoint. What is measured nowhere has no column.

    Without room, columns go in this order: where answers are labelled the screen; task loss; progress by loss if there
    is a skill curve; health if it is ok everywhere; the screen against the control; progress; coherent share; health;
    label; excess over control; excess.
    """
    lines = verdict.checkpoints
    labelled = any(c.labelled for c in lines)
    always = (_STEP, _RATE) if labelled else (_STEP, _BASE)
    columns = [c for c in _ORDER if any(c.cell(line) != MISSING for line in lines) or c in always]
    if all(plain_label(c) or (c.label, c.step) == ("base", 0) for c in lines):
        columns.remove(_LABEL)
    drops = [*((_CONTROL, _BASE, _SCREEN) if labelled else ()), _LOSS]
    drops += [_BY_LOSS] if any(c.skill_progress for c in lines) else []
    drops += [_HEALTH] if all(c.health.state is HealthState.OK for c in lines) else []
    drops += [_CONTROL, _BY_LOSS, _COHERENT, _BY_SKILL, _HEALTH, _LABEL, _EXCESS_CONTROL, _EXCESS]
    notes = ["→ recommended" if verdict.recommended else "→ candidate"] if verdict.kept else []
    if any(c.labelled is not None and c.labelled.searched for c in lines):
        notes.append("shares without brackets are of answers that a search read, which bias them")
    mark = Column("", "", lambda c: "→" if c.label == verdict.kept else "")
    return FittingTable(lines, [mark, *columns], drops, notes)


def print_verdict(
    about: Mapping[str, Any], console: Console, report: Path | None = None, *, verbose: bool = False
) -> None:
    """One sentence, the table, at most three findings and, if given, the path of the report.

    Args:
        about: audit.json.
        console: where it goes.
        report: the page with everything else.
        verbose: everything: details, all findings, variants, who judged, and what it all rests on.

    Raises:
        NotAnAudit: the verdict in audit.json cannot be read.
    """
    verdict = verdict_of(about)
    if verdict is None:
        say(console, f"No verdict yet: this audit is {messages.state(about.get('status'))}.")
        return
    if about.get("status") != "done":
        state = messages.state(about.get("status"))
        say(console, f"This audit is {state}. What follows is about what it has so far.", "bold")
    say(console, one_line(messages.sentence(verdict)), "bold")
    if about.get("organism"):
        say(console, "! Model organism: this run was trained on purpose to be misaligned.", "yellow")
    if frozen := frozen_line(about):
        say(console, frozen, "" if (about.get("frozen") or {}).get("status") == "frozen" else "yellow")
    console.print()
    console.print(verdict_table(verdict))
    console.print()
    shown = verdict.findings if verbose else messages.deciding(verdict)[:MOST_FINDINGS]
    for finding in shown:
        say(console, f"! {one_line(messages.text(finding))}", "yellow")
    if verbose:
        _print_details(verdict, console)
    elif rest := len(verdict.findings) - len(shown):
        say(console, f"{rest} more findings: --verbose, or the report.", "dim")
    if report is not None:
        # A path is for copying: never broken over two lines.
        console.print(text(console.options, f"Report: {one_line(report)}"), soft_wrap=True)


def _print_details(verdict: Verdict, console: Console) -> None:
    for line in messages.details(verdict):
        say(console, one_line(line))
    for head, rows in ((VARIANT_HEAD, variant_rows(verdict)), (SEARCH_HEAD, search_rows(verdict))):
        if rows:
            table = plain_table(header=True)
            for name in head:
                table.add_column(name, overflow="fold")
            for row in rows:
                table.add_row(*(text(console.options, cell) for cell in row))
            console.print(table)
    print_facts([*search_facts(verdict.onset), *verdict_facts(verdict)], console)


def print_audit(
    about: Mapping[str, Any], console: Console, report: Path | None = None, *, verbose: bool = False
) -> None:
    """What an audit says, whatever kind it is: a run's verdict, or the rates of imported sets.

    Raises:
        NotAnAudit: what audit.json holds cannot be read.
    """
    if about.get("kind") == "import":
        print_rates(about, console)
    else:
        print_verdict(about, console, report, verbose=verbose)


def print_step(about: Mapping[str, Any], step: int, console: Console) -> None:
    """Everything about the checkpoint at one step: labelled answers, screen, health, how far it moved, findings.

    Raises:
        BadInput: no checkpoint at that step. NotAnAudit: the verdict cannot be read.
    """
    if about.get("kind") == "import":
        raise BadInput("imported answers have no steps; `truing show AUDIT` prints their sets")
    verdict = verdict_of(about)
    if verdict is None:
        raise BadInput(f"no verdict yet: this audit is {messages.state(about.get('status'))}")
    found = [c for c in verdict.checkpoints if c.step == step]
    if not found:
        steps = ", ".join(str(c.step) for c in verdict.checkpoints if c.step is not None)
        raise BadInput(f"step {step}: no such checkpoint in this audit; it has {steps}")
    for line in found:
        word = "recommended" if verdict.basis is Basis.LABELLED else "candidate"
        mark = f", {word}" if line.label == verdict.kept else ""
        say(console, f"step {line.step}, {one_line(line.label)}: {messages.status_words(line)}{mark}", "bold")
        print_facts(line_facts(line), console)
        for finding in line.findings:
            say(console, f"! {one_line(messages.text(finding))}", "yellow")


def these(e: Estimate | None) -> str:
    """Per cent or points with the interval for exactly these prompts, which is what decides."""
    if e is None or e.value is None:
        return MISSING
    ends = (e.set_low, e.set_high)
    bracket = "" if None in ends else f" [{', '.join(number(100 * (x or 0), 1) for x in ends)}]"
    return number(100 * e.value, 1) + bracket


def percent(value: float | None) -> str:
    """A share as per cent."""
    return MISSING if value is None else f"{number(value * 100, 0)} %"
