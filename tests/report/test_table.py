import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from report.audits import VARIANTS
from truing.errors import BadInput
from truing.report.table import print_answers, print_step, print_verdict, verdict_table
from truing.store import Store


def shown(about, width=110, **options):
    console = Console(file=io.StringIO(), width=width, no_color=True, **options)
    print_verdict(about, console)
    return console.file.getvalue()


def about_of(folder):
    with Store.read(folder) as store:
        return store.about()


@pytest.mark.parametrize("width", [80, 110, 200])
@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "hostile"])
def test_the_table_fits_and_no_cell_is_cut_or_wrapped(audit, name, width):
    about = about_of(audit(name))
    text = shown(about, width)
    assert all(cell_len(line.rstrip()) <= width for line in text.splitlines())
    if about["verdict"]:
        lines = [x for x in text.splitlines() if x.strip()]
        rows = about["verdict"]["checkpoints"]
        first = next(i for i, x in enumerate(lines) if "reference" in x or "undecided" in x)
        assert "…" not in text
        for line, row in zip(lines[first:], rows, strict=False):
            assert str("–" if row["step"] is None else row["step"]) in line.split()[:2]


def test_at_110_columns_everything_is_there(audit):
    text = shown(about_of(audit("drifting")))
    for word in ("task", "by loss, %", "by trait, %", "vs base", "vs control", "health", "status", "→ candidate"):
        assert word in text
    assert "0.42 [0.35, 0.49]" in text
    assert "not shown" not in text
    assert "label" not in text


def test_a_narrow_terminal_says_what_it_leaves_out_and_keeps_the_drift(audit):
    text = shown(about_of(audit("log-spaced")), 80)
    assert "not shown at this width: task loss, progress by loss" in text
    assert "vs base" in text
    assert "drift (not attributable)" in text


def test_missing_is_a_dash_never_a_zero(audit):
    text = shown(about_of(audit("log-spaced")), 200)
    failed = next(x for x in text.splitlines() if "failed" in x and x.strip().startswith("16"))
    assert failed.split() == ["16", "–", "–", "–", "–", "–", "unknown", "failed"]


def test_the_candidate_row_has_the_arrow_and_only_it(audit):
    rows = [x for x in shown(about_of(audit("drifting"))).splitlines() if x.startswith("→") and "candidate" not in x]
    assert len(rows) == 1
    assert rows[0].split()[1] == "60"


def test_a_running_audit_says_so(audit):
    assert "still running" in shown(about_of(audit("two", status="running")))
    assert "No verdict yet: this audit is interrupted." in shown(about_of(audit("no-verdict", status="interrupted")))


def test_markup_and_control_characters_from_outside_are_inert(audit):
    folder = audit("hostile")
    text = shown(about_of(folder))
    assert "[bold red]not markup[/bold red]" in text
    assert "! Model organism" in text
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text


def test_an_ascii_terminal_gets_ascii(audit):
    with Store.read(audit("log-spaced")) as store:
        raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        console = Console(file=raw, width=110, no_color=True)
        print_verdict(store.about(), console)
        print_step(store.about(), 16, console)
        raw.flush()
        assert b"drift (not attributable)" in raw.buffer.getvalue()


def test_print_verdict_ends_with_the_report(audit, tmp_path):
    console = Console(file=io.StringIO(), width=40)
    path = tmp_path / ("long" * 20) / "report.html"
    print_verdict(about_of(audit("two")), console, path)
    assert console.file.getvalue().rstrip().endswith(str(path))


def test_verdict_table_is_a_renderable(audit):
    console = Console(file=io.StringIO(), width=110)
    console.print(verdict_table(about_of(audit("drifting"))))
    assert "reference" in console.file.getvalue()


def test_print_step_says_everything_about_one_checkpoint(audit):
    console = Console(file=io.StringIO(), width=110)
    print_step(about_of(audit("log-spaced")), 16, console)
    text = console.file.getvalue()
    assert "failed" in text and "NaN in 3 tensors" in text and "kl_from_base" in text
    with pytest.raises(BadInput, match=r"step 7: no such checkpoint .* 0, 1, 2, 4"):
        print_step(about_of(audit("log-spaced", answers=2)), 7, console)
    with pytest.raises(BadInput, match="no verdict yet"):
        print_step(about_of(audit("no-verdict")), 0, console)


def test_print_answers_shows_every_checkpoint_once(audit):
    with Store.read(audit("drifting")) as store:
        console = Console(file=io.StringIO(), width=110)
        print_answers(store.about(), store, "power-00", console)
        text = console.file.getvalue()
    heads = [x for x in text.splitlines() if x.startswith("step ")]
    assert [h.split(",")[0] for h in heads] == [f"step {s}" for s in (0, 20, 40, 60, 80, 100, 120, 20)]
    assert "[truncated]" in text and "[failed] NaN logits" in text and "control run control" in text


def test_print_answers_names_near_ids(audit):
    with Store.read(audit("drifting")) as store:
        console = Console(file=io.StringIO())
        with pytest.raises(BadInput, match="did you mean power-00"):
            print_answers(store.about(), store, "powr-00", console)
        with pytest.raises(BadInput, match="no answers stored"):
            print_answers(store.about(), store, "harm_-03", console)
        with pytest.raises(BadInput, match="it has 8 prompts"):
            print_answers(store.about(), store, "zzz", console)


def test_print_answers_shows_untrusted_text_inert(audit):
    with Store.read(audit("hostile")) as store:
        console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system=None)
        print_answers(store.about(), store, store.about()["prompts"]["items"][0]["id"], console)
        text = console.file.getvalue()
    assert "\x07" not in text and "\x1b[2J" not in text and "\u202e" not in text
    assert "[/bold red]" in text.replace("\n", "")
