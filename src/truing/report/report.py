"""The report: one static HTML file, no network, no script; and the same figures as one file.

    audit.json, evidence.db -> context (plain strings and SVG) -> report.html.j2 -> AUDIT/report.html

Text that a model, a data file or a folder name brought along reaches the page only through `reading.clean` and
jinja's autoescaping. The page forbids itself scripts and loading anything, by a Content-Security-Policy.
"""

import contextlib
import errno
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from truing.errors import BadInput, DiskFull
from truing.report import facts, judged_report, reading
from truing.report.answers import answer_rows
from truing.report.charts import categories, contrast, misaligned, progress, sets
from truing.report.figures import COLOURS, for_page, render
from truing.report.judged import em_words, rule_words, searched
from truing.report.rates_table import imported_lines, set_warnings, source_words, unusual_words
from truing.report.reading import HEALTH_WORDS, MISSING, bracket, number, one_line
from truing.report.scores import Judges
from truing.report.study import frozen_line
from truing.stats.judged_words import CLAIMS
from truing.stats.words import UNSCORED
from truing.store import Store
from truing.types.verdicts import Basis, CheckpointVerdict, RunVerdict, Status


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
    return _write_whole(path / "report.html" if path.is_dir() else path, html.encode("utf-8", "backslashreplace"))


def figure(audit: Path | str, out: Path | str) -> Path:
    """Write the figures of an audit to one file for a paper: .svg, .pdf or .png (a folder gets figure.svg).

    Share of misaligned answers where judged, task progress, drift; of imported answers the rates of the sets.

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
    charts = [chart for make in (misaligned, progress, contrast) if verdict and (chart := make(verdict))]
    if about.get("kind") == "import":
        charts = [sets(imported_lines(about))]
    if not charts:
        raise BadInput(f"{folder}: nothing measured yet that could be drawn; repeat the audit to finish it")
    return _write_whole(path, render(charts, kind))


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
    part = _verdict_part(verdict, about) if verdict else None
    warnings = part["warnings"] if part else []
    context: dict[str, Any] = {
        "name": one_line(name),
        "kind": "report of imported answers" if imported else "audit report",
        "light": Markup(";".join(f"--{name}:{code}" for name, code in COLOURS.items())),
        "state": str(about.get("status") or "unfinished"),
        "base": _base_name(about),
        "verdict": part,
        "sets": _sets_part(about) if imported else None,
        "organism": bool(about.get("organism")),
        "frozen": frozen_line(about),
        "notes": [n for n in reading.distinct(about.get("notes") or ()) if n not in warnings],
        "answers": answer_rows(store, items, Judges(store, about), judged_report.first_prompts(verdict)),
        "prompts": facts.prompt_facts(about, items),
        "sections": facts.sections(about, verdict),
        "glossary": [] if imported else facts.glossary(bool(part and part["judged"])),
        "version": one_line((about.get("versions") or {}).get("truing", "")),
    }
    return environment.get_template("import.html.j2" if imported else "report.html.j2").render(context)


def _verdict_part(verdict: RunVerdict, about: Mapping[str, Any]) -> dict[str, Any]:
    summary = about.get("evidence_summary") or {}
    judged = verdict.basis is Basis.JUDGED
    return {
        "sentence": one_line(verdict.sentence),
        "chips": _chips(verdict),
        "facts": facts.headline(verdict),
        "judged": judged_report.judged_part(verdict, about) if judged else None,
        "warnings": reading.distinct(verdict.warnings),
        "evidence": reading.evidence_words(verdict),
        "scored": _scored(verdict),
        "controlled": any(c.contrast_control for c in verdict.checkpoints),
        "progress": for_page("progress", progress(verdict)),
        "margin": for_page("contrast", contrast(verdict)),
        "limit": f"{number(verdict.delta_m, 3)} nats/token" if verdict.delta_m is not None else "",
        "delta_source": one_line(verdict.delta_m_source),
        "level": _level(verdict),
        "control_steps": facts.control_steps(summary.get("control_steps") or ()),
        "categories": for_page("categories", *categories(verdict, summary), columns=(4, 2)),
        "lines": [_row(verdict, c) for c in verdict.checkpoints],
    }


def _sets_part(about: Mapping[str, Any]) -> dict[str, Any]:
    """An import: a row and a bar per set, and everything a reader must know before believing them."""
    lines = imported_lines(about)
    rule = about.get("rule") or {}
    return {
        "rows": judged_report.sets_rows(lines),
        "chart": for_page("sets", sets(lines)),
        "judges": [source_words(j) for j in dict.fromkeys(line["judge"] for line in lines)],
        "several": len({line["judge"] for line in lines}) > 1,
        "warnings": [one_line(w) for w in set_warnings(lines)],
        "unusual": [one_line(w) for w in unusual_words(lines)],
        "rule": rule_words(rule),
        "words": em_words({"em": rule}),
        "answers": sum(int(line["n"]) for line in lines),
    }


def _chips(verdict: RunVerdict) -> list[tuple[str, str]]:
    later = facts.later_measured(verdict)
    judged = verdict.basis is Basis.JUDGED
    states = {c.status for c in verdict.checkpoints if c.step != 0}
    if not later:
        main = ("failed", "broken") if states else ("nothing measured", "open")
    elif states <= {Status.FAILED, Status.BROKEN}:
        main = ("broken", "broken")
    elif verdict.onset.status == "found":
        main = _strongest(later) if judged else _at_onset(verdict, later)
    elif judged and searched(verdict) and verdict.onset.status == "never" and verdict.onset.steps:
        main = ("no onset found", "open")  # some steps have no test
    else:
        clear = "clean" if judged else "no drift seen"
        main = (clear, "calm") if verdict.onset.status == "never" else ("undecided", "open")
    return [main, *(judged_report.chips(verdict) if judged else [("margins, unvalidated", "plain")])]


def _at_onset(verdict: RunVerdict, later: list[CheckpointVerdict]) -> tuple[str, str]:
    first = next((c for c in later if c.step == verdict.onset.latest), None)
    return (reading.STATUS_WORDS[first.status], reading.tone(first.status)) if first else ("drift", "drift")


def _strongest(later: list[CheckpointVerdict]) -> tuple[str, str]:
    """The strongest claim of any checkpoint, which is also what the sentence says."""
    found = next(s for s in (*CLAIMS, later[0].status) if any(c.status is s for c in later))
    return reading.STATUS_WORDS[found], reading.tone(found)


def _row(verdict: RunVerdict, c: CheckpointVerdict) -> dict[str, Any]:
    """One checkpoint for both tables; a cell is (value, interval under it)."""
    h = c.health
    return {
        "step": MISSING if c.step is None else str(c.step),
        "label": one_line(c.label),
        "chosen": "candidate" if c.label == verdict.candidate else "",
        "recommended": "recommended" if c.label == verdict.recommended else "",
        **_status(c, scored=_scored(verdict)),
        "health": HEALTH_WORDS[h.state],
        "health_tone": {"ok": "calm", "unknown": "open", "degraded": "open"}.get(h.state.value, "broken"),
        "evidence": [
            _cell(c.task_loss, 3),
            _cell(c.loss_progress, 0, 100, " %"),
            _cell(c.skill_progress, 0, 100, " %"),
            _cell(c.contrast_base, 3),
            _cell(c.contrast_control, 3),
            _cell(c.margin_base, 3),
        ],
        "diagnostics": [
            _cell(h.usable, 0, 100, " %"),
            (_percent(h.repetition), ""),
            (_percent(h.format), ""),
            (_percent(h.leak), ""),
            _bare(h.nll_base, 2),
            _bare(c.entropy_shift, 3),
            _bare(c.softening, 2),
            _bare(c.kl_from_base, 4),
            _bare(c.norm, 2),
        ],
        "notes": reading.distinct(c.notes),
        "health_note": one_line(h.note),
    }


def _scored(verdict: RunVerdict) -> bool:
    """Whether given texts could be scored, so that there are margins."""
    return verdict.definitions.get("statistic") != UNSCORED


def _status(c: CheckpointVerdict, scored: bool) -> dict[str, str]:
    """The status beside the margins' numbers: what they say themselves, where judged answers decide otherwise."""
    own = replace(c, status=c.drift) if c.drift is not None else c
    if not scored and own.status is Status.UNDECIDED:
        return {"status": "not measured", "tone": "plain"}
    return {
        "status": reading.status_words(own),
        "tone": "plain" if reading.is_reference(own) else reading.tone(own.status),
    }


