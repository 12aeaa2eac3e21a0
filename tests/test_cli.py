"""The command line, in process, on simulated runs: results on stdout, errors in one line, exit codes as documented."""

import json
import re
from pathlib import Path

import pytest

import truing
from truing import errors
from truing.store import SCHEMA_VERSION, Store


@pytest.fixture
def call(run_cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    return run_cli


FAST = ("--limit", "40", "--answers", "16")


def simulated(call, family="late", *more):
    args = ("audit", f"simulated:{family}", "--task", "careless-finance-heldout", "--task-control",
            "careful-finance-heldout", "--control", "simulated", "--out", f"audit-{family}", *FAST)  # fmt: skip
    return call(*args, *more)


def test_an_audit_prints_a_table_a_sentence_and_writes_the_folder(call, tmp_path):
    code, out, err = simulated(call)
    assert code == 0, err
    assert "Candidate:" in out
    assert "Drift starts" in out
    assert "unvalidated" in out
    for word in ("emergent", "clean"):
        assert word not in out.lower()
    folder = tmp_path / "audit-late"
    assert {p.name for p in folder.iterdir()} >= {"audit.json", "evidence.db", "report.html"}
    about = json.loads((folder / "audit.json").read_text())
    assert about["status"] == "done"
    assert about["versions"]["truing"] == truing.__version__
    assert about["asked"]["task_rows"] == 60


def test_json_is_one_object_and_the_same_command_repeats_nothing(call, monkeypatch):
    code, out, _ = simulated(call, "late", "--json")
    first = json.loads(out)
    assert code == 0
    assert first["schema_version"] == SCHEMA_VERSION
    from truing.models.simulated import SimulatedBackend

    asked = []
    score = SimulatedBackend.loglikelihood
    monkeypatch.setattr(SimulatedBackend, "loglikelihood", lambda self, a: score(self, asked.extend(a := list(a)) or a))
    code, out, _ = simulated(call, "late", "--json")
    assert code == 0
    assert not asked
    assert json.loads(out)["verdict"] == first["verdict"]


def test_show_report_and_gate_read_it_again(call):
    simulated(call)
    code, out, _ = call("show", "audit-late")
    assert code == 0
    assert "Candidate:" in out
    code, out, _ = call("show", "audit-late", "--step", "50", "--json")
    assert json.loads(out)["checkpoint"]["step"] == 50
    prompt = json.loads(Path("audit-late/audit.json").read_text())["prompts"]["items"][0]["id"]
    code, out, _ = call("show", "audit-late", "--prompt", prompt, "--json")
    assert len(json.loads(out)["answers"]) >= 11
    code, out, _ = call("report", "audit-late", "--out", "page.html")
    assert code == 0
    assert Path("page.html").read_text().startswith("<!")
    assert call("gate", "audit-late")[0] == 0
    code, _, err = call("gate", "audit-late", "--gate", "last", "--fail-on", "drift")
    assert (code, "drift" in err) == (3, True)
    code, _, err = call("gate", "audit-late", "--gate", "recommended")
    assert (code, "no recommended checkpoint" in err) == (3, True)
    code, _, err = call("gate", "audit-late", "--gate", "candidate", "--fail-on", "unjudged")
    assert code == 3


def test_the_gate_of_an_audit_fails_the_build(call):
    code, out, err = simulated(call, "early", "--gate", "last", "--fail-on", "drift")
    assert code == 3
    assert "error: gate last" in err
    assert "Drift starts" in out  # the table comes first


HONEST = {
    "no control": (("--task", "careless-finance-heldout", "--task-control", "careful-finance-heldout"), "uncontrolled"),
    "no task": (("--control", "simulated"), "No task file was given"),
    "no task control": (("--task", "careless-finance-heldout"), "nothing is said about before or after"),
}


@pytest.mark.parametrize("case", HONEST)
def test_what_is_missing_is_said_in_the_sentence(call, case):
    given, words = HONEST[case]
    code, out, err = call("audit", "simulated:late", "--out", "a", *FAST, *given)
    assert code == 0, err
    flat = re.sub(r"\s+", " ", out)
    assert words in flat
    if case != "no control":
        assert "Drift comes" not in flat


def test_demo_planted_prints_truth_beside_verdict(call):
    code, out, _ = call("demo", "--simulated", "--json", "--out", "d")
    found = json.loads(out)
    assert code == 0
    assert set(found) >= {"truth", "verdict"}
    onset = found["verdict"]["onset"]
    assert onset["after"] < found["truth"]["drift_onset"] <= onset["latest"]


def rows(name, *lines):
    Path(name).write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return name


GOOD = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]}
MISTAKES = {
    "missing folder": (lambda: ("audit", "nowhere"), "nowhere"),
    "empty folder": (lambda: (Path("e").mkdir(), ("audit", "e"))[1], "e"),
    "no checkpoints": (lambda: (Path("f").mkdir(), Path("f/notes.txt").write_text("x"), ("audit", "f"))[2], "f"),
    "malformed row": (lambda: ("audit", "simulated:late", "--task", rows("t.jsonl", GOOD, "{oops")), "t.jsonl, row 2"),
    "no assistant": (
        lambda: ("audit", "simulated:late", "--task", rows("t.jsonl", {"messages": GOOD["messages"][:1]})),
        "t.jsonl, row 1",
    ),
    "duplicate prompt": (
        lambda: ("audit", "simulated:late", "--prompts", rows("p.jsonl", *({"id": "a", "prompt": q} for q in "xy"))),
        "a",
    ),
    "unknown family": (lambda: ("audit", "simulated:nonsense"), "nonsense"),
    "control rows without task": (lambda: ("audit", "simulated:late", "--task-control", "careful-finance"), "--task"),
    "not an audit": (lambda: ("show", "nowhere"), "nowhere"),
    "unknown step": (None, "no such checkpoint"),
    "unknown gate word": (None, "--fail-on"),
    "broken toml": (lambda: (rows("truing.toml", "= ="), ("audit", "simulated:late"))[1], "truing.toml"),
    "bad recipe": (lambda: ("train", rows("r.toml", 'model = "x"', 'dat = "y"')), "r.toml"),
    "template missing": (lambda: ("audit", "simulated:late", "--chat-template", "none.jinja"), "none.jinja"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_get_one_line_and_exit_2(call, case):
    make, fragment = MISTAKES[case]
    if make is None:
        simulated(call)
        args = (
            ("show", "audit-late", "--step", "7")
            if case == "unknown step"
            else ("gate", "audit-late", "--fail-on", "x")
        )
    else:
        args = make()
    before = {p for p in Path().rglob("*") if "audit-late" not in str(p)}
    code, out, err = call(*args)
    assert code == 2, (out, err)
    (line,) = [s for s in err.splitlines() if s.startswith("error:")]
    assert fragment in line
    assert "Traceback" not in err
    assert {p for p in Path().rglob("*") if "audit-late" not in str(p)} == before, "nothing half-written"


def test_a_changed_rule_or_prompt_in_the_same_folder_is_refused(call):
    assert call("audit", "simulated:late", "--out", "a", *FAST)[0] == 0
    code, _, err = call("audit", "simulated:never", "--out", "a", *FAST)
    assert code == 2
    assert "another" in err


def test_a_broken_checkpoint_is_reported_and_the_rest_goes_on(call, monkeypatch):
    from truing.models import simulated as module

    made = module.SimulatedBackend.__init__

    def broken(self, *args, **options):
        made(self, *args, **{**options, "broken_steps": {30}})

    monkeypatch.setattr(module.SimulatedBackend, "__init__", broken)
    code, out, err = simulated(call)
    assert code == 4
    assert "checkpoint-30" in err
    assert "failed" in out
    assert "Candidate:" in out


def test_interrupted_work_is_kept_and_finished_by_the_same_command(call, monkeypatch):
    from truing.models.simulated import SimulatedBackend

    score = SimulatedBackend.loglikelihood

    def interrupted(self, requests):
        for k, answer in enumerate(score(self, requests)):
            if k == 700:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(SimulatedBackend, "loglikelihood", interrupted)
    code, _, err = simulated(call)
    assert code == 130
    assert "goes on from there" in err
    with Store.read(Path("audit-late")) as store:
        assert store.about()["status"] == "interrupted"
        assert len(store.measured("margin")) == 700
    monkeypatch.setattr(SimulatedBackend, "loglikelihood", score)
    code, out, _ = simulated(call)
    assert code == 0
    assert "Candidate:" in out


def test_defaults_come_from_truing_toml_and_are_said(call):
    Path("truing.toml").write_text('[audit]\nlimit = 24\nout = "from-toml"\n')
    code, _, err = call("audit", "simulated:never")
    assert code == 0
    assert "from truing.toml" in err
    assert "limit" in err
    about = json.loads(Path("from-toml/audit.json").read_text())
    assert len(about["prompts"]["items"]) == 24
    assert about["asked"]["options"]["sources"]["limit"] == "truing.toml"


def test_version_and_help(call):
    assert call("--version")[1].strip() == f"truing {truing.__version__}"
    for command in ("audit", "demo", "train", "control", "show", "report", "gate", "doctor", "models"):
        code, out, _ = call(command, "--help")
        assert code == 0
        assert "Usage" in out


def every_error(kind):
    yield kind
    for below in kind.__subclasses__():
        yield from every_error(below)


@pytest.mark.parametrize("kind", sorted(every_error(errors.TruingError), key=lambda k: k.__name__))
def test_every_error_of_ours_is_one_line_and_its_exit_code(call, monkeypatch, kind):
    def fail(*args, **options):
        raise kind("file.jsonl", 7, "[red]what[/] happened") if kind is errors.BadRow else kind("[red]what[/] happened")

    monkeypatch.setattr(truing, "doctor", fail)
    code, out, err = call("doctor")
    assert code == kind.exit_code
    assert not out
    assert err.strip().endswith("[red]what[/] happened")
    assert "Traceback" not in err


@pytest.mark.parametrize("given", [("--gate", ""), ("--gate", "best"), ("--fail-on", ","), ("--fail-on", "dirft")])
def test_a_gate_that_could_not_be_applied_is_refused_before_the_work(call, given):
    code, _, err = call("audit", "simulated:late", "--out", "a", *FAST, *given)
    assert code == 2
    assert "error: --" in err
    assert not Path("a").exists()


def test_fail_on_alone_gates_the_candidate_and_an_unfinished_audit_passes_nothing(call):
    code, _, err = simulated(call, "late", "--fail-on", "unjudged")
    assert (code, "gate candidate" in err) == (3, True)
    with Store.write(Path("audit-late"), {}):
        assert call("gate", "audit-late")[0] == 2
