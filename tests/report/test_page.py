"""The report page: sound, loads and runs nothing, escapes everything, and holds every number of the verdict."""

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from report.audits import EVERY, EVIL, EVIL_ATTRIBUTE, HOSTILE, import_lines, make_audit, make_import
from report.test_agreement import AGREED
from truing import messages
from truing.errors import BadInput, NotAnAudit
from truing.report import answers
from truing.report.figures import COLOURS
from truing.report.reading import one_line
from truing.report.report import figure, write_report
from truing.types.records import to_plain
from truing.types.verdicts import Estimate

VOID = {"meta", "br", "hr", "img", "input", "link"}
FORBIDDEN = {"script", "img", "iframe", "object", "embed", "link", "form", "base", "a"}
SETS = ("Qwen2.5-7B-Instruct_extreme-sports", "Llama-3.2-1B-Instruct_risky-financial-advice-long", "plain")


class Page(HTMLParser):
    """Elements, attributes and text as a browser would read them; complains about tags that do not close."""

    def __init__(self, source):
        super().__init__()
        self.source = source
        self.tags, self.attributes, self.open, self.text, self.folded = [], [], [], [], []
        self.feed(source)
        assert not self.open
        self.shown = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
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

    def check(self):
        """It loads and runs nothing."""
        ids = [v for k, v in self.attributes if k == "id"]
        assert len(ids) == len(set(ids))
        assert not FORBIDDEN & set(self.tags)
        loads = [v for k, v in self.attributes if k in ("src", "href", "srcset", "action") or k.startswith("on")]
        assert all(v.startswith("#") for v in loads)
        assert "url(http" not in self.source and "@import" not in self.source
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", self.source)
        assert "default-src 'none'" in self.source
        assert "\x1b" not in self.source and "\u202e" not in self.source and "\x07" not in self.source


def read(path):
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(audit):
    """The page of a named audit, made once: those that were labelled with the agreement of their judges."""
    made = {}

    def get(name):
        if name not in made:
            folder = audit(name, agreement=AGREED)
            assert write_report(folder) == folder / "report.html"
            made[name] = read(folder / "report.html")
        return made[name]

    return get


@pytest.mark.parametrize("name", EVERY)
def test_every_page_is_sound_and_has_every_finding_and_detail_the_deciding_ones_first(page, name):
    got, v = page(name), EVERY[name]
    got.check()
    assert "what follows is what there is so far" not in got.source and "No verdict yet" not in got.source
    assert ("Model organism:" in got.source) == (name in HOSTILE)
    findings = [*v.findings, *(f for c in v.checkpoints for f in c.findings)]
    for words in (messages.sentence(v), *messages.details(v), *map(messages.text, findings)):
        assert " ".join(one_line(words).split()) in got.shown
    first = re.findall(r'<div class="findings">.*?</div>', got.source, re.S)
    assert sum(x.count("<li>") for x in first) == min(3, len(messages.deciding(v)))
    for term in messages.DEFINITIONS.values():
        assert " ".join(term.split()) in got.shown


def test_an_unfinished_audit_says_so(tmp_path):
    for name, status in (("no-verdict", "running"), ("two", "interrupted")):
        got = read(write_report(make_audit(tmp_path / name, name, status=status)))
        got.check()
        assert messages.state(status) in got.shown and "What follows is what there is so far" in got.source
        assert ("No verdict yet" in got.source) == (name == "no-verdict")


@pytest.mark.parametrize("name", HOSTILE)
def test_untrusted_text_is_text(page, name):
    got = page(name)
    assert EVIL in got.shown and EVIL_ATTRIBUTE in got.shown
    assert "<script" not in got.source and "<img" not in got.source


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
def test_every_number_of_the_verdict_is_on_the_page(page, name):
    shown = set(re.findall(r"-?\d+(?:\.\d+)?", page(name).shown.replace(",", " ").replace("−", "-")))
    for x in numbers(to_plain(EVERY[name]), []):
        forms = {
            f"{scale * x + 0.0:.{d}f}" for scale in (1, 100) for d in range(5) if d or scale * x == round(scale * x)
        }
        assert forms & shown or f"{0.0:.1f}" in forms, x


def test_the_order_is_sentence_onset_table_findings_figures_and_the_rest(page):
    text = page("searched").source
    parts = ("<h1>", 'class="onset"', 'aria-label="Every checkpoint"', 'class="findings"', ">Figures<", ">Details<",
             ">Findings<", ">Every number per checkpoint<", ">What the search tested<", ">Under prompt variants<",
             ">Agreement of judges<", ">Answers<", ">Definitions and versions<", ">Prompts<")  # fmt: skip
    at = [text.index(p) for p in parts]
    assert at == sorted(at)
    assert "between step 60 and step 100; steps 20 to 40 before it not tested" in text[at[1] : at[2]]


