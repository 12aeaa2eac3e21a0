"""`truing study` on simulated audits: what it reads, what it says, what it refuses to put together."""

import json
from dataclasses import replace

import pytest

import truing
from runs.study_audits import audited, edited, options
from truing import errors
from truing.runs.study import study_cases
from truing.stats.studies import Definition
from truing.store import Store
from truing.training.recipe import Recipe
from truing.types.records import Kind, to_plain
from truing.types.traits import Rule


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three seeds of a run that turns late, and two runs that never do."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("TRUING_CACHE", str(folder / "cache"))
        late = [audited(folder / f"late{s}", s) for s in (1, 2, 3)]
        never = [audited(folder / f"never{s}", s, "never") for s in (1, 2)]
    return late, never


def cells_by_model(study):
    return {c.model: c for c in study.cells}


def test_seeds_are_put_together_and_models_apart(made):
    late, never = made
    study = study_cases([*late, *never])
    cells = cells_by_model(study)
    assert set(cells) == {"simulated:late", "simulated:never"}
    turned, other = cells["simulated:late"], cells["simulated:never"]
    assert turned.consistent == "above" and turned.onset.value == 1 and len(turned.runs) == 3
    assert [c.case.seed for c in study.cases] == [1, 2, 3, 1, 2]
    # The mean lies among the runs' own, as their audits have them.
    own = [truing.show(a)["verdict"]["checkpoints"][-1]["labelled"] for a in late]
    values = [j["breadth"]["excess_far"]["value"] for j in own]
    assert min(values) <= turned.excess.value <= max(values)
    assert other.consistent == "this_run" and other.p is None
    assert study.status == "not frozen" and study.judge.startswith("simulated")
    assert study.delta == Rule().hi


def test_the_default_definitions_agree_with_the_audits(made):
    late, never = made
    study = study_cases([*late, *never])
    row = study.definitions[0]
    assert any(c.recommended for c in study.cases)
    for case, outcome in zip(study.cases, row.outcomes, strict=True):
        assert outcome.kept == case.recommended
        assert outcome.turned == {"found": "yes", "never": "no"}.get(case.onset, "unknown")
    assert row.turned == 3 and row.cases == 5


def test_another_rule_is_read_from_the_stored_answers(made):
    """The same rule by way of the store gives the same outcome; a zone out of reach gives none that turns."""
    late, _ = made
    same, wide = Rule(lo=0.01 + 1e-12), Rule(lo=0.9, hi=0.95)
    study = study_cases(late, definitions=[Definition("own"), Definition("same", same), Definition("wide", wide)])
    own, again, none = study.definitions
    assert [(o.turned, o.kept) for o in own.outcomes] == [(o.turned, o.kept) for o in again.outcomes]
    assert (none.turned, none.never) == (0, 3)
    assert {o.kept for o in none.outcomes} <= {"checkpoint-75", "checkpoint-100"}  # whichever has learned most


def test_a_study_file_names_models_and_sizes(made, tmp_path):
    late, never = made
    file = tmp_path / "study.toml"
    sizes = (1e9, 4e9, 8e9, 70e9)
    text = "".join(
        f'[[case]]\naudit = "{a}"\nmodel = "m{k}"\ndata = "d"\nrecipe = "r"\nparameters = {size}\nseed = {k}\n'
        for k, (a, size) in enumerate(zip([*late, never[0]], sizes, strict=True))
    )
    file.write_text(text + '[[definition]]\nname = "theirs"\nkind = "estimated"\nlo = 0.02\nconverged_at = 0.95\n')
    study = study_cases(file)
    assert [c.parameters for c in study.cells] == list(sizes)
    assert [r.definition for r in study.definitions] == [Definition("theirs", Rule(lo=0.02), 0.95, "estimated")]
    found = study.trends["d, r"]
    assert found.models == 4 and found.method == "all orders" and len(found.without) == 4
    assert study_cases(file, at="50").cells[0].steps == (50,)
    as_json = tmp_path / "study.json"
    as_json.write_text(json.dumps({"case": [{"audit": str(a)} for a in late]}))
    assert study_cases(as_json).cells == study_cases(late).cells


def test_models_without_sizes_are_left_out_of_the_trend_and_named(made, tmp_path):
    late, never = made
    file = tmp_path / "s.toml"
    rows = [f'[[case]]\naudit = "{a}"\nmodel = "m{k}"\nrecipe = "r"\n' for k, a in enumerate([*late, never[0]])]
    file.write_text("".join(rows))
    (found,) = study_cases(file).trends.values()
    assert found.pearson is None and set(found.left_out.values()) == {"no parameter count"}


def test_one_audit_is_this_run(made):
    study = study_cases(made[0][0])
    assert study.cells[0].consistent == "this_run" and study.trends == {}
    assert study.definitions[0].avoided.n == 1


def test_an_unfinished_audit_or_one_without_a_judge_counts_both_ways(made, tmp_path):
    late, _ = made

    def unfinish(about):
        about["status"] = "interrupted"

    half = edited(late[2], tmp_path / "half", unfinish)
    truing.audit("simulated:late?seed=8&steps=50,100", out=tmp_path / "margins", config=options(judge=None))
    study = study_cases([*late[:2], half, tmp_path / "margins"])
    reasons = [c.notes for c in study.cases]
    assert "interrupted" in reasons[2][0] and "no labelled answers" in reasons[3][0]
    row = study.definitions[0]
    assert row.avoided.left_out == {"unknown": 2} and row.avoided.n == 2
    assert any("interrupted" in w for w in study.warnings)
    assert cells_by_model(study)["simulated:late"].consistent == "this_run"  # two runs are left
    with pytest.raises(errors.BadStudy, match="no audit has a verdict on labelled answers"):
        study_cases([half, tmp_path / "margins"])


