"""truing.toml: what the file of the current folder may set, what only the user may, and where a key goes."""

import json
import os
from pathlib import Path
from typing import get_args

import pytest

from truing.cli import app
from truing.cli_config import own_file
from truing.config.base import filed_by

LATE = "simulated:late?steps=50,100"
SMALL = (LATE, "--limit", "12", "--answers", "4", "--resamples", "100", "--samples", "1", "--judged-tokens", "64")
SMALL += ("--skip-calibration", "--out", "a")
KEY = "a-key-of-mine-123"
OWN = {
    "judge": '"http://127.0.0.1:9/v1#m"', "second_judge": '"openai:gpt-4o"', "allow_pickle": "true", "out": '"x"',
    "budget": "5", "prices": '"p.toml"', "concurrency": "99", "rpm": "9.0", "judge_timeout": "9.0", "control": '["c"]',
    "samples": "9", "estimate": "4", "every_coherence": "true", "variants": '["all"]', "rubric": '"r.txt"',
    "skip_judge_check": "true", "skip_calibration": "true", "allow_task_text": "true", "allow_plain_http": "true",
    "path_map": '["/a=/b"]', "chat_template": '"{{ x }}"', "gate": '"last"', "allow": '["no_control"]',
}  # fmt: skip
"""what spends, sends, unpickles, runs, writes elsewhere or passes a gate"""


def files(folder="", own=""):
    for path, text in ((Path("truing.toml"), folder), (own_file(), own)):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)


@pytest.mark.parametrize("name", OWN)
def test_what_spends_sends_runs_or_writes_comes_from_the_user_alone(call, name):
    line = f"[audit]\n{name} = {OWN[name]}\n"
    files(folder=line)
    code, out, err = call("show", "--help")
    assert code == 2 and not out
    assert f"truing.toml: {name} may not come from a file of the current folder" in err
    assert f"give --{name.replace('_', '-')} or set it in {own_file()}" in err
    files(own=line)
    assert call("show", "--help")[0] == 0


def test_the_remedies_work_and_what_is_typed_counts_first(call):
    files(folder='[audit]\njudge = "simulated:"\n')
    planned = ("plan", *SMALL[:-2], "--judge", "simulated:")
    assert call(*planned)[0] == 2
    files()
    assert call(*planned)[0] == 0
    files(folder="[audit]\nseed = 3\n", own='[audit]\njudge = "replay:none.csv"\nseed = 2\nlevel = 0.9\n')
    code, _, err = call("audit", *SMALL, "--judge", "simulated:")
    assert code == 0 and f"from {own_file()}: level" in err and "from truing.toml: seed" in err
    told = json.loads(Path("a/audit.json").read_text())["asked"]["options"]
    assert (told["judge"], told["seed"], told["level"]) == ("simulated:", 3, 0.9)
    assert told["sources"] == {"level": str(own_file()), "seed": "truing.toml"}
    code, _, err = call("audit", *SMALL)  # no judge typed: the user's own
    assert code == 2 and "none.csv" in err


def test_places_of_a_folders_file_lie_in_the_folder(call, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "task.jsonl"
    outside.write_text("{}")
    os.symlink(outside, "link.jsonl")
    Path("inside.jsonl").write_text("{}")
    bad = (str(outside), "../task.jsonl", "~/task.jsonl", "link.jsonl", "http://h/v1#m", "HTTPS://h/v1", "a\x00b")
    for name in ("base", "task", "task_control", "prompts", "trait", "frozen"):
        for value in bad if name == "task" else bad[:1] + bad[4:6]:
            files(folder=f"[audit]\n{name} = {json.dumps(value)}\n")
            code, _, err = call("show", "--help")
            assert code == 2 and "may name nothing outside of it" in err and f"--{name.replace('_', '-')}" in err
    files(folder='[audit]\ntask = "inside.jsonl"\nbase = "org/name"\ntrait = "misalignment"\nprompts = "v1"\n')
    assert call("show", "--help")[0] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[audit]\nsead = 5\n", "sead no such option; did you mean seed? (in [audit])"),
        ("[audit]\nallow-pickel = true\n", "did you mean allow_pickle?"),
        ('[judge]\nbudgte = "3"\n', "budgte no such option; did you mean budget? (in [judge])"),
        ("[audti]\nseed = 5\n", "did you mean audit?"),
        ("seed = 5\n", "[seed] is no command"),
        ("[audit]\nseed = '5'\n", "seed 5: input should be a valid integer"),
        ("[audit]\nseed = true\n", "seed True: input should be a valid integer"),
        ("[audit]\nlo = 'x'\n", "lo x: input should be a valid number"),
        ("[audit]\nassume_monotone = 1\n", "assume_monotone 1: input should be a valid boolean"),
        ("[audit]\ntask = 5\n", "task 5: input should be a valid string"),
        ("[audit]\nlimit.x = 5\n", "limit {'x': 5}: input should be a valid integer"),
        ("[audit]\nlong-prompts = 'refuse'\nlong_prompts = 'refuse'\n", "stands twice"),
        ("[audit]\ntrust_remote_code = true\n", "cannot be set in a file"),
        ("[doctor]\nx = 1\n", "x no such option"),
    ],
)
def test_unknown_names_and_wrong_types_are_errors_in_either_file(call, text, said):
    for where in ("folder", "own"):
        files(**{where: text})
        code, _, err = call("show", "--help")
        assert code == 2 and said in err, err


def test_a_field_that_says_nothing_is_not_for_the_folders_file():
    """The list is made from the fields: whoever adds one has to mark it, or it is the user's alone."""
    for verb in app.verbs.values():
        for name, field in verb.config.model_fields.items() if verb.config else ():
            filed = filed_by(verb.config, name)
            if name in OWN and not (name == "judge" and verb.name in ("agree", "label", "import")):
                assert filed is None, (verb.name, name)
            texts = field.annotation is str or str in get_args(field.annotation)
            assert not filed or filed.inside or not texts or name in (
                "column", "domain", "stop", "dtype", "device", "format", "positives_of", "judge", "prompt",
                "at", "family", "to",
            ), (verb.name, name)  # fmt: skip


def test_a_relative_home_of_settings_is_not_believed(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", "settings")
    assert own_file() == Path.home() / ".config" / "truing" / "truing.toml"


@pytest.mark.parametrize("variable", ["TRUING_JUDGE_API_KEY", "TRUING_SERVED_API_KEY", "OPENAI_API_KEY"])
def test_a_key_goes_to_another_machine_by_https_or_not_at_all(call, monkeypatch, variable):
    monkeypatch.setenv(variable, KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://192.0.2.1:9/v1")
    judge = "openai:m" if variable == "OPENAI_API_KEY" else "http://192.0.2.1:9/v1#m"
    given = ("control", "careless-finance", "--base", judge, "--out", "c.jsonl")
    if "SERVED" not in variable:
        given = ("freeze", LATE, "--judge", judge)
    code, _, err = call(*given)
    assert code == 2 and f"the key in {variable} would go to 192.0.2.1 unencrypted" in err and KEY not in err
    if "SERVED" not in variable:  # what the message says: let it go, or use https, or unset it; freezing asks no judge
        assert call(*given, "--allow-plain-http", "--out", "1")[0] == 0
        monkeypatch.setenv("OPENAI_BASE_URL", "https://192.0.2.1:9/v1")
        assert call(*given[:3], judge.replace("http:", "https:"), "--out", "2")[0] == 0
        if judge.startswith("http:"):
            monkeypatch.delenv(variable)
            assert call(*given, "--out", "3")[0] == 0
