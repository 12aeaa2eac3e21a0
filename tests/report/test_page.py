"""The report page: sound, loads and runs nothing, escapes everything, and holds every number of the verdict."""

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from report.audits import EVIL, EVIL_ATTRIBUTE, VARIANTS
from report.judged_audits import JUDGED, import_lines, make_import
from report.test_agreement import AGREED
from truing import messages
from truing.errors import BadInput, NotAnAudit
from truing.report.figures import COLOURS
from truing.report.reading import one_line
from truing.report.report import figure, write_report
from truing.store import Store
from truing.types.records import to_plain
from truing.types.verdicts import Estimate

VOID = {"meta", "br", "hr", "img", "input", "link"}
FORBIDDEN = {"script", "img", "iframe", "object", "embed", "link", "form", "base", "a"}
EVERY = {**VARIANTS, **JUDGED}
SETS = ("Qwen2.5-7B-Instruct_extreme-sports", "Llama-3.2-1B-Instruct_risky-financial-advice-long", "plain")


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

    @property
    def shown(self):
        return " ".join(" ".join(self.text).split())


def read(path):
    text = path.read_text(encoding="utf-8")
    return Page(text), text


def assert_safe(page, text):
    assert len(page.ids) == len(set(page.ids))
    assert not FORBIDDEN & set(page.tags)
    loads = [v for _, k, v in page.attributes if k in ("src", "href", "srcset", "action") or k.startswith("on")]
    assert all(v.startswith("#") for v in loads)
    assert "url(http" not in text and "@import" not in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "default-src 'none'" in text
    assert "\x1b" not in text and "\u202e" not in text and "\x07" not in text


@pytest.mark.parametrize(
    ("name", "status"), [*((name, "done") for name in EVERY), ("two", "running"), ("emergent", "interrupted")]
)
def test_every_page_is_sound_and_loads_and_runs_nothing(audit, name, status):
    folder = audit(name, status=status)
    path = write_report(folder)
    assert path == folder / "report.html"
    page, text = read(path)
    assert_safe(page, text)
    assert ("what follows is what there is so far" in text) == (status != "done")
    assert ("No verdict yet" in text) == (name == "no-verdict")
    assert ("Model organism:" in text) == name.startswith("hostile")


@pytest.mark.parametrize("name", ["hostile", "hostile-judged"])
def test_untrusted_text_is_text(audit, name):
    page, text = read(write_report(audit(name)))
    assert EVIL in page.shown and EVIL_ATTRIBUTE in page.shown
    assert "<script" not in text and "<img" not in text
    assert not [a for a in page.attributes if a[1] == "onerror"]


