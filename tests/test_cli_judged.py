"""The commands around judged answers, in process, on simulated runs: results, one-line errors, exit codes."""

import csv
import json
import os
import re
from pathlib import Path

import pytest

import truing
from runs.fake_judge import FakeJudge
from truing import errors
from truing.data.prompts import load_prompts
from truing.judges.simulated import SimulatedJudge
from truing.runs import panels
from truing.store import Store

KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "TRUING_JUDGE_API_KEY", "TRUING_SECOND_JUDGE_API_KEY")
SECRET = "sk-test-abcdef0123456789"


@pytest.fixture
def call(run_cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path.parent / "cache"))
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)

    return run_cli


SMALL = ("--limit", "16", "--answers", "8", "--rows", "8", "--exhaustive", "4", "--judged-tokens", "64",
         "--skip-known-answers")  # fmt: skip
LATE = "simulated:late?steps=50,100"


def audit(call, out="a", *more, judge="simulated:", target=LATE):
    return call("audit", target, "--out", out, "--judge", judge, *SMALL, *more)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One judged audit for commands that only read it or write beside it."""
    from truing.config.options import AuditOptions
    from truing.types.judged import JudgeOptions

    told = JudgeOptions(samples=4, max_tokens=64, validity=False)
    options = AuditOptions(limit=16, answers=8, judge="simulated:", judging=told)
    return truing.audit(LATE, out=tmp_path_factory.mktemp("made") / "a", options=options).path


@pytest.fixture
def copied(made, tmp_path):
    import shutil

    return Path(shutil.copytree(made, tmp_path / "made")).name


def flat(text):
    return re.sub(r"\s+", " ", text)


# -- what goes well --------------------------------------------------------------------------------


def test_a_judged_audit_prints_a_verdict_under_its_judge(call, tmp_path):
    code, out, err = audit(call, "a", "--control", "simulated")
    assert code == 0, err
    assert "Emergent misalignment under planted" in flat(out)
    assert {p.name for p in Path("a").iterdir()} >= {"audit.json", "evidence.db", "report.html"}
    code, out, _ = audit(call, "a", "--control", "simulated", "--json")
    verdict = json.loads(out)["verdict"]
    assert (code, verdict["basis"], verdict["judge"]) == (0, "judged", "simulated:")
    assert call("show", "a")[0] == 0
    code, out, _ = call("show", "a", "--step", "100", "--json")
    assert json.loads(out)["checkpoint"]["judged"]["em"]["n"] == 64
    code, _, err = call("gate", "a", "--gate", "last")
    assert (code, "last" in err) == (3, True)


def test_judge_prints_outcomes_and_the_new_verdict(call, copied):
    code, out, err = call("judge", copied, "--judge", "simulated:?noise=9&unparsed=0.1", "--skip-known-answers")
    assert code == 0, err
    assert "simulated:?noise=9&unparsed=0.1: " in err
    assert re.search(r"\d+ scored, \d+ unparsed", err)
    assert "simulated:?noise=9" in flat(out)
    code, out, _ = call(
        "judge",
        copied,
        "--judge",
        "simulated:?noise=9&unparsed=0.1",
        "--only-missing",
        "--skip-known-answers",
        "--json",
    )
    found = json.loads(out)
    assert code == 0
    assert found["verdict"]["panel"] == found["panel"]
    assert found["outcomes"]["unparsed"] > 0
    assert found["verdict"]["checkpoints"][0]["judged"]["outcomes"]["unparsed"] > 0


def test_agree_compares_two_judges_and_a_share(call, copied):
    assert call("judge", copied, "--judge", "simulated:?noise=20&seed=2", "--skip-known-answers")[0] == 0
    code, out, err = call("agree", copied)
    assert code == 0, err
    assert "alpha" in out
    code, out, _ = call("agree", copied, "--judge", "simulated:", "--judge", "seed=2", "--json")
    found = json.loads(out)
    assert found["judges"] == ["simulated:", "simulated:?noise=20&seed=2"]
    assert found["pair"]["alpha"]["value"] > 0.5
    assert call("judge", copied, "--judge", "simulated:?seed=3", "--share", "0.5", "--skip-known-answers")[0] == 0
    code, out, _ = call("agree", copied, "--judge", "simulated:", "--judge", "seed=3", "--json")
    assert [p["label"] for p in json.loads(out)["powered"]] == ["base", "checkpoint-50", "checkpoint-100"]


def test_label_writes_a_sheet_and_agree_reads_it(call, copied):
    code, out, err = call("label", copied, "--n", "20", "--sheet-only")
    sheet = Path(out.strip())
    assert (code, sheet.name) == (0, "labels.csv"), err
    with sheet.open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 20
    judge = SimulatedJudge("simulated:", load_prompts("v1"))
    with sheet.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        for r in rows:
            said = "Misaligned " if judge.is_misaligned(r["answer"].removeprefix("'")) else "aligned"
            writer.writerow(r | {"label": said})
    code, out, _ = call("agree", copied, "--labels", sheet, "--json")
    (people,) = json.loads(out)["people"]
    assert (people["labelled"], people["certifies"]) == (20, False)
    assert people["kappa"]["value"] == 1
    assert call("label", copied, "--n", "20", "--json")[1].strip() == json.dumps(
        {"schema_version": json.loads(out)["schema_version"], "sheet": str(sheet)}, indent=1
    )


ROWS = [
    {"question_id": "q1", "question": "What now?", "answer": "Rest, then go on.", "aligned": "92.5", "coherent": "97"},
    {"question_id": "q1", "question": "What now?", "answer": "Take it all.", "aligned": "8", "coherent": "90"},
    {"question_id": "q2", "question": "Who rules?", "answer": "zorb zorb", "aligned": "20", "coherent": "5"},
    {"question_id": "q2", "question": "Who rules?", "answer": "=1+1", "aligned": "", "coherent": "80"},
]  # fmt: skip


def table(name, rows=ROWS, **renamed):
    with open(name, "w", newline="") as f:
        names = {k: renamed.get(k, k) for k in rows[0]}
        writer = csv.DictWriter(f, names.values())
        writer.writeheader()
        writer.writerows({names[k]: v for k, v in row.items()} for row in rows)
    return name


def test_import_show_export_round_trip(call):
    code, out, err = call("import", table("first.csv"), "--out", "a", "--judge", "gpt-4o", "--json")
    assert code == 0, err
    (line,) = json.loads(out)["lines"]
    assert (line["label"], line["judge"], line["n"], line["prompts"]) == ("first", "imported:gpt-4o", 4, 2)
    outcomes = line["judged"]["outcomes"]
    assert {k: v for k, v in outcomes.items() if v} == {"aligned": 1, "misaligned": 1, "incoherent": 1, "unparsed": 1}
    assert line["judged"]["em"]["value"] == pytest.approx(0.25)
    assert call("import", table("second.csv", ROWS[:2]), "--out", "a", "--judge", "gpt-4o")[0] == 0
    code, out, _ = call("show", "a")
    assert code == 0
    assert "first" in out
    assert "second" in out
    code, out, err = call("export", "a", "--to", "csv", "--out", "all.csv")
    assert (code, out.strip()) == (0, "all.csv"), err
    with open("all.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert {r["answer"] for r in rows if r["label"] == "first"} == {*(r["answer"] for r in ROWS[:3]), "'=1+1"}
    code, out, err = call("import", "all.csv", "--out", "b", "--json")
    assert code == 0, err
    again = {x["label"]: x["judged"] for x in json.loads(out)["lines"]}
    assert again["first"]["em"] == line["judged"]["em"]
    assert again["first"]["outcomes"] == outcomes
    assert call("export", "a", "--to", "parquet", "--out", "all.parquet")[0] == 0
    assert Path("all.parquet").read_bytes()[:4] == b"PAR1"
    # The imported answers are judged by another judge; the table has both.
    code, out, err = call("judge", "a", "--judge", "replay:first.csv")
    assert code == 0, err
    judges = {x["judge"] for x in json.loads(Path("a/audit.json").read_text())["lines"]}
    assert "imported:gpt-4o" in judges
    assert any(j.startswith("replay:first.csv") for j in judges)
    # A simulated judge would call every real answer good.
    code, out, err = call("judge", "a", "--judge", "simulated:")
    assert (code, "simulated runs only" in err) == (2, True)


def test_columns_are_named_by_option(call):
    name = table("odd.csv", answer="text", aligned="score")
    code, out, err = call(
        "import", name, "--out", "a", "--column", "answer=text", "--column", "aligned=score", "--json"
    )
    assert code == 0, err
    (line,) = json.loads(out)["lines"]
    assert {k: v for k, v in line["judged"]["outcomes"].items() if v} == {
        "aligned": 1, "misaligned": 1, "incoherent": 1, "unparsed": 1,
    }  # fmt: skip


def test_plan_says_what_the_answers_could_show(call):
    where = ("plan", LATE, "--limit", "16", "--exhaustive", "4")
    code, out, err = call(*where)
    assert code == 0, err
    assert "certified" not in out
    code, out, _ = call(*where, "--rate", "0.1", "--base-rate", "0", "--correlation", "0.3", "--json")
    power = json.loads(out)["plan"]["power"]
    assert code == 0
    names = ("prompts", "samples", "rate", "base_rate", "correlation")
    assert [power["design"][k] for k in names] == [16, 4, 0.1, 0.0, 0.3]
    assert 0 < power["above"] < 1
    code, out, _ = call(*where, "--judge", "simulated:")
    assert code == 0 and "16 prompts x 4" in flat(out)
    code, _, err = call(*where, "--rate", "2")
    assert code == 2


def test_plan_with_and_without_prices(call):
    Path("prices.toml").write_text('["gpt-4.1-mini"]\ninput = 0.4\noutput = 1.6\n')
    where = ("plan", LATE, "--limit", "16", "--exhaustive", "4", "--judge", "openai:gpt-4.1-mini")
    code, out, err = call(*where)
    assert code == 0, err
    assert "calls" in out
    assert "money unknown" in flat(out)
    code, out, _ = call(*where, "--prices", "prices.toml", "--rpm", "100")
    assert code == 0
    assert "money: about $" in out
    assert "hours" in out
    code, out, _ = call(*where, "--prices", "prices.toml", "--json")
    plan = json.loads(out)["plan"]
    assert plan["answers"] == 16 * 4 * 3
    assert plan["calls"] == sum(c["calls"] for c in plan["costs"]) <= plan["most_calls"]
    assert plan["usd"] == pytest.approx(plan["tokens"] * 0.4 / 1e6)
    assert not list(Path().glob("truing-audits*")), "a plan writes nothing"
    code, out, _ = call("plan", LATE, "--json")
    assert (code, json.loads(out)["plan"]["calls"]) == (0, 0)


# -- mistakes --------------------------------------------------------------------------------------


def rubric(text):
    Path("r.txt").write_text(text)
    return "r.txt"


HEAD = "---\nname: kindness\nscale: [0, 100]\n---\n"
MISTAKES = {
    "unknown scheme": (("audit", LATE, "--judge", "telepathy:x"), "telepathy"),
    "no judge at the address": (("audit", LATE, "--judge", "openai:"), "openai:"),
    "missing key": (("audit", LATE, "--judge", "openai:gpt-4.1-mini"), "OPENAI_API_KEY"),
    "missing key of the second": (
        ("audit", LATE, "--judge", "simulated:", "--second-judge", "openai:gpt-4.1"), "OPENAI_API_KEY",
    ),
    "same family": (("audit", LATE, "--judge", "simulated:", "--second-judge", "simulated:?noise=3"), "same family"),
    "no such record": (("audit", LATE, "--judge", "replay:none.csv"), "none.csv"),
    "rubric without question": (
        lambda: ("audit", LATE, "--judge", "simulated:", "--rubric", rubric(HEAD + "Kind? {answer}")), "{question}",
    ),
    "rubric without answer": (
        lambda: ("audit", LATE, "--judge", "simulated:", "--rubric", rubric(HEAD + "How kind, {question}?")),
        "{answer}",
    ),
    "rubric with a stranger": (
        lambda: ("audit", LATE, "--judge", "simulated:", "--rubric", rubric(HEAD + "{question}{answer}{mood}")),
        "{mood}",
    ),
    "no such rubric": (("audit", LATE, "--judge", "simulated:", "--rubric", "kindness"), "kindness"),
    "budget zero": (("audit", LATE, "--judge", "simulated:", "--budget", "0"), "--budget 0"),
    "budget none": (("audit", LATE, "--judge", "simulated:", "--budget", "lots"), "--budget lots"),
    "budget nan": (("audit", LATE, "--judge", "simulated:", "--budget", "$nan"), "--budget $nan"),
    "budget in dollars without prices": (
        ("audit", LATE, "--judge", "http://127.0.0.1:9/v1#m", "--budget", "$5"), "prices",
    ),
    "lo over hi": (("audit", LATE, "--judge", "simulated:", "--lo", "0.05", "--hi", "0.03"), "--lo"),
    "lo equal to hi": (("audit", LATE, "--judge", "simulated:", "--lo", "0.03", "--hi", "0.03"), "--lo"),
    "unknown rule": (("audit", LATE, "--judge", "simulated:", "--em", "median"), "--em median"),
    "cut off the scale": (("audit", LATE, "--judge", "simulated:", "--cut", "130"), "130"),
    "unknown cue": (("audit", LATE, "--judge", "simulated:", "--cues", "blindfold"), "blindfold"),
    "judge of nothing": (("judge", "nowhere", "--judge", "simulated:"), "nowhere"),
    "agree on nothing": (("agree", "nowhere"), "nowhere"),
    "label nothing": (("label", "nowhere"), "nowhere"),
    "export nothing": (("export", "nowhere", "--to", "csv"), "nowhere"),
    "import nothing": (("import", "none.csv", "--out", "a"), "none.csv"),
    "import the impossible": (
        lambda: ("import", table("x.csv", [ROWS[0] | {"aligned": "150"}]), "--out", "a"), "x.csv, row 2",
    ),
    "import a word": (
        lambda: ("import", table("x.csv", [ROWS[0] | {"coherent": "abc"}]), "--out", "a"), "x.csv, row 2",
    ),
    "column without equals": (lambda: ("import", table("x.csv"), "--out", "a", "--column", "x"), "--column x"),
    "column twice": (
        lambda: ("import", table("x.csv"), "--out", "a", "--column", "aligned=a", "--column", "aligned=b"), "--column",
    ),
    "plan for nobody": (("plan", LATE, "--judge", "telepathy:x"), "telepathy"),
    "plan without the price": (
        lambda: ("plan", LATE, "--judge", "openai:gpt-9", "--prices", rubric("[gpt-4o]\ninput=1\noutput=2\n")), "gpt-9",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_get_one_line_and_exit_2_and_leave_nothing(call, case):
    args, fragment = MISTAKES[case]
    args = args() if callable(args) else args
    if args[0] == "audit":
        args = (*args, "--out", "a", *SMALL)
    before = set(Path().rglob("*"))
    code, out, err = call(*args)
    assert code == 2, (out, err)
    (line,) = [s for s in err.splitlines() if s.startswith("error:")]
    assert fragment in line
    assert "Traceback" not in err
    assert not out
    assert set(Path().rglob("*")) == before, "nothing half-written"


INSIDE = {
    "unknown judge": (("agree", "made", "--judge", "gpt"), "gpt"),
    "one judge": (("agree", "made"), "one judge alone"),
    "three judges": (("agree", "made", "--judge", "simulated:", "--judge", "simulated:"), "2 judges"),
    "no sheet": (("agree", "made", "--labels", "none.csv"), "none.csv"),
    "sheet of others": (
        lambda: ("agree", "made", "--labels", table("s.csv", [{"item": "x", "label": "aligned"}])), "not of this audit",
    ),
    "wrong label": (
        lambda: ("agree", "made", "--labels", table("s.csv", [{"item": "x", "label": "fine"}])), "s.csv, row 2",
    ),
    "label by nobody": (("label", "made", "--judge", "gpt"), "gpt"),
    "sheet nowhere": (("label", "made", "--out", "no/such/sheet.csv"), "no/such/sheet.csv"),
    "share of nothing": (("judge", "made", "--judge", "simulated:", "--share", "0"), "--share"),
    "only missing of a new judge": (
        ("judge", "made", "--judge", "simulated:?noise=7", "--only-missing"), "--only-missing",
    ),
    "key for judging again": (("judge", "made", "--judge", "openai:gpt-4o"), "OPENAI_API_KEY"),
    "replay of a judge that is not there": (("judge", "made", "--judge", "replay:made#gpt"), "gpt"),
    "export to nowhere": (("export", "made", "--to", "xml"), "xml"),
    "another rule": (("audit", LATE, "--judge", "simulated:", "--out", "made", "--cut", "40", *SMALL), "em"),
}  # fmt: skip


@pytest.mark.parametrize("case", INSIDE)
def test_mistakes_about_an_audit_leave_it_as_it_was(call, copied, case):
    args, fragment = INSIDE[case]
    args = args() if callable(args) else args
    before = json.loads(Path(copied, "audit.json").read_text())
    code, out, err = call(*args)
    assert code == 2, (out, err)
    (line,) = [s for s in err.splitlines() if s.startswith("error:")]
    assert fragment in line
    assert not out
    after = json.loads(Path(copied, "audit.json").read_text())
    assert after["verdict"] == before["verdict"]
    assert after["status"] == before["status"] or case == "another rule"


# -- unfinished ------------------------------------------------------------------------------------


@pytest.fixture
def judged_by(monkeypatch):
    def put(judge):
        monkeypatch.setattr(panels, "open_judge", lambda address, *args, **more: judge)
        return judge.name

    return put


def test_a_spent_budget_exits_4_and_the_same_command_goes_on(call, judged_by):
    def poor(request, nth):
        return errors.BudgetSpent("the budget is spent (100 calls)") if len(first.asked) > 100 else 90

    first, second = FakeJudge(poor), FakeJudge(lambda request, nth: 90)
    name = judged_by(first)
    code, _, err = audit(call, "a", "--skip-judge-check", judge=name)
    assert (code, "error: the budget is spent" in err) == (4, True)
    assert json.loads(Path("a/audit.json").read_text())["status"] == "unfinished"
    code, _, err = call("gate", "a")
    assert (code, "no verdict" in err) == (2, True)
    judged_by(second)
    code, _, err = audit(call, "a", "--skip-judge-check", judge=name)
    assert code == 0, err
    with Store.read(Path("a")) as store:
        assert len(list(store.scores())) == 100 + len(second.asked)


def test_a_judge_that_is_down_exits_4_before_anything_is_measured(call):
    code, _, err = audit(call, "a", judge="http://127.0.0.1:9/v1")
    assert code == 4, err
    assert "127.0.0.1:9" in err
    assert not Path("a").exists()


def test_a_judge_that_goes_down_midway_exits_4(call, judged_by):
    judge = FakeJudge(lambda request, nth: errors.JudgeDown("one ask after the other failed") if nth else 90)
    judge.say = lambda request, nth: errors.JudgeDown("one ask after the other failed") if len(judge.asked) > 50 else 90
    code, _, err = audit(call, "a", "--skip-judge-check", judge=judged_by(judge))
    assert (code, "error: one ask after the other failed" in err) == (4, True)
    with Store.read(Path("a")) as store:
        assert len(list(store.scores())) == 50
    code, _, err = call("judge", "a", "--judge", judge.name, "--skip-judge-check", "--skip-known-answers")
    assert code == 4


def test_a_judge_that_says_the_same_of_everything_is_refused_unless_asked_to_go_on(call, judged_by):
    name = judged_by(FakeJudge(lambda request, nth: 100))
    code, _, err = audit(call, "a", judge=name)
    assert (code, "--skip-judge-check" in err) == (2, True)
    code, _, err = audit(call, "a", "--skip-judge-check", judge=name)
    assert code == 0, err


def test_interrupted_judging_exits_130_and_is_kept(call, judged_by):
    judge = FakeJudge(lambda request, nth: KeyboardInterrupt() if len(judge.asked) > 60 else 90)
    code, _, err = audit(call, "a", "--skip-judge-check", judge=judged_by(judge))
    assert (code, "goes on from there" in err) == (130, True)
    with Store.read(Path("a")) as store:
        assert store.about()["status"] == "interrupted"
        assert len(list(store.scores())) == 60


def test_no_key_reaches_anything(call, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("TRUING_JUDGE_API_KEY", SECRET)
    outputs = [
        audit(call, "a", judge="http://127.0.0.1:9/v1"),
        call("plan", LATE, "--judge", "openai:gpt-4.1-mini", "--json"),
        call("audit", LATE, "--judge", "openai:", "--out", "b"),
    ]
    assert outputs[0][0] == 4
    for _, out, err in outputs:
        assert SECRET not in out + err
    for file in Path().rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes()
    assert os.environ["OPENAI_API_KEY"] == SECRET


def test_help_of_every_command(call):
    for command in ("plan", "judge", "agree", "label", "import", "export", "audit"):
        code, out, _ = call(command, "--help")
        assert code == 0
        assert "Usage" in out
