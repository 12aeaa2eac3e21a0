"""The verdict, a checkpoint and answers in a terminal, and the same as data: what fits, what is said, nothing acts."""

import json
import re

import pytest
from rich.cells import cell_len

from report.audits import EVERY, HOSTILE, JUDGE, PLAIN, inert, judge_of, make_import, printed
from truing import messages
from truing.errors import BadInput
from truing.report.answers import print_answers
from truing.report.details import line_facts, search_facts, search_table, variant_table, verdict_facts
from truing.report.reading import one_line
from truing.report.show import show
from truing.report.table import print_audit, print_step
from truing.store import Store


def about_of(folder):
    with Store.read(folder) as store:
        return store.about()


def shown(about, width=110, **options):
    return printed(lambda console: print_audit(about, console, **options), width)


def step(about, number, width=110):
    return printed(lambda console: print_step(about, number, console), width)


def answers(folder, prompt, **options):
    with Store.read(folder) as store:
        return printed(lambda console: print_answers(store.about(), store, prompt, console), **options)


def flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize("name", PLAIN)
def test_the_first_screen_fits_by_leaving_columns_out_and_has_at_most_three_findings(audit, name):
    about, v = about_of(audit(name)), EVERY[name]
    for width in (60, 80, 110, 200):
        text = shown(about, width)
        assert all(cell_len(line.rstrip()) <= width for line in text.splitlines())
        assert "…" not in text
        assert text.count("\n! ") == min(3, len(messages.deciding(v)))
        sentence, table, *_ = text.split("\n\n")
        assert flat(sentence) == messages.sentence(v)
        rows = [x for x in table.splitlines() if re.match(r"(→|  )? *(\d+|–) ", x)]
        for c, row in zip(reversed(v.checkpoints), reversed(rows), strict=False):
            assert str("–" if c.step is None else c.step) in row.split()[:2]
            assert messages.status_words(c) in row


@pytest.mark.parametrize("name", PLAIN)
def test_verbose_has_everything(audit, name):
    v = EVERY[name]
    text = flat(shown(about_of(audit(name)), 1000, verbose=True))
    facts = (*verdict_facts(v), *search_facts(v.onset), *search_table(v)[1], *variant_table(v)[1])
    for words in (*messages.details(v), *map(messages.text, v.findings), *(cell for row in facts for cell in row)):
        assert flat(one_line(words)) in text


def test_columns_that_do_not_fit_are_named(audit):
    about = about_of(audit("emergent"))
    assert "not shown at this width: screen against control, screen against base" in flat(shown(about, 100))
    wide = shown(about, 250)
    assert "not shown" not in wide
    row = next(x for x in wide.splitlines() if x.strip().startswith("100 "))
    for words in ("14.0 [12.0, 16.0]", "13.4 [11.4, 15.4]", "12.8 [10.8, 14.8]", "0.42 [0.35, 0.49]", "present"):
        assert words in row, words


def test_where_progress_has_no_room_its_number_stays_before_other_columns_go(audit):
    about = about_of(audit("emergent"))
    text = next(x for w in range(90, 60, -1) if "interval of" in (x := shown(about, w)))
    (kept,) = [x for x in text.splitlines() if x.startswith("→") and "recommended" not in x]
    line = next(c for c in EVERY["emergent"].checkpoints if c.step == 60)
    assert kept.split()[2] == f"{100 * line.skill_progress.value:.0f}" and "clean" in kept
    left_out = flat(text).split("not shown at this width: ")[1]
    assert "interval of progress by skill" in left_out and ", progress by skill" not in left_out
    assert ", progress by skill" in flat(shown(about, 50)) and "interval of" not in flat(shown(about, 50))


def test_a_status_that_its_fixed_answers_do_not_confirm_is_said_under_the_table(audit):
    about = about_of(audit("emergent"))
    words = "by the search's test: the fixed answers shown do not confirm it by themselves"
    assert words not in flat(shown(about, 80))
    line = next(c for c in about["verdict"]["checkpoints"] if c["step"] == 60)
    line["findings"] = [{"code": "unconfirmed", "params": {}}]
    assert f"the status at 60 is {words}" in flat(shown(about, 80))
    above = next(c for c in about["verdict"]["checkpoints"] if c["step"] == 100)
    above["findings"] = [{"code": "certified_above", "params": {}}]
    assert f"the status at 60 is {words}" in flat(shown(about, 80))  # its fixed answers are above lo as well
    above["labelled"]["excess_base"]["set_low"] = -0.1
    assert f"the status at 60, 100 is {words}" in flat(shown(about, 80))


def test_missing_is_a_dash_never_a_zero(audit):
    text = shown(about_of(audit("log-spaced")), 200)
    failed = next(x for x in text.splitlines() if "failed" in x and x.strip().startswith("16"))
    assert failed.split() == ["16", *"–––––", "unknown", "failed"]


