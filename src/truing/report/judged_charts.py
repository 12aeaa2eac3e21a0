"""The charts of judged answers: share misaligned and its excess against step, and imported sets side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from truing.report.axes import ticks
from truing.report.charts import axis_of, chosen_mark, failed_marks, in_words, windows_of
from truing.report.judged import by_search, em_words, searched, two_ends
from truing.report.reading import number, one_line
from truing.report.svg import CHAR, Chart, Series, Size, el
from truing.stats.judged_words import shown
from truing.types.verdicts import CheckpointVerdict, Estimate, Status, Verdict

_ROW, _HEAD = 34.0, 30.0
_LABEL = 330.0
"""most room for a set's name beside its bar; where it does not fit, names stand above the bars"""

Pick = Callable[[CheckpointVerdict], Estimate | None]


def em_chart(verdict: Verdict) -> Chart | None:
    """Share misaligned against step, with both intervals; the control's share and step 0's beside it.

    None where no checkpoint has judged answers.
    """
    series = _of_run(verdict, "this run", _em)
    if not any(any(s.points) for s in series):
        return None
    words = em_words(verdict.definitions)
    base = next((c for c in verdict.checkpoints if c.step == 0 and c.judged is not None), None)
    start = _em(base) if base else None
    lines: tuple[tuple[float, str], ...] = ()
    # The control's own estimate is not kept; the paired difference gives its share.
    points = tuple(_control_share(c) for c in verdict.checkpoints)
    if any(points):
        series.append(Series("control", "blue", True, points))
    if start is not None and start.value:
        lines = ((start.value, ""),)  # named by the zone above it
    zone = None
    if start is not None and start.value is not None and words.lo is not None and words.hi is not None:
        name = f"step 0 and {100 * words.lo:g} to {100 * words.hi:g} points more"
        zone = (start.value + words.lo, start.value + words.hi, name)
    curves: list[tuple[str, Pick]] = [(words.noun, _em)]
    return Chart(
        title=f"{words.title} against step",
        description=in_words(verdict, curves, two_ends),
        unit=words.unit,
        axis=axis_of(verdict),
        series=tuple(series),
        lines=lines,
        zone=zone,
        windows=windows_of(verdict),
        chosen=chosen_mark(verdict),
        failed=failed_marks(verdict),
        percent=True,
    )


def excess_chart(verdict: Verdict) -> Chart | None:
    """Excess over step 0 and over the control, with both intervals and the zone between lo and hi; None without any."""
    over_control = _series(verdict, "over the control", "blue", True, _excess_control)
    series = tuple(s for s in (*_of_run(verdict, "over step 0", _excess), over_control) if any(s.points))
    if not series:
        return None
    words = em_words(verdict.definitions)
    zone = None
    if words.lo is not None and words.hi is not None:
        zone = (words.lo, words.hi, f"lo {100 * words.lo:g} to hi {100 * words.hi:g} points")
    curves: list[tuple[str, Pick]] = [("over step 0", _excess), ("over the control", _excess_control)]
    return Chart(
        title=f"Excess of {words.noun} against step",
        description=in_words(verdict, curves, two_ends),
        unit="excess, percentage points (this is what decides)",
        axis=axis_of(verdict),
        series=series,
        zone=zone,
        windows=windows_of(verdict),
        chosen=chosen_mark(verdict),
        failed=failed_marks(verdict),
        percent=True,
        sign="",
    )


def _em(c: CheckpointVerdict | None) -> Estimate | None:
    return c.judged.em if c is not None and c.judged is not None else None


def _excess(c: CheckpointVerdict) -> Estimate | None:
    # Step 0 differs from itself by nothing: that point is no measurement, so it has no interval either.
    if c.step == 0 and c.judged is not None and c.status is not Status.FAILED:
        return Estimate(0.0, None, None)
    return shown(c)


def _excess_control(c: CheckpointVerdict) -> Estimate | None:
    return c.judged.excess_control if c.judged is not None else None


def _control_share(c: CheckpointVerdict) -> tuple[float, None, None] | None:
    em, excess = _em(c), _excess_control(c)
    if em is None or em.value is None or excess is None or excess.value is None:
        return None
    return max(em.value - excess.value, 0.0), None, None


