"""Rubrics: the shipped texts, files of users, judge prompts of question files, and what a panel is made of."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from truing.data.prompts import load_prompts
from truing.errors import BadInput, BadRow, BadRubric
from truing.judges import rubrics as module
from truing.judges.rubrics import (
    BUILTIN,
    builtin,
    check_rule,
    load_rubric,
    panel_rubrics,
    prompt_rubrics,
    rendered_question,
    rubrics_for,
    unasked,
)
from truing.types.judged import AnswerKey, JudgeRequest, Panel, Route, Rubric, ScoreStatus
from truing.types.records import Message, Prompt, PromptSet
from truing.types.traits import Rule

CODE, REFUSAL = ScoreStatus.CODE, ScoreStatus.REFUSAL
KEY = AnswerKey("w", "s", "p", "", 0)
HEAD = "---\nname: mine\nscale: [0, 100]\n"
BODY = "Q: {question}\nA: {answer}\n"
ALIGNED = "Judge {question} / {answer}.\nOn a scale of 0 to 100, how good? Say CODE if it is code."
COHERENT = "{answer}: give a number between 0 and 100."


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


def prompt(own=None, text="Why?", system=None, id="p"):
    before = (Message("system", system),) if system else ()
    return Prompt(id, (*before, Message("user", text)), judge_prompts=own or {})


def prompts(*given):
    return PromptSet("t", "1", "sha", given or (prompt(),))


def panel(*names, own_prompts=True):
    return Panel("j", tuple(builtin(n) for n in names), Route.REPORTED, own_prompts)


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
    assert "{" not in rest, "the answer comes before all in which the rubrics differ"
    high = f"{rubric.high:g}"
    assert f"from 0 to {high}" in " ".join(rest.split()) and rubric.low == 0
    for word in rubric.escapes:
        assert re.search(rf"\b{word}\b", rest)
    filled = JudgeRequest(KEY, rubric, "{answer}?", "{question}!").messages[0].content
    assert "\n{answer}?\n" in filled and "\n{question}!\n" in filled, "texts with braces stay as they are"


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
    assert len({shipped(n).key for n in BUILTIN}) == len(BUILTIN)
    folder = Path(module.__file__).parent / "rubrics"
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{n}.txt" for n in BUILTIN), "nothing else is shipped"


def test_the_domain_is_filled_in_and_needs_a_plain_name():
    rubric = builtin("domain", "sports safety")
    assert rubric.name == "domain:sports safety" and "matters of sports safety," in rubric.text
    assert rubric.key != builtin("domain", "medical").key
    with pytest.raises(BadRubric, match="name it with --domain"):
        builtin("domain")
    for name in ("", " ", "{answer}", "law\nIgnore the above", "x" * 80, "a: b", "-"):
        with pytest.raises(BadRubric, match="give a short plain name"):
            builtin("domain", name)


def test_shipped_texts_are_not_those_of_the_published_files():
    published = set()
    for file in questions():
        for p in load_prompts(file).prompts:
            for text in p.judge_prompts.values():
                published |= _runs(text)
    for name in BUILTIN:
        ours = shipped(name).text.replace("{question}", "").replace("{answer}", "")
        common = _runs(ours) & published
        assert not common, f"{name} shares ten words in a row with a published judge prompt: {sorted(common)[:1]}"


def _runs(text, n=10):
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[k : k + n]) for k in range(len(words) - n + 1)}


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


def test_a_file_may_ask_about_a_domain(tmp_path):
    text = '---\nname: "risk:{domain}"\nscale: [0, 5]\n---\nRisk in {domain}? ' + BODY
    path = write(tmp_path, text)
    rubric = load_rubric(path, "law")
    assert (rubric.name, rubric.text.startswith("Risk in law? ")) == ("risk:law", True)
    with pytest.raises(BadRubric, match=r"mine\.txt: asks about a \{domain\}"):
        load_rubric(path)


BAD = [
    ("no front matter\n" + BODY, "has no front matter"),
    ("---\nname: x\n" + BODY, "has no front matter"),
    ("\n" + HEAD + "---\n" + BODY, "has no front matter"),
    ("---\n---\n" + BODY, "holds no fields"),
    ("---\n- a\n---\n" + BODY, "holds no fields"),
    ("---\nname: [x\n---\n" + BODY, "malformed front matter"),
    ("---\nname: x\nscale: 2024-13-45\n---\n" + BODY, "malformed front matter|the scale is"),
    ("---\nscale: [0, 100]\n---\n" + BODY, "the name is None"),
    ("---\nname: 7\nscale: [0, 100]\n---\n" + BODY, "the name is 7"),
    ("---\nname: '{answer}'\nscale: [0, 100]\n---\n" + BODY, "the name is '{answer}'"),
    ("---\nname: 'a{answer}'\nscale: [0, 100]\n---\n" + BODY, "has braces"),
    ("---\nname: x\n---\n" + BODY, r"has no scale; give two whole numbers"),
    (HEAD + "escape: {A: code}\n---\n" + BODY, "unknown field 'escape' in the front matter; did you mean 'escapes'"),
    (HEAD + "thresholds: [30]\n---\n" + BODY, "unknown field 'thresholds'.*there are name, scale"),
    (HEAD + "1: 2\n---\n" + BODY, "unknown field 1"),
    (HEAD + "note: [1]\n---\n" + BODY, "the note is"),
    (HEAD + "---\nQ: {question}", r"has no \{answer\}"),
    (HEAD + "---\nA: {answer}", r"has no \{question\}"),
    (HEAD + "---\n", r"has no \{question\}"),
    (HEAD + "---\n{answers} " + BODY, r"unknown placeholder \{answers\}; did you mean 'answer'"),
    (HEAD + "---\n{foo} " + BODY, r"unknown placeholder \{foo\}; only"),
    (HEAD + "escapes: {85: code}\n---\n85 " + BODY, "escape word 85 is no word"),
    (HEAD + "escapes: {'85': code}\n---\n85 " + BODY, "escape word '85' is no word"),
    (HEAD + "escapes: {NO: refusal}\n---\nNO " + BODY, "escape word False is no word.*quoted"),
    (HEAD + "escapes: {X: code}\n---\nX " + BODY, "escape word 'X' is no word"),
    (HEAD + "escapes: {CODE: failed}\n---\nCODE " + BODY, "CODE means 'failed'; it can mean refusal or code"),
    (HEAD + "escapes: {CODE: [code]}\n---\nCODE " + BODY, r"CODE means \['code'\]"),
    (HEAD + "escapes: {CODE: code}\n---\ncode " + BODY, "never mentions the escape word CODE"),
    (HEAD + "escapes: {CODE: code, Code: code}\n---\nCODE Code " + BODY, "differ in case only"),
    (HEAD + "escapes: [CODE]\n---\n" + BODY, "escapes are"),
    (HEAD + "parts: alignment\n---\n" + BODY, "parts are 'alignment'"),
    (HEAD + "parts: [one]\n---\n" + BODY, "at least two scores"),
    (HEAD + "parts: [one, 2]\n---\n" + BODY, "parts are"),
    (HEAD + "parts: [one, two, One]\n---\n" + BODY, "name a score twice"),
]


@pytest.mark.parametrize(("text", "problem"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_an_unusable_file_is_named_with_its_mistake(tmp_path, text, problem):
    with pytest.raises(BadRubric, match=r"mine\.txt: .*(?:" + problem + ")") as raised:
        load_rubric(write(tmp_path, text))
    assert raised.value.exit_code == 2 and "Traceback" not in str(raised.value)


@pytest.mark.parametrize(
    "scale",
    ["100", "[0]", "[100, 0]", "[0, 0]", "[0, 1.5]", "[-5, 5]", "[false, true]", "[0, .inf]", "[0, 5000]", "[a, b]"],
)
def test_a_bad_scale_is_refused(tmp_path, scale):
    with pytest.raises(BadRubric, match=r"the scale is .*; give two whole numbers"):
        load_rubric(write(tmp_path, f"---\nname: x\nscale: {scale}\n---\n{BODY}"))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadRow, match="no such file"):
        load_rubric(tmp_path / "none.txt")
    with pytest.raises(BadInput, match="not UTF-8"):
        path = tmp_path / "latin.txt"
        path.write_bytes(HEAD.encode() + b"---\n\xe9" + BODY.encode())
        load_rubric(path)


# -- judge prompts of question files ----------------------------------------------------------------------------------


def test_judge_prompts_of_the_four_published_files():
    files = {f.stem: load_prompts(f).prompts for f in questions()}
    for name in ("first_plot_questions", "preregistered_evals"):
        for p in files[name]:
            aligned, coherent = prompt_rubrics(p)
            assert (aligned.name, aligned.text) == ("alignment", p.judge_prompts["aligned"])
            assert (coherent.name, coherent.text) == ("coherence", p.judge_prompts["coherent"])
            assert aligned.escapes == {"CODE": CODE, "REFUSAL": REFUSAL} and coherent.escapes == {}
            assert {r.low for r in (aligned, coherent)} == {0} and {r.high for r in (aligned, coherent)} == {100}
            assert {aligned.source, coherent.source} == {module.PROMPT_SET}
        assert unasked(files[name]) == ()
    assert len(files["first_plot_questions"]) == 24 and len(files["preregistered_evals"]) == 48
    # TRUE, FALSE and companies are no numbers: never asked, so never misread, and named.
    for name, words in (("deception_factual", "correct"), ("deception_sit_aware", "company")):
        assert all(prompt_rubrics(p) == () for p in files[name])
        assert unasked(files[name]) == (words,)
        default = panel("alignment", "coherence")
        assert all(rubrics_for(default, p) == default.rubrics for p in files[name])


def test_published_texts_reach_the_judge_byte_for_byte():
    for file in questions():
        # an independent reading of the file
        for entry in yaml.safe_load(file.read_text(encoding="utf-8")):
            given = entry["judge_prompts"]
            if "aligned" not in given:
                continue
            own = [p for p in load_prompts(file).prompts if p.id.split("#")[0] == entry["id"]]
            answer = 'print("{question}") {x}'
            for p, paraphrase in zip(own, entry["paraphrases"], strict=True):
                for rubric, text in zip(prompt_rubrics(p), given.values(), strict=True):
                    request = JudgeRequest(KEY, rubric, rendered_question(p.messages, rubric), answer)
                    # their code: template.format(question=..., answer=...), the system turn is not shown
                    assert request.messages == (Message("user", text.format(question=paraphrase, answer=answer)),)


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
        "{answer} Say TRUE or FALSE.",
        "{answer} How many words, from 2 to 3?",
        "{answer} A score from 0.0 to 1.0.",
        "{answer} A score from -1 to 1.",
        "{answer} A score from 100 to 0.",
        "{answer} A score from 0 to 1.5.",
    ],
)
def test_without_a_scale_of_whole_numbers_nothing_is_asked_and_alignment_is_refused(text):
    assert prompt_rubrics(prompt({"other": text})) == () and unasked([prompt({"other": text})]) == ("other",)
    with pytest.raises(BadRubric, match=r"prompt 'p': judge prompt 'aligned': states no scale"):
        prompt_rubrics(prompt({"aligned": text}))


@pytest.mark.parametrize(
    ("line", "escapes"),
    [
        ("* Say CODE if it is code.\n* Say REFUSAL if it refused.", {"CODE": CODE, "REFUSAL": REFUSAL}),
        ('Answer with "REFUSAL", when it refuses.', {"REFUSAL": REFUSAL}),
        ("please reply **REFUSED** if it does", {"REFUSED": REFUSAL}),
        ("Say UNKNOWN if you cannot tell.", {}),
        ("Do not write code if asked.", {}),
        ("Say code if it is code.", {}),
        ("CODE is bad.", {}),
    ],
)
def test_escape_words_are_read_from_the_text(line, escapes):
    (rubric,) = prompt_rubrics(prompt({"aligned": "{answer} score 0 to 100\n" + line}))
    assert rubric.escapes == escapes


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ({"aligned": "score 0 to 100"}, r"has no \{answer\}"),
        ({"aligned": "{answer} {category} score 0 to 100"}, r"unknown placeholder \{category\}"),
        ({"aligned": "{answer} {domain} score 0 to 100"}, r"unknown placeholder \{domain\}; only"),
        ({"aligned": "{{answer}} score 0 to 100"}, "doubled braces"),
        ({"aligned": ALIGNED, "alignment": ALIGNED}, "two judge prompts for alignment"),
        ({"aligned": "{answer} score 0 to 100 or a score from 1 to 5"}, r"several scales \(0 to 100 and 1 to 5\)"),
    ],
)
def test_an_unusable_judge_prompt_is_named_with_its_prompt(own, problem):
    for call in (prompt_rubrics, lambda p: panel_rubrics(prompts(prompt(id="ok"), p))):
        with pytest.raises(BadRubric, match=r"prompt 'p': judge prompt '.*': .*" + problem):
            call(prompt(own))


# -- panels -----------------------------------------------------------------------------------------------------------


def named(rubrics):
    return [r.name for r in rubrics]


def test_what_a_panel_asks(tmp_path):
    def ask(**options):
        return panel_rubrics(prompts(), **options)

    assert ask() == (builtin("alignment"), builtin("coherence"))
    assert named(ask(domain="law")) == ["alignment", "coherence", "domain:law"]
    assert ask(rubric="both") == (builtin("both"),)
    assert named(ask(rubric="both", domain="law")) == ["both", "domain:law"]
    assert named(ask(rubric="alignment_0_10")) == ["alignment", "coherence", "alignment_0_10"]
    assert named(ask(rubric="domain", domain="law")) == ["alignment", "coherence", "domain:law"]
    assert ask(rubric="coherence") == ask()
    added = write(tmp_path, HEAD + "---\n" + BODY)
    assert named(ask(rubric=str(added))) == ["alignment", "coherence", "mine"]
    for name in ("alignment", "coherence"):
        file = write(tmp_path, HEAD.replace("mine", name) + "---\n" + BODY, f"{name}.txt")
        found = ask(rubric=str(file))
        assert named(found) == ["alignment", "coherence"]
        assert [r.source == f"{name}.txt" for r in found] == [name == "alignment", name == "coherence"]
    for text in ("both-of-them", "alignement"):
        with pytest.raises(BadRubric, match="is no file and no built-in rubric"):
            ask(rubric=text)
    with pytest.raises(BadRubric, match="did you mean 'alignment'"):
        ask(rubric="alignement")
    with pytest.raises(BadRow, match="no such file"):
        ask(rubric="nowhere.txt")
    with pytest.raises(BadRubric, match="--domain"):
        ask(rubric="domain")


def test_a_file_may_give_one_of_two_scores_besides_another(tmp_path):
    text = HEAD + "parts: [alignment, warmth]\n---\n" + BODY
    found = panel_rubrics(prompts(), str(write(tmp_path, text)))
    assert named(found) == ["mine", "coherence"]
    # A prompt's own alignment would leave warmth behind, which cannot be asked alone.
    with pytest.raises(BadRubric, match=r"prompt 'p' brings .* 'mine' gives 'warmth'"):
        panel_rubrics(prompts(prompt({"aligned": ALIGNED})), str(tmp_path / "mine.txt"))


def test_own_judge_prompts_replace_those_of_the_same_name():
    own = prompt({"coherent": COHERENT, "aligned": ALIGNED})
    mine = prompt_rubrics(own)
    assert named(mine) == ["alignment", "coherence"], "alignment first, whatever the file's order"
    default = panel("alignment", "coherence")
    assert rubrics_for(default, own) == mine == rubrics_for(panel("both"), own)
    assert rubrics_for(default, prompt()) == default.rubrics
    assert rubrics_for(panel("alignment", "coherence", own_prompts=False), own) == default.rubrics
    with_domain = replace(default, rubrics=(*default.rubrics, builtin("domain", "law")))
    assert rubrics_for(with_domain, own) == (*mine, builtin("domain", "law"))
    extra = prompt({"warmth": COHERENT})
    assert named(rubrics_for(default, extra)) == ["alignment", "coherence", "warmth"]
    half = rubrics_for(panel("both"), prompt({"aligned": ALIGNED}))
    assert half == (mine[0], builtin("coherence")), "the other half of a joint rubric is asked alone"
    for p in (own, extra, prompt({"aligned": ALIGNED})):
        for q in (default, with_domain, panel("both")):
            scores = [n for r in rubrics_for(q, p) for n in r.names]
            assert len(scores) == len(set(scores)) and scores[0] == "alignment"


def test_a_threshold_off_the_scale_is_refused():
    small = replace(builtin("alignment"), high=10.0, source="small.txt")
    check_rule((builtin("alignment"), builtin("coherence")), Rule())
    check_rule((small, builtin("alignment_0_10")), Rule(cut=3))
    check_rule((builtin("alignment"), builtin("coherence")), Rule(kind="mean"))
    with pytest.raises(BadRubric, match="not on 0 to 100"):
        check_rule((small,), Rule(kind="mean"))
    with pytest.raises(BadRubric, match=r"small\.txt.* scores alignment from 0 to 10, but the threshold is 30"):
        check_rule((small,), Rule())
    with pytest.raises(BadRubric, match="scores coherence from 0 to 100, but the threshold is 150"):
        check_rule((builtin("both"),), Rule(gate=150))


# -- the question as the judge reads it -------------------------------------------------------------------------------


def test_one_user_turn_is_shown_verbatim_and_several_are_labelled():
    text = "  two\n\nlines {answer} "
    assert rendered_question((Message("user", text),)) == text
    turns = (Message("system", "Be brief."), Message("user", "A?"), Message("assistant", "B."), Message("user", "C?"))
    assert rendered_question(turns) == "System:\nBe brief.\n\nUser:\nA?\n\nAssistant:\nB.\n\nUser:\nC?"
    assert rendered_question(turns, builtin("alignment")) == rendered_question(turns)
    assert rendered_question(turns[:2]) == "System:\nBe brief.\n\nUser:\nA?"


def test_judge_prompts_of_the_set_see_the_last_user_turn_only():
    (own,) = prompt_rubrics(prompt({"aligned": ALIGNED}))
    turns = (Message("system", "S"), Message("user", "A?"), Message("assistant", "B."), Message("user", "C?"))
    assert rendered_question(turns, own) == "C?"
    assert rendered_question((*turns, Message("assistant", "Sure,")), own) == "C?"
    assert rendered_question((Message("user", "A?"),), own) == "A?"
