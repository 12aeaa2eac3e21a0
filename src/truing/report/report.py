"""The report: one static HTML file, no network, no script; and the same figures as one file.

    audit.json, evidence.db -> context (plain strings and SVG) -> report.html.j2 -> AUDIT/report.html

Text that a model, a data file or a folder name brought along reaches the page only through `reading.clean` and
jinja's autoescaping. The page forbids itself scripts and loading anything, by a Content-Security-Policy.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from truing import messages
from truing.errors import BadInput
from truing.files import whole
from truing.report import charts, details, reading
from truing.report.agreement import agreement_rows
from truing.report.answers import answer_rows
from truing.report.figures import COLOURS, for_page, render
from truing.report.fitting import FittingTable
from truing.report.rates_table import (
    imported_lines,
    rates_facts,
    rates_table,
    rule_words,
    set_warnings,
    source_words,
    unusual_words,
)
from truing.report.reading import one_line
from truing.report.study import frozen_line
from truing.report.table import MOST_FINDINGS, verdict_table
from truing.store import Store
from truing.types.verdicts import Basis, CheckpointVerdict, Verdict

_FIRST = ("step", "status", "label", "positive", "excess over step 0", "excess over control", "coherent", "health")
"""columns that come first on the page"""


def write_report(audit: Path | str, out: Path | None = None) -> Path:
    """Write the report of an audit and return its path (default: report.html in the audit folder).

    The audit may still be running: the report then says so and shows what there is.

    Raises:
        NotAnAudit: no audit there, or one that cannot be read. NotAnAudit: written by a newer version.
        BadInput: `out` cannot be written. DiskFull: no space left; an older report is untouched.
    """
    folder = Path(audit)
    with Store.read(folder) as store:
        html = _page(store, folder.resolve().name)
    path = folder / "report.html" if out is None else Path(out)
    # A lone surrogate cannot be written as UTF-8; `clean` escapes them, this is for anything it did not see.
    return _write(path / "report.html" if path.is_dir() else path, html.encode("utf-8", "backslashreplace"))


def figure(audit: Path | str, out: Path | str) -> Path:
    """Write the figures of an audit to one file for a paper: .svg, .pdf or .png (a folder gets figure.svg).

    Share positive and its excess where labelled, task progress, screen; of imported answers the rates of the sets.

    Raises:
        NotAnAudit: no audit there, or one that cannot be read. BadInput: nothing to draw yet, another suffix, or `out`
            cannot be written. DiskFull: no space left.
    """
    folder, path = Path(audit), Path(out)
    with Store.read(folder) as store:
        about = store.about()
    path = path / "figure.svg" if path.is_dir() else path
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "pdf", "png"):
        raise BadInput(f"{path}: a figure is .svg, .pdf or .png; choose another name")
    verdict = reading.verdict_of(about)
    drawn = charts.every_chart(verdict) if verdict else []
    if about.get("kind") == "import":
        drawn = [charts.sets(imported_lines(about))]
    if not drawn:
        raise BadInput(f"{folder}: nothing measured yet that could be drawn; repeat the audit to finish it")
    return _write(path, render(drawn, kind))


# ---------------------------------------------------------------------------------------------------------------------


def _page(store: Store, name: str) -> str:
    about = store.about()
    verdict = reading.verdict_of(about)
    imported = about.get("kind") == "import"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("truing.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    items = reading.prompt_items(about)
    context: dict[str, Any] = {
        "name": one_line(name),
        "light": Markup(";".join(f"--{name}:{code}" for name, code in COLOURS.items())),
        "state": "" if about.get("status") == "done" else messages.state(about.get("status")),
        "base": _base_name(about),
        "verdict": _verdict(verdict, about) if verdict else None,
        "sets": _sets(about) if imported else None,
        "organism": bool(about.get("organism")),
        "frozen": frozen_line(about),
        "notes": reading.distinct(about.get("notes") or ()),
        "answers": answer_rows(store, about, items, _most_positive(verdict)),
        "prompts": items,
        "agreement": agreement_rows(about.get("agreement")),
        "definitions": list(_definitions(verdict, about)),
        "version": one_line((about.get("versions") or {}).get("truing", "")),
    }
    return environment.get_template("import.html.j2" if imported else "report.html.j2").render(context)


def _verdict(v: Verdict, about: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict for the template: plain strings, tables of strings, drawings."""
    table = verdict_table(v)
    deciding = messages.deciding(v)[:MOST_FINDINGS]
    return {
        "sentence": one_line(messages.sentence(v)),
        "onset_of": "Onset" if v.basis is Basis.LABELLED else "Onset of a change of the screen",
        "onset": details.onset_words(v.onset),
        "table": _table(table, v),
        "deciding": [one_line(messages.text(f)) for f in deciding],
        "more": len(v.findings) - len(deciding),
        "figures": [(c.title, for_page(f"chart{k}", c)) for k, c in enumerate(charts.every_chart(v))],
        "categories": for_page(
            "categories", *charts.categories(v, about.get("evidence_summary") or {}), columns=(4, 2)
        ),
        "details": [one_line(x) for x in messages.details(v)],
        "findings": [one_line(messages.text(f)) for f in v.findings],
        "facts": details.verdict_facts(v),
        "lines": [_line(c, v.trait) for c in v.checkpoints],
        "variants": details.variant_table(v) if v.variants else None,
        "search": details.search_facts(v.onset),
        "tested": details.search_table(v),
    }


