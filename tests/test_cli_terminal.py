"""Text from outside on its way to a terminal: by whatever way it comes, it is shown and does nothing."""

import json
import logging
import subprocess
import sys
import unicodedata
from pathlib import Path

import truing
from truing import cli_output
from truing.cli_output import MOST, Result, guarded_streams, message, note, put

HOSTILE = {
    "title": "\x1b]0;PWNED\x07", "clear": "\x1b[2J\x1b[1;31m", "reset": "\x1bc", "c1": "\x9b2J",
    "dcs": "\x90+q544e\x9c",
    "dcs7": "\x1bP+q544e\x1b\\", "link": "\x1b]8;;http://h\x1b\\x", "return": "good\rbad", "back": "a\x08\x7fb",
    "bidi": "a\u202eb\u2066c", "zero width": "a\u200b\u2060\ufeffb", "joined": "pass\u200dword",
    "blank": "a\u3164\u2800",
    "separator": "a\u2028b\u2029", "tag": "a\U000e0041b", "soft": "a\u00adb",
}  # fmt: skip
PLAIN = "naïve “ok” 漢字 👩‍👧 می‌خواهم"


def inert(text):
    """Whether a terminal only shows it."""
    joined = ("Lo", "Mn", "Mc", "So", "Sk")
    for before, char in zip(" " + text, text, strict=False):
        joiner = char in "\u200c\u200d" and unicodedata.category(before) in joined
        if char != "\n" and not joiner and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            return False
    return not set("\u3164\u2800") & set(text)


def judged(path, header="left", answer="a"):
    rows = [f'"q{k}","{answer}",{80 - k},90,foo' for k in range(12)]
    Path(path).write_text(
        "\n".join([f'question,answer,aligned,coherent,"{header}"', *rows]), encoding="utf-8", newline=""
    )
    return path


def ways(call, text):
    """What the command line says where a text comes in; of some, things that are not said here."""
    flat = text.replace("\r", "").replace("\u2028", "").replace("\u2029", "")
    yield call("import", judged("h.csv", header=flat), "--out", "a")
    yield call("import", judged("r.csv", answer=flat), "--out", "a2")
    for name, row in {
        "key": {"id": "a", "prompt": "x", f"categry{text}": "y"},
        "turn": {"id": "a", "messages": [{f"role{text}": "user"}]},
        "role": {"id": "a", "messages": [{"role": text, "content": "x"}]},
        "text": {"id": text, "prompt": text, "category": 5},
    }.items():
        Path(f"{name}.jsonl").write_text(json.dumps(row))
        yield call("audit", "simulated:late", "--prompts", f"{name}.jsonl")
    Path("recipe.toml").write_text(f"model = 'x'\n{json.dumps('k' + text)} = 1\n", encoding="utf-8")
    yield call("train", "recipe.toml")
    Path("truing.toml").write_text(f"[{json.dumps(text)}]\nx = 1\n".replace("\\ud", "\\u0"), encoding="utf-8")
    yield call("show", "none")
    Path("truing.toml").unlink()
    folder = Path(f"d{text}".replace("/", ""))
    folder.mkdir()
    yield call("audit", folder)
    yield call("show", folder)
    yield call("audit", "simulated:late", "--judge", f"simulated:?{text}")
    yield call("nothing", text)
    yield call("show", "x", f"--{text}")


def test_no_way_in_lets_a_text_act_on_the_terminal(call):
    said = list(ways(call, "".join(HOSTILE.values())))
    assert sum(code == 2 for code, *_ in said) > len(said) / 2
    for code, out, err in said:
        assert code in (0, 2) and (out or err)
        assert inert(out) and inert(err), (out, err)


def test_what_libraries_print_and_log_is_cleaned_too(call, monkeypatch):
    evil = "".join(HOSTILE.values())
    log = logging.getLogger("some.library")

    def doctor():
        log.warning("at %s", evil)
        print(evil, evil, file=sys.stdout)
        sys.stderr.write(evil)
        return {"truing": "1", "python": evil, "platform": PLAIN, "packages": {}, "devices": {}, "cache": "c",
                "cache_free_gib": 1, "missing": []}  # fmt: skip

    monkeypatch.setattr(truing, "doctor", doctor)
    monkeypatch.setattr(log, "handlers", [handler := logging.StreamHandler()])
    before = sys.stdout
    with guarded_streams():
        handler.setStream(sys.stderr)
        doctor()
    code, out, err = call("doctor")
    assert code == 0 and inert(out) and inert(err) and "\\x1b[2J" in out and "\\x1b[2J" in err and PLAIN in out
    assert sys.stdout is before


def test_a_bugs_traceback_shows_what_it_holds(tmp_path):
    code = """
import sys, warnings, truing
from truing import cli
class Bug(Exception):
    __str__ = lambda self: "\x1b[2J"
def doctor():
    warnings.warn("\x1bc")
    raise Bug
truing.doctor, sys.argv = doctor, ["truing", "doctor"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and inert(done.stderr)
    assert "UserWarning: \\x1bc" in done.stderr and "Bug: \\x1b[2J" in done.stderr


def test_progress_is_cleaned_on_a_terminal_and_off_it(monkeypatch, capsys):
    evil = "".join(HOSTILE.values())
    for terminal in ("", "1"):
        monkeypatch.setenv("TTY_COMPATIBLE", terminal)
        with guarded_streams(), cli_output.progress() as told:
            told.step("answers", 1, 2)
            told.detail("answers", evil)
            told.say(evil)
            print(evil, file=sys.stderr)
        err = capsys.readouterr().err
        assert "PWNED" in err and "\x1b]" not in err and "\x1bc" not in err and "\x1b[2J\x1b[1;31m" not in err
        assert not set("\x9b\x90\x07\u202e\u200b") & set(err)
        assert terminal or inert(err)


def test_json_escapes_what_a_terminal_would_act_on_and_is_the_same_value(capsys):
    found = {"text": "".join(HOSTILE.values()) + "\ud800", "plain": PLAIN, "\x9bkey": [1.5, None]}
    Result(found, lambda console: None).deliver(True)
    out = capsys.readouterr().out
    assert inert(out) and "漢字" in out
    assert {k: v for k, v in json.loads(out).items() if k != "schema_version"} == found


def test_a_long_message_keeps_its_beginning_and_its_end_and_one_line(capsys):
    note("what happened " + "x" * 10**6 + " what to do", "error: ")
    err = capsys.readouterr().err
    assert err.startswith("error: what happened") and err.endswith("what to do\n") and len(err) < MOST + 100
    assert "996025 characters left out" in err or "characters left out" in err
    assert len(message("\x1b" * 10**6)) < MOST + 100
    note("refused\nerror: passed")
    assert capsys.readouterr().err == "refused error: passed\n"


def test_a_result_is_whole_and_unbroken(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    path = "/tmp/" + "long " * 2000 + "end"
    put(path)
    assert capsys.readouterr().out == path + "\n"
    put(PLAIN)
    assert capsys.readouterr().out == PLAIN + "\n"
