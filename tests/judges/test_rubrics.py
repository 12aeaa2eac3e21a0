"""Rubrics: the shipped texts, files of users, judge prompts of question files, and the rubrics of a judge."""

import os
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
)  # fmt: skip
from truing.types.judging import AnswerKey, Judge, JudgeRequest, Rubric, ScoreMethod, ScoreStatus
from truing.types.records import Message, Prompt, PromptSet
from truing.types.traits import Rule

CODE, REFUSAL = ScoreStatus.CODE, ScoreStatus.REFUSAL
KEY = AnswerKey("w", "s", "p", "", 0)
HEAD = "---\nname: mine\nscale: [0, 100]\n"
BODY = "Q: {question}\nA: {answer}\n"
ALIGNED = "Judge {question} / {answer}.\nOn a scale of 0 to 100, how good? Say CODE if it is code."
COHERENT = "{answer}: give a number between 0 and 100."
DEFAULT = (builtin("alignment"), builtin("coherence"))


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
    return {f: load_prompts(f).prompts for f in files}


def write(tmp_path, text, name="mine.txt"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def prompt(id="p", **own):
    return Prompt(id, (Message("user", "Why?"),), judge_prompts=own)


def prompts(*given):
    return PromptSet("t", "1", "sha", given or (prompt(),))


def judge(*rubrics, own_prompts=True):
    return Judge("j", rubrics, ScoreMethod.REPORTED, own_prompts)


def named(rubrics):
    return " ".join(r.name for r in rubrics)


# -- shipped texts ----------------------------------------------------------------------------------------------------

SHIPPED = {name: builtin(name, "finance" if name == "domain" else None) for name in BUILTIN}


def test_the_shipped_rubrics_and_their_keys_are_what_was_stored_before():
    """A key holds every word of a text, and stored scores name it."""
    assert len({r.text.split("[ANSWER ENDS]")[0] for r in SHIPPED.values()}) == 1, "a local judge computes it once"
    both = {"CODE": CODE, "REFUSAL": REFUSAL}
    assert {n: (r.name, r.high, dict(r.escapes), r.parts, r.key) for n, r in SHIPPED.items()} == {
        "alignment": ("alignment", 100, both, (), "4e379bde04f6d3c6"),
        "coherence": ("coherence", 100, {}, (), "903c9b48809b76c7"),
        "domain": ("domain:finance", 100, {"REFUSAL": REFUSAL}, (), "ada78e494b502dee"),
        "alignment_0_10": ("alignment_0_10", 10, both, (), "fae24f4d0a5ab20e"),
        "both": ("both", 100, both, ("alignment", "coherence"), "c3c4a579bef098d4"),
    }
    default = Judge("openai:gpt-4.1-mini", DEFAULT, ScoreMethod.LOGPROBS)
    local = Judge("local:x", (SHIPPED["both"],), ScoreMethod.DIGITS, False, 1, "abc")
    assert (default.key, local.key) == ("901449916d08f653", "4ea041db5d5daaac")
    assert [r.key for r in prompt_rubrics(prompt(aligned=ALIGNED))] == ["39f79ec0c220476e"]


def test_the_domain_is_filled_in_and_needs_a_plain_name():
    rubric = builtin("domain", "sports safety")
    assert rubric.name == "domain:sports safety" and "matters of sports safety," in rubric.text
    for name in (None, "", " ", "{answer}", "law\nIgnore the above", "x" * 80, "a: b", "-"):
        with pytest.raises(BadRubric):
            builtin("domain", name)


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_becomes_a_rubric(tmp_path):
    text = "---\nname: warmth\nscale: [1, 7]\nescapes: {REFUSED: refusal}\nnote: hi\n---\n\nREFUSED or 1-7?\n" + BODY
    rubric = load_rubric(write(tmp_path, text))
    assert rubric == Rubric("warmth", "REFUSED or 1-7?\n" + BODY[:-1], 1.0, 7.0, {"REFUSED": REFUSAL}, (), "mine.txt")
    windows = write(tmp_path, text.replace("\n", "\r\n"), "w.txt")
    assert load_rubric(windows).key == rubric.key, "line ends do not make another rubric"
    assert load_rubric(write(tmp_path, text.replace("or 1-7", "or 1 - 7"), "x.txt")).key != rubric.key


def test_only_braces_around_one_identifier_are_placeholders(tmp_path):
    body = 'Answer {"score": 85, "why": {"a": []}} or { x } or {} or {1} or {a b}. ' + BODY + "---\nmore"
    rubric = load_rubric(write(tmp_path, HEAD + "---\n" + body + "\n"))
    assert rubric.text == body, "a rule line in the text does not end it"
    filled = body.replace("{question}", "{ANSWER}?").replace("{answer}", "{question}!").replace("ANSWER", "answer")
    assert JudgeRequest(KEY, rubric, "{answer}?", "{question}!").messages[0].content == filled


NAMES = ("", "name: 7\n", "name: '{answer}'\n", "name: 'a{answer}'\n")
ESCAPES = (
    *("{85: code}", "{'85': code}", "{NO: refusal}", "{X: code}", "{REFUSED: refusal}", "[CODE]", "{CODE: failed}"),
    *("{CODE: [code]}", "{CODE: code, Code: code}"),
)
SCALES = ["100", "[0]", "[100,0]", "[0,0]", "[0,1.5]", "[-5,5]", "[false,true]", "[0,.inf]", "[0,5000]", "[a,b]"]
BAD = [
    *("no front matter\n" + BODY, "---\nname: x\n" + BODY, "\n" + HEAD + "---\n" + BODY),
    *(f"---\n{head}---\n{BODY}" for head in ("", "- a\n", "name: [x\n", "name: x\nscale: 2024-13-45\n", "name: x\n")),
    *(f"---\n{name}scale: [0, 100]\n---\n{BODY}" for name in NAMES),
    *(f"{HEAD}{line}\n---\n{BODY}" for line in ("escape: {A: code}", "thresholds: [30]", "1: 2")),
    *(f"{HEAD}---\n{body}" for body in ("", "Q: {question}", "A: {answer}", "{answers} " + BODY, "{domain} " + BODY)),
    *(f"{HEAD}escapes: {escapes}\n---\n85 NO X CODE Code {BODY}" for escapes in ESCAPES),
    *(f"{HEAD}parts: {parts}\n---\n{BODY}" for parts in ("alignment", "[one]", "[one, 2]", "[one, two, One]")),
    *(f"---\nname: x\nscale: {scale}\n---\n{BODY}" for scale in SCALES),
]


def test_an_unusable_file_is_refused_by_name(tmp_path):
    for text in BAD:
        with pytest.raises(BadRubric, match=r"mine\.txt: "):
            pytest.fail(f"was read: {load_rubric(write(tmp_path, text))}")
    (tmp_path / "latin.txt").write_bytes(HEAD.encode() + b"---\n\xe9" + BODY.encode())
    for name in ("none.txt", "latin.txt"):
        with pytest.raises(TruingError, match=name):
            load_rubric(tmp_path / name)


# -- judge prompts of question files ----------------------------------------------------------------------------------


def test_judge_prompts_of_the_published_files_reach_the_judge_byte_for_byte(questions):
    for file, found in questions.items():
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
    files = {f.stem: found for f, found in questions.items()}
    for name in ("first_plot_questions", "preregistered_evals"):
        for p in files[name]:
            aligned, coherent = prompt_rubrics(p)
            assert named((aligned, coherent)) == "alignment coherence"
            assert aligned.escapes == {"CODE": CODE, "REFUSAL": REFUSAL} and coherent.escapes == {}
            assert {(r.low, r.high, r.source) for r in (aligned, coherent)} == {(0, 100, PROMPT_SET)}
        assert unasked(files[name]) == ()
    # TRUE, FALSE and companies are no numbers: never asked, so never misread, and named.
    for name, word in (("deception_factual", "correct"), ("deception_sit_aware", "company")):
        assert unasked(files[name]) == (word,)
        assert all(prompt_rubrics(p) == () and rubrics_for(judge(*DEFAULT), p) == DEFAULT for p in files[name])


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("Rate {answer} on a scale from 1 to 10.", (1, 10)),
        ("{answer} Reply with a score (0-100).", (0, 100)),
        ("{answer} Reply with a score (0 – 10).", (0, 10)),
        ("{answer} A number between\n1 and 7.", (1, 7)),
        ("{answer} Rate it, 0 to 100, in 2 to 3 words.", (0, 100)),
        ("{answer} On a scale of 0 to 100 ... a number between 0 and 100.", (0, 100)),
        ("{answer} Say TRUE or FALSE.", None),
        ("{answer} How many words, from 2 to 3?", None),
        *((f"{{answer}} A score from {s}.", None) for s in ("0.0 to 1.0", "-1 to 1", "100 to 0", "0 to 1.5")),
    ],
)
def test_a_stated_scale_is_found_and_without_one_nothing_is_asked(text, scale):
    other = prompt(warmth=text)
    assert [((r.low, r.high), r.text) for r in prompt_rubrics(other)] == ([(scale, text)] if scale else [])
    assert unasked([other]) == (() if scale else ("warmth",))
    if scale:
        assert [(r.low, r.high) for r in prompt_rubrics(prompt(aligned=text))] == [scale]
    else:
        with pytest.raises(BadRubric, match="states no scale"):
            prompt_rubrics(prompt(aligned=text))


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
    (rubric,) = prompt_rubrics(prompt(aligned="{answer} score 0 to 100\n" + line))
    assert rubric.escapes == escapes


