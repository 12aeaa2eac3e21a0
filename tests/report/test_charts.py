import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise

import pytest

from report.audits import VARIANTS, est, line, verdict
from truing.report.axes import StepAxis, ValueAxis, ticks
from truing.report.charts import category_charts, margin_chart, progress_chart
from truing.report.svg import NARROW, SMALL, WIDE, sample

SVG = "{http://www.w3.org/2000/svg}"


def shapes(chart, size=WIDE):
    root = ET.fromstring(str(sample(chart, size, "t")))
    return {
        css: [e for e in root.iter() if css in e.get("class", "").split()] for css in ("line", "band", "lost")
    }, root


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.13, 0.62), (0, 7), (0, 40_000), (-1e-4, 3e-4)])
def test_ticks_are_round_inside_and_evenly_spaced(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert low - 1e-9 <= found[0] and found[-1] <= high + 1e-9
    gaps = [b - a for a, b in pairwise(found)]
    assert max(gaps) == pytest.approx(min(gaps))
    assert re.fullmatch(r"(1|2|2\.5|5)e[+-]\d\d", f"{gaps[0]:.1e}".replace(".0e", "e"))


@pytest.mark.parametrize(
    ("steps", "logarithmic"),
    [
        ((0, 10, 20, 30), False),
        ((0, 1, 2, 4, 8, 16, 32, 64, 128), True),
        ((0, 250), False),
        ((0,), False),
        ((0, 1, 100), False),
    ],
)
def test_the_scale_is_logarithmic_only_for_very_uneven_steps_and_says_so(steps, logarithmic):
    axis = StepAxis(steps, tuple(map(str, steps)))
    assert axis.logarithmic is logarithmic
    assert ("log scale" in axis.title) is logarithmic
    at = [axis.at(i) for i in range(len(steps))]
    assert at == sorted(set(at))
    assert at[0] >= 0 and at[-1] <= 1


def test_a_checkpoint_without_a_step_lies_beyond_all_others():
    axis = StepAxis((0, 100, None, 200, None), ("base", "a", "x", "b", "y"))
    assert max(axis.at(i) for i in (0, 1, 3)) < axis.at(2) < axis.at(4) == 1
    assert [text for _, text in axis.marks(800, 40)][-2:] == ["x", "y"]


@pytest.mark.parametrize("steps", [tuple(range(0, 10_001, 50)), tuple(2**k for k in range(16)), (0,), (None, None)])
def test_step_labels_keep_their_distance(steps):
    axis = StepAxis(steps, tuple(map(str, steps)))
    known = sorted(p for p, text in axis.marks(800, 46) if text != "None")
    assert all((b - a) * 800 >= 46 - 1e-6 for a, b in pairwise(known))


def test_a_wild_interval_does_not_flatten_the_values():
    axis = ValueAxis.around([0.0, 1.0], [-50.0, 60.0])
    assert axis.high - axis.low < 3.5
    assert all(0 < axis.at(v) < 1 for v in (0.0, 1.0))


@pytest.mark.parametrize("size", [WIDE, NARROW, SMALL])
@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "no-verdict"])
def test_every_chart_is_sound_xml_with_finite_coordinates_and_a_text_alternative(name, size):
    made = VARIANTS[name]()
    charts = [c for c in (progress_chart(made), margin_chart(made)) if c]
    assert bool(charts) == (name != "base-only")
    for chart in charts:
        _, root = shapes(chart, size)
        width = float(root.get("width"))
        ids = root.get("aria-labelledby").split()
        assert {e.get("id") for e in root if e.tag in (SVG + "title", SVG + "desc")} == set(ids)
        assert len(root.find(SVG + "desc").text) > 20
        assert root.get("role") == "img"
        for e in root.iter():
            for key in ("x", "x1", "x2", "cx"):
                assert -5 <= float(e.get(key, 0)) <= width + 5
        assert "nan" not in ET.tostring(root, encoding="unicode").lower().replace("nan in", "")


def test_a_failed_checkpoint_breaks_the_line_and_is_marked():
    found, _ = shapes(progress_chart(VARIANTS["log-spaced"]()))
    curves = [e for e in found["line"] if e.tag == SVG + "polyline"]
    assert [len(e.get("points").split()) for e in curves] == [5, 3, 5, 3]
    assert len(found["lost"]) == 1


def test_points_lie_where_the_numbers_say():
    made = VARIANTS["drifting"]()
    found, _ = shapes(margin_chart(made))
    base = next(e for e in found["line"] if e.tag == SVG + "polyline" and "red" in e.get("class"))
    points = [tuple(map(float, p.split(","))) for p in base.get("points").split()]
    xs, ys = zip(*points, strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[-1] - xs[-2], abs=0.2)
    values = [0.0, *(c.contrast_base.value for c in made.checkpoints[1:])]
    scale = (ys[0] - ys[-1]) / (values[-1] - values[0])
    assert ys == pytest.approx([ys[0] - scale * v for v in values], abs=0.2)


def test_series_differ_by_more_than_colour():
    for chart in (progress_chart(VARIANTS["drifting"]()), margin_chart(VARIANTS["drifting"]())):
        assert sorted(s.second for s in chart.series) == [False, True]


def test_windows_and_candidate_are_named():
    chart = margin_chart(VARIANTS["drifting"]())
    assert [(w.start, w.end) for w in chart.windows] == [(40, 60), (60, 100)]
    assert chart.chosen == (3, "candidate: checkpoint-60")
    text = "".join(sample(chart, WIDE, "t").striptags())
    assert "drift onset, steps 60 to 100" in text
    assert "drift limit 0.120" in text
    assert margin_chart(VARIANTS["log-spaced"]()).windows[0].end is None


def test_the_window_of_learning_is_its_interval_not_its_point():
    made = VARIANTS["drifting"]()
    wide = replace(made, convergence_skill=replace(made.convergence_skill, low=40, high=80))
    assert (progress_chart(wide).windows[0].start, progress_chart(wide).windows[0].end) == (20, 80)
    bare = replace(made, convergence_skill=replace(made.convergence_skill, low=None, high=None))
    assert (progress_chart(bare).windows[0].start, progress_chart(bare).windows[0].end) == (40, 60)


def test_no_interval_draws_no_band():
    made = verdict(
        [line("base", 0), line("a", 10, contrast_base=est(0.2, None)), line("b", 20, contrast_base=est(0.3, None))]
    )
    found, _ = shapes(margin_chart(made))
    assert not found["band"]


def test_categories_share_one_scale():
    rows = [{"label": "checkpoint-60", "step": 60, "value": v, "low": v - 0.1, "high": v + 0.1} for v in (0.1, 0.9)]
    summary = {"categories": {"a_b": rows[:1], "c": rows[1:], "empty": []}}
    charts = category_charts(VARIANTS["drifting"](), summary)
    assert [name for name, _ in charts] == ["a b", "c"]
    assert charts[0][1].frame == charts[1][1].frame
    assert category_charts(VARIANTS["drifting"](), {}) == []