# ---------------------------------------------------------------------------------------------------------------------


def test_one_run_under_two_names_is_refused(made, tmp_path):
    late, _ = made
    copy = edited(late[0], tmp_path / "copy", lambda about: None)
    with pytest.raises(errors.BadStudy, match="same weights at checkpoint-50"):
        study_cases([*late, copy])
    with pytest.raises(errors.BadStudy, match="given twice"):
        study_cases([late[0], late[0]])


def reweighed(folder, mark):
    """Other weights throughout, as another run would have."""
    with Store.write(folder, {}, running=False) as store:
        kept = store.checkpoints()
        store.replace_run("subject", [replace(c, weights=mark + c.weights) for c in kept if c.run == "subject"])
    return folder


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("rules", lambda a: a["identity"]["label_rule"].update(lo=0.02)),
        ("traits", lambda a: a["identity"].update(trait="other")),
        ("thresholds", lambda a: a["identity"]["rule"].update(level=0.9)),
        ("judges", lambda a: a["verdict"].update(judge="openai:other")),
        ("rubrics or score methods", lambda a: a["verdict"].update(judge_key="0" * 16)),
        ("prompts", lambda a: a["identity"]["prompts"].popitem()),
        ("training domains", lambda a: a["labels"]["far"].update({next(iter(a["labels"]["far"])): False})),
    ],
)
def test_audits_made_differently_are_not_put_together(made, tmp_path, what, change):
    late, _ = made
    other = reweighed(edited(late[1], tmp_path / "other", change), "x")
    with pytest.raises(errors.BadStudy, match=what) as told:
        study_cases([late[0], other])
    assert str(late[0]) in str(told.value) and str(other) in str(told.value)


def test_bad_studies_are_refused(made, tmp_path):
    late, _ = made
    with pytest.raises(errors.BadStudy, match="no audits"):
        study_cases([])
    with pytest.raises(errors.NotAnAudit):
        study_cases([late[0], tmp_path / "nowhere"])
    with pytest.raises(errors.BadStudy, match="no checkpoint 7"):
        study_cases(late, at="7")
    with pytest.raises(errors.BadInput, match="delta"):
        study_cases(late, delta=0.0)
    bad = {
        "the file|case: .*at least 1|case: field required": "",
        "cannot be read": "[[case",
        "case 1 audit: field required": '[[case]]\nmodel = "m"\n',
        "case 1 size: extra inputs": '[[case]]\naudit = "a"\nsize = 3\n',
        "case 1 seed: input should be a valid integer": '[[case]]\naudit = "a"\nseed = "one"\n',
        "greater than 0": '[[case]]\naudit = "a"\nparameters = 0\n',
        "definition 1 kind": f'[[case]]\naudit = "{late[0]}"\n[[definition]]\nname = "x"\nkind = "felt"\n',
        "lo 0.5 and hi": f'[[case]]\naudit = "{late[0]}"\n[[definition]]\nname = "x"\nlo = 0.5\n',
    }
    for told, text in bad.items():
        file = tmp_path / "bad.toml"
        file.write_text(text)
        with pytest.raises(errors.BadInput, match=told):
            study_cases(file)


def trained(source, to, recipe, mark):
    """An audit of checkpoints that lie beside a recipe."""
    folder = edited(source, to, lambda about: about["asked"].update(base="org/model-8B"))
    run = to / "run"
    run.mkdir()
    (run / "recipe.json").write_text(json.dumps(recipe.content | {"data": "rows.jsonl"}))
    with Store.write(folder, {}, running=False) as store:
        rows = [c for c in store.checkpoints() if c.run == "subject"]
        there = [replace(c, weights=mark + c.weights, uri=f"file:{run}/{c.label}", kind=Kind.ADAPTER) for c in rows]
        store.replace_run("subject", there)
    return folder


def test_a_recipe_beside_the_checkpoints_tells_the_case(made, tmp_path):
    late, _ = made
    recipe = Recipe(model="org/model-8B", data="rows.jsonl", data_sha256="d" * 64, seed=1, data_seed=5)
    again, third = recipe.model_copy(update={"seed": 2}), recipe.model_copy(update={"seed": 3, "data_seed": 6})
    found = study_cases([trained(a, tmp_path / f"t{k}", r, "abc"[k]) for k, (a, r) in
                         enumerate(zip(late, (recipe, again, third), strict=True))])  # fmt: skip
    (cell,) = found.cells  # seeds do not part cells
    assert cell.model == "org/model-8B" and cell.parameters == 8e9 and cell.data == "rows dddddddd"
    assert [c.case.seed for c in found.cases] == [1, 2, 3]
    same = [w for w in found.warnings if "same order" in w]
    assert len(same) == 1 and "t0" in same[0] and "t1" in same[0]


def test_unknown_seeds_and_recipes_are_said(made, tmp_path):
    late, _ = made
    bare = [reweighed(edited(a, tmp_path / f"b{k}", lambda about: about["asked"].update(base="m")), "xyz"[k])
            for k, a in enumerate(late)]  # fmt: skip
    study = study_cases(bare)
    assert len(study.cells) == 1
    assert any("3 of 3 cases tell no seed" in w for w in study.warnings)
    assert any("recipes are unknown" in w for w in study.warnings)
    assert to_plain(study)["cases"][0]["case"]["seed"] is None
