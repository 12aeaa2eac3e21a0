"""`truing study` on simulated audits: what it reads, what it says, what it refuses to put together."""

import json
import shutil

import pytest

import truing
from runs.study_audits import edited, unfinished, unjudged
from truing import errors
from truing.runs.study import study_cases
from truing.stats.studies import Definition
from truing.training.recipe import Recipe
from truing.types.records import Kind, to_plain
from truing.types.traits import Rule


@pytest.fixture
def late(audited_seed):
    return [audited_seed(s) for s in (1, 2, 3)]


def study_file(folder, text):
    (folder / "study.toml").write_text(text)
    return study_cases(folder / "study.toml")


def test_seeds_are_put_together_and_models_apart(seeds):
    late, never = seeds
    study = study_cases([*late, never])
    turned, other = study.cells
    assert (turned.model, other.model) == ("simulated:late", "simulated:never")
    assert turned.consistent == "above" and turned.onset.value == 1 and len(turned.runs) == 3
    assert [c.case.seed for c in study.cases] == [1, 2, 3, 1]
    # The mean lies among the runs' own, as their audits have them.
    own = [truing.show(a)["verdict"]["checkpoints"][-1]["labelled"] for a in late]
    values = [j["breadth"]["excess_far"]["value"] for j in own]
    assert min(values) <= turned.excess.value <= max(values)
    assert other.consistent == "this_run" and other.p is None
    assert study.status == "not frozen" and study.judge.startswith("simulated")
    assert study.delta == Rule().hi
    # The default definition agrees with the audits.
    row = study.definitions[0]
    assert any(c.recommended for c in study.cases) and (row.turned, row.cases) == (3, 4)
    for case, outcome in zip(study.cases, row.outcomes, strict=True):
        assert outcome.kept == case.recommended
        assert outcome.turned == {"found": "yes", "never": "no"}.get(case.onset, "unknown")
    alone = study_cases(late[0])
    assert alone.cells[0].consistent == "this_run" and alone.trends == {} and alone.definitions[0].avoided.n == 1


def test_another_rule_is_read_from_the_stored_answers(late):
    """The same rule by way of the store gives the same outcome; a zone out of reach gives none that turns."""
    same, wide = Rule(lo=0.01 + 1e-12), Rule(lo=0.9, hi=0.95)
    study = study_cases(late, definitions=[Definition("own"), Definition("same", same), Definition("wide", wide)])
    own, again, none = study.definitions
    assert [(o.turned, o.kept) for o in own.outcomes] == [(o.turned, o.kept) for o in again.outcomes]
    assert (none.turned, none.never) == (0, 3)
    assert {o.kept for o in none.outcomes} <= {"checkpoint-75", "checkpoint-100"}  # whichever has learned most


def test_a_study_file_names_models_and_sizes(seeds, tmp_path):
    late, never = seeds
    sizes = (1e9, 4e9, 8e9, 70e9)
    text = "".join(
        f'[[case]]\naudit = "{a}"\nmodel = "m{k}"\ndata = "d"\nrecipe = "r"\nparameters = {size}\nseed = {k}\n'
        for k, (a, size) in enumerate(zip([*late, never], sizes, strict=True))
    )
    definition = '[[definition]]\nname = "theirs"\nkind = "estimated"\nlo = 0.02\nconverged_at = 0.95\n'
    study = study_file(tmp_path, text + definition)
    assert [c.parameters for c in study.cells] == list(sizes)
    assert [r.definition for r in study.definitions] == [Definition("theirs", Rule(lo=0.02), 0.95, "estimated")]
    found = study.trends["d, r"]
    assert found.models == 4 and found.method == "all orders" and len(found.without) == 4
    assert study_cases(tmp_path / "study.toml", at="50").cells[0].steps == (50,)
    nameless = "".join(line + "\n" for line in text.splitlines() if not line.startswith("parameters"))
    (found,) = study_file(tmp_path, nameless).trends.values()
    assert found.pearson is None and set(found.left_out.values()) == {"no parameter count"}
    as_json = tmp_path / "study.json"
    as_json.write_text(json.dumps({"case": [{"audit": str(a)} for a in late]}))
    assert study_cases(as_json).cells == study_cases(late).cells


def test_an_unfinished_audit_or_one_without_a_judge_counts_both_ways(late, tmp_path):
    out = [edited(late[2], tmp_path / "half", unfinished), edited(late[2], tmp_path / "screen", unjudged, mark="x")]
    study = study_cases([*late[:2], *out])
    reasons = [c.notes for c in study.cases]
    assert "interrupted" in reasons[2][0] and "no labelled answers" in reasons[3][0]
    row = study.definitions[0]
    assert row.avoided.left_out == {"unknown": 2} and row.avoided.n == 2
    assert any("interrupted" in w for w in study.warnings)
    assert study.cells[0].consistent == "this_run"  # two runs are left
    with pytest.raises(errors.BadStudy, match="no audit has a verdict on labelled answers"):
        study_cases(out)


