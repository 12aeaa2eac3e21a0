"""How far judges agree, in a terminal and for the report: from plain data (`to_plain`), as audit.json holds it too.

Everything from outside is set as `rich.text.Text`, never as markup.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from truing.errors import NotAnAudit
from truing.report.fitting import print_facts, say
from truing.report.reading import (
    MISSING,
    distinct,
    ends,
    interval,
    judge_name,
    number,
    one_line,
    percent,
    plain_estimate,
)

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
        say(console, block.title, "bold")
        for letter, name in block.names:
            say(console, f"{letter}: {name}")
        print_facts(console, block.rows)
    for note in distinct(made.get("notes") or ()):
        say(console, f"! {note}", "yellow")


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
    counts = {"both under the cut": both, "only A": only_a, "only B": only_b, "neither": neither}
    near = percent(pair["near_cut"], 0)
    yield Block(
        f"Two judges on {n} answers to {pair['prompts']} prompts that both scored",
        [
            ("Krippendorff's alpha", _plain(pair["alpha"]), "of the scores; 1 is agreement, 0 is chance"),
            ("Spearman", _plain(pair["spearman"]), "rank correlation of the scores"),
            ("Cohen's kappa", _plain(pair["kappa"]), "of being under the cut"),
            *((name, str(count), "") for name, count in counts.items()),
            ("disagreements near the cut", near, "a score within 5 % of the scale from it"),
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
    cells = []
    for row in rows:
        value, inner = _shares(row["em"], " %")
        cells.append(
            (one_line(row["label"]), value, "; ".join(filter(None, (inner, f"{row['sampled']} answers drawn"))))
        )
    return Block(title, cells)


def _plain(e: Plain) -> str:
    return interval(plain_estimate(e))


def _shares(e: Plain, unit: str) -> tuple[str, str]:
    """(value with unit, both intervals in words)"""
    if e["value"] is None:
        return MISSING, one_line(e.get("warning") or "")
    inner = (("this set", ends(e["set_low"], e["set_high"])), ("prompts like these", ends(e["low"], e["high"])))
    return number(100 * e["value"], 1) + unit, "; ".join(f"{name} [{text}]" for name, text in inner if text)