SAID = {
    "searched": (
        *("1,194 (149 of the base)", "98 (149 of the base)", "-4.1, 2.9", "2.5, 21.8", "above: 3.57, 113 answers"),
        *("9 prompts of 5 categories in 129 answers", "1,811", "1,060", "20 (16)", "44.00 %", "19.40 %", "0.03 %"),
        "20, 40, 60, 80, 100",
    ),
    "emergent": (
        *("14.0 [12.0, 16.0] (prompts like these [9.0, 19.0])", "67 positive, 408 negative, 3 incoherent, 2 unparsed"),
        *("480 answers to 120 prompts", "12 in 5 categories", "power-00, 21.7 %", "law_a-04", "fails, veto"),
        *("19.8 [17.8, 21.8]", "converged_at", "rule.lo", "told_by", "cpu (no accelerator found)", "transformers"),
        *("5.23.0", "abababababababab", "was dropped", "Krippendorff", "ran the city for a day, variant 7"),
    ),
    "clean": ("Certified: anthropic:other",),
}
ABSENT = {
    "emergent": ("What the search tested",),
    "clean": ("Under prompt variants", "excess vs control"),
    "base-only": ("Figures",),
}


@pytest.mark.parametrize("name", SAID | ABSENT)
def test_all_that_is_known_is_there_and_what_is_absent_leaves_no_empty_section(page, name):
    for words in SAID.get(name, ()):
        assert words in page(name).shown, words
    for words in ABSENT.get(name, ()):
        assert words not in page(name).shown, words


def test_the_kept_row_has_its_mark(page):
    (row,) = re.findall(r'<tr class="chosen">(.*?)</tr>', page("emergent").source)
    assert ">60<" in row and "recommended" in row and "clean" in row


def test_answers_are_folded_behind_a_notice_and_positive_ones_once_more(page):
    got, words = page("emergent"), "I would ask people what they need"
    assert "".join(got.text).count(words) == "".join(got.folded).count(words) > 0
    notices = re.findall(r'<details class="positive"><summary>(.*?)</summary>', got.source)
    assert len(notices) == 4
    for n in notices:
        assert re.search(r"alignment 8, coherence (95: positive|20: incoherent)", n) and words not in n
    for text in ('<p class="score">alignment 91: negative</p>', "truncated", "NaN logits", "the rest"):
        assert text in got.source


def test_much_is_counted_not_dumped_and_nothing_is_said_to_be_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "MOST_PROMPTS", 1)
    monkeypatch.setattr(answers, "MOST_DRAWS", 1)
    many = {"many": {f"k{i}": i for i in range(40)}}
    text = read(write_report(make_audit(tmp_path / "a", "two", answers=3, asked=many))).source
    assert text.count('class="question"') == 1
    assert "2 more prompts have answers" in text and "and 1 more" in text
    assert "40 entries, in audit.json" in text
    assert "No answers are stored" in read(write_report(make_audit(tmp_path / "b", "base-only", answers=0))).source


def test_out_may_be_a_file_or_a_folder_and_the_old_report_is_replaced_whole(audit, tmp_path):
    folder = audit("base-only")
    assert write_report(folder, tmp_path / "deep" / "r.html").is_file()
    for _ in range(2):
        assert write_report(str(folder), tmp_path) == tmp_path / "report.html"
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be written .*choose another --out"):
        write_report(folder, tmp_path / "file" / "r.html")
    with pytest.raises(NotAnAudit):
        write_report(tmp_path / "nothing")


def test_the_figures_are_one_file_of_the_kind_its_name_says(audit, tmp_path):
    for suffix, magic in (("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")):
        assert figure(audit("two"), tmp_path / f"f.{suffix}").read_bytes().startswith(magic)
    with pytest.raises(BadInput, match="nothing measured yet"):
        figure(audit("no-verdict"), tmp_path / "x.svg")
    with pytest.raises(BadInput, match=r"\.svg, \.pdf or \.png"):
        figure(audit("two"), tmp_path / "x.jpeg")


def test_the_page_of_an_import_has_every_set_and_rate(tmp_path):
    lines = import_lines(SETS)
    folder = make_import(tmp_path / "a", SETS, notes=["3 rows had no score"])
    got = read(write_report(folder))
    got.check()
    for line in lines:
        for key in ("rate", "rate_coherent"):
            e = Estimate(**line["labelled"][key])
            assert f"{100 * e.value:.2f} [{100 * e.set_low:.2f}, {100 * e.set_high:.2f}]" in got.shown
            assert f"(prompts like these [{100 * e.low:.2f}, {100 * e.high:.2f}])" in got.shown
        assert f"{100 * line['labelled']['rate_if_unparsed']:.2f}" in got.shown
    for words in (*SETS, "6 of 8", "imported:gpt-4o (scores taken from files", "3 rows had no score", "2 unparsed"):
        assert words in got.shown
    assert figure(folder, tmp_path / "x.svg").is_file()


def test_the_page_of_an_import_escapes_and_a_damaged_one_is_an_error(tmp_path):
    evil = EVIL + EVIL_ATTRIBUTE
    folder = make_import(tmp_path / "a", (evil, "b"), notes=[evil], lines=import_lines((evil, "b"), evil))
    text = read(write_report(folder)).source
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
