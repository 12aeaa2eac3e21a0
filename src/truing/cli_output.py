"""What the command line prints: results as text or JSON on stdout, progress and errors on stderr.

Nothing else in the package writes to a terminal. Names of files, keys of JSON, headers of tables, what servers and
models say: all of it may come from anywhere, so every line passes `clean`, those of other libraries too.
"""

import io
import json
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.segment import Segment
from rich.text import Text

from truing import errors
from truing.report.reading import clean
from truing.store import SCHEMA_VERSION
from truing.types.progress import Progress, duration

COLUMNS = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
DETAIL = TextColumn("{task.fields[detail]}", markup=False)
WIDE = 120
"""columns of a terminal from which there is room for the detail beside its bar"""
BEAT = 0.05
"""seconds between two moves of a bar: nobody sees more, and drawing them costs more than quick work itself"""
QUIET = 4.0
"""seconds without a sign of life, at most"""
RATE_OVER = 600.0
"""seconds over which a stage's rate is measured"""
MOST = 4000
"""characters of a message; of a longer one the beginning and the end are shown, where what to do stands"""


# ---------------------------------------------------------------------------------------------------------------------
# The one way to a terminal


class Terminal(Console):
    """A console on which no text can act: what is no plain text is shown as an escape."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As in rich; only what rich itself says to the terminal stays."""
        for s in super().render(renderable, options):
            yield s if s.control else Segment(_encodable(clean(s.text), self.encoding), s.style)


