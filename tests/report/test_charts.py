import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise

import pytest

from report.audits import VARIANTS, est, line, verdict
from report.judged_audits import JUDGED, import_lines
from truing.report.charts import categories, every_chart, excess, progress, rate, screen, sets, windows_of
from truing.report.figures import COLOURS, NARROW, WIDE, Chart, Series, Window, draw, for_page, render

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(1)</script>&\"'$\\frac{1}$ {x} 模型\uffff"


def chart(steps, values, **more):
    labels = ["start", *(f"at {s}" for s in steps[1:])]
    return Chart("title", "heading", steps, labels, [Series("this", "red", values)], **more)


def curve(axes, colour):
    """(x, y) of the points of the series of that colour."""
    found = [li for li in axes.lines if li.get_color() == COLOURS[colour] and li.get_linestyle() == "None"]
    return next((list(li.get_xdata()), list(li.get_ydata())) for li in found if li.get_marker() != "None")


EVERY = {**{n: f for n, f in VARIANTS.items() if n != "no-verdict"}, **JUDGED}


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("name", EVERY)
def test_every_chart_is_sound_xml_with_a_text_alternative(name, width):
    charts = every_chart(EVERY[name]())
    assert bool(charts) == (name != "base-only")
    for c in charts:
        root = ET.fromstring(for_page("t", c)[width == NARROW])
        assert float(root.get("width")) == width
        assert root.get("role") == "img"
        told = {e.get("id") for e in root if e.tag in (SVG + "title", SVG + "desc")}
        assert told == set(root.get("aria-labelledby").split())
        assert c.series[0].name in root.find(SVG + "desc").text
        text = ET.tostring(root, encoding="unicode")
        assert "nan" not in text.lower() and "\x1b" not in text and "<script" not in text


def test_points_and_intervals_lie_where_the_numbers_say():
    made = VARIANTS["changing"]()
    (axes,) = draw([screen(made)]).axes
    measured = [c.contrast_base for c in made.checkpoints[1:]]
    assert curve(axes, "red") == ([c.step for c in made.checkpoints], [0.0, *(e.value for e in measured)])
    segments = [[tuple(p) for p in s] for c in axes.collections[-2:] for s in getattr(c, "get_segments", list)()]
    for step, e in zip((c.step for c in made.checkpoints[1:]), measured, strict=True):
        assert [(step, e.low), (step, e.high)] in segments


def test_the_inner_interval_is_a_thicker_bar_and_never_cut_off():
    series = Series("this", "red", [0.1, 0.2], [(-9.0, 9.0), (0.1, 0.3)], [(0.05, 0.15), (-0.5, 0.9)])
    (axes,) = draw([Chart("t", "h", [0, 10], ["a", "b"], [series])]).axes
    width = {tuple(s[0]): c.get_linewidth()[0] for c in axes.collections if hasattr(c, "get_segments")
             for s in ([tuple(p) for p in s] for s in c.get_segments())}  # fmt: skip
    assert width[(0, 0.05)] == width[(10, -0.5)] > 3 * width[(0, -9.0)]
    low, high = axes.get_ylim()
    assert low < -0.5 and high > 0.9
    assert high - low < 5, "a wild outer interval does not flatten the values"


def test_a_missing_value_breaks_the_line_and_a_failed_checkpoint_is_marked():
    c = chart([0, 10, 20, 30], [0.1, None, 0.3, 0.4], failed=[1])
    (axes,) = draw([c]).axes
    joined = next(li for li in axes.lines if li.get_color() == COLOURS["red"] and li.get_linestyle() == "-")
    assert [y != y for y in joined.get_ydata()] == [False, True, False, False]
    (cross,) = [li for li in axes.lines if li.get_marker() == "x" and len(li.get_xdata())]
    assert list(cross.get_xdata()) == [10]
    assert "at 10: failed" in c.description()


