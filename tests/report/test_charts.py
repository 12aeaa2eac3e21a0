import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from report.audits import EVERY, est, import_lines, line, verdict
from truing.report.charts import categories, every_chart, excess, progress, rate, screen, sets, windows_of
from truing.report.figures import COLOURS, NARROW, WIDE, Chart, Series, Window, draw, for_page, render
from truing.report.rates_table import imported_lines
from truing.types.verdicts import Estimate

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "<script>alert(1)</script>&\"'$\\frac{1}$ {x} 模型\uffff"
CHANGING, EMERGENT, SEARCHED = EVERY["changing"], EVERY["emergent"], EVERY["searched"]


def chart(steps, values, **more):
    labels = ["start", *(f"at {s}" for s in steps[1:])]
    found = [None if v is None else Estimate(v, None, None) for v in values]
    return Chart("title", "heading", steps, labels, [Series("this", "red", found)], **more)


def axes_of(*charts, **options):
    return draw(charts, **options).axes


def curve(axes, style="None"):
    """(x, y) of the points of the red series, or of its line."""
    found = [li for li in axes.lines if li.get_color() == COLOURS["red"] and li.get_linestyle() == style]
    found = [li for li in found if not intervals(li)]
    return next((list(li.get_xdata()), list(li.get_ydata())) for li in found if len(li.get_xdata()))


def bars(axes):
    """((x, low), (x, high)) of every interval -> width of its line."""
    return {ends: li.get_linewidth() for li in axes.lines for ends in intervals(li)}


def intervals(line):
    """((x, y), (x, y)) of the ends of every interval that a line draws, with a gap after each; none of other lines."""
    x, y = line.get_xdata(), line.get_ydata()
    if (
        not len(x)
        or len(x) % 3
        or not (np.isnan(np.asarray(x[2::3], float)) | np.isnan(np.asarray(y[2::3], float))).all()
    ):
        return []
    pairs = zip(zip(x[::3], y[::3], strict=True), zip(x[1::3], y[1::3], strict=True), strict=True)
    return [(a, b) for a, b in pairs if not np.isnan([*a, *b]).any()]


def svgs(name, *charts):
    return [ET.fromstring(x) for x in for_page(name, *charts)]


@pytest.mark.parametrize("name", ["changing", "log-spaced", "two", "hostile", "mean", "searched", "hostile-judged"])
def test_every_chart_is_sound_xml_with_a_text_alternative(name):
    for c in every_chart(EVERY[name]):
        for root, width in zip(svgs("t", c), (WIDE, NARROW), strict=True):
            assert float(root.get("width")) == width
            assert root.get("role") == "img"
            told = {e.get("id") for e in root if e.tag in (SVG + "title", SVG + "desc")}
            assert told == set(root.get("aria-labelledby").split())
            assert c.series[0].name in root.find(SVG + "desc").text
            text = ET.tostring(root, encoding="unicode")
            assert "nan" not in text.lower() and "\x1b" not in text and "<script" not in text


def test_there_is_a_chart_of_whatever_was_measured():
    for name, v in EVERY.items():
        few = {"base-only": 0, "no-task": 1}.get(name, 2)
        assert len(every_chart(v)) == (4 if v.checkpoints[0].labelled else few), name


def test_points_and_intervals_lie_where_the_numbers_say():
    (axes,) = axes_of(screen(CHANGING))
    shifts = [(c.step, c.contrast_base) for c in CHANGING.checkpoints[1:]]
    assert curve(axes) == ([c.step for c in CHANGING.checkpoints], [0.0, *(e.value for _, e in shifts)])
    for step, e in shifts:
        assert ((step, e.low), (step, e.high)) in bars(axes)


def test_the_inner_interval_is_a_thicker_bar_and_never_cut_off():
    found = [Estimate(0.1, -9.0, 9.0, 0.05, 0.15), Estimate(0.2, 0.1, 0.3, -0.5, 0.9)]
    (axes,) = axes_of(Chart("t", "h", [0, 10], ["a", "b"], [Series("this", "red", found)]))
    width = {low: w for (low, _), w in bars(axes).items()}
    assert width[(0, 0.05)] == width[(10, -0.5)] > 3 * width[(0, -9.0)]
    low, high = axes.get_ylim()
    assert low < -0.5 and high > 0.9
    assert high - low < 5, "a wild outer interval does not flatten the values"


