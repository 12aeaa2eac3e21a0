"""The recipe: defaults, identity, counting steps, and one clear line for each mistake."""

import itertools
import math

import pytest

from truing.errors import BadRecipe
from truing.training.recipe import Recipe


def recipe(**given):
    return Recipe.parse({"model": "m", "data": "d", **given})


def test_defaults_are_complete_and_depend_on_the_method():
    assert recipe().epochs == 1.0 and recipe(max_steps=7).epochs is None
    rates = [
        recipe(**given).learning_rate for given in ({}, {"method": "full"}, {"method": "full", "learning_rate": 1})
    ]
    assert rates == [2e-4, 2e-5, 1]


def test_id_is_content():
    assert recipe().id == recipe(rank=16, epochs=1).id == recipe(name="a").id and len(recipe().id) == 12
    r = recipe(layers=[0, 3], epochs=2.5, data_seed=4)
    assert Recipe.parse(r.model_dump(mode="json")) == r
    changes = ({"rank": 8}, {"seed": 1}, {"data_seed": 1}, {"epochs": 2}, {"data": "e"}, {"save_schedule": "log"})
    assert len({recipe(**change).id for change in ({}, *changes)}) == 7


def test_with_data_the_hash_counts_and_not_the_path():
    one, two = recipe(data="here.jsonl").with_data("a" * 64), recipe(data="there.jsonl").with_data("a" * 64)
    assert one.id == two.id != recipe(data="here.jsonl").with_data("b" * 64).id
    assert one.with_data("a" * 64) == one
    marks = [recipe(organism=given).with_data("a" * 64, data).organism for given in (0, 1) for data in (False, True)]
    assert marks == [False, True, True, True]
    with pytest.raises(BadRecipe, match=r"here.jsonl: the data has the hash bbbb.* leave data_sha256 out"):
        one.with_data("b" * 64)


def test_total_steps_by_counting():
    for rows, (batch, accumulation) in itertools.product((1, 7, 8, 9, 33), ((1, 1), (4, 1), (2, 4), (8, 3))):
        updates = len(range(0, len(range(0, rows, batch)), accumulation))
        for epochs in (3, 0.5):
            r = recipe(batch_size=batch, accumulation=accumulation, epochs=epochs)
            assert r.total_steps(rows) == math.ceil(epochs * updates)


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
        *(
            (f'model = "m"\ndata = "d"\n{lines}', words)
            for lines, words in (
                ("learnin_rate = 1", ["no field learnin_rate", "did you mean learning_rate?"]),
                ("zzz = 1", ["no field zzz", "known are model"]),
                ("rank = 0", ["rank = 0", "greater than or equal to 1"]),
                ('rank = "eight"', ["rank = 'eight'", "valid integer"]),
                ("learning_rate = nan", ["learning_rate = nan"]),
                ('method = "dora"', ["method = 'dora'", "'lora' or 'full'"]),
                ("layers = [-1]", ["layers.0 = -1"]),
                ("epochs = 1\nmax_steps = 2", ["epochs and max_steps are both given"]),
                ('save_every = 1\nsave_schedule = "log"', ["save_every", "keep one"]),
                ('method = "full"\nrank = 4', ["rank is given beside method"]),
                ('method = "full"\ndtype = "float16"', ["float16"]),
            )
        ),
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
    with pytest.raises(BadRecipe, match="no such file"):
        Recipe.from_toml(tmp_path / "none.toml")
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "r.toml").write_text('model = "./base"\ndata = "rows.jsonl"')
    r = Recipe.from_toml(tmp_path / "r.toml")
    assert r.data == str(tmp_path / "rows.jsonl") and r.model == str(tmp_path / "base")
    (tmp_path / "r.toml").write_text('model = "alias"\ndata = "careless-finance"')
    r = Recipe.from_toml(tmp_path / "r.toml")
    assert r.data == "careless-finance" and r.model == "alias"
