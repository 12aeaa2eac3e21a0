"""One line chart as SVG, drawn by hand: curves with shaded intervals, windows and marks. Knows nothing of verdicts.

Colours come from CSS variables (`--blue`, `--ink`, ...), so one drawing serves a light page, a dark one and paper.
Series differ by colour, dash and marker at once; no meaning hangs on colour alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from truing.report.axes import StepAxis, ValueAxis
from truing.report.reading import one_line

CHART_CSS = """
.chart text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:var(--muted);
font-variant-numeric:tabular-nums}
.chart .name{fill:var(--ink)}
.chart .grid{stroke:var(--rule);stroke-width:1}
.chart .zero{stroke:var(--muted);stroke-width:1.2}
.chart .limit{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:2 4}
.chart .halo{paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}
.chart .chosen{stroke:var(--ink);stroke-width:1.4}
.chart .chosen-mark{fill:var(--ink)}
.chart .zone{fill:var(--amber);opacity:.16}
.chart .set{stroke:none;opacity:.5}
.chart .lost{stroke:var(--muted);stroke-width:1.6;fill:none}
.chart .line{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.chart .dashed{stroke-dasharray:7 5}
.chart .whisker{stroke-width:1.4}
.chart .band{stroke:none;opacity:.16}
.chart .second.band{opacity:.11}
.chart .window{opacity:.10}
.chart .hollow{fill:var(--paper);stroke-width:2}
.chart .teal{stroke:var(--teal)}
.chart .teal.solid,.chart .teal.band,.chart .teal.bar,.chart .teal.window{fill:var(--teal)}
.chart .violet{stroke:var(--violet)}.chart .violet.band,.chart .violet.bar,.chart .violet.window{fill:var(--violet)}
.chart .red{stroke:var(--red)}.chart .red.solid,.chart .red.band,.chart .red.bar,.chart .red.window{fill:var(--red)}
.chart .blue{stroke:var(--blue)}.chart .blue.solid,.chart .blue.band{fill:var(--blue)}
.chart .red.set{fill:var(--red)}.chart .blue.set{fill:var(--blue)}
.chart .amber.bar,.chart .amber.window{fill:var(--amber)}
.chart .band,.chart .bar,.chart .window,.chart .set{stroke:none}
"""

CHAR = 6.7
"""mean width of a character of the 13 px chart font, in px; only used to decide where text fits"""


@dataclass(frozen=True, slots=True)
class Series:
    """One curve over the checkpoints."""

    name: str
    """what the legend says"""
    colour: str
    """teal, violet, red or blue"""
    second: bool
    """drawn dashed with hollow square marks instead of solid with filled circles"""
    points: tuple[tuple[float, float | None, float | None] | None, ...]
    """[S] (value, low, high); None where it is missing"""
    bars: tuple[tuple[float, float] | None, ...] = ()
    """[S] a second, inner interval of each, drawn as a thick bar; empty for none"""
    loose: bool = False
    """single values that no line joins, drawn as hollow circles"""


@dataclass(frozen=True, slots=True)
class Window:
    """A span of steps in which something happened."""

    name: str
    """what happened and between which steps"""
    colour: str
    """colour of its bar and shade"""
    start: int
    """last step before which it is known not to have happened"""
    end: int | None
    """first step at which it is known to have happened; None leaves the window open to the last known step"""


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything one chart shows."""

    title: str
    """what it is, for readers who hear it"""
    description: str
    """its values in words"""
    unit: str
    """what the y axis measures"""
    axis: StepAxis
    """the checkpoints"""
    series: tuple[Series, ...]
    """curves, most important first"""
    lines: tuple[tuple[float, str], ...] = ()
    """dashed horizontal lines (value, name); the zero line is always drawn"""
    zone: tuple[float, float, str] | None = None
    """a horizontal zone (low, high, name)"""
    windows: tuple[Window, ...] = ()
    """spans of steps"""
    chosen: tuple[int, str] | None = None
    """(index, name) of the checkpoint with a vertical line"""
    failed: tuple[int, ...] = ()
    """indices of checkpoints that could not be measured"""
    percent: bool = False
    """tick labels times 100"""
    sign: str = " %"
    """what follows such a label"""
    frame: ValueAxis | None = None
    """the y axis, where several charts share one"""


@dataclass(frozen=True, slots=True)
class Size:
    """Size of a drawing in its own units; text is 13 of them high."""

    width: float
    """whole width"""
    plot: float
    """height of the plot itself"""
    bare: bool = False
    """no legend, no lanes, fewer ticks: a small multiple"""


WIDE, NARROW, SMALL = Size(960, 270), Size(380, 240), Size(230, 104, bare=True)


def el(name: str, *children: object, **attributes: object) -> Markup:
    """An element; children and attribute values are escaped unless they are Markup, numbers are rounded."""
    given = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    shown = {k: f"{v:.1f}" if isinstance(v, float) else v for k, v in given.items()}
    inside = Markup("").join(escape(c) for c in children)
    return Markup("<{}{}>{}</{}>").format(
        Markup(name),
        Markup("").join(Markup(' {}="{}"').format(Markup(k), v) for k, v in shown.items()),
        inside,
        Markup(name),
    )


class _Canvas:
    """Geometry of one chart: turns positions into coordinates and collects shapes."""

    def __init__(self, chart: Chart, size: Size, uid: str) -> None:
        self.chart, self.size, self.uid = chart, size, uid
        self.left, self.right = (44.0 if size.bare else 50.0), size.width - 14.0
        self.frame = chart.frame or frame_of(chart)
        self.parts: list[Markup] = []
        self.y = 16.0
        self.top = self.bottom = 0.0

    def x(self, position: float) -> float:
        return self.left + 8 + position * (self.right - self.left - 16)

    def v(self, value: float) -> float:
        return self.bottom - self.frame.at(value) * (self.bottom - self.top)

    def add(self, name: str, *children: object, **attributes: object) -> None:
        self.parts.append(el(name, *children, **attributes))

    def text(self, x: float, y: float, content: str, css: str | None = None, anchor: str | None = None) -> None:
        self.add("text", one_line(content), x=x, y=y, class_=css, text_anchor=anchor)


def frame_of(*charts: Chart) -> ValueAxis:
    """A y axis that serves all the charts."""
    points = [p for c in charts for s in c.series for p in s.points if p is not None]
    lines = [value for c in charts for value, _ in c.lines] + [e for c in charts if c.zone for e in c.zone[:2]]
    ends = [e for _, low, high in points for e in (low, high) if e is not None]
    # The inner intervals are never cut off; the outer ones may run out of the frame.
    bars = [e for c in charts for s in c.series for bar in s.bars if bar for e in bar]
    return ValueAxis.around([0.0, *lines, *bars, *(p[0] for p in points)], ends)


def sample(chart: Chart, size: Size, uid: str) -> Markup:
    """The chart as an <svg> element; `uid` keeps ids apart where several stand on one page."""
    canvas = _Canvas(chart, size, uid)
    if not size.bare:
        _heading(canvas)
        lanes = canvas.y
        canvas.y += 20.0 * (len(chart.windows) + (chart.chosen is not None)) + 4
    else:
        lanes = canvas.y = 6.0
    canvas.top, canvas.bottom = canvas.y, canvas.y + size.plot
    _ground(canvas)
    _spans(canvas, lanes)
    for series in reversed(chart.series):
        _curve(canvas, series)
    _failures(canvas)
    height = canvas.bottom + (24 if size.bare else 44)
    clip = el(
        "clipPath",
        el("rect", x=canvas.left, y=canvas.top, width=canvas.right - canvas.left, height=size.plot),
        id=f"{uid}-clip",
    )
    return el(
        "svg",
        el("title", chart.title, id=f"{uid}-title"),
        el("desc", chart.description, id=f"{uid}-desc"),
        el("defs", clip),
        *canvas.parts,
        xmlns="http://www.w3.org/2000/svg",
        class_="chart",
        viewBox=f"0 0 {size.width:.0f} {height:.0f}",
        width=f"{size.width:.0f}",
        height=f"{height:.0f}",
        role="img",
        aria_labelledby=f"{uid}-title {uid}-desc",
    )


def _heading(c: _Canvas) -> None:
    fits = CHAR * len(c.chart.unit) <= c.size.width
    c.text(2, c.y, c.chart.unit if fits else c.chart.unit.split(" (")[0])
    c.y += 22
    x = 2.0
    for s in c.chart.series:
        width = 46 + CHAR * len(s.name) + 22
        if x > 2 and x + width > c.size.width:
            x, c.y = 2.0, c.y + 20
        css = f"line {s.colour}" + (" dashed" if s.second else "")
        if not s.loose:
            c.add("line", x1=x, x2=x + 36, y1=c.y - 4.5, y2=c.y - 4.5, class_=css)
        _marker(c, s, x + 18, c.y - 4.5)
        c.text(x + 44, c.y, s.name, "name")
        x += width
    c.y += 12


def _ground(c: _Canvas) -> None:
    shown = c.frame.ticks
    if c.size.bare and len(shown) > 4:  # every other one, zero among them
        shown = tuple(t for t in shown if round(t / (shown[1] - shown[0])) % 2 == 0)
    scale = 100 if c.chart.percent else 1
    digits = _digits([t * scale for t in shown])
    for tick in shown:
        y = c.v(tick)
        if abs(tick) > 1e-9:
            c.add("line", x1=c.left, x2=c.right, y1=y, y2=y, class_="grid")
        text = f"{tick * scale if abs(tick) > 1e-9 else 0:.{digits}f}" + (c.chart.sign if c.chart.percent else "")
        c.text(c.left - 7, y + 4.5, text.replace("-", "−"), anchor="end")
    if c.frame.low <= 0 <= c.frame.high:
        c.add("line", x1=c.left, x2=c.right, y1=c.v(0), y2=c.v(0), class_="zero")
    taken = math.inf
    # From the right, so that where two labels meet the later checkpoint keeps its own.
    for position, label in reversed(c.chart.axis.marks(c.right - c.left, 46.0 if c.size.width > 500 else 38.0)):
        label = _short(one_line(label), 8 if c.size.bare else 12)
        half = CHAR * len(label) / 2
        at = c.x(position)
        middle = min(at, c.size.width - half)
        c.add("line", x1=at, x2=at, y1=c.bottom, y2=c.bottom + 4, class_="grid")
        if middle + half < taken:
            c.text(middle, c.bottom + 18, label, anchor="middle")
            taken = middle - half - 4
    if not c.size.bare:
        c.text((c.left + c.right) / 2, c.bottom + 38, c.chart.axis.title, anchor="middle")


def _spans(c: _Canvas, y: float) -> None:
    if c.chart.zone is not None:
        low, high, name = c.chart.zone
        c.add("rect", x=c.left, width=c.right - c.left, y=c.v(high), height=c.v(low) - c.v(high), class_="zone")
        c.text(c.left + 6, c.v(high) - 6, name, "halo")
    for w in c.chart.windows:
        start = c.x(c.chart.axis.at_step(w.start))
        end = c.x(c.chart.axis.known_end if w.end is None else c.chart.axis.at_step(w.end))
        if end - start < 2:
            start, end = start - 2, end + 2
        c.add("rect", x=start, width=end - start, y=c.top, height=c.bottom - c.top, class_=f"window {w.colour}")
        if not c.size.bare:
            if _beside(c, start - 6, end + 6, y + 13, w.name):
                c.add("rect", x=start, width=end - start, y=y + 4, height=9, rx=2, class_=f"bar {w.colour}")
            else:  # no room on either side: a thin bar under its name
                c.text(min(start, c.right - CHAR * len(w.name)), y + 11, w.name, "name")
                c.add("rect", x=start, width=end - start, y=y + 15, height=3, rx=1.5, class_=f"bar {w.colour}")
            y += 20
    for value, name in c.chart.lines:
        c.add("line", x1=c.left, x2=c.right, y1=c.v(value), y2=c.v(value), class_="limit")
        if not c.size.bare:
            c.text(c.left + 6, c.v(value) - 6, name, "halo")
    if c.chart.chosen is not None:
        at = c.x(c.chart.axis.at(c.chart.chosen[0]))
        c.add("line", x1=at, x2=at, y1=c.top if c.size.bare else y + 10, y2=c.bottom, class_="chosen")
        if not c.size.bare:
            c.add("path", d=f"M{at - 6:.1f} {y + 3:.1f}h12l-6 10z", class_="chosen-mark")
            if not _beside(c, at - 11, at + 11, y + 13, c.chart.chosen[1]):
                c.text(c.right, y + 13, c.chart.chosen[1].split(":")[0], "name halo", "end")


def _beside(c: _Canvas, left: float, right: float, y: float, text: str) -> bool:
    """Text to the right of something, or to its left where the right has no room; False where neither has."""
    if c.size.width < 500:
        text = text.replace("steps ", "")
    brief = text.split(",")[0].split(":")[0]  # the steps can be read off the axis
    for words in (text, brief):
        if right + CHAR * len(words) <= c.size.width:
            c.text(right, y, words, "name")
            return True
        if left - CHAR * len(words) >= 0:
            c.text(left, y, words, "name", "end")
            return True
    return False


def _curve(c: _Canvas, s: Series) -> None:
    axis, clip = c.chart.axis, f"url(#{c.uid}-clip)"
    extra = " second" if s.second else ""
    for run in _runs(s, axis):
        aside = 7.0 if s.second and len(run) == 1 else 0.0  # lest two lone whiskers lie on each other
        at = [(c.x(axis.at(i)) + aside, p) for i, p in run]
        ends = [(x, p[1], p[2]) for x, p in at if p[1] is not None and p[2] is not None]
        if len(ends) > 1:
            upper = [f"{x:.1f},{c.v(high):.1f}" for x, _, high in ends]
            lower = [f"{x:.1f},{c.v(low):.1f}" for x, low, _ in reversed(ends)]
            c.add("polygon", points=" ".join(upper + lower), class_=f"band {s.colour}{extra}", clip_path=clip)
        else:
            for x, low, high in ends:
                css = f"whisker {s.colour}"
                c.add("line", x1=x, x2=x, y1=c.v(low), y2=c.v(high), class_=css, clip_path=clip)
        if len(at) > 1:
            points = " ".join(f"{x:.1f},{c.v(p[0]):.1f}" for x, p in at)
            c.add("polyline", points=points, class_=f"line {s.colour}" + (" dashed" if s.second else ""))
        for i, p in run:
            x, bar = c.x(axis.at(i)) + aside, s.bars[i] if s.bars else None
            if bar is not None:
                # Beside the first curve's bar, not on it.
                at_x, y = x + (4.5 if s.second else -3.5), c.v(bar[1])
                css, height = f"set {s.colour}", c.v(bar[0]) - y
                c.add("rect", x=at_x, width=7, y=y, height=max(height, 1.0), class_=css, clip_path=clip)
            _marker(c, s, x, c.v(p[0]))


def _runs(s: Series, axis: StepAxis) -> list[list[tuple[int, tuple[float, float | None, float | None]]]]:
    """Stretches without a gap: a missing value breaks the line, a checkpoint without a step stands alone."""
    out: list[list[tuple[int, tuple[float, float | None, float | None]]]] = [[]]
    for i, p in enumerate(s.points):
        if p is None or axis.steps[i] is None or s.loose:
            out.append([(i, p)] if p is not None else [])
            out.append([])
        else:
            out[-1].append((i, p))
    return [run for run in out if run]


def _marker(c: _Canvas, s: Series, x: float, y: float) -> None:
    r = 3.2 if c.size.bare else 4.2
    if s.second:
        c.add("rect", x=x - r, y=y - r, width=2 * r, height=2 * r, class_=f"hollow {s.colour}")
    else:
        c.add("circle", cx=x, cy=y, r=r, class_=f"{'hollow' if s.loose else 'solid'} {s.colour}")


def _failures(c: _Canvas) -> None:
    for i in c.chart.failed:
        x, y = c.x(c.chart.axis.at(i)), c.bottom - 9
        c.add("path", d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", class_="lost")
        if not c.size.bare:
            at_end = x + 9 + CHAR * 6 > c.right
            c.text(x + (-9 if at_end else 9), y + 4, "failed", "halo", "end" if at_end else None)


def _digits(shown: Sequence[float]) -> int:
    gap = min((b - a for a, b in pairwise(shown)), default=1.0)
    return next((d for d in range(5) if abs(round(gap, d) - gap) < 1e-9), 5)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: max(most - 1, 1)] + "…"