def test_a_missing_value_breaks_the_line_and_a_failed_checkpoint_is_marked():
    c = chart([0, 10, 20, 30], [0.1, None, 0.3, 0.4], failed=[1])
    (axes,) = axes_of(c)
    assert [y != y for y in curve(axes, "-")[1]] == [False, True, False, False]
    (cross,) = [li for li in axes.lines if li.get_marker() == "x" and len(li.get_xdata())]
    assert list(cross.get_xdata()) == [10]
    assert "at 10: failed" in c.description()


@pytest.mark.parametrize(
    ("steps", "logarithmic"),
    [([0, 10, 20, 30], False), ([0, 1, 2, 4, 8, 16, 32, 64, 128], True), ([0, 250], False), ([0], False)],
)
def test_the_scale_is_logarithmic_only_for_very_uneven_steps_and_says_so(steps, logarithmic):
    (axes,) = axes_of(chart(steps, [0.1] * len(steps)))
    at, _ = curve(axes)
    assert ("log scale" in axes.get_xlabel()) is logarithmic
    assert at == sorted(set(at))
    assert (at == steps) is not logarithmic


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("steps", [list(range(0, 10_001, 50)), [2**k for k in range(16)], [0], [None, None]])
def test_step_labels_keep_their_distance(steps, width):
    figure = draw([chart(steps, [0.1] * len(steps))], width=width)
    figure.draw_without_rendering()
    labels = [t for t in figure.axes[0].get_xticklabels() if t.get_text()]
    boxes = sorted((t.get_window_extent() for t in labels), key=lambda b: b.x0)
    assert boxes and all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_a_checkpoint_without_a_step_lies_beyond_all_others_and_no_line_leads_there():
    (axes,) = axes_of(chart([0, 100, None, 200], [0.1, 0.2, 0.3, 0.4]))
    x, y = curve(axes)
    assert max(x[0], x[1], x[3]) < x[2] and y[2] == 0.3
    assert curve(axes, "-")[0] == [0, 100, 200]


def test_hostile_text_is_text_and_a_dollar_is_a_dollar():
    c = Chart(NASTY, NASTY, [0, None], [NASTY, NASTY], [Series(NASTY, "red", [est(0.1), est(0.2)])],
              lines=[(0.1, NASTY)], windows=[Window(NASTY, "teal", 0, 1)])  # fmt: skip
    for svg in (*for_page("t", c), render([c]).decode()):
        assert "<script" not in svg
        texts = [e.text for e in ET.fromstring(svg).iter(SVG + "text") if e.text]
        assert NASTY.replace("\uffff", "\ufffd") in texts


