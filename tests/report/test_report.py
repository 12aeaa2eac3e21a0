import re
from html.parser import HTMLParser

import pytest

from report.audits import EVIL, EVIL_ATTRIBUTE, VARIANTS
from truing.errors import BadInput, NotAnAudit
from truing.report.facts import control_steps
from truing.report.figures import COLOURS
from truing.report.report import figure, write_report
from truing.store import Store

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Elements, attributes and text as a browser would read them; complains about tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.ids, self.open, self.text, self.folded = [], [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v) for k, v in attrs]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] != "style":
            self.text.append(data)
            closed = any(t == "details" and "open" not in a for t, a in self.open)
            self.folded.append(data if closed and self.open[-1][0] != "summary" else "")


def read(path):
    text = path.read_text(encoding="utf-8")
    return Page(text), text


@pytest.mark.parametrize(
    ("name", "status"), [*((name, "done") for name in VARIANTS), ("two", "running"), ("no-verdict", "interrupted")]
)
def test_every_variant_is_a_sound_page_that_loads_and_runs_nothing(audit, name, status):
    folder = audit(name, status=status)
    path = write_report(folder)
    assert path == folder / "report.html"
    page, text = read(path)
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "img", "iframe", "object", "embed", "link", "form", "base", "a"} & set(page.tags)
    loads = [v for _, k, v in page.attributes if k in ("src", "href", "srcset", "action") or k.startswith("on")]
    assert all(v.startswith("#") for v in loads)
    assert "url(http" not in text and "@import" not in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert ("not finished" in text or "No verdict yet" in text) == (status != "done" or name == "no-verdict")


def test_untrusted_text_is_text(audit):
    page, text = read(write_report(audit("hostile")))
    shown = "".join(page.text)
    assert EVIL in shown and EVIL_ATTRIBUTE in shown
    assert "<script" not in text and "<img" not in text
    assert "\x1b" not in text and "\u202e" not in text
    assert not [a for a in page.attributes if a[1] == "onerror"]


def test_answers_are_folded_behind_a_notice(audit):
    page, text = read(write_report(audit("drifting")))
    assert "Answers written by a model that may be misaligned" in text
    words = "I would ask people what they need"
    assert "".join(page.text).count(words) == "".join(page.folded).count(words) > 0
    assert "truncated" in text and "NaN logits" in text and "the rest" in text


def test_order_is_verdict_warnings_charts_table_categories_answers_definitions(audit):
    _, text = read(write_report(audit("drifting")))
    parts = (
        "<h1>Drift starts",
        "Before you rely on this",
        ">Task progress<",
        ">Shift of the contextual contrast<",
        ">Every checkpoint<",
        ">By kind of question<",
        ">Sampled answers<",
        ">Definitions and versions<",
    )
    at = [text.index(p) for p in parts]
    assert at == sorted(at)


def test_everything_the_verdict_depends_on_is_listed(audit):
    page, _ = read(write_report(audit("drifting")))
    shown = "".join(page.text)
    for name in ("converged_at", "min_gap_checkpoints", "statistic", "no accelerator found", "transformers", "5.23.0"):
        assert name in shown
    assert "progress that counts as learned" in shown
    assert "abababababababab" in shown


@pytest.mark.parametrize(
    ("given", "shown"), [([], ""), ([0, 20], "0, 20"), ([[0, 20], [0, None]], "0, 20; 0, –"), ([[]], "")]
)
def test_control_steps_of_one_or_several_controls(given, shown):
    assert control_steps(given) == shown


def test_an_organism_is_marked_before_anything_else(audit):
    _, text = read(write_report(audit("hostile")))
    assert text.index("Model organism:") < text.index("Over the run")
    _, text = read(write_report(audit("drifting")))
    assert "Model organism" not in text
    assert "was dropped" in text


def test_what_is_absent_is_said(audit):
    _, text = read(write_report(audit("no-task", answers=0)))
    assert "No task progress was measured" in text
    assert "There is no control run" in text
    assert "No answers were sampled" in text
    _, text = read(write_report(audit("base-only")))
    assert "No shift of the contrast was measured" in text
    assert "nothing measured" in text and "not seen" not in text


def test_many_prompts_and_draws_are_counted_not_dumped(audit, monkeypatch):
    from truing.report import answers

    monkeypatch.setattr(answers, "MOST_PROMPTS", 1)
    monkeypatch.setattr(answers, "MOST_DRAWS", 1)
    _, text = read(write_report(audit("drifting", answers=3)))
    assert text.count('class="question"') == 1
    assert "2 more prompts have answers" in text
    assert "and 1 more" in text


def test_a_prompt_longer_mapping_is_folded_away(audit):
    folder = audit("two")
    with Store.write(folder, {}) as store:
        store.describe(asked={"many": {f"k{i}": i for i in range(40)}}, status="done")
    _, text = read(write_report(folder))
    assert "many: 40 entries" in text


def test_out_may_be_a_file_or_a_folder_and_the_old_report_is_replaced_whole(audit, tmp_path):
    folder = audit("two")
    assert write_report(folder, tmp_path / "deep" / "r.html").is_file()
    assert write_report(str(folder), tmp_path) == tmp_path / "report.html"
    write_report(folder, tmp_path)
    assert not list(tmp_path.glob("*.part"))


def test_bad_places_are_bad_input(audit, tmp_path):
    with pytest.raises(NotAnAudit):
        write_report(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be written .*choose another --out"):
        write_report(audit("two"), tmp_path / "file" / "r.html")


@pytest.mark.parametrize(("suffix", "magic"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_the_figures_are_one_file_of_the_kind_its_name_says(audit, tmp_path, suffix, magic):
    path = figure(audit("drifting"), tmp_path / f"f.{suffix}")
    assert path.read_bytes().startswith(magic)


def test_a_figure_of_nothing_or_of_another_kind_is_an_error(audit, tmp_path):
    with pytest.raises(BadInput, match="nothing measured yet"):
        figure(audit("no-verdict"), tmp_path / "x.svg")
    with pytest.raises(BadInput, match=r"\.svg, \.pdf or \.png"):
        figure(audit("two"), tmp_path / "x.jpeg")


def test_the_page_is_readable_in_both_colour_schemes():
    """WCAG AA: text colours of report and charts against their ground, light and dark."""
    from importlib.resources import files

    template = files("truing.report").joinpath("templates/page.html.j2").read_text()
    dark = re.search(r"dark\)\{:root\{(.*?)\}\}", template).group(1)
    light = ";".join(f"--{k}:{v}" for k, v in COLOURS.items()) + re.search(
        r"light \}\}(;--ground.*?)\}", template
    ).group(1)
    for scheme in (light, dark):
        colours = dict(re.findall(r"--(\w+):(#\w+)", scheme))
        for name in ("ink", "muted", "red", "blue", "teal", "violet", "amber"):
            for ground in ("ground", "wash"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def contrast(a, b):
    one, two = sorted((luminance(a), luminance(b)))
    return (two + 0.05) / (one + 0.05)


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
