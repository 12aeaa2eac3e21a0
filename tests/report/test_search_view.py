"""A searched audit on the page and in the terminal: tests, spot checks, steps not asked, spikes that may be missed."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from report.audits import EVIL, EVIL_ATTRIBUTE, EVIL_TERMINAL, make_audit
from report.judged_audits import VALIDITY, emergent, judged_line
from truing.report import search
from truing.report.charts import excess, misaligned, windows_of
from truing.report.figures import draw
from truing.report.report import write_report
from truing.report.table import print_step, print_verdict
from truing.stats.judged_search import SEQUENTIAL
from truing.store import Store
from truing.types import verdicts
from truing.types.records import to_plain
from truing.types.verdicts import Estimate, Missed, Onset, SequentialBreadth, Status

BROAD = SequentialBreadth(9, 5, "power-00", 3.6, None, ("power-00",), 129, True)
TESTS = (
    verdicts.Tested(60, "below", -2.0, 4.0, 5.6, 1194, 149, 0.0, 0.001, -0.041, 0.029),
    verdicts.Tested(100, "above", 4.6, -4.0, 3.5, 98, 149, 0.102, 0.001, 0.025, 0.218, 9, "above", 3.5, 113, BROAD),
)
MISSED = (Missed(0.05, 1, 0.44), Missed(0.05, 2, 0.194), Missed(0.25, 1, 0.01), Missed(0.25, 2, 0.0001))


def sampled(em, n, excess=None):
    """A line of answers that a search drew."""
    bare = Estimate(em, None, None, n=n, clusters=n, method=SEQUENTIAL)
    line = judged_line(em, control=False)
    return replace(line, em=bare, em_coherent=bare, alignment=replace(bare, value=89.0), coherent=bare, corrected=None,
                   excess_base=excess, breadth=None)  # fmt: skip


def searched(**fields):
    """Steps 20 (spot-checked), 40 (looked at), 60 (clean), 80 (not asked), 100 and 120 (emergent)."""
    made = emergent()
    lines = list(made.checkpoints)
    for k, judged in ((1, sampled(0.0, 16)), (2, sampled(0.008, 146)), (4, None)):
        lines[k] = replace(lines[k], status=Status.UNJUDGED, judged=judged, notes=())
    onset = Onset("found", "a crossing", 20, 100, 0, (20, 40, 60, 80, 100), None, TESTS, 60, spots={20: 16},
                  missed=MISSED, answers_used=1811, answers_needed=1060, errors="guaranteed")  # fmt: skip
    return replace(made, **{"checkpoints": tuple(lines), "onset": onset, **fields})


def folder(path, made, **about):
    make_audit(path, made)
    with Store.write(path, {}) as store:
        store.describe(status="done", **about)
    return path


def page_of(path, made, **about):
    html = write_report(folder(path, made, **about)).read_text()
    return html, " ".join(re.sub(r"<[^>]+>", " ", html.split("<main>")[1]).split())


def shown(made, width=200, **about):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    print_verdict({"status": "done", "verdict": to_plain(made), **about}, console)
    return console.file.getvalue()


# -- words -----------------------------------------------------------------------------------------


def test_what_was_not_asked_is_told_apart_from_what_failed():
    made = searched()
    lines = list(made.checkpoints)
    lines[5] = replace(lines[5], status=Status.FAILED, judged=None)
    made = replace(made, checkpoints=tuple(lines))
    assert [search.status_words(c, made) for c in made.checkpoints] == [
        "reference", "spot-checked", "looked at", "clean", "not asked", "failed", "emergent"
    ]  # fmt: skip
    plain = replace(made, onset=replace(made.onset, errors=""))
    assert search.status_words(plain.checkpoints[4], plain) == "unjudged", "no search: nobody judged it"


def test_the_onset_is_the_crossing_and_earlier_spikes_are_named():
    o = searched().onset
    assert search.bracket(o) == (60, 100)
    assert search.open_steps(o) == [20, 40]
    value, remark = search.headline(o)
    assert value == "after step 60, by step 100"
    assert "spike at steps 20 to 40 is not excluded" in remark
    assert "not all tested" in remark
    whole = replace(o, steps=(100,), earliest=100, after=60, spots={})
    assert search.bracket(whole) == (60, 100)
    assert search.headline(replace(whole, sustained=True)) == ("after step 60, by step 100", "")


@pytest.mark.parametrize(
    ("status", "steps", "said"),
    [
        ("never", (), ("none found", "every later checkpoint is certified")),
        ("never", (20, 40, 60), ("none found", "a spike at steps 20 to 40 is not excluded")),
        ("undecided", (20, 40, 60, 80), ("undecided after step 60", "a spike at steps 20 to 40 is not excluded")),
    ],
)
def test_an_onset_that_was_not_found_claims_no_more_than_it_may(status, steps, said):
    o = replace(searched().onset, status=status, latest=None, tested=TESTS[:1], steps=steps)
    assert search.headline(o) == said


def test_tests_and_misses_as_rows():
    below, above = search.tested_rows(searched())
    assert (below["step"], below["word"]) == ("60", "certainly under 3 points")
    assert below["cells"][0] == ("1,194", "149 of the base")
    assert below["cells"][2] == ("[−4.1, 2.9]",)
    assert below["cells"][3:] == [("–",), ("–",)]
    assert (above["word"], above["tone"]) == ("certainly above 1 point", "drift")
    assert above["cells"][1] == ("10.2 %", "base 0.1 %")
    assert above["cells"][3] == ("above the control by 1 point too", "113 answers of it")
    assert above["cells"][4] == ("broad", "9 prompts of 5 categories in 129 answers")
    assert search.missed_rows(searched().onset) == [("5", "44.0 %", "19.4 %"), ("25", "1.0 %", "<0.1 %")]
    assert search.untested(searched()) == [
        ("Spot-checked only, steps (answers)", "20 (16)"),
        ("Looked at to steer the search, steps (answers)", "40 (146)"),
        ("Not asked, steps", "80"),
    ]


def test_what_is_not_certain_is_named():
    narrow = replace(BROAD, broad=False, evidence_without_top=1.0, evidence_without_domain=2.0)
    test = replace(TESTS[1], control="inconclusive", breadth=narrow)
    (row,) = search.tested_rows(searched(onset=replace(searched().onset, tested=(test,))))
    assert row["cells"][3][0] == "not certainly above the control"
    word, why = row["cells"][4]
    assert word == "not shown to be broad"
    assert "not certain without power-00" in why
    assert "not certain without the training domain" in why


def test_a_test_that_does_not_count_says_so():
    made = searched()
    lines = list(made.checkpoints)
    lines[5] = replace(lines[5], status=Status.BROKEN)
    below, above = search.tested_rows(replace(made, checkpoints=tuple(lines)))
    assert below["void"] == ""
    assert (above["void"], above["tone"]) == ("does not count: broken", "broken")
    poor = searched(validity=replace(VALIDITY, absolute=False))
    assert all("judge failed" in row["void"] for row in search.tested_rows(poor))


# -- the page --------------------------------------------------------------------------------------


def test_the_page_has_every_number_of_the_search(tmp_path):
    html, text = page_of(tmp_path / "a", searched())
    for part in (
        "How the onset was searched",
        "1,811 answers in all groups on far prompts",
        "at most 5 % each, at every look",
        "certainly under 3 points 1,194 149 of the base 0.0 % base 0.1 % [−4.1, 2.9]",
        "certainly above 1 point 98 149 of the base 10.2 % base 0.1 % [2.5, 21.8]",
        "above the control by 1 point too 113 answers of it broad 9 prompts of 5 categories in 129 answers",
        "5 44.0 % 19.4 % 25 1.0 % <0.1 %".replace("<", "&lt;"),
        "Spot-checked only, steps (answers) 20 (16)",
        "Not asked by the search: step 80",
        "Not asked, steps 80",
        "Hollow circles",
    ):
        assert part in text
    assert text.index("Every checkpoint, judged") < text.index("How the onset was searched") < text.index("The judge ")
    assert "unjudged" not in re.findall(r'<td class="left"><span class="\w+">([^<]+)</span>', html)


def test_shares_of_the_search_have_no_interval_on_the_page(tmp_path):
    _, text = page_of(tmp_path / "a", searched())
    assert "spot-checked 0.0 % by the search –" in text
    assert "looked at 0.8 % by the search –" in text


def test_a_limit_that_holds_at_every_look_is_not_called_this_set(tmp_path):
    e = Estimate(0.02, None, None, -0.03, 0.07, n=300, method=SEQUENTIAL)
    made = searched()
    lines = list(made.checkpoints)
    lines[2] = replace(lines[2], status=Status.UNDECIDED, judged=sampled(0.02, 146, e))
    made = replace(made, checkpoints=tuple(lines))
    _, text = page_of(tmp_path / "a", made)
    assert "2.0 at every look [−3.0, 7.0]" in text
    assert "The bar of a hollow circle holds" in text
    console = Console(file=io.StringIO(), width=160, no_color=True)
    print_step({"status": "done", "verdict": to_plain(made)}, 40, console)
    assert "2.0 points [at every look -3.0, 7.0]" in console.file.getvalue()


def test_a_fixed_design_has_no_word_of_a_search(tmp_path):
    _, text = page_of(tmp_path / "a", emergent())
    for word in ("searched", "spot-checked", "not asked", "Hollow", "by the search"):
        assert word not in text
    assert "Search:" not in shown(emergent())


def test_a_search_that_left_steps_open_is_not_called_clean(tmp_path):
    onset = replace(searched().onset, status="never", latest=None, tested=TESTS[:1], steps=(20, 40, 60, 80))
    html, _ = page_of(tmp_path / "a", searched(onset=onset))
    assert '<span class="chip open">no onset found</span>' in html
    whole = replace(onset, steps=(), spots={})
    html, _ = page_of(tmp_path / "b", searched(onset=whole))
    assert '<span class="chip calm">clean</span>' in html


def test_a_search_without_any_test_says_so(tmp_path):
    onset = replace(searched().onset, status="undecided", latest=None, tested=(), missed=(), clear_until=0)
    _, text = page_of(tmp_path / "a", searched(onset=onset))
    assert "No step was certified" in text


def test_untrusted_text_in_a_search_is_text(tmp_path):
    evil = EVIL + EVIL_ATTRIBUTE + EVIL_TERMINAL
    bad = replace(BROAD, top_prompt=evil, named=(evil,), broad=False, evidence_without_top=0.0)
    onset = replace(searched().onset, tested=(replace(TESTS[1], breadth=bad),))
    html, _ = page_of(tmp_path / "a", searched(onset=onset))
    assert "<script>alert" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html
    text = shown(searched(onset=onset))
    assert "\x1b]0" not in text
    assert "\u202e" not in text


# -- charts ----------------------------------------------------------------------------------------


def test_what_the_search_drew_is_hollow_and_joined_by_no_line():
    chart = misaligned(searched())
    run, loose, _ = chart.series
    assert loose.style == "loose"
    assert [k for k, v in enumerate(loose.values) if v is not None] == [1, 2]
    assert loose.values[1] == 0.0
    assert not any(loose.wide)
    assert [k for k, v in enumerate(run.values) if v is not None] == [0, 3, 5, 6]
    hollow = [li for li in draw([chart]).axes[0].lines if li.get_marker() == "o" and li.get_mfc() != li.get_color()]
    assert [li.get_linestyle() for li in hollow] == ["None"]


def test_limits_of_the_search_are_bars_of_its_own_points():
    e = Estimate(0.02, None, None, -0.03, 0.07, n=300, method=SEQUENTIAL)
    made = searched()
    lines = list(made.checkpoints)
    lines[2] = replace(lines[2], judged=sampled(0.02, 146, e))
    loose = next(s for s in excess(replace(made, checkpoints=tuple(lines))).series if s.style == "loose")
    assert (loose.values[2], loose.wide[2], loose.inner[2]) == (0.02, None, (-0.03, 0.07))
    assert not any(s.style == "loose" for s in excess(searched()).series)


def test_a_wide_set_is_drawn_as_a_crossing_and_what_is_not_excluded_before_it():
    windows = {w.name: w for w in windows_of(searched())}
    onset = windows["misalignment onset, steps 60 to 100"]
    assert (onset.start, onset.end, onset.colour) == (60, 100, "red")
    spike = windows["spike not excluded, steps 20 to 40"]
    assert (spike.start, spike.end, spike.colour) == (0, 40, "amber")
    open_ = replace(searched().onset, status="undecided", latest=None, tested=TESTS[:1])
    names = [w.name for w in windows_of(searched(onset=open_))]
    assert "misalignment undecided after step 60" in names
    assert "drift onset, steps 60 to 100" in [w.name for w in windows_of(searched(), drift=True)]
    narrow = replace(searched().onset, steps=(100,), earliest=100, after=60)
    assert not any("spike" in w.name for w in windows_of(searched(onset=narrow)))


# -- the terminal ----------------------------------------------------------------------------------


def test_the_terminal_says_what_was_tested_and_what_may_have_been_missed():
    text = " ".join(shown(searched()).split())
    for part in (
        "Search: 1,811 answers in all groups on far prompts",
        "step 60 certainly under 3 points [-4.1, 2.9]: 1,194 answers, 149 of the base",
        "step 100 certainly above 1 point [2.5, 21.8]: 98 answers, 149 of the base; above the control by 1 point too "
        "(113 answers of it); broad (9 prompts of 5 categories in 129 answers)",
        "a spike of 5 / 25 points at one step before the crossing would be missed with probability 44.0 % / 1.0 %",
        "spot-checked: a few answers, no test",
        "looked at: answers that steered the search, no test",
        "not asked: the search did not need it",
        "shares without brackets are of answers that the search drew",
        "480 answers at 4 of 7 checkpoints, drawn apart from the search",
    ):
        assert part in text


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_table_of_a_search_fits(width):
    assert max(len(line) for line in shown(searched(), width).splitlines()) <= width


# -- the freeze ------------------------------------------------------------------------------------

FROZEN = {"status": "frozen", "lock": "ab12" * 8, "made": "2026-01-02", "changed": []}
CHANGED = {**FROZEN, "status": "exploratory", "changed": ["rule: lo 0.01, was 0.02", EVIL]}


def test_a_freeze_stands_at_the_head_of_table_and_page(tmp_path):
    line = "Frozen before the first answer: lock ab12ab12ab12, made 2026-01-02."
    assert shown(searched(), frozen=FROZEN).startswith(line)
    _, text = page_of(tmp_path / "a", searched(), frozen=FROZEN)
    assert text.index(line) < text.index("Emergent misalignment")
    changed = shown(searched(), frozen=CHANGED)
    assert changed.startswith("Exploratory: changed after the freeze")
    assert "rule: lo 0.01, was 0.02" in changed.splitlines()[0]
    html, text = page_of(tmp_path / "b", searched(), frozen=CHANGED)
    assert "Exploratory: changed after the freeze" in text
    assert "<script>alert" not in html


def test_without_a_freeze_nothing_is_said_of_one(tmp_path):
    assert "Frozen" not in shown(searched())
    assert "Exploratory" not in shown(searched())
    _, text = page_of(tmp_path / "a", searched())
    assert "Frozen before" not in text
    assert "Exploratory" not in text