def _line(c: CheckpointVerdict, trait: str) -> dict[str, Any]:
    """Everything about one checkpoint."""
    return {
        "name": reading.step_name(c),
        "status": messages.status_words(c, trait),
        "tone": "" if c.step == 0 else reading.tone(c),
        "facts": details.line_facts(c),
        "findings": [one_line(messages.text(f)) for f in c.findings],
    }


def _table(table: FittingTable, v: Verdict | None = None) -> dict[str, Any]:
    """The terminal's table with all its columns, what decides first; a cell is (text, under it, side, tone)."""
    columns = [c for c in table.columns if c.head]
    if v is not None:
        columns.sort(key=lambda c: _FIRST.index(c.name) if c.name in _FIRST else len(_FIRST))
    rows = []
    for row in table.rows:
        cells = []
        for c in columns:
            text, bracket, under = c.cell(row).partition(" [")
            if c.name in ("set", "label"):  # which a terminal cuts
                text, bracket, under = one_line(row.label), "", ""
            tone = reading.tone(row) if c.name == "status" and row.step != 0 else ""
            cells.append((text, bracket + under, "" if c.right else "left", tone))
        rows.append({"cells": cells, "chosen": v is not None and row.label == v.kept})
    heads = [(c.head.replace("-\n", "").replace("\n", " "), "" if c.right else "left") for c in columns]
    return {
        "heads": heads,
        "rows": rows,
        "word": "recommended",
        "notes": [n for n in table.notes if not n.startswith(("→", "["))],
    }


def _sets(about: Mapping[str, Any]) -> dict[str, Any]:
    """An import: a row and a bar per set, and everything a reader must know before believing them."""
    lines, rule = imported_lines(about), about.get("rule") or {}
    return {
        "table": _table(rates_table(lines, rule)),
        "chart": for_page("sets", charts.sets(lines)),
        "facts": [(one_line(x.label), source_words(x.judge), rates_facts(x)) for x in lines],
        "judges": [source_words(j) for j in dict.fromkeys(x.judge for x in lines)],
        "findings": [*set_warnings(lines), *unusual_words(lines)],
        "rule": rule_words(rule),
        "answers": sum(x.n for x in lines),
    }


def _most_positive(v: Verdict | None) -> list[str]:
    """The prompts whose answers are shown first: those with most positive ones, from the last checkpoint back."""
    lines = [c.labelled.breadth for c in reversed(v.checkpoints) if c.labelled and c.labelled.breadth] if v else []
    return list(dict.fromkeys(name for b in lines for name in b.named))


def _definitions(v: Verdict | None, about: Mapping[str, Any]) -> Iterator[tuple[str, details.Facts]]:
    """(title, rows) of the closing tables."""
    measuring = {k: about[k] for k in ("rendering", "sampling", "content_free_prompt", "domain_words") if k in about}
    for title, mapping in (
        ("What the words mean", messages.DEFINITIONS if v else {}),
        ("Rules and thresholds", v.definitions if v else {"rule": about.get("rule") or {}}),
        ("What was asked", about.get("asked") or {}),
        ("How it was measured", measuring),
        ("Which answers count", about.get("labels") or {}),
        ("What the audit is keyed to", about.get("identity") or {}),
        ("Prompt set", {k: x for k, x in (about.get("prompts") or {}).items() if k != "items"}),
        ("Versions", about.get("versions") or {}),
    ):
        rows = details.flat(mapping if isinstance(mapping, Mapping) else {"value": mapping})
        if rows:
            yield title, rows


def _base_name(about: Mapping[str, Any]) -> str:
    """The base as it was asked for, a local path by its last part; else what the audit is keyed to."""
    base = (about.get("asked") or {}).get("base") or (about.get("identity") or {}).get("base")
    if isinstance(base, Mapping):
        base = base.get("name") or base.get("value")
    text = one_line(base) if base else ""
    return text.rstrip("/").rsplit("/", 1)[-1] if text.startswith(("/", ".", "~")) else text[:80]


def _write(path: Path, content: bytes) -> Path:
    with suppress(OSError):  # what is wrong with the place is said below
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        part.write_bytes(content)
    return path
