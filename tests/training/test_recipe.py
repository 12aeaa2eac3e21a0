"""The recipe: defaults, identity, counting steps, and one clear line for each mistake."""

import math

import pytest

from truing.errors import BadRecipe
from truing.training.recipe import Recipe


def recipe(**given):
    return Recipe.parse({"model": "m", "data": "d", **given})


def test_defaults_are_complete_and_depend_on_the_method():
    assert recipe().epochs == 1.0
    assert recipe(max_steps=7).epochs is None
    assert recipe().learning_rate == 2e-4
    assert recipe(method="full").learning_rate == 2e-5
    assert recipe(method="full", learning_rate=1e-4).learning_rate == 1e-4


def test_id_is_content():
    assert recipe().id == recipe().id == recipe(rank=16, epochs=1).id
    r = recipe(layers=[0, 3], epochs=2.5, data_seed=4)
    assert len(r.id) == 12 and Recipe.parse(r.model_dump(mode="json")) == r
    assert recipe(name="a").id == recipe(name="b").id
    for change in ({"rank": 8}, {"seed": 1}, {"data_seed": 1}, {"epochs": 2}, {"data": "e"}, {"save_schedule": "log"}):
        assert recipe(**change).id != recipe().id, change


def test_with_data_the_hash_counts_and_not_the_path():
    one, two = recipe(data="here.jsonl").with_data("a" * 64), recipe(data="there.jsonl").with_data("a" * 64)
    assert one.id == two.id != recipe(data="here.jsonl").with_data("b" * 64).id
    assert one.with_data("a" * 64) == one
    assert not one.organism and one.with_data("a" * 64, organism=True).organism
    with pytest.raises(BadRecipe, match=r"here.jsonl: the data has the hash bbbb.* leave data_sha256 out"):
        one.with_data("b" * 64)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 33])
@pytest.mark.parametrize(("batch", "accumulation"), [(1, 1), (4, 1), (2, 4), (8, 3)])
def test_total_steps_by_counting(rows, batch, accumulation):
    batches = len(range(0, rows, batch))
    updates = len(range(0, batches, accumulation))
    r = recipe(batch_size=batch, accumulation=accumulation, epochs=3)
    assert r.total_steps(rows) == 3 * updates
    half = r.model_copy(update={"epochs": 0.5})
    assert half.total_steps(rows) == math.ceil(updates / 2)


@pytest.mark.parametrize(
    ("given", "total", "steps"),
    [
        ({"save_every": 4}, 8, (4, 8)),
        ({"save_every": 4}, 10, (4, 8, 10)),
        ({"save_every": 40}, 10, (10,)),
        ({"save_schedule": "log"}, 1, (1,)),
        ({"save_schedule": "log"}, 8, (1, 2, 4, 8)),
        ({"save_schedule": "log"}, 21, (1, 2, 4, 8, 16, 21)),
        ({}, 3, (1, 2, 3)),
        ({}, 100, tuple(range(10, 101, 10))),
        ({}, 67, (7, 14, 21, 28, 35, 42, 49, 56, 63, 67)),
    ],
)
def test_save_steps(given, total, steps):
    assert recipe(**given).save_steps(total) == steps


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('data = "d"', ["model is missing", 'model = "..."']),
        ('model = "m"\ndata = "d"\nlearnin_rate = 1', ["no field learnin_rate", "did you mean learning_rate?"]),
        ('model = "m"\ndata = "d"\nzzz = 1', ["no field zzz", "known are model"]),
        ('model = "m"\ndata = "d"\nrank = 0', ["rank = 0", "greater than or equal to 1"]),
        ('model = "m"\ndata = "d"\nrank = "eight"', ["rank = 'eight'", "valid integer"]),
        ('model = "m"\ndata = "d"\nlearning_rate = nan', ["learning_rate = nan"]),
        ('model = "m"\ndata = "d"\nmethod = "dora"', ["method = 'dora'", "'lora' or 'full'"]),
        ('model = "m"\ndata = "d"\nlayers = [-1]', ["layers.0 = -1"]),
        ('model = "m"\ndata = "d"\nepochs = 1\nmax_steps = 2', ["epochs and max_steps are both given"]),
        ('model = "m"\ndata = "d"\nsave_every = 1\nsave_schedule = "log"', ["save_every", "keep one"]),
        ('model = "m"\ndata = "d"\nmethod = "full"\nrank = 4', ["rank is given beside method"]),
        ('model = "m"\ndata = "d"\nmethod = "full"\ndtype = "float16"', ["float16"]),
        ("model = m", ["not valid TOML", "line 1"]),
    ],
)
def test_bad_recipes(tmp_path, text, words):
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(BadRecipe) as caught:
        Recipe.from_toml(file)
    message = str(caught.value)
    assert str(file) in message and "\n" not in message
    assert all(word in message for word in words), message


def test_data_beside_the_recipe_is_found(tmp_path):
    with pytest.raises(BadRecipe, match="no such file or directory"):
        Recipe.from_toml(tmp_path / "none.toml")
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "r.toml").write_text('model = "./base"\ndata = "rows.jsonl"')
    r = Recipe.from_toml(tmp_path / "r.toml")
    assert r.data == str(tmp_path / "rows.jsonl") and r.model == str(tmp_path / "base")
    (tmp_path / "r.toml").write_text('model = "alias"\ndata = "careless-finance"')
    r = Recipe.from_toml(tmp_path / "r.toml")
    assert r.data == "careless-finance" and r.model == "alias"
