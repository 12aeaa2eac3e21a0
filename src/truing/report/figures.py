"""The figures of an audit, by matplotlib: the same ones for the report (SVG in the page) and for papers (a file).

A `Chart` is plain numbers. Curves differ by colour, dash and marker at once and spans of steps by hatch as well, so
that nothing hangs on colour alone. The same input gives the same bytes: no date, no random ids, no user settings.
"""

import io
import math
import re
import textwrap
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from truing.report.reading import one_line
from truing.types.verdicts import Estimate

WIDE, NARROW = 960, 380
"""widths of a figure in px, for a page and for a phone; text is 13 px high in both"""
COLOURS = {
    "paper": "#ffffff", "ink": "#1b1f23", "muted": "#575d64", "rule": "#e1ded6", "red": "#b23a12",
    "blue": "#1a5fa8", "teal": "#0b7566", "violet": "#6a4aa3", "amber": "#8a5a00",
}  # fmt: skip
"""name -> colour on white; a page may override each by a CSS variable of that name"""

_HATCH = {"teal": "//", "violet": "//", "red": "\\\\", "amber": ".."}
_DOTTED = {"color": COLOURS["ink"], "lw": 1.2, "ls": (0, (2, 3))}
_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 13,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a `$` in a label is a `$`
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 13,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.labelspacing": 0.35,
    "legend.handlelength": 2.6,
}
_CHAR = 7.4
"""generous mean width of a character, px"""


@dataclass(frozen=True, slots=True)
class Series:
    """One curve over the checkpoints."""

    name: str
    """what the legend says"""
    colour: str
    """a key of COLOURS"""
    found: Sequence[Estimate | None]
    """[S]; a missing value breaks the line. Intervals for items like these are thin lines, shaded between; those for
    exactly these items thick bars"""
    style: str = "solid"
    """solid, dashed (with hollow squares), or loose (hollow circles that no line joins)"""

    def numbers(self, field: str) -> np.ndarray:
        """[S] the value or the end of that name, NaN where there is none."""
        found = [None if e is None or e.value is None else getattr(e, field) for e in self.found]
        return np.array([math.nan if x is None else x for x in found])