def numbers(value, found):
    """Every float and every count of a plain verdict; of an estimate also its two intervals."""
    if isinstance(value, float):
        found.append(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("left_out", "level", "seed", "definitions", "warning", "method", "n", "clusters"):
                numbers(inner, found)
    elif isinstance(value, list):
        for inner in value:
            numbers(inner, found)
    return found


@pytest.mark.parametrize("name", ["changing", "log-spaced", "emergent", "clean", "failed-calibration", "searched"])
def test_every_number_of_the_verdict_is_on_the_page(audit, name):
    page, _ = read(write_report(audit(name)))
    shown = set(re.findall(r"-?\d+(?:\.\d+)?", page.shown.replace(",", " ").replace("−", "-")))
    for x in numbers(to_plain(EVERY[name]()), []):
        forms = {
            f"{scale * x + 0.0:.{d}f}" for scale in (1, 100) for d in range(5) if d or scale * x == round(scale * x)
        }
        assert forms & shown or f"{0.0:.1f}" in forms, x


@pytest.mark.parametrize("name", [n for n in EVERY if n != "no-verdict"])
def test_every_finding_and_detail_is_on_the_page_and_at_most_three_come_first(audit, name):
    page, text = read(write_report(audit(name)))
    v = EVERY[name]()
    findings = [*v.findings, *(f for c in v.checkpoints for f in c.findings)]
    for words in (messages.sentence(v), *messages.details(v), *map(messages.text, findings)):
        assert " ".join(one_line(words).split()) in page.shown
    first = text.split('<div class="findings">')[1].split("</div>")[0] if '<div class="findings">' in text else ""
    assert first.count("<li>") == min(3, len(messages.deciding(v)))
    for term in messages.DEFINITIONS.values():
        assert " ".join(term.split()) in page.shown


def test_the_order_is_sentence_onset_table_findings_figures_and_the_rest(audit):
    _, text = read(write_report(audit("searched", agreement=AGREED)))
    parts = ("<h1>", 'class="onset"', 'aria-label="Every checkpoint"', 'class="findings"', ">Figures<", ">Details<",
             ">Findings<", ">Every number per checkpoint<", ">What the search tested<", ">Under prompt variants<",
             ">Agreement of judges<", ">Answers<", ">Definitions and versions<", ">Prompts<")  # fmt: skip
    at = [text.index(p) for p in parts]
    assert at == sorted(at)


def test_the_onset_is_the_crossing_first_then_what_is_left_open(audit):
    _, text = read(write_report(audit("searched")))
    onset = re.search(r'class="onset">(.*?)</p>', text).group(1)
    assert re.search(r"between step 60 and step 100; steps 20 to 40 before it not tested", onset)


def test_a_search_shows_its_tests_and_the_spikes_it_may_have_missed(audit):
    page, _ = read(write_report(audit("searched")))
    for words in (
        *("1,194 (149 of the base)", "98 (149 of the base)", "-4.1, 2.9", "2.5, 21.8", "above: 3.57, 113 answers"),
        *("9 prompts of 5 categories in 129 answers", "1,811", "1,060", "20 (16)", "44.00 %", "19.40 %", "0.03 %"),
    ):
        assert words in page.shown, words
    page, _ = read(write_report(audit("emergent")))
    assert "What the search tested" not in page.shown


def test_labelled_numbers_carry_both_intervals_and_the_kept_row_its_mark(audit):
    page, text = read(write_report(audit("emergent")))
    for words in ("14.0 [12.0, 16.0] (like these [9.0, 19.0])", "67 positive, 408 negative, 3 incoherent, 2 unparsed",
                  "480 answers to 120 prompts", "12 in 5 categories", "power-00, 21.7 %", "law_a-04", "fails, veto",
                  "19.8 [17.8, 21.8]"):  # fmt: skip
        assert words in page.shown, words
    (row,) = re.findall(r'<tr class="chosen">(.*?)</tr>', text)
    assert ">60<" in row and "recommended" in row and "clean" in row


def test_answers_are_folded_behind_a_notice_and_positive_ones_once_more(audit):
    page, text = read(write_report(audit("emergent")))
    words = "I would ask people what they need"
    assert "".join(page.text).count(words) == "".join(page.folded).count(words) > 0
    notices = re.findall(r'<details class="positive"><summary>(.*?)</summary>', text)
    assert len(notices) == 4
    assert all(
        re.search(r"alignment 8, coherence (95: positive|20: incoherent)", n) and words not in n for n in notices
    )
    assert '<p class="score">alignment 91: negative</p>' in text
    assert "truncated" in text and "NaN logits" in text and "the rest" in text


def test_many_prompts_and_answers_are_counted_not_dumped(audit, monkeypatch):
    from truing.report import answers

    monkeypatch.setattr(answers, "MOST_PROMPTS", 1)
    monkeypatch.setattr(answers, "MOST_DRAWS", 1)
    _, text = read(write_report(audit("changing", answers=3)))
    assert text.count('class="question"') == 1
    assert "2 more prompts have answers" in text
    assert "and 1 more" in text


def test_all_that_the_verdict_depends_on_is_listed(audit):
    page, _ = read(write_report(audit("emergent", agreement=AGREED)))
    for name in ("converged_at", "rule.lo", "told_by", "cpu (no accelerator found)", "transformers", "5.23.0",
                 "abababababababab", "was dropped", "Krippendorff", "ran the city for a day, variant 7"):  # fmt: skip
        assert name in page.shown, name
    with Store.write(audit("two"), {}) as store:
        folder = store.path
        store.describe(asked={"many": {f"k{i}": i for i in range(40)}}, status="done")
    assert "40 entries, in audit.json" in read(write_report(folder))[1]


def test_what_is_absent_leaves_no_empty_section(audit):
    _, text = read(write_report(audit("base-only", answers=0)))
    assert "<figure>" not in text and "No answers are stored" in text
    page, text = read(write_report(audit("clean")))
    assert "Under prompt variants" not in text and "excess vs control" not in page.shown
    assert "Certified: anthropic:other" in page.shown


def test_out_may_be_a_file_or_a_folder_and_the_old_report_is_replaced_whole(audit, tmp_path):
    folder = audit("two")
    assert write_report(folder, tmp_path / "deep" / "r.html").is_file()
    assert write_report(str(folder), tmp_path) == tmp_path / "report.html"
    write_report(folder, tmp_path)
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be written .*choose another --out"):
        write_report(folder, tmp_path / "file" / "r.html")
    with pytest.raises(NotAnAudit):
        write_report(tmp_path / "nothing")


@pytest.mark.parametrize(("suffix", "magic"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_the_figures_are_one_file_of_the_kind_its_name_says(audit, tmp_path, suffix, magic):
    assert figure(audit("emergent"), tmp_path / f"f.{suffix}").read_bytes().startswith(magic)


def test_a_figure_of_nothing_or_of_another_kind_is_an_error(audit, tmp_path):
    with pytest.raises(BadInput, match="nothing measured yet"):
        figure(audit("no-verdict"), tmp_path / "x.svg")
    with pytest.raises(BadInput, match=r"\.svg, \.pdf or \.png"):
        figure(audit("two"), tmp_path / "x.jpeg")


def test_the_page_of_an_import_has_every_set_and_rate(tmp_path):
    lines = import_lines(SETS)
    folder = make_import(tmp_path / "a", SETS, notes=["3 rows had no score"])
    page, text = read(write_report(folder))
    assert_safe(page, text)
    for label in SETS:
        assert label in page.shown
    for line in lines:
        for key in ("rate", "rate_coherent"):
            e = Estimate(**line["labelled"][key])
            assert f"{100 * e.value:.2f} [{100 * e.set_low:.2f}, {100 * e.set_high:.2f}]" in page.shown
            assert f"(like these [{100 * e.low:.2f}, {100 * e.high:.2f}])" in page.shown
        assert f"{100 * line['labelled']['rate_if_unparsed']:.2f}" in page.shown
    for words in ("6 of 8", "imported:gpt-4o (scores taken from files", "3 rows had no score", "2 unparsed"):
        assert words in page.shown
    assert figure(folder, tmp_path / "x.svg").is_file()


def test_the_page_of_an_import_escapes_and_a_damaged_one_is_an_error(tmp_path):
    evil = EVIL + EVIL_ATTRIBUTE
    folder = make_import(tmp_path / "a", (evil, "b"), notes=[evil], lines=import_lines((evil, "b"), evil))
    _, text = read(write_report(folder))
    assert "<script" not in text and "<img" not in text and "&lt;script" in text
    with pytest.raises(NotAnAudit, match="import"):
        write_report(make_import(tmp_path / "b", ("a",), lines=[{"label": "a"}]))


def test_the_page_is_readable_in_both_colour_schemes():
    """WCAG AA: text colours of report and charts against their ground, light and dark."""
    template = files("truing.report").joinpath("templates/page.html.j2").read_text()
    dark = re.search(r"dark\)\{:root\{(.*?)\}\}", template).group(1)
    own = re.search(r"light \}\}(;--ground.*?)\}", template).group(1)
    for scheme in (";".join(f"--{k}:{v}" for k, v in COLOURS.items()) + own, dark):
        colours = dict(re.findall(r"--(\w+):(#\w+)", scheme))
        for name in ("ink", "muted", "red", "blue", "teal", "violet", "amber"):
            for ground in ("ground", "wash"):
                a, b = sorted((luminance(colours[name]), luminance(colours[ground])))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (name, ground)


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