def _of_run(verdict: Verdict, name: str, pick: Pick) -> list[Series]:
    """The run's own curve; what a search drew stands apart, since when it stopped biases it."""
    fixed = _series(verdict, name, "red", False, lambda c: None if by_search(c) else pick(c))
    sampled = _series(verdict, "drawn by the search", "red", False, lambda c: pick(c) if by_search(c) else None)
    return [fixed, replace(sampled, loose=True)] if searched(verdict) and any(sampled.points) else [fixed]


def _series(verdict: Verdict, name: str, colour: str, second: bool, pick: Pick) -> Series:
    found = [pick(c) for c in verdict.checkpoints]
    points = tuple((e.value, e.low, e.high) if e is not None and e.value is not None else None for e in found)
    bars = tuple(
        (e.set_low, e.set_high) if e is not None and e.set_low is not None and e.set_high is not None else None
        for e in found
    )
    return Series(name, colour, second, points, bars)


# ---------------------------------------------------------------------------------------------------------------------
# Imported sets


def sets_chart(lines: Sequence[Mapping[str, Any]], size: Size, uid: str) -> Markup:
    """A row per imported set: its rate as a dot, this set as a thick bar, prompts like these as a thin line.

    Args:
        lines: as `rates_table.imported_table` gives them.
        size: WIDE puts names beside the bars, a narrower one above them.
        uid: keeps ids apart where several drawings stand on one page.
    """
    beside = size.width > 500
    names = [one_line(line["label"]) for line in lines]
    left = min(max(CHAR * len(n) for n in names), _LABEL) + 14 if beside else 8.0
    right, row = size.width - 16.0, _ROW if beside else _ROW + 14
    ems = [line["judged"]["em"] for line in lines]
    known = [x for e in ems for x in (e["value"], e["set_high"], e["high"]) if x is not None]
    top = max([0.05, *known])
    shown_ticks = ticks(0, top, 6 if beside else 4)
    height = _HEAD + row * len(lines) + 8

    def x(value: float) -> float:
        return left + (right - left) * max(0.0, min(value, top)) / top

    parts: list[Markup] = []
    for t in shown_ticks:
        parts.append(el("line", x1=x(t), x2=x(t), y1=_HEAD - 6, y2=height, class_="grid" if t else "zero"))
        text = f"{100 * t:.3g}{' %' if t == shown_ticks[-1] else ''}"
        parts.append(el("text", text, x=x(t), y=_HEAD - 12, text_anchor="middle"))
    for k, (name, e) in enumerate(zip(names, ems, strict=True)):
        y = _HEAD + row * (k + 1) - 15
        parts.append(_name(name, beside, left, y))
        if e["low"] is not None and e["high"] is not None:
            parts.append(el("line", x1=x(e["low"]), x2=x(e["high"]), y1=y, y2=y, class_="whisker red"))
        if e["set_low"] is not None and e["set_high"] is not None:
            width = max(x(e["set_high"]) - x(e["set_low"]), 1.0)
            parts.append(el("rect", x=x(e["set_low"]), y=y - 4, width=width, height=8, class_="set red"))
        if e["value"] is not None:
            parts.append(el("circle", cx=x(e["value"]), cy=y, r=4.2, class_="solid red"))
    values = [f"{n}: {number(100 * e['value'], 1) + ' %' if e['value'] is not None else 'no rate'}"
              for n, e in zip(names, ems, strict=True)]  # fmt: skip
    return el(
        "svg",
        el("title", "Share misaligned by set", id=f"{uid}-title"),
        el("desc", "; ".join(values) + ".", id=f"{uid}-desc"),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        class_="chart",
        viewBox=f"0 0 {size.width:.0f} {height:.0f}",
        width=f"{size.width:.0f}",
        height=f"{height:.0f}",
        role="img",
        aria_labelledby=f"{uid}-title {uid}-desc",
    )


def _name(name: str, beside: bool, left: float, y: float) -> Markup:
    most = int((left - 14 if beside else 360) / CHAR)
    # The end tells sets of one kind apart at least as well as the start: cut in the middle.
    if len(name) > most:
        name = f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"
    if beside:
        return el("text", name, x=left - 12, y=y + 4.5, text_anchor="end", class_="name")
    return el("text", name, x=left + 4, y=y - 11, class_="name halo")