@dataclass(frozen=True, slots=True)
class Window:
    """A span of steps within which something happened, or may have where `end` is None (the last step)."""

    name: str
    """what, and between which steps"""
    colour: str
    """a key of COLOURS"""
    start: int
    """last step before which it is known not to have happened"""
    end: int | None
    """first step at which it is known to have happened"""


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything one chart shows."""

    title: str
    """what it is, for readers who hear it"""
    heading: str
    """the quantity and its unit, over the plot"""
    steps: Sequence[int | None]
    """[S] of each checkpoint, None = drawn at the right end under its label; empty = a row per label, values along x"""
    labels: Sequence[str]
    """[S] name of each checkpoint"""
    series: Sequence[Series]
    """curves, most important first"""
    lines: Sequence[tuple[float, str]] = ()
    """dotted horizontal lines: (value, name)"""
    undecided: tuple[float, float, str] | None = None
    """a horizontal zone: (low, high, name)"""
    windows: Sequence[Window] = ()
    """spans of steps"""
    chosen: tuple[int, str] | None = None
    """(index, name) of the checkpoint to keep"""
    failed: Sequence[int] = ()
    """indices of checkpoints that could not be measured"""
    unit: str = ""
    """% or points: values are written times 100"""

    def written(self, value: float) -> str:
        """A value as the axis shows it."""
        text = f"{round(value * (100 if self.unit else 1), 9) + 0.0:.4g}".replace("-", "−")
        return text + " %" * (self.unit == "%")

    def description(self) -> str:
        """Its values in words."""
        said = []
        for i, label in enumerate(self.labels):
            values = [f"{s.name} {self._said(e)}" for s in self.series if (e := s.found[i]) and e.value is not None]
            values += ["failed"] * (i in self.failed)
            said += [f"{label}: {', '.join(values)}"] if values else []
        said += [w.name for w in self.windows] + ([self.chosen[1]] if self.chosen else [])
        return ". ".join(said) + "."

    def _said(self, e: Estimate) -> str:
        ends = [
            f"{self.written(low)} to {self.written(high)}"
            for low, high in ((e.set_low, e.set_high), (e.low, e.high))
            if low is not None and high is not None
        ]
        return self.written(e.value or 0.0) + (f" ({'; '.join(ends)})" if ends else "")


# ---------------------------------------------------------------------------------------------------------------------
# Files and pages


def render(charts: Sequence[Chart], kind: str = "svg", *, width: int = WIDE, columns: int = 1, salt: str = "") -> bytes:
    """Charts as one SVG, PDF or PNG: below each other, or small ones on one y scale in several columns.

    Args:
        charts: at least one.
        kind: svg, pdf or png.
        width: of the whole, in px (72 to the inch).
        columns: how many stand beside each other.
        salt: keeps ids in the SVG apart from those of other figures on one page.
    """
    date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    out = io.BytesIO()
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": f"truing{salt}"}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")  # an SVG's reader has more fonts
        figure = draw(charts, width=width, columns=columns)
        figure.savefig(out, format=kind, metadata=date, dpi=200 if kind == "png" else 72)
    return out.getvalue()


def for_page(uid: str, *charts: Chart | None, columns: tuple[int, int] = (1, 1)) -> tuple[Markup, Markup] | None:
    """Charts as <svg> for a page, wide and narrow; None where there are none. Colours follow CSS variables."""
    given = [c for c in charts if c is not None]
    if not given:
        return None
    return _page_svg(given, f"{uid}-w", WIDE, columns[0]), _page_svg(given, f"{uid}-n", NARROW, columns[1])


def _page_svg(charts: Sequence[Chart], uid: str, width: int, columns: int) -> Markup:
    """One <svg> element with a text alternative and no ids or styles that could reach the rest of the page."""
    root = ET.fromstring(render(charts, width=width, columns=columns, salt=uid))
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', ET.tostring(root, encoding="unicode")))
    variables = {code: f"var(--{name},{code})" for name, code in COLOURS.items()}
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        for child in [c for c in element if c.tag.endswith(("}metadata", "}style"))]:  # a style would rule the page
            element.remove(child)
        plain = {key.rpartition("}")[2]: value for key, value in element.items()}
        if "style" in plain:
            plain["style"] = re.sub(r"#[0-9a-f]{6}", lambda m: variables.get(m[0], m[0]), plain["style"])
        element.attrib.clear()
        element.attrib.update({k: v for k, v in plain.items() if k != "id" or v in used})
    size = {side: root.attrib[side].removesuffix("pt") for side in ("width", "height")}
    aria = {"class": "chart", "role": "img", "aria-labelledby": f"{uid}-title {uid}-desc"}
    root.attrib.update({"xmlns": "http://www.w3.org/2000/svg", **size, **aria})
    for tag, words in (("desc", [c.description() for c in charts]), ("title", [c.title for c in charts])):
        root.insert(0, ET.Element(tag, id=f"{uid}-{tag}"))
        root[0].text = _text(" ".join(words))
    return Markup(ET.tostring(root, encoding="unicode", short_empty_elements=False))


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def draw(charts: Sequence[Chart], *, width: int = WIDE, columns: int = 1) -> Figure:
    """The same as a matplotlib figure of its own (pyplot does not know it), to change before it is saved."""
    small, cell = columns > 1, width / columns
    frames = [_frame(c, cell, small) for c in charts]
    rows = [frames[i : i + columns] for i in range(0, len(charts), columns)]
    above, heights = zip(*((max(f[2] for f in row), max(f[2] + f[3] + f[4] for f in row)) for row in rows), strict=True)
    height = sum(heights)
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        for i, (chart, (left, right, _, plot, _)) in enumerate(zip(charts, frames, strict=True)):
            row, column = divmod(i, columns)
            bottom = height - sum(heights[:row]) - above[row] - plot
            box = (column * cell + left) / width, bottom / height, (cell - left - right) / width, plot / height
            limits = _limits(charts if small else [chart])
            (_curves if chart.steps else _rows)(figure.add_axes(box), chart, cell, limits, small)
    return figure


def _frame(chart: Chart, width: float, small: bool) -> tuple[float, float, float, float, float]:
    """px left and right of the plot, above it, its height, and px below it. Measured by hand: a layout costs a draw."""
    if not chart.steps:
        lines = [line for label in chart.labels for line in _row_name(label, width).splitlines()]
        most = max(_row_name(label, width).count("\n") + 1 for label in chart.labels)
        return 14 + _CHAR * max(map(len, lines)), 14, 30, len(chart.labels) * (18.0 + 17 * most), 6
    heading = _heading(chart, width).count("\n") + 1
    if small:
        return 40, 8, 8 + 17.0 * heading, 96, 28
    return 56, 14, 12 + 16 * heading + 18.5 * math.ceil(len(_legend(chart)) / _columns(chart, width)), 250, 46


def _columns(chart: Chart, width: float) -> int:
    widest = max(len(name) for name, _ in _legend(chart))
    return max(1, int((width - 60) / (62 + _CHAR * widest)))


def _legend(chart: Chart) -> list[tuple[str, Any]]:
    """(name, what stands for it) of everything drawn that has a name."""
    out: list[tuple[str, Any]] = [(_text(s.name), Line2D([], [], **_look(s))) for s in chart.series]
    if chart.chosen is not None:
        out.append((_cut(chart.chosen[1], 36), Line2D([], [], color=COLOURS["ink"], marker="v", lw=1.4)))
    out += [(_text(name), Line2D([], [], **_DOTTED)) for _, name in chart.lines if name]
    if chart.undecided is not None:
        out.append((_text(chart.undecided[2]), Patch(color=COLOURS["amber"], alpha=0.18, lw=0)))
    out += [(_text(w.name), tuple(Patch(**look) for look in _shades(w))) for w in chart.windows]
    if chart.failed:
        out.append(("failed", Line2D([], [], color=COLOURS["muted"], marker="x", ls="none")))
    return out


def _look(s: Series, size: float = 1.0) -> dict[str, Any]:
    colour, line = COLOURS[s.colour], {"solid": "-", "dashed": (0, (4, 2))}.get(s.style, "none")
    face, marker = colour if s.style == "solid" else COLOURS["paper"], "s" if s.style == "dashed" else "o"
    return {"color": colour, "ls": line, "lw": 2 * size, "marker": marker, "ms": 7 * size, "mfc": face, "mew": 1.6}


def _shades(w: Window) -> tuple[dict[str, Any], dict[str, Any]]:
    """A tint, and a hatch over it: in one, SVG would lose the tint's transparency."""
    colour = COLOURS[w.colour]
    hatch = {"facecolor": "none", "edgecolor": (colour, 0.4), "hatch": _HATCH[w.colour], "lw": 0}
    return {"facecolor": colour, "alpha": 0.12, "lw": 0}, hatch


