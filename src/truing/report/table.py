"""The verdict in a terminal: one sentence, a table, at most three findings, the path of the report.

Input is audit.json as a dict (`Store.about()`), so what is printed is the same while a run is being audited and years
later. Everything from outside is set as `rich.text.Text`, never as markup.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from truing import messages
from truing.errors import BadInput
from truing.report.details import line_facts, search_facts, search_table, variant_table, verdict_facts
from truing.report.fitting import Column, FittingTable, cut, print_facts, print_table, say, text
from truing.report.rates_table import print_rates
from truing.report.reading import MISSING, interval, number, one_line, percent, plain_label, tone, verdict_of
from truing.report.study import frozen_line
from truing.types.verdicts import EXCESS, HealthState, Status, Verdict

TONES = {"calm": "green", "bad": "bold red", "broken": "magenta", "unknown": "yellow"}
MOST_FINDINGS = 3
"""findings on the first screen"""


def _labelled(name: str, head: str, cell: Any) -> Column:
    """A column of what labelled answers say; `cell` makes a text of a `LabelledLine`."""
    return Column(name, head, lambda c: MISSING if c.labelled is None else cell(c.labelled))


def _these(e: Any) -> str:
    """Per cent or points with the interval for exactly these prompts, which is what decides."""
    return interval(e, 1, 100, of="set_")


def _share(e: Any) -> str:
    """Per cent without an interval."""
    return number(None if e is None or e.value is None else 100 * e.value, 0)


def _status_tone(c: Any) -> str:
    return TONES[tone(c)] if c.step != 0 else ""


def _by_search_alone(c: Any, lo: float) -> bool:
    """Whether fixed answers stand in the line that do not certify by themselves what its status says."""
    codes = {f.code for f in c.findings}
    if c.status is Status.CLEAN:
        return "unconfirmed" in codes
    low = c.labelled.excess_base.set_low if c.labelled and c.labelled.excess_base and not c.labelled.searched else None
    return c.status in EXCESS and "certified_above" in codes and low is not None and low <= lo


_STEP = Column("step", "step", lambda c: MISSING if c.step is None else str(c.step))
_STATUS = Column("status", "status", messages.status_words, right=False, style=_status_tone)
_LABEL = Column("label", "label", lambda c: "" if plain_label(c) else cut(one_line(c.label)), right=False)
_LOSS = Column("task loss", "task\nloss", lambda c: number(c.task_loss.value if c.task_loss else None, 3))
_LOSS_SHORT = Column("progress by loss", "task\n%", lambda c: _share(c.loss_progress))
_BY_LOSS = Column(
    "progress by loss", "progress\nby loss, %", lambda c: interval(c.loss_progress, 0, 100), short=_LOSS_SHORT
)
_SKILL_SHORT = Column("progress by skill", "task\n%", lambda c: _share(c.skill_progress))
_BY_SKILL = Column(
    "progress by skill", "progress\nby skill, %", lambda c: interval(c.skill_progress, 0, 100), short=_SKILL_SHORT
)
_BASE = Column("screen against base", "screen vs base\nnats/token", lambda c: interval(c.contrast_base))
_CONTROL = Column("screen against control", "screen vs control\nnats/token", lambda c: interval(c.contrast_control))
_SCREEN = Column("screen", "screen", lambda c: messages.word(c.screen) if c.screen and c.step else MISSING, right=False)
_HEALTH = Column("health", "health", lambda c: messages.word(c.health.state), right=False)
_RATE = _labelled("positive", "positive\n%", lambda x: _these(x.rate))
_EXCESS = Column(
    "excess over step 0", "excess vs step 0\npoints", lambda c: _these(c.shown_excess if c.step != 0 else None)
)
_EXCESS_CONTROL = _labelled("excess over control", "excess vs control\npoints", lambda x: _these(x.excess_control))
_COHERENT = _labelled("coherent", "coherent\n%", lambda x: percent(x.coherent.value, 0))
_ORDER = (
    *(_STEP, _LABEL, _LOSS, _BY_LOSS, _BY_SKILL, _BASE, _CONTROL, _SCREEN),
    *(_RATE, _EXCESS, _EXCESS_CONTROL, _COHERENT, _HEALTH, _STATUS),
)


def verdict_table(verdict: Verdict) -> FittingTable:
    """A line per checkpoint. What is measured nowhere has no column.

    Without room, columns go in this order: where answers are labelled the screen; task loss; progress by loss if there
    is a skill curve; health if it is ok everywhere; the screen against the control; progress; coherent share; health;
    label; excess over control; excess. Progress goes in two steps: its interval, then late the number.
    """
    lines = verdict.checkpoints
    labelled = any(c.labelled for c in lines)
    always = (_STEP, _RATE) if labelled else (_STEP, _BASE)
    status = replace(_STATUS, cell=partial(messages.status_words, trait=verdict.trait))
    order = [status if c is _STATUS else c for c in _ORDER]
    columns = [c for c in order if any(c.cell(line) != MISSING for line in lines) or c in always]
    if all(plain_label(c) or (c.label, c.step) == ("base", 0) for c in lines):
        columns.remove(_LABEL)
    drops = [*((_CONTROL, _BASE, _SCREEN) if labelled else ()), _LOSS]
    drops += [_BY_LOSS, _LOSS_SHORT] if any(c.skill_progress for c in lines) else []
    drops += [_HEALTH] if all(c.health.state is HealthState.OK for c in lines) else []
    drops += [_CONTROL, _BY_LOSS, _COHERENT, _BY_SKILL, _HEALTH, _LABEL]
    drops += [_LOSS_SHORT, _SKILL_SHORT, _EXCESS_CONTROL, _EXCESS]
    notes = ["→ recommended"] if verdict.kept else []
    if any(c.labelled is not None and c.labelled.searched for c in lines):
        notes.append("shares without brackets are of answers that a search read, which bias them")
    lo = (verdict.definitions.get("rule") or {}).get("lo", 0)
    if late := [str(c.step) for c in lines if _by_search_alone(c, lo)]:
        why = "by the search's test: the fixed answers shown do not confirm it by themselves"
        notes.append(f"the status at {', '.join(late)} is {why}")
    if labelled:
        notes.append("[intervals] of shares and excess are for exactly these prompts")
    mark = Column("", "", lambda c: "→" if c.label == verdict.kept else "")
    return FittingTable(lines, [mark, *columns], drops, notes)


def print_audit(
    about: Mapping[str, Any], console: Console, report: Path | None = None, *, verbose: bool = False
) -> None:
    """What an audit says: one sentence, the table, at most three findings, or the rates of imported sets.

    Args:
        about: audit.json.
        console: where it goes.
        report: the page with everything else; its path comes last.
        verbose: everything: details, all findings, variants, who judged, and what it all rests on.

    Raises:
        NotAnAudit: what audit.json holds cannot be read.
    """
    if about.get("kind") == "import":
        print_rates(about, console)
        return
    verdict, state = verdict_of(about), messages.state(about.get("status"))
    if verdict is None:
        say(console, f"No verdict yet: this audit is {state}.")
        return
    if about.get("status") != "done":
        say(console, f"This audit is {state}. What follows is about what it has so far.", "bold")
    say(console, one_line(messages.sentence(verdict)), "bold")
    if about.get("organism"):
        say(console, "! Model organism: this run was trained on purpose to be misaligned.", "yellow")
    if frozen := frozen_line(about):
        say(console, frozen, "" if about["frozen"].get("status") == "frozen" else "yellow")
    console.print()
    console.print(verdict_table(verdict))
    console.print()
    shown = verdict.findings if verbose else messages.deciding(verdict)[:MOST_FINDINGS]
    for finding in shown:
        say(console, f"! {one_line(messages.text(finding))}", "yellow")
    if verbose:
        for line in messages.details(verdict):
            say(console, one_line(line))
        for heads, rows in (variant_table(verdict), search_table(verdict)):
            if rows:
                print_table(console, rows, heads)
        print_facts(console, [*search_facts(verdict.onset), *verdict_facts(verdict)])
    elif rest := len(verdict.findings) - len(shown):
        say(console, f"{rest} more findings: --verbose, or the report.", "dim")
    if report is not None:
        # A path is for copying: never broken over two lines.
        console.print(text(console.options, f"Report: {one_line(report)}"), soft_wrap=True)


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
        mark = ", recommended" if line.label == verdict.kept else ""
        say(
            console,
            f"step {line.step}, {one_line(line.label)}: {messages.status_words(line, verdict.trait)}{mark}",
            "bold",
        )
        print_facts(console, line_facts(line))
        for finding in line.findings:
            say(console, f"! {one_line(messages.text(finding))}", "yellow")