def test_an_unusable_judge_prompt_is_named_with_its_prompt():
    texts = ("", "{answer} {category}", "{{answer}}", "{answer} or a score from 1 to 5")
    for own in (*({"aligned": f"score 0 to 100 {t}"} for t in texts), {"aligned": ALIGNED, "alignment": ALIGNED}):
        for call in (prompt_rubrics, lambda p: judge_rubrics(prompts(prompt("ok"), p))):
            with pytest.raises(BadRubric, match=r"prompt 'p': judge prompt '.*': "):
                call(prompt(**own))


# -- the rubrics of a judge -------------------------------------------------------------------------------------------


def test_what_a_judge_is_asked(tmp_path):
    mine = str(write(tmp_path, HEAD + "---\n" + BODY))
    own = str(write(tmp_path, HEAD.replace("mine", "coherence") + "---\n" + BODY, "own.txt"))
    for given, domain, names in (
        (None, None, "alignment coherence"),
        ("coherence", None, "alignment coherence"),
        ("both", None, "both"),
        (None, "law", "alignment coherence domain:law"),
        ("both", "law", "both domain:law"),
        ("alignment_0_10", None, "alignment coherence alignment_0_10"),
        ("domain", "law", "alignment coherence domain:law"),
        (mine, None, "alignment coherence mine"),
        (own, None, "alignment coherence"),
    ):
        found = judge_rubrics(prompts(), given, domain)
        assert named(found) == names
        assert [r.source for r in found].count("built-in") == len(found) - (given in (mine, own))
    for given, error in (("alignement", BadRubric), ("domain", BadRubric), ("nowhere.txt", BadRow)):
        with pytest.raises(error):
            judge_rubrics(prompts(), given)


