"""What an error tells to do is done, and then it works."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest

import truing
from truing.training.recipe import Recipe
from zoo import build

TARGET = "simulated:late?steps=25,50"
PLAN = ("plan", TARGET, "--limit", "8")
PRICES = '["m"]\ninput = 1\noutput = 2\n'
JUDGE = ("--judge", "http://localhost:9/v1#m")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "a"
    truing.audit(TARGET, limit=8, answers=4, resamples=50, out=out)
    return out


MENDED = [
    # wrong words, what the message says, the words that it tells to use
    (("plan", "simulated:lat"), "choose one of early, late", PLAN),
    ((*PLAN, "--trait", "nope"), "--trait nope: no such trait; give a folder with a trait.toml, or one of misalignment",
     (*PLAN, "--trait", "misalignment")),
    ((*PLAN, "--trait", "folder"), "--trait folder: the folder holds no trait.toml",
     (*PLAN, "--trait", "misalignment")),
    ((*PLAN, "--prompts", "no.jsonl"), "--prompts no.jsonl: there is no such file; check the path",
     (*PLAN, "--prompts", "v1")),
    ((*PLAN, "--task", "folder"), "--task folder: is a folder; name one file in it",
     (*PLAN, "--task", "careless-finance-heldout")),
    ((*PLAN, "--task-control", "careful-finance"), "needs --task", PLAN),
    ((*PLAN, "--limit", "x"), "--limit x: give a whole number", (*PLAN, "--limit", "9")),
    ((*PLAN, "--half", "x"), "should be 'eval', 'fit' or 'all'", (*PLAN, "--half", "fit")),
    ((*PLAN, *JUDGE, "--budget", "$5"), "dollars need prices (a TOML file, a table per model)",
     (*PLAN, *JUDGE, "--budget", "$5", "--prices", "prices.toml")),
    ((*PLAN, *JUDGE, "--budget", "lots"), "give calls (2000) or dollars ('$5')", (*PLAN, *JUDGE, "--budget", "2000")),
    ((*PLAN, "--judge", "gpt-4"), "openai:gpt-4.1-mini", (*PLAN, "--judge", "openai:gpt-4.1-mini")),
    ((*PLAN, "--rubric", "domain"), "name it, e.g. domain finance",
     (*PLAN, "--rubric", "domain", "--domain", "finance")),
    (("show", "DONE", "--step", "77"), "it has 0, 25, 50", ("show", "DONE", "--step", "25")),
    (("show", "DONE", "--prompt", "contempt_and_bigotri-02"), "did you mean contempt_and_bigotry-",
     ("show", "DONE", "--step", "0")),
    (("export", "DONE", "--to", "xml"), "csv", ("export", "DONE", "--to", "csv", "--out", "x.csv")),
    (("gate", "DONE", "--gate", "best"), "use recommended, last or a step number", ("show", "DONE")),
    (("plam", TARGET), "plam: no such command; did you mean plan?", PLAN),
    (("report", "DONE", "--out", "file.txt/x.html"), "choose another --out", ("report", "DONE", "--out", "x.html")),
    (("show", "folder"), "no audit there", ("show", "DONE")),
    (("models", "put", "x"), "models get", ("doctor",)),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "said", "right"), MENDED, ids=lambda x: None if isinstance(x, tuple) else x[:40])
def test_a_mistake_is_one_line_that_names_its_source_and_the_remedy_works(call, done, wrong, said, right):
    Path("folder").mkdir()
    Path("file.txt").write_text("x")
    Path("prices.toml").write_text(PRICES)
    words = [[str(done) if w == "DONE" else w for w in line] for line in (wrong, right)]
    code, out, err = call(*words[0])
    assert (code, out) == (2, "") and said in " ".join(err.split()) and "Traceback" not in err, err
    code, _, err = call(*words[1])
    assert code == 0, err


def test_a_value_from_the_file_is_called_so_in_an_error_about_it(call):
    Path("truing.toml").write_text('[audit]\ntask = "no.jsonl"\n')
    code, _, err = call("audit", TARGET)
    assert code == 2 and "truing.toml: task no.jsonl: there is no such file" in err


def test_an_unfinished_audit_says_what_to_do_and_that_finishes_it(call, done):
    shutil.copytree(done, "a")
    about = json.loads(Path("a/audit.json").read_text())
    Path("a/audit.json").write_text(json.dumps({**about, "status": "interrupted"}))
    assert "interrupted; repeat the audit to finish it" in call("show", "a")[1]
    assert "interrupted; repeat the audit to finish it" in Path(truing.write_report("a")).read_text()
    assert call("audit", TARGET, "--limit", "8", "--answers", "4", "--resamples", "50", "--out", "a")[0] == 0
    assert "interrupted" not in call("show", "a")[1]


@pytest.mark.torch
def test_a_file_for_a_base_and_a_simulated_judge_of_real_answers_are_refused_before_anything_is_loaded(call, tmp_path):
    Path("file.txt").write_text("x")
    base = build.tiny_base(tmp_path / "base")
    run = build.adapter_run(tmp_path / "run2", base, steps=(2,), seed=1)
    assert "--base file.txt: is a file" in call("audit", run, "--base", "file.txt")[2]
    assert (
        "--judge simulated:: judges answers of simulated runs only"
        in call("audit", run, "--base", base, "--judge", "simulated:")[2]
    )


def test_the_recipe_of_the_readme_is_one():
    readme = (Path(truing.__file__).parents[2] / "README.md").read_text()
    text = readme.split("# recipe.toml")[1].split("\n", 1)[1].split("```")[0]
    assert Recipe.parse(tomllib.loads(text)).save_schedule == "log"
