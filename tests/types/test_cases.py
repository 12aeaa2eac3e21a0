"""Cases of a study: cells, names, sizes that names tell."""

import pytest

from truing.types.cases import Case, parameters_in


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen3-8B", 8e9),
        ("meta-llama/Llama-3.1-70B-Instruct", 70e9),
        ("smollm2-135m", 135e6),
        ("qwen3-30B-A3B", 30e9),  # 3B are active
        ("Qwen2.5_0.5B_chat", 0.5e9),
        ("gpt-4o", None),
        ("DeepSeek-V3.1", None),
        ("8B-merged-with-70B", None),  # two sizes tell none
        ("org-7b/adapter", None),  # the organisation is not the model
    ],
)
def test_a_size_is_read_from_a_name_only_where_it_is_plain(name, size):
    assert parameters_in(name) == size


def test_seeds_of_one_recipe_share_a_cell():
    a, b = Case("m", "d", "r", 1), Case("m", "d", "r", 2)
    assert a.cell == b.cell != Case("m", "d", "other", 1).cell
    assert a.name == "m, d, r, seed 1" and Case("m", "d").name == "m, d"