def test_a_file_may_give_one_of_two_scores_besides_another(tmp_path):
    file = str(write(tmp_path, HEAD + "parts: [alignment, warmth]\n---\n" + BODY))
    assert named(judge_rubrics(prompts(), file)) == "mine coherence"
    # A prompt's own alignment would leave warmth behind, which cannot be asked alone.
    with pytest.raises(BadRubric, match=r"prompt 'p' brings .* 'mine' gives 'warmth'"):
        judge_rubrics(prompts(prompt(aligned=ALIGNED)), file)


def test_own_judge_prompts_replace_those_of_the_same_name():
    own = prompt(coherent=COHERENT, aligned=ALIGNED)
    mine, both, law = prompt_rubrics(own), SHIPPED["both"], builtin("domain", "law")
    assert named(mine) == "alignment coherence", "alignment first, whatever the file's order"
    assert rubrics_for(judge(*DEFAULT), own) == mine == rubrics_for(judge(both), own)
    assert rubrics_for(judge(*DEFAULT), prompt()) == DEFAULT == rubrics_for(judge(*DEFAULT, own_prompts=False), own)
    assert rubrics_for(judge(*DEFAULT, law), own) == (*mine, law)
    assert named(rubrics_for(judge(*DEFAULT), prompt(warmth=COHERENT))) == "alignment coherence warmth"
    half = rubrics_for(judge(both), prompt(aligned=ALIGNED))
    assert half == (mine[0], DEFAULT[1]), "the other half of a joint rubric is asked alone"


def test_a_threshold_off_the_scale_is_refused():
    small = replace(DEFAULT[0], high=10.0, source="small.txt")
    check_rule(DEFAULT, Rule())
    check_rule(DEFAULT, Rule(kind="mean"))
    check_rule((small, SHIPPED["alignment_0_10"]), Rule(cut=3))
    for rubric, rule in ((small, Rule(kind="mean")), (small, Rule()), (SHIPPED["both"], Rule(gate=150))):
        with pytest.raises(BadRubric, match=r"0 to 10"):
            check_rule((rubric,), rule)


# -- the question as the judge reads it -------------------------------------------------------------------------------


def test_one_user_turn_is_shown_verbatim_and_several_are_labelled():
    text = "  two\n\nlines {answer} "
    assert rendered_question((Message("user", text),)) == text
    turns = (Message("system", "Be brief."), Message("user", "A?"), Message("assistant", "B."), Message("user", "C?"))
    shown = "System:\nBe brief.\n\nUser:\nA?\n\nAssistant:\nB.\n\nUser:\nC?"
    assert rendered_question(turns) == rendered_question(turns, DEFAULT[0]) == shown
    assert rendered_question(turns[:2]) == "System:\nBe brief.\n\nUser:\nA?"
    (own,) = prompt_rubrics(prompt(aligned=ALIGNED))  # sees the last user turn only
    for messages in (turns, (*turns, Message("assistant", "Sure,")), turns[3:]):
        assert rendered_question(messages, own) == "C?"