class Guard(io.TextIOBase):
    """Stands in for stdout or stderr: what others write there becomes cleaned lines of a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        """the real one"""
        self.terminal = Terminal(file=stream)
        self._rest = ""

    encoding = property(lambda self: self.stream.encoding)  # pyright: ignore[reportAssignmentType]
    errors = property(lambda self: "backslashreplace")  # pyright: ignore[reportAssignmentType]

    def write(self, text: str) -> int:
        """As in io; lines are printed once they end."""
        *lines, self._rest = re.split(r"\r\n|\r|\n", self._rest + text)
        for line in lines:
            self._print(line, "\n")
        return len(text)

    def flush(self) -> None:
        """As in io; a line that has not ended, e.g. a prompt, is printed too."""
        rest, self._rest = self._rest, ""
        if rest:
            self._print(rest, "")
        if not self.stream.closed:
            self.stream.flush()

    def fileno(self) -> int:
        """As in io, for child processes."""
        return self.stream.fileno()

    def _print(self, line: str, end: str) -> None:
        if not self.stream.closed:  # a library may hold on to a stream longer than it lives
            self.terminal.print(Text(message(line)), end=end, soft_wrap=True)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """While a command runs, whatever is written to stdout and stderr is cleaned; a bug's traceback afterwards too."""
    before = sys.stdout, sys.stderr
    sys.excepthook = _excepthook
    sys.stdout, sys.stderr = Guard(sys.stdout), Guard(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def put(text: object) -> None:
    """A result on stdout: cleaned, as long as it is, and never broken over lines, since a path is for copying."""
    stream = _real(sys.stdout)
    stream.write(_encodable(clean(text), stream.encoding) + "\n")


def note(text: object, prefix: str = "") -> None:
    """A message on stderr, on one line; a prefix stands out."""
    line = re.sub(r"\s*\n\s*", " ", message(text))
    _terminal(sys.stderr).print(Text.assemble((prefix, "bold red"), line), soft_wrap=True)


def message(text: object) -> str:
    """Cleaned, and without its middle where it is very long."""
    return _shortened(clean(_shortened(str(text))))


def _shortened(text: str) -> str:
    left = len(text) - MOST
    return text if left <= 0 else f"{text[: MOST // 2]} ... {left} characters left out ... {text[-MOST // 2 :]}"


def _real(stream: TextIO) -> TextIO:
    return stream.stream if isinstance(stream, Guard) else stream


def _terminal(stream: TextIO) -> Terminal:
    return stream.terminal if isinstance(stream, Guard) else Terminal(file=stream)


def _encodable(text: str, encoding: str | None) -> str:
    name = encoding or "utf-8"
    return text if text.isascii() or _utf8(name) else text.encode(name, "backslashreplace").decode(name)


def _utf8(encoding: str | None) -> bool:
    return (encoding or "utf-8").lower().replace("_", "-") in ("utf-8", "utf8")


def _excepthook(kind: type[BaseException], e: BaseException, where: TracebackType | None) -> None:
    for line in "".join(traceback.format_exception(kind, e, where)).splitlines():
        _terminal(sys.stderr).print(Text(message(line)), soft_wrap=True)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object, and nothing else. What a terminal would hide or act on is escaped as JSON does it."""
    plain = {"schema_version": SCHEMA_VERSION, **value}
    stream = _real(sys.stdout)
    text = json.dumps(plain, indent=1, ensure_ascii=not _utf8(stream.encoding), allow_nan=False)
    stream.write(re.sub(r"[^ -~\n]", lambda m: m[0] if clean(m[0]) == m[0] else json.dumps(m[0])[1:-1], text) + "\n")


@dataclass(frozen=True, slots=True)
class Result:
    """What a command found: for programs, and for people."""

    found: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    """as one JSON object, or what makes it"""
    show: Callable[[Console], object]
    """prints it"""
    end: Callable[[], object] = lambda: None
    """what is decided once it is printed, e.g. by a gate"""

    def deliver(self, json_out: bool) -> None:
        """Print it, and end."""
        if json_out:
            print_json(self.found() if callable(self.found) else self.found)
        else:
            self.show(_terminal(sys.stdout))
        self.end()


def path_result(name: str, path: object) -> Result:
    """A path as the only result."""
    return Result({name: str(path)}, lambda console: put(path))


@contextmanager
def interruptible() -> Iterator[None]:
    """An interrupt becomes our error, which says how to go on."""
    try:
        yield
    except KeyboardInterrupt as e:
        text = "interrupted; what was measured is stored, and the same command goes on from there"
        raise errors.Interrupted(text) from e


class Left(ProgressColumn):
    """The time that is left at the rate measured so far."""

    def render(self, task: Task) -> Text:
        """Empty until a rate is known."""
        left = None if task.finished else task.time_remaining
        return Text("" if left is None else f"{duration(left)} left")


class Stages(RichProgress):
    """A bar per stage; its detail beside it, or under all of them where the terminal is narrow.

    Work for which there is no stage is shown as such. Where there is no terminal a line says every `QUIET` seconds how
    the work goes on, and the bars come at the end.
    """

    def __init__(self, console: Console) -> None:
        self._beside, self._terminal = console.width >= WIDE, console.is_terminal
        self._said, self._end = time.monotonic(), threading.Event()
        columns = (*COLUMNS, Left(), *((DETAIL,) if self._beside else ()))
        options: dict[str, Any] = {"transient": False, "redirect_stdout": False, "redirect_stderr": False}
        super().__init__(*columns, console=console, speed_estimate_period=RATE_OVER, **options)

    def told(self) -> None:
        """Something was just said of a stage."""
        self._said = time.monotonic()

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bars, and what is to stand under them."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if not self._beside and task.fields["detail"]:
                yield Text(f"{task.description}: {task.fields['detail']}")
        quiet = time.monotonic() - self._said
        if self._terminal and quiet > QUIET / 2 and not self._end.is_set() and self._now() is None:
            yield Text(f"working, {duration(quiet)}")

    def start(self) -> None:
        """As in rich."""
        super().start()
        if not self._terminal:
            threading.Thread(target=self._speak, name="truing-progress", daemon=True).start()

    def stop(self) -> None:
        """As in rich, but for an empty line where there was no stage."""
        self._end.set()
        self.live.stop()
        if self.tasks and not self.console.is_interactive:
            self.console.print()

    def line(self) -> str:
        """How the work goes on, in a line."""
        task = self._now()
        if task is None:
            return f"working, {duration(time.monotonic() - self._said)}"
        left = "" if task.time_remaining is None else f"{duration(task.time_remaining)} left"
        count = f"{task.completed:.0f}/{task.total:.0f}" if task.total else ""
        parts = (f"{task.description} {count}".strip(), duration(task.elapsed or 0), task.fields["detail"] or left)
        return ", ".join(part for part in parts if part)

    def _now(self) -> Task | None:
        """The stage under way that was begun last."""
        return next((task for task in reversed(self.tasks) if not task.finished), None)

    def _speak(self) -> None:
        while not self._end.wait(QUIET):
            self.console.print(Text(self.line()), soft_wrap=True)


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on stderr, one per stage, with the time left; lines instead while stderr is no terminal."""
    with interruptible(), Stages(_terminal(sys.stderr)) as bars:
        tasks = dict[str, TaskID]()

        shown = dict[str, tuple[float, int | None]]()

        def update(stage: str, total: int | None = None, **what: Any) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, detail="")
            now, done = time.monotonic(), what.get("completed")
            last, of = shown.get(stage, (0.0, None))
            if done not in (None, 0, total) and of == total and now < last + BEAT:
                return
            shown[stage] = now, total
            bars.update(tasks[stage], total=total, **what)
            bars.told()

        yield Progress(
            step=lambda stage, done, total: update(stage, total, completed=done),
            detail=lambda stage, line: update(stage, detail=line),
            say=lambda line: bars.console.print(Text(message(line)), soft_wrap=True),
        )
