"""A study in a terminal: seeds put together, every definition beside the others, size, freezes.

Everything from outside is set as `rich.text.Text`, never as markup.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from truing.report.rates_table import rule_words, zone_words
from truing.report.reading import MISSING, ends, judge_name, number, one_line, percent
from truing.types.records import to_plain
from truing.types.traits import Rule
from truing.types.verdicts import Estimate

if TYPE_CHECKING:  # the command line prints tables without loading scipy
    from truing.stats.meta import Equivalence
    from truing.stats.studies import Cell, Definition, DefinitionRow, Study, StudyCase
    from truing.stats.trend import Trend

CONSISTENT = {
    "above": "consistent",
    "below": "consistently under lo",
    "no": "not consistent",
    "this_run": "this run only",
}
"""what the interval over seeds says -> words"""
_LEAST_SHOWN = 0.001
_SEEDS_NOTE = (
    "consistent: the random-effects interval over seeds (modified Hartung-Knapp, these prompts) lies above lo. p: of "
    "an excess above lo, one-sided, Holm-adjusted over {}, as is the p of being none. The intervals are not adjusted."
)
_DEFINITION_NOTE = (
    "turn: cases in which the trait sets in. Intervals: cases as independent; then all cases of a model taken for one. "
    "Cases of which nothing can be said count as no for the lower end and as yes for the upper."
)
_ESTIMATED_NOTE = (
    "estimated: an excess above the first number as it was measured; kept is the last checkpoint before the first. "
    "Published shares are read so; what it calls avoided is not certified."
)


def print_study(study: Study, console: Console) -> None:
    """Print a study."""
    cases, cells, rows, rule = study.cases, study.cells, study.definitions, to_plain(study.rule)
    counts = (len(cases), "case"), (len({c.model for c in cells}), "model"), (len(cells), "pair of model and recipe")
    _say(console, f"{', '.join(_count(*of) for of in counts)}; judge {judge_name(study.judge)}", "bold")
    _say(console, f"{rule_words(rule)}; {zone_words(rule)}", "dim")
    _say(console, _status(study), "yellow" if study.status == "exploratory" else "")
    at = "the last checkpoint" if study.at == "last" else f"checkpoint {one_line(study.at)}"
    _say(console, f"\nExcess of positive answers over step 0 at {at}, over seeds", "bold")
    heads = ("model", "data, recipe", "seeds", "with onset", "excess, points", "", "p",
             f"none, within {100 * study.delta:g} points?")  # fmt: skip
    _table(console, heads, map(_cell, cells), _cell_notes(cells))
    _say(console, "\nAvoided, and task performance kept, under each definition", "bold")
    heads = ("definition", "turn", "avoided, of those", "kept one, of all", "retained, where avoided",
             "retained, of all kept")  # fmt: skip
    _table(console, heads, map(_definition_row, rows), _definition_notes(rows))
    for name, found in study.trends.items():
        _say(console, f"\nExcess and size of the model: {one_line(name)}", "bold")
        for line in _trend(found):
            _say(console, line)
    console.print()
    _table(console, ("case", "onset", "recommended", "freeze", ""), map(_case, cases))
    warnings = [*study.warnings, *(w for c in cells for w in c.warnings)]
    for warning in dict.fromkeys(one_line(w) for w in warnings):
        _say(console, f"! {warning}", "yellow")


def frozen_line(about: Mapping[str, Any]) -> str | None:
    """What became of an audit's freeze, in a line for every table of it; None where nothing was frozen.

    Args:
        about: audit.json.
    """
    kept = about.get("frozen")
    if not isinstance(kept, Mapping):
        return None
    lock, made = one_line(kept.get("lock", ""))[:12], one_line(kept.get("made", ""))
    if kept.get("status") == "frozen":
        return f"Frozen before the first answer: lock {lock}, made {made}."
    changed = "; ".join(one_line(c) for c in kept.get("changed") or ())
    return f"Exploratory: changed after the freeze (lock {lock}, made {made}): {changed}."


def _status(study: Study) -> str:
    if study.status == "frozen":
        return "Frozen: rule, prompts, judge, lo and hi, seeds, models and data were fixed before the first answer."
    if study.status == "not frozen":
        return "Not frozen: nothing shows that rule, judge, lo and hi were chosen before the answers."
    changed = [
        f"{one_line(c.case.name)}: {'; '.join(one_line(x) for x in c.frozen.changed)}"
        for c in study.cases
        if c.frozen is not None and c.frozen.status == "exploratory"
    ]
    return f"Exploratory, changed after the freeze: {' | '.join(changed)}"


def _cell(c: Cell) -> tuple[str, ...]:
    lost = c.consistent == "above" and c.p_holm is not None and c.p_holm > (1 - c.excess.level) / 2
    return (
        one_line(c.model) + ("" if c.parameters is None else f" ({_size(c.parameters)})"),
        ", ".join(one_line(x) for x in (c.data, c.recipe) if x),
        str(len(c.runs)),
        _share(c.onset),
        number(_points(c.excess.value), 1) + _intervals(c.excess, 1, "prompts like these"),
        CONSISTENT[c.consistent] + (", not after Holm" if lost else ""),
        _p(c.p_holm),
        _equivalence(c.equivalence),
    )


def _cell_notes(cells: Sequence[Cell]) -> Iterator[str]:
    tested = [c for c in cells if c.p is not None]
    if tested:
        yield _SEEDS_NOTE.format(_count(len(tested), "pair of model and recipe"))
        tau = [f"{one_line(c.model)} {number(_points(c.tau), 1)}" for c in tested if c.tau is not None]
        yield f"standard deviation between seeds, points: {', '.join(tau)}"
    if any(c.consistent == "this_run" for c in cells):
        yield "this run only: under 3 seeds nothing is said about a recipe; the interval is that of the run."


def _definition_row(row: DefinitionRow) -> tuple[str, ...]:
    shares = map(_share, (row.avoided, row.certified, row.retained, row.retained_all))
    return _definition(row.definition), f"{row.turned}/{row.cases}", *shares


def _definition(d: Definition) -> str:
    rule, usual = d.rule, Rule()
    lo, hi = 100 * rule.lo, 100 * rule.hi
    parts = [f"lo {lo:g}, hi {hi:g}" if d.kind == "certified" else f"over {lo:g}"]
    parts += [f"cut {rule.cut:g}"] if rule.cut != usual.cut else []
    parts += [f"coherence {rule.gate:g}"] if rule.gate_score and rule.gate != usual.gate else []
    parts += [] if d.converged_at is None else [f"task >= {percent(d.converged_at, 0)}"]
    return f"{one_line(d.name)} ({', '.join(parts)})"


def _definition_notes(rows: Sequence[DefinitionRow]) -> Iterator[str]:
    yield _DEFINITION_NOTE
    if any(r.definition.kind == "estimated" for r in rows):
        yield _ESTIMATED_NOTE
    lost = Counter(one_line(o.reason) for r in rows for o in r.outcomes if o.reason and o.avoided != "yes")
    if lost:
        yield f"not avoided or unknown: {'; '.join(f'{reason} ({n})' for reason, n in lost.items())}"


def _trend(t: Trend) -> Iterator[str]:
    if t.pearson is not None:
        p, ranks = ("" if x is None else f" (p {_p(x)})" for x in (t.pearson_p, t.spearman_p))
        found = f"Pearson {number(t.pearson)}{p}, Spearman {number(t.spearman)}{ranks}"
        yield f"{t.models} models, log10 of parameters: {found}; {one_line(t.method)}"
        yield f"Pearson without each: {', '.join(f'{one_line(n)} {number(r)}' for n, r in t.without.items())}"
        if t.pair:
            yield f"without {' and '.join(one_line(n) for n in t.pair)}: {number(t.without_pair)}"
    if t.warning:
        yield f"! {one_line(t.warning)}"
    if t.left_out:
        yield "left out: " + ", ".join(f"{one_line(n)} ({one_line(why)})" for n, why in t.left_out.items())


def _case(c: StudyCase) -> tuple[str, ...]:
    frozen = c.frozen.status if c.frozen is not None else "not frozen"
    row = (c.case.name, c.onset or MISSING, c.recommended or MISSING, frozen, "; ".join(c.notes))
    return tuple(one_line(cell) for cell in row)


def _share(e: Estimate) -> str:
    """`100 % of 3 (+1 unknown) [29, 100]`, with the interval over models where it differs."""
    unknown = e.left_out.get("unknown")
    if e.value is None:
        return MISSING + (f" of {unknown}" if unknown else "")
    more = f" (+{unknown} unknown)" if unknown else ""
    return f"{percent(e.value, 0)} of {e.n}{more}{_intervals(e, 0, 'models')}"


def _intervals(e: Estimate, digits: int, outer_name: str) -> str:
    inner, outer = ends(e.set_low, e.set_high, digits), ends(e.low, e.high, digits)
    parts = [inner, f"{outer_name} {outer}" if outer and outer != inner else ""]
    shown = "; ".join(part for part in parts if part)
    return f" [{shown}]" if shown else ""


def _equivalence(test: Equivalence) -> str:
    inner, p = ends(test.low, test.high), test.p_adjusted if test.p_adjusted is not None else test.p
    lost = test.status == "equivalent" and p is not None and p > test.alpha
    reason = ", not after Holm" if lost else f" ({one_line(test.reason)})" if test.reason else ""
    words = {"equivalent": "yes, equivalent" + (", though not 0" if test.excludes_zero else ""),
             "different": "no, different"}.get(test.status, "undetermined")  # fmt: skip
    return words + reason + (f"; 90 % [{inner}]" if inner else "") + (f"; p {_p(p)}" if p is not None else "")


def _points(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _p(p: float | None) -> str:
    return f"<{_LEAST_SHOWN:g}" if p is not None and p < _LEAST_SHOWN else number(p, 3)


def _size(parameters: float) -> str:
    return f"{parameters / 1e9:g}B" if parameters >= 1e9 else f"{parameters / 1e6:g}M"


def _count(n: int, one: str) -> str:
    first, _, rest = one.partition(" ")
    return f"{n} {first}{'' if n == 1 else 's'}{' ' + rest if rest else ''}"


def _table(console: Console, heads: Sequence[str], rows: Iterable[tuple[str, ...]], notes: Iterable[str] = ()) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(_text(console, cell) for cell in row))
    console.print(table)
    for line in notes:
        _say(console, line, "dim")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(_text(console, text, style), highlight=False)


def _text(console: Console, text: str, style: str = "") -> Text:
    if console.options.ascii_only:
        text = text.replace(MISSING, "-").encode("ascii", "backslashreplace").decode()
    return Text(text, style=style)