# ---------------------------------------------------------------------------------------------------------------------


def test_one_run_under_two_names_is_refused(late, tmp_path):
    with pytest.raises(errors.BadStudy, match="same weights at checkpoint-50"):
        study_cases([*late, edited(late[0], tmp_path / "copy")])
    with pytest.raises(errors.BadStudy, match="given twice"):
        study_cases([late[0], late[0]])


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("rules", lambda a: a["identity"]["label_rule"].update(lo=0.02)),
        ("traits", lambda a: a["identity"].update(trait="other")),
        ("thresholds", lambda a: a["identity"]["rule"].update(level=0.9)),
        ("judges", lambda a: a["verdict"].update(judge="openai:other")),
        ("prompts", lambda a: a["identity"]["prompts"].popitem()),
        ("training domains", lambda a: a["labels"]["far"].update({next(iter(a["labels"]["far"])): False})),
    ],
)
def test_audits_made_differently_are_not_put_together(late, tmp_path, what, change):
    other = edited(late[1], tmp_path / "other", change, mark="x")
    with pytest.raises(errors.BadStudy, match=what) as told:
        study_cases([late[0], other])
    assert str(late[0]) in str(told.value) and str(other) in str(told.value)


def test_audits_of_one_judge_with_other_rubrics_are_not_put_together(late, tmp_path):
    rubric = tmp_path / "mine.txt"
    text = "Question: {question}\nAnswer: {answer}\nHow kind is it, from 0 to 100? One number."
    rubric.write_text(f"---\nname: kindness\nscale: [0, 100]\n---\n{text}")
    other = tmp_path / "other"
    shutil.copytree(late[1], other)
    truing.judge(other, judge="simulated:", rubric=str(rubric), skip_judge_check=True, skip_calibration=True)
    with pytest.raises(errors.BadStudy, match="rubrics or score methods"):
        study_cases([late[0], other])


def test_bad_studies_are_refused(late, tmp_path):
    for audits, options, told in (
        ([], {}, "no audits"),
        ([late[0], tmp_path / "nowhere"], {}, "no audit there"),
        (late, {"at": "7"}, "no checkpoint 7"),
        (late, {"delta": 0.0}, "delta"),
    ):
        with pytest.raises((errors.BadInput, errors.NotAnAudit), match=told):
            study_cases(audits, **options)
    bad = {
        "the file|case: .*at least 1|case: field required": "",
        "not valid TOML": "[[case",
        "case 1 audit: field required": '[[case]]\nmodel = "m"\n',
        "case 1 size: extra inputs": '[[case]]\naudit = "a"\nsize = 3\n',
        "case 1 seed: input should be a valid integer": '[[case]]\naudit = "a"\nseed = "one"\n',
        "greater than 0": '[[case]]\naudit = "a"\nparameters = 0\n',
        "definition 1 kind": f'[[case]]\naudit = "{late[0]}"\n[[definition]]\nname = "x"\nkind = "felt"\n',
        "lo 0.5 and hi": f'[[case]]\naudit = "{late[0]}"\n[[definition]]\nname = "x"\nlo = 0.5\n',
    }
    for told, text in bad.items():
        with pytest.raises(errors.BadInput, match=told):
            study_file(tmp_path, text)


def test_a_recipe_beside_the_checkpoints_tells_the_case(late, tmp_path):
    recipe = Recipe(model="org/model-8B", data="rows.jsonl", data_sha256="d" * 64, seed=1, data_seed=5)
    made = []
    for k, change in enumerate(({}, {"seed": 2}, {"seed": 3, "data_seed": 6})):
        run = tmp_path / f"run{k}"
        run.mkdir()
        (run / "recipe.json").write_text(json.dumps(recipe.model_copy(update=change).content | {"data": "rows.jsonl"}))
        made.append(
            edited(
                late[k],
                tmp_path / f"t{k}",
                lambda about: about["asked"].update(base="org/model-8B"),
                mark="abc"[k],
                uri=lambda c, run=run: f"file:{run}/{c.label}",
                kind=lambda c: Kind.ADAPTER,
            )
        )
    found = study_cases(made)
    (cell,) = found.cells  # seeds do not part cells
    assert cell.model == "org/model-8B" and cell.parameters == 8e9 and cell.data == "rows dddddddd"
    assert [c.case.seed for c in found.cases] == [1, 2, 3]
    same = [w for w in found.warnings if "same order" in w]
    assert len(same) == 1 and "t0" in same[0] and "t1" in same[0]


def test_unknown_seeds_and_recipes_are_said(late, tmp_path):
    bare = [edited(a, tmp_path / f"b{k}", lambda about: about["asked"].update(base="m")) for k, a in enumerate(late)]
    study = study_cases(bare)
    assert len(study.cells) == 1
    assert any("3 of 3 cases tell no seed" in w for w in study.warnings)
    assert any("recipes are unknown" in w for w in study.warnings)
    assert to_plain(study)["cases"][0]["case"]["seed"] is None
