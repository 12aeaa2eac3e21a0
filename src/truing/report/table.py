"""The verdict in a terminal: a line per checkpoint, then the sentence, the warnings and what it all rests on.

Input is audit.json as a dict (`Store.about()`), so the table is the same while a run is being audited and years later.
Everything from outside is set as `rich.text.Text`, never as markup.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from truing.errors import BadInput
from truing.report import judged, reading, search
from truing.report.rates_table import print_rates
from truing.report.reading import HEALTH_WORDS, MISSING, interval, number, one_line, share
from truing.report.scores import Judges
from truing.report.study import frozen_line
from truing.stats.judged_words import shown
from truing.stats.words import UNSCORED
from truing.store import Store, StoredAnswer
from truing.types.records import AnswerStatus, Role
from truing.types.verdicts import Basis, CheckpointVerdict, Estimate, HealthState, Verdict

_TONES = {"calm": "green", "drift": "bold red", "broken": "magenta", "open": "yellow"}


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    head: str
    cell: Callable[[CheckpointVerdict], str]
    right: bool = True


_STEP = _Column("step", "step", lambda c: MISSING if c.step is None else str(c.step))
_STATUS = _Column("status", "status", reading.status_words, right=False)
_LABEL = _Column("label", "label", lambda c: "" if reading.plain_label(c) else _cut(one_line(c.label)), right=False)
_LOSS = _Column("task loss", "task\nloss", lambda c: number(c.task_loss.value if c.task_loss else None, 3))
_BY_LOSS = _Column("progress by loss", "progress\nby loss, %", lambda c: interval(c.loss_progress, 0, 100))
_BY_TRAIT = _Column("progress by trait", "progress\nby trait, %", lambda c: interval(c.skill_progress, 0, 100))
_BASE = _Column("shift against base", "shift vs base\nnats/token", lambda c: interval(c.contrast_base))
_CONTROL = _Column("shift against control", "shift vs control\nnats/token", lambda c: interval(c.contrast_control))
_HEALTH = _Column("health", "health", lambda c: HEALTH_WORDS[c.health.state], right=False)
_EM = _Column("misaligned", "misaligned\n%, this set", lambda c: _set_share(c.judged.em if c.judged else None))
_WORSE = _Column(
    "mean badness", "100 minus mean\nalignment, this set", lambda c: _set_share(c.judged.em if c.judged else None)
)
_EXCESS = _Column(
    "excess against step 0",
    "excess vs step 0\npoints, this set",
    lambda c: _set_share(None if c.step == 0 else shown(c)),
)
_EXCESS_CONTROL = _Column(
    "excess against control",
    "excess vs control\npoints, this set",
    lambda c: _set_share(c.judged and c.judged.excess_control),
)
_COHERENT = _Column("coherent", "coherent\n%", lambda c: _percent(c.judged.coherent.value if c.judged else None))
_DRIFT = _Column(
    "drift by margins",
    "drift by\nmargins",
    lambda c: MISSING if c.drift is None or not c.step else reading.STATUS_WORDS[c.drift],
    right=False,
)
_ORDER = (
    *(_STEP, _LABEL, _LOSS, _BY_LOSS, _BY_TRAIT, _BASE, _CONTROL, _DRIFT),
    *(_EM, _EXCESS, _EXCESS_CONTROL, _COHERENT, _HEALTH, _STATUS),
)


class VerdictTable:
    """A renderable that shows as many columns as the terminal has room for, and says which it left out.

    What is measured nowhere has no column. Then columns go in this order until the rest fits: where answers were judged
    the shifts of the contrast and the word on drift; task loss; progress by loss if there is a trait curve; health if
    it is ok everywhere; shift against control; progress; coherent share; health; label; excess over control; excess.
    """

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns, left_out = self._columns(), []
        for column in self._drops():
            if self._width(columns, console, options) <= options.max_width:
                break
            if column in columns:
                columns = [c for c in columns if c is not column]
                left_out.append(column.name)
        yield self._table(columns, options)
        notes = []
        if reading.chosen(self.verdict) is not None:
            notes.append("→ recommended" if self.verdict.recommended else "→ candidate")
        if any(line.judged for line in self.verdict.checkpoints) and (far := judged.far_words(self.verdict)):
            notes.append(far)
        notes += self._search_notes()
        if left_out:
            notes.append(f"not shown at this width: {', '.join(left_out)}")
        if notes:
            yield _text(options, "; ".join(notes), "dim")

    def _search_notes(self) -> list[str]:
        """What a table of a searched run needs said: shares of a search have no interval, and words of its own."""
        if not judged.searched(self.verdict):
            return []
        sampled = any(judged.by_search(line) for line in self.verdict.checkpoints)
        said = ["shares without brackets are of answers that the search drew, which bias them"] if sampled else []
        words = {search.status_words(line, self.verdict) for line in self.verdict.checkpoints}
        return said + [f"{word}: {meaning}" for word, meaning in search.MEANINGS.items() if word in words]

    def _columns(self) -> list[_Column]:
        lines = self.verdict.checkpoints
        always = (_STEP, _EM, _WORSE) if any(line.judged for line in lines) else (_STEP, _BASE)
        own = replace(_STATUS, cell=lambda c: search.status_words(c, self.verdict))
        order = [_WORSE if c is _EM and self._is_mean else own if c is _STATUS else c for c in _ORDER]
        if self.verdict.definitions.get("statistic") == UNSCORED:
            order.remove(_DRIFT)
        kept = [c for c in order if any(c.cell(line) != MISSING for line in lines) or c in always]
        if all(reading.plain_label(line) or (line.label, line.step) == ("base", 0) for line in lines):
            kept.remove(_LABEL)
        return kept

    @property
    def _is_mean(self) -> bool:
        em = self.verdict.definitions.get("em")
        return isinstance(em, Mapping) and em.get("kind") == "mean"

    def _drops(self) -> Iterable[_Column]:
        if any(c.judged for c in self.verdict.checkpoints):
            yield from (_CONTROL, _BASE, _DRIFT)
        yield _LOSS
        if any(c.skill_progress for c in self.verdict.checkpoints):
            yield _BY_LOSS
        if all(c.health.state is HealthState.OK for c in self.verdict.checkpoints):
            yield _HEALTH
        yield from (_CONTROL, _BY_LOSS, _COHERENT, _BY_TRAIT, _HEALTH, _LABEL, _EXCESS_CONTROL, _EXCESS)

    def _width(self, columns: list[_Column], console: Console, options: ConsoleOptions) -> int:
        # Measured without a limit: a table measured inside a narrow terminal would claim to fit it.
        return Measurement.get(console, options.update(width=1000), self._table(columns, options)).maximum

    def _table(self, columns: list[_Column], options: ConsoleOptions) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("")
        for c in columns:
            table.add_column(c.head, justify="right" if c.right else "left", vertical="bottom", no_wrap=True)
        for line in self.verdict.checkpoints:
            cells = []
            for c in columns:
                toned = c.name == _STATUS.name and not reading.is_reference(line)
                style = _TONES[reading.tone(line.status)] if toned else ""
                cells.append(_text(options, c.cell(line), style))
            table.add_row(_text(options, "→" if line.label == reading.chosen(self.verdict) else ""), *cells)
        return table


def verdict_table(about: Mapping[str, Any]) -> VerdictTable | Text:
    """The table of one audit (a rich renderable), or a line saying why there is none yet.

    Raises:
        NotAnAudit: the verdict in audit.json cannot be read.
    """
    verdict = reading.verdict_of(about)
    if verdict is None:
        return Text(f"No verdict yet: this audit is {_state(about)}.")
    return VerdictTable(verdict)


def print_verdict(about: Mapping[str, Any], console: Console, report: Path | None = None) -> None:
    """Table, sentence, warnings, what it rests on and, if given, the path of the report.

    Raises:
        NotAnAudit: the verdict in audit.json cannot be read.
    """
    frozen = frozen_line(about)
    if frozen:
        _say(console, frozen, "" if (about.get("frozen") or {}).get("status") == "frozen" else "yellow")
    console.print(verdict_table(about))
    verdict = reading.verdict_of(about)
    if verdict is None:
        return
    console.print()
    if about.get("status") != "done":
        _say(console, f"This audit is {_state(about)}; what follows is about what has been measured so far.", "bold")
    _say(console, one_line(verdict.sentence), "bold")
    if about.get("organism"):
        _say(console, "! Model organism: this run was trained on purpose to be misaligned.", "yellow")
    for warning in reading.distinct(verdict.warnings):
        _say(console, f"! {warning}", "yellow")
    if verdict.basis is Basis.JUDGED:
        _print_judged(verdict, console)
    _say(
        console, f"{'Drift' if verdict.basis is Basis.JUDGED else 'Evidence'}: {reading.evidence_words(verdict)}", "dim"
    )
    if verdict.delta_m is not None:
        limit = f"{number(verdict.delta_m, 3)} nats/token ({one_line(verdict.delta_m_source)})"
        _say(console, f"Drift limit: {limit}", "dim")
    if report is not None:
        # A path is for copying: never broken over two lines.
        console.print(_text(console.options, f"Report: {one_line(report)}"), soft_wrap=True)


def _print_judged(verdict: Verdict, console: Console) -> None:
    """Prompt changes as a table; then who judged, how that judge did on known answers, and whether anyone agrees."""
    if verdict.variants:
        console.print()
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        control = any(c.excess_control is not None for c in verdict.variants)
        wide = console.width >= 76
        heads = ("prompt change", "mis-\naligned", "the\nbase's", "excess, points\nthis set", "p", "outcome")
        for head in (h for h in heads if wide or h not in ("the\nbase's", "p")):
            left = head in ("prompt change", "outcome")
            table.add_column(
                head, justify="left" if left else "right", vertical="bottom", no_wrap=not left, overflow="fold"
            )
        for row in judged.variant_rows(verdict.variants):
            tone = _TONES[row["tone"]]
            name = f"{_cut(row['name'])}{' (adversarial)' if row['kind'] == 'adversarial' else ''}"
            excess = row["excess"] + (f" [{row['set']}]" if row["set"] else "")
            cells = [name, row["em"], row["base"], excess, row["p"]] if wide else [name, row["em"], excess]
            outcome = _text(console.options, row["status"] + (", veto" if row["veto"] else ""), tone)
            table.add_row(*(_text(console.options, c) for c in cells), outcome)
        console.print(table)
        also = "; excess over the control: truing report" if control else ""
        _say(console, f"{judged.variant_words(verdict.variants).capitalize()}{also}", "dim")
    if judged.searched(verdict):
        for text in search.terminal_lines(verdict):
            _say(console, text, "dim")
    _say(console, f"Evidence: {'; '.join(judged.evidence_parts(verdict))}", "dim")
    _say(console, f"Certificate: {judged.certificate(verdict)}", "dim" if verdict.certified else "yellow")


def print_audit(about: Mapping[str, Any], console: Console, report: Path | None = None) -> None:
    """What an audit says, whatever kind it is: a run's verdict, or the rates of imported sets.

    Raises:
        NotAnAudit: what audit.json holds cannot be read.
    """
    if about.get("kind") == "import":
        print_rates(about, console)
    else:
        print_verdict(about, console, report)


def print_step(about: Mapping[str, Any], step: int, console: Console) -> None:
    """Everything about the checkpoint at one step: judged answers, evidence, health, how far it moved, notes.

    Raises:
        BadInput: no checkpoint at that step. NotAnAudit: the verdict cannot be read.
    """
    if about.get("kind") == "import":
        raise BadInput("imported answers have no steps; `truing show AUDIT` prints their sets")
    verdict = reading.verdict_of(about)
    if verdict is None:
        raise BadInput(f"no verdict yet: this audit is {_state(about)}; repeat the audit to finish it")
    found = [c for c in verdict.checkpoints if c.step == step]
    if not found:
        steps = ", ".join(str(c.step) for c in verdict.checkpoints if c.step is not None)
        raise BadInput(f"step {step}: no such checkpoint in this audit; it has {steps}")
    for line in found:
        word = "recommended" if verdict.recommended else "candidate"
        mark = f", {word}" if line.label == reading.chosen(verdict) else ""
        _say(console, f"step {line.step}, {one_line(line.label)}: {search.status_words(line, verdict)}{mark}", "bold")
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
        table.add_column()
        table.add_column(overflow="fold")
        for name, value in [*judged.line_facts(line, verdict.definitions), *step_facts(line)]:
            table.add_row(_text(console.options, name, "dim"), _text(console.options, value))
        console.print(table)
        for note in reading.distinct(line.notes):
            _say(console, f"! {note}", "yellow")
    if verdict.basis is Basis.JUDGED:
        _say(console, f"Evidence: {'; '.join(judged.evidence_parts(verdict))}", "dim")
        _say(console, f"Certificate: {judged.certificate(verdict)}", "dim")


def step_facts(line: CheckpointVerdict) -> list[tuple[str, str]]:
    """(name with unit, value) for every judge-free number of one checkpoint, missing ones as a dash."""
    h = line.health
    return [
        ("task loss, nats/token", interval(line.task_loss, 3)),
        ("task progress by loss", share(line.loss_progress)),
        ("task progress by trait", share(line.skill_progress)),
        ("shift of contrast against base, nats/token", interval(line.contrast_base, 3)),
        ("shift of contrast against control, nats/token", interval(line.contrast_control, 3)),
        ("shift of plain margin, nats/token", interval(line.margin_base, 3)),
        ("softening (slope of that shift on the base margin)", number(line.softening)),
        ("answer entropy minus the base's, nats", number(line.entropy_shift, 3)),
        ("health", HEALTH_WORDS[h.state] + (f" ({one_line(h.note)})" if h.note else "")),
        ("usable answers", share(h.usable)),
        ("repetitive answers", _percent(h.repetition)),
        ("answers in code or markup", _percent(h.format)),
        ("answers with the training domain's words", _percent(h.leak)),
        ("surprise of its answers to the base, nats/token", number(h.nll_base)),
        ("entropy on reference answers, nats", number(h.entropy, 3)),
        ("dose: KL from the base, nats/token", number(line.kl_from_base, 4)),
        ("norm of the weight change", number(line.norm)),
        ("weights", one_line(line.weights)),
    ]


def print_answers(about: Mapping[str, Any], store: Store, prompt_id: str, console: Console) -> None:
    """One prompt's stored answers at every checkpoint, by run and step.

    Raises:
        BadInput: no prompt of that id in the audit (near ids are named), or no answer to it is stored.
    """
    items = {p.id: p for p in reading.prompt_items(about)}
    item = items.get(prompt_id)
    if item is None:
        near = difflib.get_close_matches(prompt_id, items, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {len(items)} prompts"
        raise BadInput(f"prompt {one_line(prompt_id)!r}: not in this audit; {one_line(hint)}")
    answers: dict[str, list[StoredAnswer]] = {}
    for r in store.answers(prompt=item.key):
        answers.setdefault(r.weights, []).append(r)
    if not answers:
        text = f"prompt {one_line(prompt_id)!r}: no answers stored; health is sampled on a few prompts only"
        raise BadInput(f"{text}, `truing report` lists them")
    _say(console, f"{one_line(item.id)}  {one_line(item.category)}", "bold")
    for role, content in item.messages:
        _say(console, f"{one_line(role)}: {reading.clean(content)}")
    judges = Judges(store, about)
    seen = set()
    for c in store.checkpoints():
        if c.weights in seen or c.weights not in answers:
            continue
        seen.add(c.weights)
        step = "no step" if c.step is None else f"step {c.step}"
        run = "" if c.role is Role.SUBJECT else f", {c.role.value} run {one_line(c.run)}"
        console.print()
        console.rule(_text(console.options, f"{step}, {one_line(c.label)}{run}"), align="left", characters="-")
        for r in answers[c.weights]:
            tag = "" if r.outcome is AnswerStatus.OK else f"[{r.outcome.value}] "
            name = f" ({one_line(r.transform)})" if r.transform else ""
            text = reading.clean(r.text or r.error) or MISSING
            _say(console, f"{r.sample + 1}{name}. {tag}{text}")
            for said in judges.said(r):
                _say(console, f"   {judges.words(said)}", "red" if said.low else "dim")


def _set_share(e: Estimate | None) -> str:
    """Per cent or points with the interval for exactly this set of prompts, which is what decides."""
    if e is None or e.value is None:
        return MISSING
    ends = (e.set_low, e.set_high)
    bracket = "" if None in ends else f" [{', '.join(number(100 * (x or 0), 1) for x in ends)}]"
    return number(100 * e.value, 1) + bracket


def _state(about: Mapping[str, Any]) -> str:
    words = {"running": "still running", "interrupted": "interrupted", "done": "done", "unfinished": "unfinished"}
    return words.get(str(about.get("status")), "unfinished")


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{number(value * 100, 0)} %"


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(_text(console.options, text, style), highlight=False)


def _text(options: ConsoleOptions, text: str, style: str = "") -> Text:
    """Text, never markup; on a console that is not UTF-8, what it cannot show is escaped rather than fatal."""
    if options.ascii_only:
        text = text.replace(MISSING, "-").replace("→", "->").encode("ascii", "backslashreplace").decode()
    return Text(text, style=style)


def _cut(text: str, most: int = 28) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
