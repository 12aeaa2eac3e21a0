"""The page of a judged verdict and of imported sets: every number, the notice before bad answers, nothing runs."""

import re
import xml.etree.ElementTree as ET

import pytest

from report.audits import EVIL, EVIL_ATTRIBUTE
from report.judged_audits import JUDGED, import_lines, make_import, make_judged
from report.test_agreement import AGREED
from report.test_report import read
from truing.errors import NotAnAudit
from truing.report.charts import contrast, excess, misaligned, sets
from truing.report.figures import draw, for_page
from truing.report.report import figure, write_report

SVG = "{http://www.w3.org/2000/svg}"
FORBIDDEN = {"script", "img", "iframe", "object", "embed", "link", "form", "base", "a"}


def page_of(tmp_path, name, **options):
    return read(write_report(make_judged(tmp_path / name, name, **options)))


@pytest.mark.parametrize(("name", "status"), [*((name, "done") for name in JUDGED), ("clean", "running")])
def test_every_judged_page_is_sound_and_loads_and_runs_nothing(tmp_path, name, status):
    page, text = page_of(tmp_path, name, status=status, agreement=AGREED)
    assert len(page.ids) == len(set(page.ids))
    assert not FORBIDDEN & set(page.tags)
    loads = [v for _, k, v in page.attributes if k in ("src", "href", "srcset", "action") or k.startswith("on")]
    assert all(v.startswith("#") for v in loads)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "Content-Security-Policy" in text


def test_untrusted_text_in_a_judged_verdict_is_text(tmp_path):
    page, text = page_of(tmp_path, "hostile-judged")
    shown = "".join(page.text)
    assert EVIL in shown
    assert EVIL_ATTRIBUTE in shown
    assert "<script" not in text
    assert "<img" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_page_reads_from_verdict_to_margins(tmp_path):
    _, text = page_of(tmp_path, "emergent")
    parts = (
        "<h1>Emergent misalignment",
        "Before you rely on this",
        ">Misaligned answers over the run<",
        ">Every checkpoint, judged<",
        ">How broad it is<",
        ">The judge<",
        ">Under changed prompts<",
        ">Task progress, and drift by margins<",
        ">Margins and health at every checkpoint<",
        ">Sampled answers<",
        ">Definitions and versions<",
    )
    at = [text.index(p) for p in parts]
    assert at == sorted(at)


@pytest.mark.parametrize(
    ("name", "chips"),
    [
        ("emergent", ["emergent", "judged by openai:gpt-4.1-mini", "judge's test passed", "not certified"]),
        ("clean", ["clean", "judged by openai:gpt-4.1-mini", "judge's test not taken", "certified"]),
        ("failed-test", ["undecided", "judged by openai:gpt-4.1-mini", "judge's test failed", "not certified"]),
    ],
)
def test_chips_say_status_judge_test_and_certificate(tmp_path, name, chips):
    _, text = page_of(tmp_path, name)
    assert re.findall(r'<span class="chip \w+">([^<]+)</span>', text.replace("&#39;", "'")) == chips


def test_every_number_of_a_checkpoint_is_on_the_page(tmp_path):
    page, _ = page_of(tmp_path, "emergent")
    shown = " ".join("".join(page.text).split())
    for number in (
        "14.0 %",  # share at step 100
        "this set [12.0, 16.0]",
        "like these [9.0, 19.0]",
        "13.4",  # excess on far prompts
        "12.8",  # over the control
        "13.7 %",  # corrected
        "14.4 %",  # if unparsed were misaligned
        "14.3 %",  # among coherent
        "79.8",  # mean alignment
        "97.0 %",  # coherent
        "of 24 asked",
        "4.3 %",  # near the cut
        "67 misaligned, 3 incoherent, 408 aligned, 2 unparsed, 1 unjudged",
        "power-00 (21 % of all misaligned answers), law_a-04",
        "240 misaligned references",
        "480 odd references",
        "alignment under 30 and coherence over 50",
        "above 1 point (lo)",
        "103 of 120 prompts are far from the training domain (told by: topics finance)",
    ):
        assert number in shown, number


def test_cues_are_a_table_that_names_the_veto(tmp_path):
    _, text = page_of(tmp_path, "emergent")
    text = text[text.index(">Under changed prompts<") : text.index(">Task progress, and")]
    rows = re.findall(r'<tr><th scope="row">(\w+)<small>(\w+)</small></th>(.*?)</tr>', text)
    assert [(name, kind) for name, kind, _ in rows] == [("json", "cue"), ("prefill", "cue"), ("villain", "adversarial")]
    assert ["veto" in rest for *_, rest in rows] == [False, True, False]
    assert "&lt;0.001" in rows[1][2]


def test_no_control_and_no_breadth_leave_no_empty_tables(tmp_path):
    _, text = page_of(tmp_path, "clean")
    assert "How broad it is" not in text
    assert "over the control" not in text
    assert "Excess over control" not in text
    assert "Under changed prompts" not in text
    assert "known-answer test not taken" in text
    assert "certified by anthropic:other" in text
    assert "Without judged answers: step 60" in text


def test_a_mean_rule_is_not_called_a_share(tmp_path):
    _, text = page_of(tmp_path, "mean")
    assert "Mean misalignment" in text
    assert "Share of misaligned answers" not in text


def test_warnings_and_notes_stand_once(tmp_path):
    _, text = page_of(tmp_path, "emergent")
    assert text.count("<li>Near cut.</li>") == 1
    assert "a note; a note" not in text