def _curves(axes: Axes, chart: Chart, cell: float, limits: tuple[float, float], small: bool) -> None:
    at, x = _positions(chart)
    end, width = max(x) or 1.0, axes.bbox.width
    axes.set_xlim(-10 / width * end, end * (1 + 10 / width))
    axes.set_ylim(*limits)
    axes.tick_params(length=0, pad=5, labelsize=11 if small else 13)
    axes.set_xticks(*_step_ticks(chart, at, x, width / end))
    axes.yaxis.set_major_locator(MaxNLocator(4 if small else 6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: chart.written(value))
    axes.grid(axis="y")
    if small:
        axes.set_title(_heading(chart, cell))
    else:
        names, handles = zip(*_legend(chart), strict=True)
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.7, "alignment": "left"}
        axes.legend(handles, names, title=_heading(chart, cell), ncols=_columns(chart, cell), **place)
        axes.set_xlabel("optimizer updates (step" + (", log scale)" if _logarithmic(chart) else ")"))
    axes.axhline(0, color=COLOURS["muted"], lw=1.2)
    if chart.undecided is not None:
        axes.axhspan(*chart.undecided[:2], color=COLOURS["amber"], alpha=0.18, lw=0)
    for value, _ in chart.lines:
        axes.axhline(value, **_DOTTED)
    last = max(_known(chart), default=0)
    for w in chart.windows:
        start, stop = (at(min(max(s, 0), last)) for s in (w.start, last if w.end is None else w.end))
        least = 2 / width * end if stop - start < 4 / width * end else 0.0
        for look in _shades(w):
            axes.axvspan(start - least, stop + least, **look)
    top = axes.get_xaxis_transform()  # x in data, y in heights of the plot
    if chart.chosen is not None and not small:
        axes.axvline(x[chart.chosen[0]], color=COLOURS["ink"], lw=1.4)
        axes.plot(x[chart.chosen[0]], 1, color=COLOURS["ink"], marker="v", ms=8, transform=top, clip_on=False)
    axes.plot([x[i] for i in chart.failed], [0.04] * len(chart.failed), color=COLOURS["muted"], marker="x", ls="none",
              ms=7, mew=1.8, transform=top)  # fmt: skip
    for s in reversed(chart.series):
        _curve(axes, s, np.array(x), np.array([step is not None for step in chart.steps]), 0.6 if small else 1.0)