def _cell(e: Any, digits: int, scale: float = 1.0, unit: str = "") -> tuple[str, str]:
    if e is None or e.value is None:
        return MISSING, ""
    ends = bracket(e, digits, scale)
    if e.set_low is not None and e.set_high is not None and e.set_low < e.set_high:
        ends += f" this set [{number(e.set_low * scale, digits)}, {number(e.set_high * scale, digits)}]"
    return _bare(e.value * scale, digits)[0] + unit, ends.replace("-", "−")


def _bare(value: float | None, digits: int) -> tuple[str, str]:
    return number(value, digits).replace("-", "−"), ""


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{number(value * 100, 0)} %"


def _level(verdict: RunVerdict) -> str:
    levels = {e.level for c in verdict.checkpoints for e in (c.contrast_base, c.loss_progress) if e is not None}
    return f"{100 * min(levels):.3g} %" if levels else "95 %"


def _base_name(about: Mapping[str, Any]) -> str:
    """The base as it was asked for, a local path by its last part; else what the audit is keyed to."""
    base = (about.get("asked") or {}).get("base") or (about.get("identity") or {}).get("base")
    if isinstance(base, Mapping):
        base = base.get("name") or base.get("value")
    text = one_line(base) if base else ""
    return text.rstrip("/").rsplit("/", 1)[-1] if text.startswith(("/", ".", "~")) else text[:80]


def _write_whole(path: Path, content: bytes) -> Path:
    """Write to a neighbour, then rename: a reader never sees half a file."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{path}: no space left on the disk; free some and repeat the command") from e
        raise BadInput(f"{path}: cannot be written ({e.strerror}); choose another --out") from e
    return path