def test_the_kept_row_has_the_arrow_and_only_it(audit):
    text = shown(about_of(audit("emergent")))
    (row,) = [x for x in text.splitlines() if x.startswith("→") and "recommended" not in x]
    assert row.split()[1] == "60"
    assert "→ recommended" in text and "→" not in shown(about_of(audit("changing")))


def test_an_unfinished_audit_says_so(audit):
    assert "still running" in shown(about_of(audit("two", status="running")))
    unfinished = shown(about_of(audit("no-verdict", status="interrupted")))
    assert "No verdict yet: this audit is interrupted; repeat the audit to finish it." in unfinished


@pytest.mark.parametrize("name", HOSTILE)
def test_markup_and_control_characters_from_outside_are_inert(audit, name):
    about = about_of(audit(name))
    last = about["verdict"]["checkpoints"][-2]["step"]

    def everything(console):
        print_audit(about, console, verbose=True)
        print_step(about, last, console)
        with Store.read(audit(name)) as store:
            print_answers(about, store, about["prompts"]["items"][0]["id"], console)

    text = printed(everything, force_terminal=True, color_system=None)
    assert inert(text)
    assert "! Model organism" in text


def test_an_ascii_terminal_gets_ascii(audit):
    about = about_of(audit("log-spaced"))
    printed(lambda console: print_audit(about, console, verbose=True), ascii_only=True)
    assert "NaN in 3 tensors" in printed(lambda console: print_step(about, 16, console), ascii_only=True)


def test_the_path_of_the_report_is_never_broken(audit, tmp_path):
    path = tmp_path / ("long" * 20) / "report.html"
    assert shown(about_of(audit("two")), 40, report=path).rstrip().endswith(str(path))


@pytest.mark.parametrize(("name", "number"), [("emergent", 100), ("log-spaced", 16), ("searched", 40)])
def test_one_checkpoint_shows_every_number_and_finding(audit, name, number):
    text = flat(step(about_of(audit(name)), number, 1000))
    line = next(c for c in EVERY[name].checkpoints if c.step == number)
    for cell in (*(x for pair in line_facts(line) for x in pair), *map(messages.text, line.findings)):
        assert flat(cell) in text


def test_a_step_that_is_not_there_is_bad_input(audit, tmp_path):
    imported = make_import(tmp_path / "i", ("x",))
    for folder, number, said in (
        (audit("log-spaced"), 7, r"step 7: no such checkpoint .* 0, 1, 2, 4"),
        (audit("no-verdict"), 0, "no verdict yet"),
        (imported, 0, "imported answers have no steps"),
    ):
        with pytest.raises(BadInput, match=said):
            step(about_of(folder), number)


def test_answers_are_shown_at_every_checkpoint_with_what_the_judge_said(audit):
    folder = audit("emergent")
    text = answers(folder, "power-00")
    for near, words in (("powr-00", "did you mean power-00"), ("harm_-03", "no answers"), ("zzz", "it has 8")):
        with pytest.raises(BadInput, match=words):
            answers(folder, near)
    found = [(b.split(",")[0], b) for b in text.split("\n\n") if b.startswith("step ")]
    assert [name for name, _ in found] == [*(f"step {20 * k}" for k in range(7)), "step 20"]
    blocks = dict(found)
    assert "alignment 91: negative" in blocks["step 0"]
    assert "alignment 8, coherence 95: positive" in blocks["step 100"]
    assert "alignment 8, coherence 20: incoherent" in blocks["step 120"]
    assert "[truncated]" in text and "[failed] NaN logits" in text and "control run control" in text


def test_the_same_as_data(audit):
    folder = audit("emergent")
    assert show(folder, step=100)["checkpoint"]["labelled"]["rate"]["value"] == 0.14
    given = show(folder, prompt="power-00")["answers"]
    scored = [j for a in given for j in a["judged"]]
    assert {(j["judge"], j["judge_key"]) for j in scored} == {(JUDGE, judge_of().key)}
    assert {(j["rubric"], j["score"]) for j in scored} >= {("alignment", 91.0), ("alignment", 8.0)}
    json.dumps(given, allow_nan=False)
    with pytest.raises(BadInput, match="no checkpoint at step 7"):
        show(folder, step=7)


def test_an_unfinished_audit_tells_its_counts_so_far(audit):
    assert "judged_so_far" not in show(audit("clean"))
    path = audit("emergent", status="running")
    lines = {line["weights"]: line for line in show(path)["judged_so_far"]}
    with Store.read(path) as store:
        texts = [r.weights for r in store.answers() if r.text]  # all texts are scored: bad from step 100 on
    assert lines.keys() == set(texts)
    for weights, line in lines.items():
        reason = {"wcheckpoint-100": "positive", "wcheckpoint-120": "incoherent"}.get(weights, "negative")
        assert line["reasons"][reason] == line["n"] == texts.count(weights)
        assert line["share"] == (reason == "positive")