def _curve(axes: Axes, s: Series, x: np.ndarray, stepped: np.ndarray, size: float) -> None:
    """A line and a shade where steps are known and nothing is missing; points and both intervals everywhere."""
    joined, look, y = stepped & (s.style != "loose"), _look(s, size), s.numbers("value")
    low, high = s.numbers("low"), s.numbers("high")
    if not np.isnan(low).all():
        axes.fill_between(x[joined], low[joined], high[joined], color=COLOURS[s.colour], alpha=0.13, lw=0)
    # The intervals of two curves at one step stand beside each other.
    aside = ScaledTranslation(4 * (s.style == "dashed") / 72, 0, axes.figure.dpi_scale_trans)
    _intervals(axes, x, s, axes.transData + aside, upright=True)
    axes.plot(x[joined], y[joined], **{**look, "marker": "none"})
    axes.plot(x, y, **{**look, "ls": "none"}, zorder=3)


def _intervals(axes: Axes, at: np.ndarray, s: Series, transform: Any, *, upright: bool) -> None:
    for of, width, alpha in (("", 1.3, 1.0), ("set_", 7.0, 0.5)):
        low, high = s.numbers(f"{of}low"), s.numbers(f"{of}high")
        if not np.isnan(low).all():
            # One line with gaps: a thousand lines would be a thousand elements of the page.
            ends = np.column_stack([low, high, np.full(len(at), np.nan)]).ravel()
            places = np.repeat(np.asarray(at, float), 3)
            line = (places, ends) if upright else (ends, places)
            look = {"color": COLOURS[s.colour], "lw": width, "alpha": alpha, "solid_capstyle": "butt"}
            axes.plot(*line, **look, transform=transform, zorder=2)