@pytest.mark.parametrize(
    ("steps", "logarithmic"),
    [([0, 10, 20, 30], False), ([0, 1, 2, 4, 8, 16, 32, 64, 128], True), ([0, 250], False), ([0], False)],
)
def test_the_scale_is_logarithmic_only_for_very_uneven_steps_and_says_so(steps, logarithmic):
    (axes,) = draw([chart(steps, [0.1] * len(steps))]).axes
    at, _ = curve(axes, "red")
    assert ("log scale" in axes.get_xlabel()) is logarithmic
    assert at == sorted(set(at))
    assert (at == steps) is not logarithmic


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("steps", [list(range(0, 10_001, 50)), [2**k for k in range(16)], [0], [None, None]])
def test_step_labels_keep_their_distance(steps, width):
    figure = draw([chart(steps, [0.1] * len(steps))], width=width)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = sorted(
        (t.get_window_extent() for t in axes.get_xticklabels() if t.get_text()),
        key=lambda b: b.x0,
    )
    assert boxes and all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_a_checkpoint_without_a_step_lies_beyond_all_others_and_no_line_leads_there():
    (axes,) = draw([chart([0, 100, None, 200], [0.1, 0.2, 0.3, 0.4])]).axes
    x, y = curve(axes, "red")
    assert max(x[0], x[1], x[3]) < x[2] and y[2] == 0.3
    joined = next(li for li in axes.lines if li.get_color() == COLOURS["red"] and li.get_linestyle() == "-")
    assert list(joined.get_xdata()) == [0, 100, 200]


def test_hostile_text_is_text_and_a_dollar_is_a_dollar():
    c = Chart(HOSTILE, HOSTILE, [0, None], [HOSTILE, HOSTILE], [Series(HOSTILE, "red", [0.1, 0.2])],
              lines=[(0.1, HOSTILE)], windows=[Window(HOSTILE, "teal", 0, 1)])  # fmt: skip
    for svg in (*for_page("t", c), render([c]).decode()):
        assert "<script" not in svg
        texts = [e.text for e in ET.fromstring(svg).iter(SVG + "text") if e.text]
        assert HOSTILE.replace("\uffff", "\ufffd") in texts


