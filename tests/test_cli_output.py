"""Signs of life: lines where there is no terminal, bars with the time left where there is one."""

import io
import time

from rich.console import Console

from truing import cli_output
from truing.cli_output import Stages
from truing.types.progress import duration


def test_where_there_is_no_terminal_a_line_says_how_the_work_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(cli_output, "QUIET", 0.05)
    with cli_output.progress() as told:
        time.sleep(0.2)  # no stage yet
        told.step("loading checkpoints", 0, 20)
        time.sleep(0.2)
        told.step("loading checkpoints", 20, 20)
        told.step("answers", 0, 132)
        told.detail("answers", "54 tokens/s, 8 rows")
        time.sleep(0.2)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "working, 0 s"
    assert "loading checkpoints 0/20, 0 s" in said and "answers 0/132, 0 s, 54 tokens/s, 8 rows" in said


def test_nothing_is_said_of_what_takes_no_time(capsys):
    with cli_output.progress():
        pass
    assert not capsys.readouterr().err.strip()


def test_every_bar_has_the_time_left_at_the_measured_rate_and_fits_80_columns(monkeypatch):
    screen = io.StringIO()
    bars = Stages(Console(file=screen, force_terminal=True, width=80, color_system=None))
    now = [100.0]
    monkeypatch.setattr(bars, "get_time", lambda: now[0])
    with bars:
        task = bars.add_task("task rows", total=3000, detail="")
        for done in (0, 10, 20):
            bars.update(task, completed=done)
            now[0] += 10
        assert bars.line() == "task rows 20/3000, 30 s, 50 min left"  # 10 in 10 s
    last = next(line for line in reversed(screen.getvalue().splitlines()) if "20/3000" in line)
    assert "50 min left" in last and len(last.split("\r")[-1]) < 100
    assert [duration(s) for s in (38, 1620, 9000)] == ["38 s", "27 min", "2.5 h"]


def test_a_terminal_shows_that_work_goes_on_between_two_stages(monkeypatch):
    monkeypatch.setattr(cli_output, "QUIET", 0.05)
    screen = io.StringIO()
    with Stages(Console(file=screen, force_terminal=True, width=80)) as bars:
        task = bars.add_task("screen", total=1, detail="")
        bars.update(task, completed=1)
        time.sleep(0.4)
    assert "working, 0 s" in screen.getvalue()