def _rows(axes: Axes, chart: Chart, width: float, limits: tuple[float, float], _: bool) -> None:
    """A row per label: a dot, its inner interval as a thick bar, the wide one as a thin line."""
    y = np.arange(len(chart.labels))[::-1]
    axes.tick_params(length=0, pad=6)
    axes.set(xlim=limits, ylim=(-0.6, len(y) - 0.4))
    axes.set_yticks(y, [_row_name(label, width) for label in chart.labels], color=COLOURS["ink"])
    axes.xaxis.tick_top()
    axes.xaxis.set_major_locator(MaxNLocator(6 if width > 500 else 3, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: chart.written(value))
    axes.grid(axis="x")
    axes.spines[:].set_visible(False)
    axes.axvline(0, color=COLOURS["muted"], lw=1.2)
    for s in chart.series:
        _intervals(axes, y, s, axes.transData, upright=False)
        axes.plot(s.numbers("value"), y, **{**_look(s), "ls": "none"}, zorder=3)


def _limits(charts: Sequence[Chart]) -> tuple[float, float]:
    """A range that holds every value and inner interval, and as much of the wide ones as leaves the values readable."""
    every = [s for c in charts for s in c.series]
    fixed = [0.0, *(value for c in charts for value, _ in c.lines)]
    fixed += [end for c in charts if c.undecided is not None for end in c.undecided[:2]]
    inside = np.concatenate([fixed, *(s.numbers(name) for s in every for name in ("value", "set_low", "set_high"))])
    wide = np.concatenate([inside, *(s.numbers(name) for s in every for name in ("low", "high"))])
    low, high = np.nanmin(inside), np.nanmax(inside)
    span = (high - low) or max(abs(high), 0.1)
    low, high = max(np.nanmin(wide), low - span), min(np.nanmax(wide), high + span)
    pad = 0.04 * (high - low or 1.0)
    return float(low - pad), float(high + pad)


def _known(chart: Chart) -> list[int]:
    return sorted({s for s in chart.steps if s is not None})


def _logarithmic(chart: Chart) -> bool:
    """Whether steps are spaced so unevenly that a linear axis would heap the early ones."""
    gaps = [b - a for a, b in pairwise(_known(chart))]
    return len(gaps) >= 3 and max(gaps) > 8 * min(gaps)


def _positions(chart: Chart) -> tuple[Callable[[int], float], list[float]]:
    """(step -> x, x of each checkpoint): the step or log(1 + step / first); those without a step beyond the last."""
    known, logarithmic = _known(chart), _logarithmic(chart)
    unit = min((s for s in known if s > 0), default=1)

    def at(step: int) -> float:
        return math.log1p(step / unit) if logarithmic else float(step)

    last = at(max(known, default=0))
    gap = 0.2 * (last or 1.0) / max(1, sum(s is None for s in chart.steps) - 2)
    beyond = {i: last + gap * (k + 1) for k, i in enumerate(i for i, s in enumerate(chart.steps) if s is None)}
    return at, [beyond[i] if s is None else at(s) for i, s in enumerate(chart.steps)]


def _step_ticks(
    chart: Chart, at: Callable[[int], float], x: Sequence[float], per_unit: float
) -> tuple[list[float], list[str]]:
    """Where labels stand and what they say, no closer than they can be read; `per_unit` is px per unit of x."""
    steps: Sequence[float] = _known(chart)
    if len(steps) * 26 > at(int(max(steps, default=0))) * per_unit and not _logarithmic(chart):
        steps = MaxNLocator(max(2, int(steps[-1] * per_unit / 52)), integer=True).tick_values(0, steps[-1])
    places: list[float] = []
    labels: list[str] = []
    for step in (int(s) for s in reversed(steps) if 0 <= s <= max(_known(chart))):
        if not places or (places[-1] - at(step)) * per_unit >= 46:  # from the right: on a log scale early ones crowd
            places.append(at(step))
            labels.append(f"{step:,}".replace(",", "\u202f"))
    without = [i for i, s in enumerate(chart.steps) if s is None]
    return places + [x[i] for i in without], labels + [_cut(chart.labels[i], 8) for i in without]


def _text(value: object) -> str:
    """Untrusted text on one line, without the two code points that XML forbids and `one_line` lets through."""
    return one_line(value).translate({0xFFFE: "\ufffd", 0xFFFF: "\ufffd"})


def _cut(value: object, most: int) -> str:
    """`_text`, cut in the middle: the end tells names of one kind apart at least as well as the start."""
    text = _text(value)
    return text if len(text) <= most else f"{text[: (most - 1) // 2]}…{text[-(most // 2) :]}"


def _heading(chart: Chart, width: float) -> str:
    return textwrap.fill(_text(chart.heading), int((width - 60) / _CHAR))


def _row_name(label: str, width: float) -> str:
    return textwrap.fill(_cut(label, 60), 44 if width > 500 else 16)
