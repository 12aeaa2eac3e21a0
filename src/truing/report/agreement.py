"""How far judges agree, in a terminal and for the report: from plain data (`to_plain`), as audit.json holds it too.

Everything from outside is set as `rich.text.Text`, never as markup.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from truing.errors import NotAnAudit
from truing.report.reading import MISSING, ends, judge_name, number, one_line, percent

Plain = Mapping[str, Any]


class Block(NamedTuple):
    """One table: a title, (name, value, remark) rows."""

    title: str
    """what it is about"""
    rows: list[tuple[str, str, str]]
    """name, value, remark"""
    names: tuple[tuple[str, str], ...] = ()
    """(letter, judge) of the judges the rows speak of"""


def print_agreement(made: Plain, console: Console) -> None:
    """Print what comes of comparing judges.

    Args:
        made: a plain `Agreed` (`to_plain`): judges, pair, people, powered, notes.
        console: where to.

    Raises:
        NotAnAudit: it cannot be read.
    """
    for k, block in enumerate(agreement_rows(made)):
        if k:
            console.print()
        _say(console, block.title, "bold")
        for letter, name in block.names:
            _say(console, f"{letter}: {name}")
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
        table.add_column(overflow="fold", ratio=None)
        table.add_column(overflow="fold", justify="left")
        if any(remark for *_, remark in block.rows):
            table.add_column(overflow="fold")
        for name, value, remark in block.rows:
            cells = [_text(console, name, "dim"), _text(console, value)]
            table.add_row(*cells, *([_text(console, remark, "dim")] if len(table.columns) == 3 else []))
        console.print(table)
    for note in dict.fromkeys(one_line(n) for n in made.get("notes") or ()):
        _say(console, f"! {note}", "yellow")


def agreement_rows(made: Plain | None) -> list[Block]:
    """The same as tables; none for None.

    Raises:
        NotAnAudit: it cannot be read.
    """
    if not made:
        return []
    try:
        return list(_blocks(made))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        text = f"the agreement of judges cannot be read ({type(e).__name__}: {e}); run truing agree again"
        raise NotAnAudit(text) from e


def _blocks(made: Plain) -> Iterator[Block]:
    judges = [judge_name(j) for j in made["judges"]]
    if made["pair"]:
        yield from _pair(made["pair"], judges)
    for person in made["people"]:
        yield _person(person)
    if made["powered"]:
        yield _powered(made["powered"])


def _pair(pair: Plain, judges: Sequence[str]) -> Iterator[Block]:
    # Letters, since names of judges are too long for the tables.
    ((both, only_a), (only_b, neither)), n = pair["table"], pair["n"]
    yield Block(
        f"Two judges on {n} answers to {pair['prompts']} prompts that both scored",
        [
            ("Krippendorff's alpha", _plain(pair["alpha"]), "of the scores; 1 is agreement, 0 is chance"),
            ("Spearman", _plain(pair["spearman"]), "rank correlation of the scores"),
            ("Cohen's kappa", _plain(pair["kappa"]), "of being under the cut"),
            ("both under the cut", str(both), ""),
            ("only A", str(only_a), ""),
            ("only B", str(only_b), ""),
            ("neither", str(neither), ""),
            ("disagreements near the cut", percent(pair["near_cut"], 0), "a score within 5 % of the scale from it"),
        ],
        tuple(zip("AB", judges, strict=True)),
    )
    yield Block(
        "Share misaligned on the same answers",
        [
            ("under A", *_shares(pair["rate_a"], " %")),
            ("under B", *_shares(pair["rate_b"], " %")),
            ("A minus B, paired", *_shares(pair["difference"], " points")),
        ],
    )


def _person(person: Plain) -> Block:
    found = person["agreement"]
    ((both, judge), (people, neither)) = found["table"]
    return Block(
        f"{judge_name(person['judge'])} against {person['labelled']} blind labels",
        [
            ("precision, of all answers", *_shares(found["precision"], " %")),
            ("recall, of all answers", *_shares(found["recall"], " %")),
            ("Cohen's kappa", _plain(person["kappa"]), ""),
            ("on the sheet, misaligned: both", str(both), "drawn around the cut; shares above are weighted back"),
            ("only the judge", str(judge), ""),
            ("only people", str(people), ""),
            ("neither", str(neither), ""),
            ("certifies the direction", "yes" if person["certifies"] else "no", one_line(person["why"])),
        ],
    )


def _powered(rows: Sequence[Plain]) -> Block:
    strong, cheap = judge_name(rows[0]["strong"]), judge_name(rows[0]["cheap"])
    title = f"Share misaligned under {strong}, from a random share of answers; {cheap} judged all (prediction-powered)"
    return Block(title, [(one_line(r["label"]), *_powered_cells(r)) for r in rows])


def _powered_cells(row: Plain) -> tuple[str, str]:
    value, inner = _shares(row["em"], " %")
    return value, "; ".join(x for x in (inner, f"{row['sampled']} answers drawn") if x)


def _plain(e: Plain) -> str:
    if e["value"] is None:
        return MISSING
    inner = ends(e["low"], e["high"], 2, 1.0)
    return number(e["value"], 2) + (f" [{inner}]" if inner else "")


def _shares(e: Plain, unit: str) -> tuple[str, str]:
    """(value with unit, both intervals in words)"""
    if e["value"] is None:
        return MISSING, one_line(e.get("warning") or "")
    inner = (("this set", ends(e["set_low"], e["set_high"])), ("prompts like these", ends(e["low"], e["high"])))
    intervals = "; ".join(f"{name} [{text}]" for name, text in inner if text)
    return number(100 * e["value"], 1) + unit, intervals


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(_text(console, text, style), highlight=False)


def _text(console: Console, text: str, style: str = "") -> Text:
    if console.options.ascii_only:
        text = text.replace(MISSING, "-").encode("ascii", "backslashreplace").decode()
    return Text(text, style=style)