def test_the_same_input_gives_the_same_bytes_and_loads_nothing():
    c = progress(CHANGING)
    for kind in ("svg", "pdf", "png"):
        assert render([c], kind) == render([c], kind)
    wide, narrow = for_page("a", c)
    assert (wide, narrow) == for_page("a", c)
    ids = [e.get("id") for svg in (*svgs("a", c), *svgs("b", c)) for e in svg.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert "http" not in wide.replace("http://www.w3.org/2000/svg", "")


def test_series_differ_by_more_than_colour_spans_by_hatch_and_all_are_named():
    c = screen(CHANGING)
    assert [s.style for s in c.series] == ["solid", "dashed"]
    (axes,) = axes_of(c)
    assert len({p.get_hatch() for p in axes.patches} - {None}) == len(c.windows) == 2
    assert [(w.start, w.end) for w in c.windows] == [(40, 60), (60, 100)]
    assert c.chosen is None  # the screen chooses none
    names = {t.get_text() for t in axes.get_legend().get_texts()}
    assert {"screen changes, steps 60 to 100", "screen limit 0.120"} <= names
    assert screen(EVERY["log-spaced"]).windows[0].end is None


@pytest.mark.parametrize(("low", "high", "window"), [(40, 80, (20, 80)), (None, None, (40, 60))])
def test_the_window_of_learning_is_its_interval_not_its_point(low, high, window):
    learned = replace(CHANGING.convergence_skill, low=low, high=high)
    first = progress(replace(CHANGING, convergence_skill=learned)).windows[0]
    assert (first.start, first.end) == window


def test_no_interval_draws_none():
    rows = [line("base", 0), *(line(f"c{s}", s, contrast_base=est(s / 50, None)) for s in (10, 20))]
    (axes,) = axes_of(screen(verdict(rows)))
    assert not [ends for ends in bars(axes) if ends and ends[0][0] > 0]


def test_categories_share_one_scale():
    rows = [{"label": "checkpoint-60", "step": 60, "value": v, "low": v - 0.1, "high": v + 0.1} for v in (0.1, 0.9)]
    charts = categories(CHANGING, {"categories": {"a_b": rows[:1], "c": rows[1:], "empty": []}})
    assert [c.heading for c in charts] == ["a b", "c"]
    one, two = axes_of(*charts, columns=2)
    assert one.get_ylim() == two.get_ylim()
    assert categories(CHANGING, {}) == []
    assert for_page("none") is None


# ---------------------------------------------------------------------------------------------------------------------
# Labelled answers


def test_a_curve_has_the_estimates_and_the_control_a_share_but_no_interval_of_its_own():
    this, control = rate(EMERGENT).series
    assert this.found == [c.labelled.rate for c in EMERGENT.checkpoints]
    assert control.found[0] is None
    for c, e in zip(EMERGENT.checkpoints[1:], control.found[1:], strict=True):
        value = c.labelled.rate.value - c.labelled.excess_control.value
        assert (e.value, e.low, e.set_low) == (pytest.approx(value), None, None)
    assert len(rate(EVERY["clean"]).series) == 1


def test_the_undecided_zone_is_marked_where_it_is():
    assert rate(EMERGENT).undecided[:2] == pytest.approx((0.01 + 0.01, 0.01 + 0.03))  # step 0 has 1 %
    (axes,) = axes_of(excess(EMERGENT))
    assert (0.01, 0.03) in {(p.get_bbox().y0, p.get_bbox().y1) for p in axes.patches}
    assert "mean severity" in rate(EVERY["mean"]).heading


def test_each_chart_marks_its_own_onset():
    assert "onset, steps 60 to 100" in [w.name for w in rate(EMERGENT).windows]
    assert "screen changes, steps 60 to 100" in [w.name for w in screen(EMERGENT).windows]
    assert [w.name for w in screen(EVERY["mean"]).windows] == ["skill learned, steps 40 to 60"]


def test_a_search_shows_its_crossing_what_it_left_untested_and_its_answers_apart():
    spans = {w.name: (w.start, w.end) for w in windows_of(SEARCHED)}
    assert spans["onset, steps 60 to 100"] == (60, 100)
    assert spans["not tested, steps 20 to 40"] == (0, 40)
    fixed, loose, _ = rate(SEARCHED).series
    assert loose.style == "loose"
    assert [e is None for e in loose.found] == [True, False, False, True, True, True, True]
    assert [e is None for e in fixed.found] == [False, True, True, False, True, False, False]
    assert not [e for e in loose.found if e and (e.low is not None or e.set_low is not None)]


def test_bars_of_sets_lie_where_the_numbers_say():
    lines = imported_lines({"lines": import_lines(("one", "two", "three"))})
    (axes,) = axes_of(sets(lines))
    assert [t.get_text() for t in axes.get_yticklabels()] == ["one", "two", "three"]
    rates = [x.labelled.rate for x in lines]
    (dots,) = [li for li in axes.lines if li.get_marker() == "o"]
    assert list(dots.get_xdata()) == [e.value for e in rates]
    assert list(dots.get_ydata()) == list(axes.get_yticks())
    wide, inner = ([(a[0], b[0]) for a, b in found] for li in axes.lines if (found := intervals(li)))
    assert wide == [(e.low, e.high) for e in rates]
    assert inner == [(e.set_low, e.set_high) for e in rates]
