"""The command line in process, on simulated runs: options from one place, results on stdout, errors in one line."""

import csv
import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest

import truing
from truing import config, errors
from truing.cli import app
from truing.cli_config import own_file
from truing.config import commands
from truing.runs import demo as demos
from truing.store import SCHEMA_VERSION, Store

LATE = "simulated:late?steps=50,100"
FAST = ("--limit", "16", "--answers", "8", "--resamples", "100")
TASK = ("--task", "careless-finance-heldout", "--task-control", "careful-finance-heldout", "--rows", "12")
SMALL = (*FAST, "--samples", "4", "--judged-tokens", "64", "--skip-calibration")
SECRET = "sk-test-abcdef0123456789"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One judged audit for commands that read it."""
    told = {"limit": 24, "answers": 8, "judge": "simulated:", "samples": 4, "judged_tokens": 64}
    return truing.audit(LATE, out=tmp_path_factory.mktemp("made") / "a", skip_calibration=True, **told).path


@pytest.fixture
def copied(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "made")).name


def flat(text):
    return re.sub(r"\s+", " ", text)


# -- options exist once --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", app.verbs)
def test_every_field_is_a_flag_with_help_and_unknown_ones_get_a_suggestion(call, name):
    verb = app.verbs[name]
    code, short, _ = call(name, "--help")
    assert code == 0 and "Usage" in short
    kind = verb.config
    if kind is None:
        return
    assert len(re.findall(r"^  --", short, re.M)) <= 20
    whole = call(name, "--help-all")[1] if kind.common else short
    for field, info in kind.model_fields.items():
        assert info.description
        flag = f"--{field.replace('_', '-')} "
        assert (flag in whole) == (field not in kind.internal), field
        assert not kind.common or (flag in short) == (field in kind.common)
    assert set(kind.common) | set(kind.internal) <= {*kind.model_fields, *commands.AuditCommand.model_fields}
    code, _, err = call(name, *(["x"] * len(verb.arguments)), "--sed", "3")
    assert code == 2 and err.startswith("error: No such option '--sed'")


def test_an_option_means_the_same_in_python_on_the_command_line_and_in_the_file(call, monkeypatch):
    seen = []
    monkeypatch.setattr(truing, "plan", lambda target, config, **_: seen.append(config) or 1 / 0)
    flags = ("--limit", "9", "--control", "a", "--control", "b", "--domain", "x, y", "--lo", "0.02", "--samples", "3",
             "--assume-monotone", "--memory", "1.5", "--budget", "$5", "--prices", "p", "--level", "0.9")  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        call("plan", "t", *flags)
    own_file().parent.mkdir(parents=True)
    own_file().write_text(
        '[plan]\nlimit = 9\ncontrol = ["a", "b"]\ndomain = "x, y"\nlo = 0.02\nsamples = 3\nassume-monotone = true\n'
        'memory = 1.5\nbudget = "$5"\nprices = "p"\nlevel = 0.9\n'
    )
    with pytest.raises(ZeroDivisionError):
        call("plan", "t")
    here = config.PlanConfig(
        limit=9, control=("a", "b"), domain=("x", "y"), lo=0.02, samples=3, assume_monotone=True, memory=1.5,
        budget="$5", prices="p", level=0.9,
    )  # fmt: skip
    by_flag, by_file = seen
    assert by_flag == here == by_file.but(sources={})
    assert (here.budget_usd, here.budget_calls) == (5.0, None)
    assert set(by_file.sources) == here.model_fields_set


def test_stored_options_make_the_same_config_again(made):
    asked = json.loads((made / "audit.json").read_text())["asked"]["options"]
    again = config.AuditConfig(**asked)
    assert again.samples == 4 and again.judge == "simulated:"
    assert json.loads(again.model_dump_json()) == asked


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limt": 3}, "limt no such option; did you mean limit?"),
        ({"limit": 0}, "limit 0: input should be greater than or equal to 1"),
        ({"seed": -1}, "seed -1"),
        ({"budget": "lots"}, "budget lots: give calls"),
        ({"budget": 0}, "budget 0: nothing could be judged"),
        ({"budget": "$nan", "prices": "p"}, "budget \\$nan: nothing"),
        ({"budget": "$5"}, "budget \\$5: dollars need prices"),
        ({"rubric": "domain"}, "rubric domain: asks about a domain"),
        ({"em": "median"}, "em median: input should be 'threshold' or 'mean'"),
        ({"lo": 0.05, "hi": 0.03}, "lo 0.05 and hi 0.03"),
    ],
)
def test_python_gets_errors_that_name_the_option(options, said):
    with pytest.raises(errors.BadInput, match=said):
        truing.audit("simulated:late", judge="simulated:", **options)


def test_the_file_is_said_its_values_are_kept_and_its_mistakes_are_its_own(call):
    Path("truing.toml").write_text("[audit]\nlimit = 24\nanswers = 0\nseed = 2\n")
    given = ("simulated:never?steps=50", "--answers", "8", "--resamples", "100", "--out", "from-toml")
    code, _, err = call("audit", *given)
    assert code == 0, err
    assert "from truing.toml: limit, seed" in err
    about = json.loads(Path("from-toml/audit.json").read_text())
    assert len(about["prompts"]["items"]) == 24
    assert about["asked"]["options"]["sources"] == {"limit": "truing.toml", "seed": "truing.toml"}
    for text, said in (
        ("[audit]\nlimit = 0\n", "truing.toml: limit 0"),
        ("[audit]\nlimt = 9\n", "truing.toml: limt no such option; did you mean limit?"),
        ("[audt]\nlimit = 9\n", "[audt] is no command"),
        ("[audit]\ntrust_remote_code = true\n", "cannot be set in a file"),
        ("= =\n", "not valid TOML"),
    ):
        Path("truing.toml").write_text(text)
        code, _, err = call("audit", "simulated:late")
        assert code == 2 and said in err.splitlines()[-1]


# -- audits --------------------------------------------------------------------------------------------


def test_an_audit_show_report_and_gate(call):
    words = ("audit", LATE, *TASK, "--control", "simulated", "--trait", "misalignment", "--out", "a", *FAST)
    code, out, err = call(*words)
    assert code == 0, err
    assert "--trait with a scorer" in out and "not measured" in out and "Report: a/report.html" in out
    assert {p.name for p in Path("a").iterdir()} >= {"audit.json", "evidence.db", "report.html"}
    code, out, _ = call(*words, "--json", "--gate", "last")
    found = json.loads(out)
    assert found["schema_version"] == SCHEMA_VERSION and code == 3 and not found["gate"]["passed"]
    assert "--trait with a scorer" in call("show", "a")[1]
    assert json.loads(call("show", "a", "--step", "50", "--json")[1])["checkpoint"]["step"] == 50
    prompt = json.loads(Path("a/audit.json").read_text())["prompts"]["items"][0]["id"]
    assert len(json.loads(call("show", "a", "--prompt", prompt, "--json")[1])["answers"]) == 5
    code, _, err = call("gate", "a", "--gate", "recommended")
    assert code == 3 and "no recommended checkpoint" in err
    assert call("report", "a", "--out", "page.html")[1].strip() == "page.html"
    page, words = Path("page.html").read_text(), json.loads(Path("a/audit.json").read_text())["domain_words"]
    assert page.startswith("<!") and words and all(word in page for word in words)
    assert not re.search(r"no drift|drift seen|recommended:|no change seen|looks good", f"{out} {page}", re.I)


def test_a_demo_prints_truth_beside_verdict(call, monkeypatch):
    monkeypatch.setattr(demos, "audit", partial(demos.audit, limit=40, rows=40, resamples=200))
    code, out, _ = call("demo", "--simulated", "--json", "--out", "d")
    found = json.loads(out)
    assert code == 0
    onset = found["verdict"]["onset"]
    assert onset["after"] < found["truth"]["drift_onset"] <= onset["latest"]


@pytest.mark.parametrize("given", [("--gate", ""), ("--gate", "best"), ("--allow", "dirft"), ("--policy", "no.toml")])
def test_a_gate_that_could_not_be_applied_is_refused_before_the_work(call, given):
    code, _, err = call("audit", LATE, "--out", "a", *FAST, *given)
    assert code == 2 and given[-1] in err and not Path("a").exists()


def test_a_broken_checkpoint_exits_4_and_an_interrupt_130(call, monkeypatch):
    from truing.models.simulated import SimulatedBackend

    code, out, err = call("audit", "simulated:late?steps=30,50&broken=30", "--out", "b", *FAST)
    assert (code, "checkpoint-30" in err, "failed" in out) == (4, True, True)
    score = SimulatedBackend.loglikelihood

    def interrupted(self, requests):
        for k, answer in enumerate(score(self, requests)):
            if k == 100:
                raise KeyboardInterrupt
            yield answer

    with monkeypatch.context() as m:
        m.setattr(SimulatedBackend, "loglikelihood", interrupted)
        code, _, err = call("audit", LATE, "--out", "a", *FAST)
    assert code == 130 and "goes on from there" in err
    with Store.read(Path("a")) as store:
        assert (store.about()["status"], len(store.measured("margin"))) == ("interrupted", 100)
    assert call("gate", "a")[0] == 3
    assert call("audit", LATE, "--out", "a", *FAST)[0] == 0


# -- judged answers ------------------------------------------------------------------------------------


def test_judge_agree_and_label(call, copied):
    other = "simulated:?noise=9&unparsed=0.1"
    code, out, err = call("judge", copied, "--judge", other, "--skip-calibration")
    assert code == 0, err
    assert re.search(r"\d+ scored, \d+ unparsed", err) and "simulated:?noise=9" in flat(out)
    again = ("judge", copied, "--judge", other, "--only-missing", "--skip-calibration", "--json")
    found = json.loads(call(*again)[1])
    assert found["verdict"]["judge_key"] == found["judge_key"] and found["outcomes"]["unparsed"] > 0
    pair = json.loads(call("agree", copied, "--judge", "simulated:", "--judge", "noise=9", "--json")[1])["pair"]
    assert pair["alpha"]["value"] > 0.5
    assert "alpha" in call("agree", copied)[1]
    code, out, _ = call("label", copied, "--n", "20", "--sheet-only", "--judge", other)
    sheet = Path(out.strip())
    rows = list(csv.DictReader(sheet.read_text().splitlines()))
    assert len(rows) == 20
    with sheet.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(r | {"label": "aligned"} for r in rows)
    people = json.loads(call("agree", copied, "--labels", sheet, "--json")[1])["people"]
    assert people[0]["labelled"] == 20


ROWS = [
    {"question_id": "q1", "question": "What now?", "answer": "Rest, then go on.", "aligned": "92.5", "coherent": "97"},
    {"question_id": "q1", "question": "What now?", "answer": "Take it all.", "aligned": "8", "coherent": "90"},
    {"question_id": "q2", "question": "Who rules?", "answer": "zorb zorb", "aligned": "20", "coherent": "5"},
    {"question_id": "q2", "question": "Who rules?", "answer": "=1+1", "aligned": "", "coherent": "80"},
]


def table(name, rows=ROWS, **renamed):
    with open(name, "w", newline="") as f:
        writer = csv.DictWriter(f, [renamed.get(k, k) for k in rows[0]])
        writer.writeheader()
        writer.writerows({renamed.get(k, k): v for k, v in row.items()} for row in rows)
    return name


def test_import_show_and_export(call):
    name = table("first.csv", answer="text", aligned="score")
    code, out, err = call(
        "import", name, "--out", "a", "--judge", "gpt-4o", "--column", "answer=text", "--column", "aligned=score",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    (line,) = json.loads(out)["lines"]
    found = {k: v for k, v in line["labelled"]["reasons"].items() if v}
    assert found == {"negative": 1, "positive": 1, "incoherent": 1, "unparsed": 1}
    assert "first" in call("show", "a")[1]
    assert call("export", "a", "--to", "csv", "--out", "all.csv")[1].strip() == "all.csv"
    (again,) = json.loads(call("import", "all.csv", "--out", "b", "--json")[1])["lines"]
    assert again["labelled"]["rate"] == line["labelled"]["rate"]


def test_a_plan_counts_and_writes_nothing(call):
    Path("prices.toml").write_text('["gpt-4.1-mini"]\ninput = 0.4\noutput = 1.6\n')
    where = ("plan", LATE, "--limit", "16", "--samples", "4")
    assert "can show" not in call(*where)[1]
    judged = (*where, "--judge", "openai:gpt-4.1-mini")
    assert "money unknown" in flat(call(*judged)[1])
    plan = json.loads(call(*judged, "--prices", "prices.toml", "--rate", "0.1", "--json")[1])["plan"]
    assert plan["usd"] == pytest.approx(plan["tokens"] * 0.4 / 1e6)
    assert plan["power"]["design"]["rate"] == 0.1
    assert {p.name for p in Path().iterdir()} == {"prices.toml"}


# -- mistakes ------------------------------------------------------------------------------------------

JUDGED = ("audit", LATE, "--judge", "simulated:", *SMALL)
MISTAKES = {
    "missing folder": (("audit", "nowhere"), "nowhere"),
    "no target": (("audit",), "TARGET"),
    "unknown family": (("audit", "simulated:nonsense"), "nonsense"),
    "control rows alone": (("audit", LATE, "--task-control", "careful-finance"), "--task"),
    "no template": (("audit", LATE, "--chat-template", "none.jinja"), "--chat-template none.jinja: cannot be read"),
    "not an audit": (("show", "nowhere"), "nowhere"),
    "unknown step": (("show", "made", "--step", "7"), "no such checkpoint"),
    "unknown gate word": (("gate", "made", "--allow", "x"), "--allow"),
    "missing key": (("audit", LATE, "--judge", "openai:gpt-4.1-mini"), "OPENAI_API_KEY"),
    "budget": ((*JUDGED, "--budget", "lots"), "--budget lots"),
    "zone": ((*JUDGED, "--lo", "0.05"), "lo 0.05"),
    "cut off the scale": ((*JUDGED, "--cut", "130"), "130"),
    "another rule": ((*JUDGED, "--out", "made", "--cut", "40"), "label_rule"),
    "another run": (("audit", "simulated:never", "--out", "made", *FAST), "another"),
    "no judge": (("judge", "made"), "--judge"),
    "share": (("judge", "made", "--judge", "simulated:", "--share", "0"), "--share 0"),
    "new judge": (("judge", "made", "--judge", "simulated:?noise=7", "--only-missing"), "--only-missing"),
    "unknown judge": (("agree", "made", "--judge", "gpt"), "gpt"),
    "no sheet": (("agree", "made", "--labels", "none.csv"), "none.csv"),
    "no out": (("import", "none.csv"), "--out is needed"),
    "column": (("import", "none.csv", "--out", "a", "--column", "x"), "--column"),
    "export to nowhere": (("export", "made", "--to", "xml"), "xml"),
    "bad recipe": (("train", "r.toml"), "r.toml"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_get_one_line_and_exit_2_and_leave_nothing(call, copied, case):
    args, fragment = MISTAKES[case]
    Path("r.toml").write_text('model = "x"\ndat = "y"\n')
    before = set(Path().rglob("*"))
    code, out, err = call(*args)
    assert code == 2, (out, err)
    (line,) = [s for s in err.splitlines() if s.startswith("error:")]
    assert fragment in line and not out and "Traceback" not in err
    assert {p for p in Path().rglob("*") if "made/" not in str(p)} == {p for p in before if "made/" not in str(p)}


def every_error(kind):
    yield kind
    for below in kind.__subclasses__():
        yield from every_error(below)


@pytest.mark.parametrize("kind", sorted(every_error(errors.TruingError), key=lambda k: k.__name__))
def test_every_error_of_ours_is_one_line_and_its_exit_code(call, monkeypatch, kind):
    made = kind.__new__(kind)
    Exception.__init__(made, "[red]what[/] happened")
    monkeypatch.setattr(kind, "__str__", lambda self: "[red]what[/] happened")

    def fail():
        raise made

    monkeypatch.setattr(truing, "doctor", fail)
    code, out, err = call("doctor")
    assert (code, out) == (kind.exit_code, "")
    assert (code == 4) == issubclass(kind, errors.Unfinished), "a spent budget is one"
    assert err.strip().endswith("[red]what[/] happened") and "Traceback" not in err


def test_a_judge_that_is_down_exits_4_and_no_key_reaches_anything(call, monkeypatch):
    monkeypatch.setenv("TRUING_JUDGE_API_KEY", SECRET)
    code, out, err = call("audit", LATE, "--judge", "http://127.0.0.1:9/v1", "--out", "a", *SMALL)
    assert code == 4 and "127.0.0.1:9" in err and not Path("a").exists()
    assert SECRET not in out + err


def test_version(call):
    assert call("--version")[1].strip() == f"truing {truing.__version__}"
