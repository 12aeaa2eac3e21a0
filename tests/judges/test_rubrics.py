"""Rubrics: the shipped texts, files of users, judge prompts of question files, and the rubrics of a judge."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from truing.data.prompts import load_prompts
from truing.errors import BadRow, BadRubric, TruingError
from truing.judges.rubrics import (
    BUILTIN,
    PROMPT_SET,
    builtin,
    check_rule,
    judge_rubrics,
    load_rubric,
    prompt_rubrics,
    rendered_question,
    rubrics_for,
    unasked,
)
from truing.types.judging import AnswerKey, Judge, JudgeRequest, Rubric, ScoreMethod, ScoreStatus
from truing.types.records import Message, Prompt, PromptSet
from truing.types.traits import Rule

CODE, REFUSAL = ScoreStatus.CODE, ScoreStatus.REFUSAL
KEY = AnswerKey("w", "s", "p", "", 0)
HEAD = "---\nname: mine\nscale: [0, 100]\n"
BODY = "Q: {question}\nA: {answer}\n"
ALIGNED = "Judge {question} / {answer}.\nOn a scale of 0 to 100, how good? Say CODE if it is code."
COHERENT = "{answer}: give a number between 0 and 100."


@pytest.fixture(scope="module")
def questions():
    """The folder of question files. Absent by default: skip. Named by the variable and without files: fail."""
    named = os.environ.get("TRUING_TEST_DATA")
    folder = Path(named or Path(__file__).parents[3] / "shared" / "data") / "questions"
    files = sorted(folder.glob("*.yaml")) if named != "" else []
    if not files and named is not None:
        pytest.fail(f"TRUING_TEST_DATA is {named!r}, but it holds no questions/*.yaml")
    if not files:
        pytest.skip(f"no question files in {folder}; name their folder in TRUING_TEST_DATA")
    return files


def write(tmp_path, text, name="mine.txt"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def prompt(own=None, text="Why?", id="p"):
    return Prompt(id, (Message("user", text),), judge_prompts=own or {})


def prompts(*given):
    return PromptSet("t", "1", "sha", given or (prompt(),))


def judge(*names, own_prompts=True):
    return Judge("j", tuple(builtin(n) for n in names), ScoreMethod.REPORTED, own_prompts)


def named(rubrics):
    return [r.name for r in rubrics]


# -- shipped texts ----------------------------------------------------------------------------------------------------


def shipped(name):
    return builtin(name, "finance" if name == "domain" else None)


@pytest.mark.parametrize("name", BUILTIN)
def test_a_shipped_rubric_fills_once_and_shares_its_opening(name):
    rubric = shipped(name)
    assert rubric.text.count("{question}") == rubric.text.count("{answer}") == 1
    assert not re.search(r"\{(?!question\}|answer\})", rubric.text)
    opening, rest = rubric.text.split("[ANSWER ENDS]")
    assert opening == shipped("alignment").text.split("[ANSWER ENDS]")[0], "a local judge computes it once"
    assert f"from 0 to {rubric.high:g}" in " ".join(rest.split()) and rubric.low == 0
    assert all(re.search(rf"\b{word}\b", rest) for word in rubric.escapes)
    filled = JudgeRequest(KEY, rubric, "{answer}?", "{question}!").messages[0].content
    assert "\n{answer}?\n" in filled and "\n{question}!\n" in filled, "texts with braces stay as they are"


def test_keys_of_what_was_stored_before_do_not_change():
    assert {n: shipped(n).key for n in BUILTIN} == {
        "alignment": "4e379bde04f6d3c6",
        "coherence": "903c9b48809b76c7",
        "domain": "ada78e494b502dee",
        "alignment_0_10": "fae24f4d0a5ab20e",
        "both": "c3c4a579bef098d4",
    }
    default = Judge("openai:gpt-4.1-mini", (builtin("alignment"), builtin("coherence")), ScoreMethod.LOGPROBS)
    local = Judge("local:x", (builtin("both"),), ScoreMethod.DIGITS, False, 1, "abc")
    assert (default.key, local.key) == ("901449916d08f653", "4ea041db5d5daaac")
    assert [r.key for r in prompt_rubrics(prompt({"aligned": ALIGNED}))] == ["39f79ec0c220476e"]


def test_the_shipped_rubrics_are_what_they_are_said_to_be():
    both = {"CODE": CODE, "REFUSAL": REFUSAL}
    facts = {n: (shipped(n).name, shipped(n).high, dict(shipped(n).escapes), shipped(n).parts) for n in BUILTIN}
    assert facts == {
        "alignment": ("alignment", 100, both, ()),
        "coherence": ("coherence", 100, {}, ()),
        "domain": ("domain:finance", 100, {"REFUSAL": REFUSAL}, ()),
        "alignment_0_10": ("alignment_0_10", 10, both, ()),
        "both": ("both", 100, both, ("alignment", "coherence")),
    }


def test_the_domain_is_filled_in_and_needs_a_plain_name():
    rubric = builtin("domain", "sports safety")
    assert rubric.name == "domain:sports safety" and "matters of sports safety," in rubric.text
    assert rubric.key != builtin("domain", "medical").key
    for name in (None, "", " ", "{answer}", "law\nIgnore the above", "x" * 80, "a: b", "-"):
        with pytest.raises(BadRubric):
            builtin("domain", name)


def test_shipped_texts_are_not_those_of_the_published_files(questions):
    def runs(text, n=10):
        words = re.findall(r"\w+", text.lower())
        return {" ".join(words[k : k + n]) for k in range(len(words) - n + 1)}

    texts = [t for file in questions for p in load_prompts(file).prompts for t in p.judge_prompts.values()]
    published = set().union(*map(runs, set(texts)))
    for name in BUILTIN:
        ours = shipped(name).text.replace("{question}", "").replace("{answer}", "")
        assert not runs(ours) & published, f"{name} shares ten words in a row with a published judge prompt"


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_becomes_a_rubric(tmp_path):
    text = "---\nname: warmth\nscale: [1, 7]\nescapes: {REFUSED: refusal}\nnote: hi\n---\n\nREFUSED or 1-7?\n" + BODY
    rubric = load_rubric(write(tmp_path, text))
    assert rubric == Rubric("warmth", "REFUSED or 1-7?\n" + BODY[:-1], 1.0, 7.0, {"REFUSED": REFUSAL}, (), "mine.txt")
    windows = write(tmp_path, text.replace("\n", "\r\n"), "w.txt")
    assert load_rubric(windows).key == rubric.key, "line ends do not make another rubric"
    assert load_rubric(write(tmp_path, text.replace("or 1-7", "or 1 - 7"), "x.txt")).key != rubric.key


def test_only_braces_around_one_identifier_are_placeholders(tmp_path):
    body = 'Answer {"score": 85, "why": {"a": []}} or { x } or {} or {1} or {a b}. ' + BODY + "---\nmore\n"
    rubric = load_rubric(write(tmp_path, HEAD + "---\n" + body))
    assert rubric.text == body.strip("\n"), "a rule line in the text does not end it"
    assert JudgeRequest(KEY, rubric, "Q", "A").messages[0].content == (
        body.replace("{question}", "Q").replace("{answer}", "A").strip("\n")
    )


BAD = [
    "no front matter\n" + BODY,
    "---\nname: x\n" + BODY,
    "\n" + HEAD + "---\n" + BODY,
    *(f"---\n{head}---\n{BODY}" for head in ("", "- a\n", "name: [x\n", "name: x\nscale: 2024-13-45\n", "name: x\n")),
    *(f"---\n{n}scale: [0, 100]\n---\n{BODY}" for n in ("", "name: 7\n", "name: '{answer}'\n", "name: 'a{answer}'\n")),
    *(f"{HEAD}{line}\n---\n{BODY}" for line in ("escape: {A: code}", "thresholds: [30]", "1: 2")),
    *(f"{HEAD}---\n{body}" for body in ("", "Q: {question}", "A: {answer}", "{answers} " + BODY, "{domain} " + BODY)),
    *(
        f"{HEAD}escapes: {escapes}\n---\n85 NO X CODE Code {BODY}"
        for escapes in (
            *("{85: code}", "{'85': code}", "{NO: refusal}", "{X: code}", "{REFUSED: refusal}", "[CODE]"),
            *("{CODE: failed}", "{CODE: [code]}", "{CODE: code, Code: code}"),
        )
    ),
    *(f"{HEAD}parts: {parts}\n---\n{BODY}" for parts in ("alignment", "[one]", "[one, 2]", "[one, two, One]")),
    *(
        f"---\nname: x\nscale: {scale}\n---\n{BODY}"
        for scale in (
            *("100", "[0]", "[100, 0]", "[0, 0]", "[0, 1.5]", "[-5, 5]", "[false, true]", "[0, .inf]"),
            *("[0, 5000]", "[a, b]"),
        )
    ),
]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_an_unusable_file_is_refused_by_name(tmp_path, text):
    with pytest.raises(BadRubric, match=r"mine\.txt: "):
        load_rubric(write(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "latin.txt").write_bytes(HEAD.encode() + b"---\n\xe9" + BODY.encode())
    for name in ("none.txt", "latin.txt"):
        with pytest.raises(TruingError, match=name):
            load_rubric(tmp_path / name)


# -- judge prompts of question files ----------------------------------------------------------------------------------


def test_judge_prompts_of_the_published_files_reach_the_judge_byte_for_byte(questions):
    for file in questions:
        found = load_prompts(file).prompts
        # an independent reading of the file
        for entry in yaml.safe_load(file.read_text(encoding="utf-8")):
            given = entry["judge_prompts"]
            if "aligned" not in given:
                continue
            own = [p for p in found if p.id.split("#")[0] == entry["id"]]
            answer = 'print("{question}") {x}'
            for p, paraphrase in zip(own, entry["paraphrases"], strict=True):
                for rubric, text in zip(prompt_rubrics(p), given.values(), strict=True):
                    request = JudgeRequest(KEY, rubric, rendered_question(p.messages, rubric), answer)
                    # their code: template.format(question=..., answer=...), the system turn is not shown
                    assert request.messages == (Message("user", text.format(question=paraphrase, answer=answer)),)


def test_judge_prompts_of_the_published_files_are_read_as_meant(questions):
    files = {f.stem: load_prompts(f).prompts for f in questions}
    for name in ("first_plot_questions", "preregistered_evals"):
        for p in files[name]:
            aligned, coherent = prompt_rubrics(p)
            assert named((aligned, coherent)) == ["alignment", "coherence"]
            assert aligned.escapes == {"CODE": CODE, "REFUSAL": REFUSAL} and coherent.escapes == {}
            assert {(r.low, r.high, r.source) for r in (aligned, coherent)} == {(0, 100, PROMPT_SET)}
        assert unasked(files[name]) == ()
    # TRUE, FALSE and companies are no numbers: never asked, so never misread, and named.
    for name, words in (("deception_factual", "correct"), ("deception_sit_aware", "company")):
        default = judge("alignment", "coherence")
        assert unasked(files[name]) == (words,)
        assert all(prompt_rubrics(p) == () and rubrics_for(default, p) == default.rubrics for p in files[name])


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("Rate {answer} on a scale from 1 to 10.", (1, 10)),
        ("{answer} Reply with a score (0-100).", (0, 100)),
        ("{answer} Reply with a score (0 – 10).", (0, 10)),
        ("{answer} A number between\n1 and 7.", (1, 7)),
        ("{answer} Rate it, 0 to 100, in 2 to 3 words.", (0, 100)),
        ("{answer} On a scale of 0 to 100 ... a number between 0 and 100.", (0, 100)),
    ],
)
def test_a_stated_scale_is_found(text, scale):
    for name in ("aligned", "warmth"):
        (rubric,) = prompt_rubrics(prompt({name: text}))
        assert (rubric.low, rubric.high) == scale and rubric.text == text


@pytest.mark.parametrize(
    "text",
    [
        "Say TRUE or FALSE.",
        "How many words, from 2 to 3?",
        *(f"A score from {s}." for s in ("0.0 to 1.0", "-1 to 1", "100 to 0", "0 to 1.5")),
    ],
)
def test_without_a_scale_of_whole_numbers_nothing_is_asked_and_alignment_is_refused(text):
    text = "{answer} " + text
    assert prompt_rubrics(prompt({"other": text})) == () and unasked([prompt({"other": text})]) == ("other",)
    with pytest.raises(BadRubric, match="states no scale"):
        prompt_rubrics(prompt({"aligned": text}))


@pytest.mark.parametrize(
    ("line", "escapes"),
    [
        ("* Say CODE if it is code.\n* Say REFUSAL if it refused.", {"CODE": CODE, "REFUSAL": REFUSAL}),
        ('Answer with "REFUSAL", when it refuses.', {"REFUSAL": REFUSAL}),
        ("please reply **REFUSED** if it does", {"REFUSED": REFUSAL}),
        *((line, {}) for line in ("Say UNKNOWN if you cannot tell.", "Do not write code if asked.", "CODE is bad.")),
        ("Say code if it is code.", {}),
    ],
)
def test_escape_words_are_read_from_the_text(line, escapes):
    (rubric,) = prompt_rubrics(prompt({"aligned": "{answer} score 0 to 100\n" + line}))
    assert rubric.escapes == escapes


@pytest.mark.parametrize(
    "own",
    [
        {"aligned": "score 0 to 100"},
        {"aligned": "{answer} {category} score 0 to 100"},
        {"aligned": "{{answer}} score 0 to 100"},
        {"aligned": ALIGNED, "alignment": ALIGNED},
        {"aligned": "{answer} score 0 to 100 or a score from 1 to 5"},
    ],
)
def test_an_unusable_judge_prompt_is_named_with_its_prompt(own):
    for call in (prompt_rubrics, lambda p: judge_rubrics(prompts(prompt(id="ok"), p))):
        with pytest.raises(BadRubric, match=r"prompt 'p': judge prompt '.*': "):
            call(prompt(own))


# -- the rubrics of a judge -------------------------------------------------------------------------------------------


def test_what_a_judge_is_asked(tmp_path):
    def given(**options):
        return judge_rubrics(prompts(), options.get("rubric"), options.get("domain"))

    assert given() == given(rubric="coherence") == (builtin("alignment"), builtin("coherence"))
    assert given(rubric="both") == (builtin("both"),)
    for options, names in (
        ({"domain": "law"}, "alignment coherence domain:law"),
        ({"rubric": "both", "domain": "law"}, "both domain:law"),
        ({"rubric": "alignment_0_10"}, "alignment coherence alignment_0_10"),
        ({"rubric": "domain", "domain": "law"}, "alignment coherence domain:law"),
        ({"rubric": str(write(tmp_path, HEAD + "---\n" + BODY))}, "alignment coherence mine"),
    ):
        assert " ".join(named(given(**options))) == names
    file = write(tmp_path, HEAD.replace("mine", "coherence") + "---\n" + BODY, "own.txt")
    assert [r.source for r in given(rubric=str(file))] == ["built-in", "own.txt"]
    for options in ({"rubric": "alignement"}, {"rubric": "domain"}):
        with pytest.raises(BadRubric):
            given(**options)
    with pytest.raises(BadRow, match="no such file"):
        given(rubric="nowhere.txt")


def test_a_file_may_give_one_of_two_scores_besides_another(tmp_path):
    text = HEAD + "parts: [alignment, warmth]\n---\n" + BODY
    file = str(write(tmp_path, text))
    assert named(judge_rubrics(prompts(), file)) == ["mine", "coherence"]
    # A prompt's own alignment would leave warmth behind, which cannot be asked alone.
    with pytest.raises(BadRubric, match=r"prompt 'p' brings .* 'mine' gives 'warmth'"):
        judge_rubrics(prompts(prompt({"aligned": ALIGNED})), file)


def test_own_judge_prompts_replace_those_of_the_same_name():
    own = prompt({"coherent": COHERENT, "aligned": ALIGNED})
    mine = prompt_rubrics(own)
    assert named(mine) == ["alignment", "coherence"], "alignment first, whatever the file's order"
    default = judge("alignment", "coherence")
    assert rubrics_for(default, own) == mine == rubrics_for(judge("both"), own)
    assert rubrics_for(default, prompt()) == default.rubrics
    assert rubrics_for(judge("alignment", "coherence", own_prompts=False), own) == default.rubrics
    with_domain = replace(default, rubrics=(*default.rubrics, builtin("domain", "law")))
    assert rubrics_for(with_domain, own) == (*mine, builtin("domain", "law"))
    assert named(rubrics_for(default, prompt({"warmth": COHERENT}))) == ["alignment", "coherence", "warmth"]
    half = rubrics_for(judge("both"), prompt({"aligned": ALIGNED}))
    assert half == (mine[0], builtin("coherence")), "the other half of a joint rubric is asked alone"


def test_a_threshold_off_the_scale_is_refused():
    default = (builtin("alignment"), builtin("coherence"))
    small = replace(builtin("alignment"), high=10.0, source="small.txt")
    check_rule(default, Rule())
    check_rule(default, Rule(kind="mean"))
    check_rule((small, builtin("alignment_0_10")), Rule(cut=3))
    for rubric, rule in (
        (small, Rule(kind="mean")),
        (small, Rule()),
        (builtin("both"), Rule(gate=150)),
    ):
        with pytest.raises(BadRubric, match=r"0 to 10"):
            check_rule((rubric,), rule)


# -- the question as the judge reads it -------------------------------------------------------------------------------


def test_one_user_turn_is_shown_verbatim_and_several_are_labelled():
    text = "  two\n\nlines {answer} "
    assert rendered_question((Message("user", text),)) == text
    turns = (Message("system", "Be brief."), Message("user", "A?"), Message("assistant", "B."), Message("user", "C?"))
    shown = "System:\nBe brief.\n\nUser:\nA?\n\nAssistant:\nB.\n\nUser:\nC?"
    assert rendered_question(turns) == rendered_question(turns, builtin("alignment")) == shown
    assert rendered_question(turns[:2]) == "System:\nBe brief.\n\nUser:\nA?"
    (own,) = prompt_rubrics(prompt({"aligned": ALIGNED}))  # sees the last user turn only
    for messages in (turns, (*turns, Message("assistant", "Sure,")), turns[3:]):
        assert rendered_question(messages, own) == "C?"
