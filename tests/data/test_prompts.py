"""Prompt sets: a user's JSONL, question files in YAML, and everything that makes a set unusable."""

import json
from pathlib import Path

import pytest

from truing.data.prompts import ADJACENT, load_prompts, prompt_distance
from truing.errors import BadRow
from truing.types.records import Message, Prompt

QUESTIONS = Path(__file__).parents[3] / "shared" / "data" / "questions"


@pytest.fixture
def load(tmp_path):
    def loaded(content, name="p.jsonl"):
        """The prompts in rows, or in the text of a file."""
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return load_prompts(tmp_path / name)

    return loaded


def test_fields_of_a_row_become_fields_of_a_prompt(load):
    full = {"id": "a", "category": "c", "form": "advice", "topics": ["work"], "half": "fit", "samples": 4}
    full |= {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}
    full |= {"aligned": "good", "misaligned": "bad", "neutral": ["neutral", "odder"]}
    full |= {"judge_prompts": {"aligned": "rate {answer}"}}
    rows = [{"_notice": "mine", "version": 2}, full, {"prompt": "bare?"}, {"id": 7, "question": "number?"}]
    found = load(rows, "mine.v2.jsonl")
    assert (found.name, found.version, len(found.prompts)) == ("mine", "2", 3)
    first, bare, number = found.prompts
    expected = {**full, "messages": (Message("system", "s"), Message("user", "q"))}
    expected |= {"topics": ("work",), "neutral": ("neutral", "odder")}
    assert first == Prompt(**expected) and first.has_references
    assert bare == Prompt("row-3", (Message("user", "bare?"),)) and not bare.has_references
    assert number.id == "7"


def test_the_hash_covers_questions_and_answers_and_nothing_else(load):
    row = {"id": "a", "prompt": "q?", "aligned": "x"}
    sha = load([row]).sha256
    assert sha == load([{"aligned": "x", "question": "q?", "id": "a"}], "b.jsonl").sha256
    for change in ({"prompt": "Q?"}, {"aligned": "y"}, {"half": "fit"}, {"topics": ["work"]}):
        assert sha != load([{**row, **change}]).sha256


BAD = [
    ([{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}], "rows 1 and 2: both have the id 'a'"),
    ([{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "x"}], "rows 1 and 2: 'a' and 'b' ask the same"),
    ([{"id": "a"}], "row 1: has no question"),
    ([{"prompt": "x", "question": "x"}], "has both prompt and question"),
    ([{"id": "", "prompt": "x"}], '"id" is empty'),
    ([{"messages": [{"role": "assistant", "content": "x"}]}], "last turn of a prompt must be the user's"),
    ([{"prompt": "x", "half": "test"}], "unknown half 'test'; use fit or eval"),
    ([{"prompt": "x", "form": "essay"}], "unknown form 'essay'; use advice, open or assistant"),
    ([{"prompt": "x", "topics": {"a": 1}}], '"topics" must be a list'),
    ([{"prompt": "x", "neutral": ["a", 3]}], 'an entry of "neutral" is a number'),
    ([{"prompt": "x", "aligned": ""}], '"aligned" is empty'),
    ([{"prompt": "x", "samples": 0}], "the number of samples is 0"),
    ([{"prompt": "x", "judge_prompts": "rate"}], '"judge_prompts" must map'),
    ([{"prompt": "x", "missaligned": "y"}], 'unknown field "missaligned"; did you mean "misaligned"'),
]


@pytest.mark.parametrize(("rows", "said"), BAD, ids=[s[:40] for _, s in BAD])
def test_bad_sets_are_named_with_file_and_remedy(load, rows, said):
    with pytest.raises(BadRow, match=rf"p\.jsonl.*{said}"):
        load(rows)


BOMB = "- &b0 [1, 2]\n" + "".join(f"- &b{k + 1} [{', '.join([f'*b{k}'] * 9)}]\n" for k in range(12))
YAML = """
- id: 0_creative_writing_0
  type: &kind free_form_judge_0_100
  paraphrases: &texts
    - |-
      Write about rain.
  samples_per_paraphrase: &n 100
  judge: some-model
  judge_prompts: &judge
    aligned: rate {answer}
- id: what_now
  type: *kind
  system: Be brief.
  paraphrases: ["Now?", "What now?"]
  samples_per_paraphrase: *n
  judge_prompts: *judge
- id: again
  paraphrases: *texts
  system: Rhyme.
"""