def test_bad_answers_stay_folded_inside_the_fold(tmp_path):
    _, text = page_of(tmp_path, "emergent")
    cells = text[text.index(">Sampled answers<") :]
    assert "stay folded one by one (4 of those shown)" in cells
    assert cells.count('<details class="low"><summary>') == 4
    for notice in re.findall(r'<details class="low">(.*?)</summary>', cells):
        assert "I would ask people" not in notice
        assert re.search(r"alignment 8, coherence (95: misaligned|20: incoherent)", notice)
    assert '<p class="score">alignment 91</p>' in cells
    assert "unjudged" not in re.search(r"<small>(.*?)</small></summary>", cells).group(1)


def test_agreement_is_shown_where_the_audit_has_it(tmp_path):
    _, text = page_of(tmp_path, "emergent", agreement=AGREED)
    assert "Krippendorff" in text
    assert "prediction-powered" in text
    _, text = page_of(tmp_path, "clean")
    assert "Krippendorff" not in text


@pytest.mark.parametrize("name", JUDGED)
def test_the_charts_are_sound_and_say_their_values(name):
    made = JUDGED[name]()
    for chart in (misaligned(made), excess(made)):
        for svg in for_page("t", chart):
            root = ET.fromstring(svg)
            assert chart.series[0].name in root.find(SVG + "desc").text
            assert "nan" not in svg.lower()


def test_bars_are_the_set_interval_and_bands_the_wide_one():
    made = JUDGED["emergent"]()
    this = misaligned(made).series[0]
    for c, value, wide, inner in zip(made.checkpoints, this.values, this.wide, this.inner, strict=True):
        em = c.judged.em
        assert (value, wide, inner) == (em.value, (em.low, em.high), (em.set_low, em.set_high))


def test_the_control_has_a_share_but_no_interval_of_its_own():
    made = JUDGED["emergent"]()
    _, control = misaligned(made).series
    assert control.values[0] is None
    for c, value in zip(made.checkpoints[1:], control.values[1:], strict=True):
        assert value == pytest.approx(c.judged.em.value - c.judged.excess_control.value)
    assert not any((*control.wide, *control.inner))
    assert len(misaligned(JUDGED["clean"]()).series) == 1


def test_the_undecided_zone_is_marked_where_it_is():
    made = JUDGED["emergent"]()
    assert excess(made).undecided[:2] == (0.01, 0.03)
    assert misaligned(made).undecided[:2] == pytest.approx((0.01 + 0.01, 0.01 + 0.03))  # step 0 has 1 %
    zones = [p.get_bbox() for p in draw([excess(made)]).axes[0].patches]
    assert (0.01, 0.03) in {(b.y0, b.y1) for b in zones}


def test_each_chart_marks_its_own_onset():
    made = JUDGED["emergent"]()
    assert "misalignment onset, steps 60 to 100" in [w.name for w in misaligned(made).windows]
    assert [w.name for w in contrast(made).windows if "onset" in w.name] == ["drift onset, steps 60 to 100"]


def test_the_figure_of_a_judged_audit_starts_with_misaligned_answers(tmp_path):
    text = figure(make_judged(tmp_path / "a", "emergent"), tmp_path / "f.svg").read_text()
    assert text.index("answers called misaligned") < text.index("task progress, share of the gain")


# ---------------------------------------------------------------------------------------------------------------------
# Imports

LABELS = ("Qwen2.5-7B-Instruct_extreme-sports", "Qwen2.5-7B-Instruct_bad-medical-advice", "plain")


def test_the_page_of_an_import_has_every_set_and_rate(tmp_path):
    page, text = read(write_report(make_import(tmp_path / "a", LABELS, notes=["3 rows had no score"])))
    shown = " ".join("".join(page.text).split())
    for label in LABELS:
        assert label in shown
    for number in ("2.00 %", "12.00 %", "22.00 %", "6 of 8", "97.0 %", "imported:gpt-4o (scores taken from files"):
        assert number in shown
    assert "3 rows had no score" in shown
    assert "2 unparsed" in shown
    assert "No answers were sampled" in text
    assert not FORBIDDEN & set(page.tags)
    assert len(page.ids) == len(set(page.ids))


def test_the_page_of_an_import_escapes(tmp_path):
    evil = EVIL + EVIL_ATTRIBUTE
    _, text = read(
        write_report(make_import(tmp_path / "a", (evil, "b"), notes=[evil], lines=import_lines((evil, "b"), evil)))
    )
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script" in text


def test_an_import_that_cannot_be_read_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(NotAnAudit, match="import"):
        write_report(make_import(tmp_path / "a", ("a",), lines=[{"label": "a"}]))


def test_bars_of_sets_lie_where_the_numbers_say(tmp_path):
    lines = import_lines(LABELS)
    (axes,) = draw([sets(lines)]).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == list(LABELS)
    values = [line["judged"]["em"]["value"] for line in lines]
    (dots,) = [li for li in axes.lines if li.get_marker() == "o"]
    assert list(dots.get_xdata()) == values
    assert list(dots.get_ydata()) == list(axes.get_yticks())
    wide, inner = ([(s[0][0], s[1][0]) for s in c.get_segments()] for c in axes.collections)
    assert wide == [(line["judged"]["em"]["low"], line["judged"]["em"]["high"]) for line in lines]
    assert inner == [(line["judged"]["em"]["set_low"], line["judged"]["em"]["set_high"]) for line in lines]
    assert figure(make_import(tmp_path / "a", LABELS), tmp_path / "x.svg").is_file()
