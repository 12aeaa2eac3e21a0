"""The commands of a study in process: as a user gives them, and that freeze reads what audit reads."""

import json
from dataclasses import replace

import click
import pytest
import typer

import truing
from runs.study_audits import audited, edited
from truing import cli
from truing.store import Store


@pytest.fixture
def call(run_cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path.parent / "cache"))

    return run_cli


VALUES = {
    "target": "simulated:late", "base": "m", "task": "t", "task_control": "c", "control": "k", "prompts": "p",
    "out": "o", "format": "messages", "half": "fit", "dtype": "float32", "device": "cpu", "judge": "simulated:",
    "rubric": "both", "domain": "finance", "budget": "2000", "variants": "json", "em": "mean", "gate": "last",
    "stop": "END", "long_prompts": "truncated", "path_map": "/a=/b",
    "fail_on": "drift", "second_judge": "simulated:?seed=2", "prices": "prices.toml", "lo": "0.02", "hi": "0.04",
}  # fmt: skip
NOT_SAID = {"help", "json_out", "frozen", "out", "gate", "fail_on"}


def every_option(command, template):
    """A command line that gives every option of a command another value than its default; two flags cannot be told."""
    words = []
    for p in command.params:
        if p.name in NOT_SAID or not isinstance(p, click.Option):
            continue
        if p.is_flag:
            words.append(p.opts[0])
        elif p.name == "chat_template":
            words += [p.opts[0], str(template)]
        elif isinstance(p.type, (click.types.IntParamType, click.types.IntRange)):
            words += [p.opts[0], str((p.default if isinstance(p.default, int) else 4) + 1)]
        elif p.name not in VALUES and isinstance(p.type, (click.types.FloatParamType, click.types.FloatRange)):
            words += [p.opts[0], str((p.default if isinstance(p.default, float) else 4.0) + 0.5)]
        else:
            words += [p.opts[0], VALUES[p.name]]
    return words


def test_freeze_reads_every_option_as_audit_does(call, monkeypatch, tmp_path):
    """Fails when audit gets an option that freeze would not see, or would read otherwise."""
    seen = {}

    class Enough(Exception):
        pass

    def stand_in(name):
        def take(target, **given):
            seen[name] = (list(target), given)
            raise Enough

        return take

    monkeypatch.setattr(truing, "audit", stand_in("audit"))
    monkeypatch.setattr(truing, "freeze", stand_in("freeze"))
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}")
    words = every_option(typer.main.get_command(cli.app).commands["audit"], template)
    for name in ("audit", "freeze"):
        with pytest.raises(Enough):
            call(name, "simulated:late", "simulated:never", *words)

    def plain(name):
        target, given = seen[name]
        options = given.pop("options")
        given.pop("out")
        bare = replace(options, progress=None, detail=None, sources={}, judging=replace(options.judging, say=None))
        return target, given, replace(bare, frozen=None) if hasattr(bare, "frozen") else bare

    assert plain("audit") == plain("freeze")


def test_freeze_writes_a_lock_and_says_where(call, tmp_path):
    args = ("simulated:late?steps=50,100", "--judge", "simulated:", "--limit", "16", "--exhaustive", "4")
    code, out, err = call("freeze", *args, "--out", "s.lock.json")
    assert (code, out.strip()) == (0, "s.lock.json") and "frozen: " in err
    code, out, _ = call("freeze", *args, "--out", "s.lock.json", "--json")
    made = json.loads(out)
    assert code == 0 and made["settings"]["prompts"]["asked"] == 16
    assert made["settings"]["method"]["judging.samples"] == 4
    code, _, err = call("freeze", *args, "--hi", "0.05", "--out", "s.lock.json")
    assert code == 2 and "zone: hi: 0.03 before, 0.05 now" in " ".join(err.split())
    (tmp_path / "truing.toml").write_text('[audit]\nhi = 0.07\njudge = "simulated:"\n')
    code, out, _ = call("freeze", "simulated:late?steps=50,100", "--out", "toml.json", "--json")
    assert code == 0 and json.loads(out)["settings"]["zone"]["hi"] == 0.07


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("simulated:late", "--bogus", "3"), "No such option"),
        (("simulated:late", "--lo", "0.5"), "lo must be under hi"),
        (("simulated:nothing",), "no simulated family"),
        ((), "Missing argument"),
    ],
)
def test_freeze_refuses_what_audit_refuses(call, args, told):
    code, out, err = call("freeze", *args)
    assert code == 2 and told in " ".join(err.split()) and out == ""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli-study")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("TRUING_CACHE", str(folder / "cache"))
        return [audited(folder / f"a{s}", s) for s in (1, 2, 3)]


def test_study_prints_a_table_and_json(call, made):
    code, out, err = call("study", *made)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    for words in (
        "3 cases, 1 model", "Not frozen", "consistent", "Holm-adjusted over 1 recipe", "100 % of 3",
        "checkpoint-50", "estimated",
    ):  # fmt: skip
        assert words in text, words
    code, out, _ = call("study", *made, "--json")
    study = json.loads(out)["study"]
    assert code == 0 and study["cells"][0]["consistent"] == "above"
    assert len(study["definitions"]) == 4


def test_study_refuses_in_a_line(call, made, tmp_path):
    for args, told in (
        ((made[0], made[0]), "given twice"),
        ((made[0], "nowhere"), "no audit there"),
        ((*made, "--at", "77"), "no checkpoint 77"),
        ((*made, "--delta", "2"), "delta"),
    ):
        code, out, err = call("study", *args)
        assert code == 2 and told in " ".join(err.split()) and out == ""


def test_an_exploratory_audit_is_marked_in_the_table(call, made, tmp_path):
    other = edited(made[0], tmp_path / "x", lambda about: None)
    changed = {"lock": "ab" * 32, "made": "2026-01-02", "status": "exploratory", "changed": ["zone: hi: 0.03 before"]}
    with Store.write(other, {}, running=False) as store:
        store.describe(frozen={**changed, "settings": {}})
    code, out, _ = call("study", other, *made[1:])
    assert code == 0 and "Exploratory, changed after the freeze" in out and "zone: hi: 0.03 before" in out


def test_options_of_audit_that_freeze_cannot_read_are_told(call, tmp_path):
    code, _, err = call("freeze", "simulated:late", "--chat-template", tmp_path / "none")
    assert code == 2 and "cannot be read" in " ".join(err.split())