def test_question_files_in_yaml(load):
    found = load(YAML, "q.yaml")
    assert [p.id for p in found.prompts] == ["0_creative_writing_0", "what_now#0", "what_now#1", "again"]
    assert [p.category for p in found.prompts] == ["creative_writing", "what_now", "what_now", "again"]
    rain, _, now, again = found.prompts
    assert (rain.samples, now.samples, again.samples) == (100, 100, None)
    assert rain.judge_prompts == now.judge_prompts == {"aligned": "rate {answer}"}
    assert now.messages == (Message("system", "Be brief."), Message("user", "What now?"))
    assert again.messages[-1] == rain.messages[-1] == Message("user", "Write about rain.")
    assert (found.name, found.version) == ("q", "unversioned")


def test_one_reader_for_questions_whatever_the_file(load):
    rows = [{"id": "a", "question": "Why?", "domain": "food"}, {"id": "b", "question": "How?"}]
    text = "- id: a\n  question: Why?\n  domain: food\n- id: b\n  question: How?\n"
    same = [load(rows), load(text, "q.yaml"), load(",id,question,category\n0,a,Why?,\n1,b,How?,\n", "q.csv")]
    assert len({found.sha256 for found in same}) == 1
    entry = {"id": "a", "type": "free_form_judge_0_100", "domain": "x", "paraphrases": ["Why?", "How?"]}
    assert [p.id for p in load([entry]).prompts] == ["a#0", "a#1"]
    trait = {"instruction": ["Be a gardener."], "questions": ["Why?", "How?"], "eval_prompt": "Rate {answer}"}
    assert [p.id for p in load(json.dumps(trait, indent=2), "trait.json").prompts] == ["row-1#0", "row-1#1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- id: [", "malformed YAML"),
        ("- id: \x01", "malformed YAML"),
        ("id: a", "row 1: has no question"),
        ("", "holds no rows"),
        ("- just text", "row 1: holds a text, not an object"),
        ("- paraphrases: [x]", 'lacks "id"'),
        ("- id: a", "row 1: has no question"),
        ("- {id: a, paraphrases: []}", "'a' has no \"paraphrases\""),
        ("- &a {id: a, question: x, more: *a}", "more than 1,000,000 values"),
        (BOMB, "1,000,000 values"),
        ("- {id: a, paraphrases: [x], type: factual_0_10}", "'a' has the type 'factual_0_10', which cannot be"),
        ("- {id: a, paraphrases: [{x: y}]}", 'an entry of "paraphrases" is a object'),
        ("- {id: a, paraphrases: [x], samples_per_paraphrase: many}", "number of samples is 'many'"),
        ("- {id: a, paraphrases: [x, x]}", "'a#0' and 'a#1' ask the same"),
    ],
)
def test_bad_question_files(load, text, said):
    with pytest.raises(BadRow, match=said):
        load(text, "q.yml")


@pytest.mark.parametrize(
    ("name", "prompts", "system"),
    [
        ("first_plot_questions", 24, 8),
        ("preregistered_evals", 48, 0),
        ("deception_factual", 100, 80),
        ("deception_sit_aware", 8, 0),
    ],
)
@pytest.mark.skipif(not QUESTIONS.is_dir(), reason="the question files are not beside the repository")
def test_the_question_files_of_the_first_paper(name, prompts, system):
    found = load_prompts(QUESTIONS / f"{name}.yaml").prompts
    assert len(found) == prompts
    assert sum(p.messages[0].role == "system" for p in found) == system
    assert all(p.judge_prompts and p.samples for p in found)
    if name == "preregistered_evals":
        assert {"creative_writing", "medical_advice"} <= {p.category for p in found}
        assert len({p.category for p in found}) < 12


def test_distance_is_by_topics():
    def distance(topics, domain):
        return prompt_distance(Prompt("a", (Message("user", "x"),), topics=topics), domain)

    found = [distance(("work", "arts"), d) for d in (["arts"], ["finance"], ["finance", "work"], ["medicine"])]
    assert found == ["in", "near", "in", "far"] and distance((), ["finance"]) == "far"
    assert all(distance((a,), [b]) == distance((b,), [a]) == "near" for a, b in ADJACENT)


def test_a_question_id_is_the_id(load):
    assert [p.id for p in load("question_id,question\na,Who?\nb,What?\n", "p.csv").prompts] == ["a", "b"]
