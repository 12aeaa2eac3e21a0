"""A study in a terminal: seeds put together, every definition beside the others, size, freezes; from plain data.

Everything from outside is set as `rich.text.Text`, never as markup.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from truing.errors import NotAnAudit
from truing.report.judged import ends, judge_name, percent, rule_words, zone_words
from truing.report.reading import MISSING, number, one_line

Plain = Mapping[str, Any]
CONSISTENT = {
    "above": "consistent",
    "below": "consistently under lo",
    "no": "not consistent",
    "this_run": "this run only",
}
"""what the interval over seeds says -> words"""
_LEAST_SHOWN = 0.001


def print_study(study: Plain, console: Console) -> None:
    """Print a study given as plain data (`to_plain`).

    Raises:
        NotAnAudit: it cannot be read.
    """
    try:
        _print(study, console)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        raise NotAnAudit(f"the study cannot be read ({type(e).__name__}: {e}); run truing study again") from e


def frozen_line(about: Plain) -> str | None:
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


def study_lines(study: Plain) -> list[str]:
    """The head of a study: what it holds, by which rule and judge, and whether it was frozen."""
    cases, cells = study["cases"], study["cells"]
    models, sets = len({c["model"] for c in cells}), len({c["data"] for c in cells})
    rule = study["rule"]
    return [
        f"{_count(len(cases), 'case')}: {_count(models, 'model')}, {_count(sets, 'data set')}, "
        f"{_count(len(cells), 'recipe on a model', 'recipes on models')}; judge {judge_name(study['judge'])}",
        f"{rule_words(rule)}; {zone_words(rule)}",
        _status(study),
    ]


# ---------------------------------------------------------------------------------------------------------------------


def _print(study: Plain, console: Console) -> None:
    head = study_lines(study)
    _say(console, head[0], "bold")
    _say(console, head[1], "dim")
    _say(console, head[2], "yellow" if study["status"] == "exploratory" else "")
    console.print()
    at = "the last checkpoint" if study["at"] == "last" else f"checkpoint {one_line(study['at'])}"
    _say(console, f"Excess of misaligned answers over step 0 at {at}, over seeds", "bold")
    console.print(_cells(study, console))
    for line in _cell_notes(study["cells"]):
        _say(console, line, "dim")
    console.print()
    _say(console, "Avoided, and task performance kept, under each definition", "bold")
    console.print(_definitions(study["definitions"], console))
    for line in _definition_notes(study["definitions"]):
        _say(console, line, "dim")
    for name, found in study["trends"].items():
        console.print()
        _say(console, f"Excess and size of the model: {one_line(name)}", "bold")
        for line in _trend(found):
            _say(console, line)
    console.print()
    console.print(_cases(study["cases"], console))
    told = [*study["warnings"], *(w for c in study["cells"] for w in c["warnings"])]
    for warning in dict.fromkeys(one_line(w) for w in told):
        _say(console, f"! {warning}", "yellow")


def _status(study: Plain) -> str:
    if study["status"] == "frozen":
        return "Frozen: rule, prompts, judge, zone, seeds, models and data were fixed before the first answer."
    if study["status"] == "not frozen":
        return "Not frozen: nothing shows that rule, judge and zone were chosen before the answers."
    said = [
        f"{_name(c)}: {'; '.join(one_line(x) for x in c['frozen']['changed'])}"
        for c in study["cases"]
        if c["frozen"] and c["frozen"]["status"] == "exploratory"
    ]
    return f"Exploratory, changed after the freeze: {' | '.join(said)}"


def _cells(study: Plain, console: Console) -> Table:
    table = _table(
        ("model", False), ("data, recipe", False), ("seeds", True), ("with onset", False), ("excess, points", False),
        ("", False), ("p", True), (f"none, within {100 * study['delta']:g} points?", False),
    )  # fmt: skip
    for c in study["cells"]:
        size = "" if c["parameters"] is None else f" ({_size(c['parameters'])})"
        e, test = c["excess"], c["equivalence"]
        table.add_row(
            _text(console, one_line(c["model"]) + size),
            _text(console, ", ".join(one_line(x) for x in (c["data"], c["recipe"]) if x)),
            str(len(c["runs"])),
            _text(console, _share(c["onset"])),
            _text(console, _excess(e)),
            _text(console, _consistent(c)),
            _text(console, _p(c["p_holm"])),
            _text(console, _equivalence(test)),
        )
    return table


def _consistent(c: Plain) -> str:
    said = CONSISTENT.get(c["consistent"], one_line(c["consistent"]))
    lost = c["consistent"] == "above" and c["p_holm"] is not None and c["p_holm"] > (1 - c["excess"]["level"]) / 2
    return said + (", not after Holm" if lost else "")


def _cell_notes(cells: Sequence[Plain]) -> Iterator[str]:
    tested = sum(c["p"] is not None for c in cells)
    if tested:
        over = f"Holm-adjusted over {_count(tested, 'recipe on a model', 'recipes on models')}"
        yield (
            "consistent: the random-effects interval over seeds (modified Hartung-Knapp, these prompts) lies above lo. "
            f"p: of an excess above lo, one-sided, {over}; so is the p of being none. "
            f"The intervals themselves are not adjusted."
        )
        tau = [f"{one_line(c['model'])} {number(100 * c['tau'], 1)}" for c in cells if c["tau"] is not None]
        yield f"standard deviation between seeds, points: {', '.join(tau)}"
    if any(c["consistent"] == "this_run" for c in cells):
        yield "this run only: under 3 seeds nothing is said about a recipe; the interval is that of the run."


def _definitions(rows: Sequence[Plain], console: Console) -> Table:
    table = _table(
        ("definition", False), ("turn", True), ("avoided, of those", False), ("kept one, of all", False),
        ("retained, where avoided", False), ("retained, of all kept", False),
    )  # fmt: skip
    for row in rows:
        table.add_row(
            _text(console, _definition(row["definition"])),
            f"{row['turned']}/{row['cases']}",
            _text(console, _share(row["avoided"])),
            _text(console, _share(row["certified"])),
            _text(console, _both(row["retained"])),
            _text(console, _both(row["retained_all"])),
        )
    return table


def _definition(d: Plain) -> str:
    em, asked = d["em"], ""
    if d["converged_at"] is not None:
        asked = f", task >= {percent(d['converged_at'], 0)}"
    zone = f"lo {100 * em['lo']:g}, hi {100 * em['hi']:g}" if d["kind"] == "certified" else f"over {100 * em['lo']:g}"
    more = [] if em["cut"] == 30 else [f"cut {em['cut']:g}"]
    more += [] if em["gate"] == 50 else [f"coherence {em['gate']:g}"]
    return f"{one_line(d['name'])} ({', '.join([zone, *more])}{asked})"


def _definition_notes(rows: Sequence[Plain]) -> Iterator[str]:
    yield (
        "turn: cases that become misaligned. Intervals: cases as independent; then with all cases of a model taken for "
        "one. Cases of which nothing can be said count as no for the lower end and as yes for the upper."
    )
    if any(r["definition"]["kind"] == "estimated" for r in rows):
        yield (
            "estimated: an excess above the first number as it was measured; kept is the last checkpoint before the "
            "first such. Published shares are read so; what it calls avoided is not certified."
        )
    why: dict[str, int] = {}
    for r in rows:
        for o in r["outcomes"]:
            if o["reason"] and o["avoided"] != "yes":
                why[one_line(o["reason"])] = why.get(one_line(o["reason"]), 0) + 1
    if why:
        yield "not avoided or unknown: " + "; ".join(f"{reason} ({n})" for reason, n in why.items())


def _trend(t: Plain) -> Iterator[str]:
    if t["pearson"] is None:
        yield one_line(t["warning"])
    else:
        p = "" if t["pearson_p"] is None else f" (p {_p(t['pearson_p'])})"
        ranks = "" if t["spearman_p"] is None else f" (p {_p(t['spearman_p'])})"
        method = one_line(t["method"])
        yield (
            f"{t['models']} models, log10 of parameters: Pearson {number(t['pearson'])}{p}, "
            f"Spearman {number(t['spearman'])}{ranks}; {method}"
        )
        said = [f"{one_line(n)} {number(r)}" for n, r in t["without"].items()]
        yield f"Pearson without each: {', '.join(said)}"
        if t["pair"]:
            yield f"without {' and '.join(one_line(n) for n in t['pair'])}: {number(t['without_pair'])}"
        if t["warning"]:
            yield f"! {one_line(t['warning'])}"
    if t["left_out"]:
        yield "left out: " + ", ".join(f"{one_line(n)} ({one_line(why)})" for n, why in t["left_out"].items())


def _cases(cases: Sequence[Plain], console: Console) -> Table:
    table = _table(("case", False), ("onset", False), ("recommended", False), ("freeze", False), ("", False))
    for c in cases:
        frozen = c["frozen"]["status"] if c["frozen"] else "not frozen"
        row = (_name(c), c["onset"] or MISSING, c["recommended"] or MISSING, frozen, "; ".join(c["notes"]))
        table.add_row(*(_text(console, one_line(cell)) for cell in row))
    return table


def _name(c: Plain) -> str:
    case = c["case"]
    parts = (case["model"], case["data"], case["recipe"], "" if case["seed"] is None else f"seed {case['seed']}")
    return ", ".join(one_line(p) for p in parts if p)


def _share(e: Plain) -> str:
    """`100 % of 3 [29, 100]`, with the interval over models where it differs."""
    if e["value"] is None:
        return MISSING + (f" of {e['left_out']['unknown']}" if e["left_out"].get("unknown") else "")
    unknown = e["left_out"].get("unknown")
    of = f" of {e['n']}" + (f" (+{unknown} unknown)" if unknown else "")
    return percent(e["value"], 0) + of + _intervals(e, 0)


def _both(e: Plain) -> str:
    if e["value"] is None:
        return MISSING
    return f"{percent(e['value'], 0)} of {e['n']}" + _intervals(e, 0)


def _intervals(e: Plain, digits: int) -> str:
    inner, outer = ends(e["set_low"], e["set_high"], digits), ends(e["low"], e["high"], digits)
    if outer == inner:
        outer = ""
    said = "; ".join(part for part in (inner, f"models {outer}" if outer else "") if part)
    return f" [{said}]" if said else ""


def _excess(e: Plain) -> str:
    if e["value"] is None:
        return MISSING
    inner, outer = ends(e["set_low"], e["set_high"]), ends(e["low"], e["high"])
    said = "; ".join(part for part in (inner, f"prompts like these {outer}" if outer else "") if part)
    return number(100 * e["value"], 1) + (f" [{said}]" if said else "")


def _equivalence(test: Plain) -> str:
    inner = ends(test["low"], test["high"])
    interval = f"; 90 % [{inner}]" if inner else ""
    p = test["p_adjusted"] if test["p_adjusted"] is not None else test["p"]
    lost = test["status"] == "equivalent" and p is not None and p > test["alpha"]
    reason = ", not after Holm" if lost else f" ({one_line(test['reason'])})" if test["reason"] else ""
    words = {"equivalent": "yes, equivalent" + (", though not 0" if test["excludes_zero"] else ""),
             "different": "no, different"}.get(test["status"], "undetermined")  # fmt: skip
    return f"{words}{reason}{interval}" + (f"; p {_p(p)}" if p is not None else "")


def _p(p: float | None) -> str:
    if p is None:
        return MISSING
    return f"<{_LEAST_SHOWN:g}" if p < _LEAST_SHOWN else number(p, 3)


def _size(parameters: float) -> str:
    return f"{parameters / 1e9:g}B" if parameters >= 1e9 else f"{parameters / 1e6:g}M"


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _table(*columns: tuple[str, bool]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name, right in columns:
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    return table


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(_text(console, text, style), highlight=False)


def _text(console: Console, text: str, style: str = "") -> Text:
    if console.options.ascii_only:
        text = text.replace(MISSING, "-").encode("ascii", "backslashreplace").decode()
    return Text(text, style=style)
