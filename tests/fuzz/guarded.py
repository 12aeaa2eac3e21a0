"""The command line in this process, watched: what it writes, where it connects, how long it takes, what it prints."""

import contextlib
import io
import os
import re
import resource
import signal
import sys
import warnings
from pathlib import Path

from truing import cli

SECONDS, BYTES = 10, 2 << 30
EXITS = {0, 2, 3, 4}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.symlink": 2, "os.link": 2, "os.chmod": 1,
            "os.truncate": 1, "shutil.rmtree": 1, "sqlite3.connect": 1}  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_state = {"inside": None, "wrong": []}


class Hang(BaseException):
    """More than ten seconds."""


def _watch(event, args):
    inside = _state["inside"]
    if inside is None:
        return
    if event == "socket.connect":
        if not (isinstance(args[1], tuple) and str(args[1][0]) in ("127.0.0.1", "::1", "localhost")):
            _state["wrong"].append(f"connected to {args[1]}")
        return
    if event == "open":
        path, _, flags = args
        paths = (path,) if isinstance(path, str | bytes | os.PathLike) and (flags or 0) & WRITES else ()
    else:
        paths = args[: _CHANGES.get(event, 0)]
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            name = os.fsdecode(path)
            name = name.removeprefix("file:").partition("?")[0] if event == "sqlite3.connect" else name
            if not os.path.realpath(name).startswith((inside, "/dev/null")) and name != ":memory:":
                _state["wrong"].append(f"{event} {name}")


sys.addaudithook(_watch)


def _late(*_):
    raise Hang(f"more than {SECONDS} s")


def run(folder, *args, clean=True):
    """Exit code, stdout and stderr of one command in a folder.

    Asserts: it ends with a known exit code and no traceback in time, touches nothing outside the folder, connects to
    this machine alone, uses less than 2 GB, and (`clean`) prints no control character.
    """
    out, err = io.StringIO(), io.StringIO()
    before, argv, here = _state["wrong"], sys.argv, Path.cwd()
    signal.signal(signal.SIGALRM, _late)
    os.chdir(folder)
    sys.argv = ["truing", *map(str, args)]
    _state.update(inside=os.path.realpath(folder), wrong=[])
    code = 0
    try:
        signal.alarm(SECONDS)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("default")
            cli.main()
    except SystemExit as e:
        code = e.code or 0
    finally:
        signal.alarm(0)
        wrong = _state["wrong"]
        _state.update(inside=None, wrong=before)
        sys.argv = argv
        os.chdir(here)
    told = err.getvalue()
    assert code in EXITS, (args, code, told)
    assert not wrong, (args, wrong)
    assert "Traceback" not in told, (args, told)
    assert code == 0 or len(told) < 20_000, (args, len(told))
    if clean:
        assert not _CONTROL.search(out.getvalue() + told), (args, out.getvalue(), told)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < BYTES, args
    return code, out.getvalue(), told
