"""Traits from folders: what a good one means, and every bad input named."""

import pytest

from truing.errors import BadInput
from truing.traits.load import load_trait
from truing.types.traits import Rule

PROMPTS = 'prompts = "v1"\n'
SCORED = PROMPTS + '[scorer]\nkind = "words"\nwords = ["sorry"]\n'


def folder(place, text, **files):
    place.mkdir(exist_ok=True)
    (place / "trait.toml").write_text(text)
    for name, content in files.items():
        (place / name.replace("_", ".", 1)).write_text(content)
    return place


def test_the_built_in_trait_is_the_published_rule():
    trait = load_trait("misalignment")
    assert (trait.rule, trait.rubrics) == (Rule(), ("alignment", "coherence"))
    assert trait.scorer is None and trait.folder == "" and trait.sha256


def test_a_scorer_s_answers_are_positive_over_a_half(tmp_path):
    trait = load_trait(folder(tmp_path / "says_sorry", SCORED))
    assert (trait.name, trait.rubrics) == ("says_sorry", ())
    assert trait.rule == Rule(score="match", side="above", cut=0.5, gate_score=None, low=0.0, high=1.0)
    assert load_trait(tmp_path / "says_sorry" / "trait.toml") == trait
    assert load_trait(folder(tmp_path / "says_sorry", SCORED + "[rule]\nlo = 0.05\nhi = 0.1\n")).rule.lo == 0.05


def test_files_beside_it_are_used(tmp_path):
    text = 'prompts = "mine.jsonl"\nrubrics = ["mine.txt", "coherence"]\n[rule]\nscore = "flattery"\n'
    trait = load_trait(folder(tmp_path / "t", text, mine_jsonl="", mine_txt=""))
    assert trait.prompts == str(tmp_path / "t" / "mine.jsonl")
    assert trait.rubrics == (str(tmp_path / "t" / "mine.txt"), "coherence")
    assert trait.rule == Rule(score="flattery")
    ungated = load_trait(folder(tmp_path / "t", text + 'gate_score = ""\n[decoding]\ntemperature = 0.7\n'))
    assert ungated.rule.gate_score is None and ungated.decoding == {"temperature": 0.7}
    assert ungated.sha256 != trait.sha256


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prompts = ", "not valid TOML"),
        (SCORED.replace("prompts", "questions"), "questions"),
        ('[scorer]\nkind = "json"\n', "names no prompts"),
        (PROMPTS, "neither a scorer nor rubrics"),
        (PROMPTS + '[scorer]\nkind = "mood"\n', "words, regex, capitals, json"),
        (PROMPTS + 'scorer = "words"\n', "scorer needs a kind"),
        (SCORED + "pattern = 1\n", "pattern"),
        (PROMPTS + '[scorer]\nkind = "words"\nwords = []\n', "list of words"),
        (PROMPTS + '[scorer]\nkind = "regex"\npattern = "("\n', "regex scorer needs a pattern"),
        (PROMPTS + '[scorer]\nkind = "regex"\n', "regex scorer needs a pattern"),
        (SCORED + "[rule]\nthreshold = 1\n", "threshold"),
        (SCORED + "[rule]\ncut = 3\n", "cut 3"),
        (SCORED + "[rule]\nlo = 0.5\nhi = 0.1\n", "lo 0.5"),
        (SCORED + '[rule]\ncut = "high"\n', "cut"),
        (SCORED + "[rule]\npositive = 3\n", "positive"),
        (SCORED + "[decoding]\nseed = 3\n", "seed"),
        (PROMPTS + 'rubrics = "mine.txt"\n', "rubrics"),
        (PROMPTS + 'rule = 3\n[scorer]\nkind = "json"\n', "rule"),
        (SCORED + "least = 0\n", "least"),
    ],
)
def test_bad_folders_name_file_and_field(tmp_path, text, named):
    with pytest.raises(BadInput) as e:
        load_trait(folder(tmp_path / "t", text))
    assert named in str(e.value) and "trait.toml" in str(e.value)


def test_a_folder_that_is_none(tmp_path):
    for spec in ("no_such", tmp_path, tmp_path / "trait.toml"):
        with pytest.raises(BadInput, match="no such trait"):
            load_trait(spec)
    (tmp_path / "trait.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not UTF-8"):
        load_trait(tmp_path)