def test_the_same_input_gives_the_same_bytes_and_loads_nothing():
    c = progress(VARIANTS["changing"]())
    for kind, magic in (("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")):
        first = render([c], kind)
        assert first == render([c], kind)
        assert first.startswith(magic)
    wide, narrow = for_page("a", c)
    assert (wide, narrow) == for_page("a", c)
    ids = [e.get("id") for svg in (wide, narrow, *for_page("b", c)) for e in ET.fromstring(svg).iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert "http" not in wide.replace("http://www.w3.org/2000/svg", "")


def test_series_differ_by_more_than_colour_and_spans_by_hatch():
    c = screen(VARIANTS["changing"]())
    assert [s.style for s in c.series] == ["solid", "dashed"]
    hatches = {p.get_hatch() for p in draw([c]).axes[0].patches} - {None}
    assert len(hatches) == len(c.windows) == 2


def test_windows_and_candidate_are_named():
    c = screen(VARIANTS["changing"]())
    assert [(w.start, w.end) for w in c.windows] == [(40, 60), (60, 100)]
    assert c.chosen == (3, "candidate: checkpoint-60")
    names = [t.get_text() for t in draw([c]).axes[0].get_legend().get_texts()]
    assert {"screen changes, steps 60 to 100", "screen limit 0.120", "candidate: checkpoint-60"} <= set(names)
    assert screen(VARIANTS["log-spaced"]()).windows[0].end is None


def test_the_window_of_learning_is_its_interval_not_its_point():
    made = VARIANTS["changing"]()
    for (low, high), window in (((40, 80), (20, 80)), ((None, None), (40, 60))):
        c = progress(replace(made, convergence_skill=replace(made.convergence_skill, low=low, high=high)))
        assert (c.windows[0].start, c.windows[0].end) == window


def test_no_interval_draws_none():
    rows = [line("base", 0), *(line(f"c{s}", s, contrast_base=est(s / 50, None)) for s in (10, 20))]
    c = replace(screen(verdict(rows)), windows=())
    assert not any(c.series[0].wide[1:])


def test_categories_share_one_scale():
    rows = [{"label": "checkpoint-60", "step": 60, "value": v, "low": v - 0.1, "high": v + 0.1} for v in (0.1, 0.9)]
    summary = {"categories": {"a_b": rows[:1], "c": rows[1:], "empty": []}}
    charts = categories(VARIANTS["changing"](), summary)
    assert [c.heading for c in charts] == ["a b", "c"]
    one, two = draw(charts, columns=2).axes
    assert one.get_ylim() == two.get_ylim()
    assert categories(VARIANTS["changing"](), {}) == []
    assert for_page("none") is None


# ---------------------------------------------------------------------------------------------------------------------
# Labelled answers


def test_bars_are_the_set_interval_and_bands_the_wide_one():
    made = JUDGED["emergent"]()
    this = rate(made).series[0]
    for c, value, wide, inner in zip(made.checkpoints, this.values, this.wide, this.inner, strict=True):
        e = c.labelled.rate
        assert (value, wide, inner) == (e.value, (e.low, e.high), (e.set_low, e.set_high))


def test_the_control_has_a_share_but_no_interval_of_its_own():
    made = JUDGED["emergent"]()
    _, control = rate(made).series
    assert control.values[0] is None
    for c, value in zip(made.checkpoints[1:], control.values[1:], strict=True):
        assert value == pytest.approx(c.labelled.rate.value - c.labelled.excess_control.value)
    assert not any((*control.wide, *control.inner))
    assert len(rate(JUDGED["clean"]()).series) == 1


def test_the_undecided_zone_is_marked_where_it_is():
    made = JUDGED["emergent"]()
    assert rate(made).undecided[:2] == pytest.approx((0.01 + 0.01, 0.01 + 0.03))  # step 0 has 1 %
    zones = [p.get_bbox() for p in draw([excess(made)]).axes[0].patches]
    assert (0.01, 0.03) in {(b.y0, b.y1) for b in zones}
    assert "mean severity" in rate(JUDGED["mean"]()).heading


def test_each_chart_marks_its_own_onset():
    made = JUDGED["emergent"]()
    assert "onset, steps 60 to 100" in [w.name for w in rate(made).windows]
    assert "screen changes, steps 60 to 100" in [w.name for w in screen(made).windows]
    assert [w.name for w in screen(JUDGED["mean"]()).windows] == ["skill learned, steps 40 to 60"]


def test_a_search_shows_its_crossing_what_it_left_untested_and_its_answers_apart():
    made = JUDGED["searched"]()
    spans = {w.name: (w.start, w.end) for w in windows_of(made)}
    assert spans["onset, steps 60 to 100"] == (60, 100)
    assert spans["not tested, steps 20 to 40"] == (0, 40)
    fixed, loose, _ = rate(made).series
    assert loose.style == "loose"
    assert [v is None for v in loose.values] == [True, False, False, True, True, True, True]
    assert [v is None for v in fixed.values] == [False, True, True, False, True, False, False]
    assert not any((*loose.wide, *loose.inner))


def test_bars_of_sets_lie_where_the_numbers_say():
    lines = import_lines(("one", "two", "three"))
    (axes,) = draw([sets(lines)]).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["one", "two", "three"]
    rates = [line["labelled"]["rate"] for line in lines]
    (dots,) = [li for li in axes.lines if li.get_marker() == "o"]
    assert list(dots.get_xdata()) == [e["value"] for e in rates]
    assert list(dots.get_ydata()) == list(axes.get_yticks())
    wide, inner = ([(s[0][0], s[1][0]) for s in c.get_segments()] for c in axes.collections)
    assert wide == [(e["low"], e["high"]) for e in rates]
    assert inner == [(e["set_low"], e["set_high"]) for e in rates]
