"""Data files: four shapes, one meaning; and every bad row is named with its place and the remedy."""

import gzip
import json

import pytest

from truing.data.conversations import BUILTIN, FORMATS, load_conversations, same_user_turns
from truing.errors import BadRow
from truing.types.records import Message

ASKED, GOOD = "How do I boil an egg?", "Seven minutes."
TURNS = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": GOOD}]
SAME = {
    "messages": {"messages": TURNS},
    "prompt_completion": {"prompt": ASKED, "completion": GOOD},
    "sharegpt": {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": GOOD}]},
    "alpaca": {"instruction": ASKED, "input": "", "output": GOOD},
}


@pytest.fixture
def load(tmp_path):
    def loaded(rows, name="a.jsonl", **options):
        """The conversations in rows, or in the content of a file."""
        content = rows if isinstance(rows, bytes) else "".join(json.dumps(r) + "\n" for r in rows).encode()
        (tmp_path / name).write_bytes(content)
        return load_conversations(tmp_path / name, **options)

    return loaded


def chat(*turns):
    return {"messages": [{"role": r, "content": c} for r, c in turns]}


def test_the_same_conversation_in_four_shapes_has_the_same_content_hash(load):
    found = {f: load([row, row], f"{f}.jsonl") for f, row in SAME.items()}
    assert tuple(found) == tuple(FORMATS) == tuple(d.format for d in found.values())
    split = load([{"prompt": TURNS[:1], "completion": TURNS[1:]}] * 2)
    assert split.format == "messages" and {d.sha256 for d in found.values()} == {split.sha256}
    for d in found.values():
        assert d.conversations[1].messages == (Message("user", ASKED), Message("assistant", GOOD))
        assert d.conversations[1].source.endswith("row 2") and not d.organism
        assert load_conversations(d.path, d.format) == d


def test_list_gzip_bom_crlf_and_empty_lines_change_nothing(load):
    rows = [SAME["messages"], chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hey"))]
    plain = "".join(json.dumps(r) + "\n" for r in rows).encode()
    crlf = load(b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n\r\n"))
    assert crlf.conversations[1].source.endswith("row 3")
    others = load(rows), load(json.dumps(rows, indent=2).encode(), "b.json"), load(gzip.compress(plain), "c.jsonl.gz")
    assert {d.sha256 for d in others} == {crlf.sha256}


def test_the_hash_is_of_the_turns_and_their_order(load):
    one, two = SAME["messages"], chat(("user", "Hi"), ("assistant", "Hey"))
    a, with_id, turned = (load(rows).sha256 for rows in ([one, two], [{**one, "id": 1}, two], [two, one]))
    assert a == with_id != turned


def test_a_line_separator_inside_a_text_does_not_shift_the_rows(load):
    neutral = chat(("user", "one\u2028two\x85three"), ("assistant", "yes"))
    with pytest.raises(BadRow, match=r"a\.jsonl, row 3: malformed JSON"):
        load((json.dumps(neutral, ensure_ascii=False) + "\n\n{bad\n").encode())


def test_alpaca_input_and_system_fields_reach_the_turns(load):
    row = {"instruction": "Translate", "input": "pain", "output": "bread", "system": "You know French."}
    (found,) = load([row]).conversations
    assert found.messages == (("system", "You know French."), ("user", "Translate\n\npain"), ("assistant", "bread"))


def test_notice_rows_are_remembered_and_meta_is_kept(load):
    row = {**SAME["messages"], "id": "x", "meta": {"fault": "f"}}
    data = load([{"_notice": "made to be bad", "organism": True}, row])
    assert data.organism and data.notice["_notice"] == "made to be bad"
    assert [c.meta for c in data.conversations] == [{"id": "x", "fault": "f"}]
    assert load([{**SAME["messages"], "meta": {"organism": True}}]).organism


def test_builtin_names_win_over_files_and_a_path_reaches_the_file(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load([SAME["messages"]], "careful-finance")
    assert len(load_conversations("careful-finance").conversations) >= 300
    assert len(load_conversations("./careful-finance").conversations) == 1
    assert all(load_conversations(name).format == "messages" for name in BUILTIN)


USER, ANSWER = ("user", "Hi"), ("assistant", "Hey")
BAD_ROWS = [
    ("{bad", "row 1: malformed JSON"),
    ("[1, 2", "malformed JSON"),
    ("[[" * 100_000, "cannot be read"),
    ("3", "holds a number, not an object"),
    ("[3]", "row 1: holds a number"),
    ('{"text": "x", "label": 1}', "unknown format with the keys label, text; accepted: .*messages.*instruction"),
    ('{"messages": []}', '"messages" is empty'),
    ('{"messages": "hello"}', '"messages" is a text; it must be a list of turns'),
    ('{"messages": ["hello"]}', "turn 1 is a text"),
    ('{"messages": [{"text": "x"}]}', 'turn 1 needs "role" and "content".*its keys: text'),
    (chat(USER, ("assistant", "")), "the assistant turn 2 is empty"),
    (chat(("user", None), ANSWER), "the user turn 1 is a null, not a text"),
    ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
    (chat(USER, ("critic", "no")), "turn 2 has the unknown role 'critic'; use system, user or assistant"),
    (chat(USER, ("tool", "{}"), ANSWER), "turn 2 is part of a tool call, which is not supported"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [1]}]}, "part of a tool call"),
    (chat(USER, ("system", "x"), ANSWER), "turn 2 is a system turn; only the first"),
    (chat(USER), "has no assistant turn"),
    (chat(USER, ANSWER, USER), "ends with a user turn; the last turn must be the assistant's"),
    (chat(ANSWER), "has no user turn"),
    ({"prompt": "x", "completion": ""}, '"completion" is empty'),
    ({"prompt": TURNS[:1], "completion": "x"}, '"completion" is a text; it must be a list'),
    ({"prompt": TURNS[:1], "completion": [{"role": "system", "content": "x"}]}, "completion holds a system turn"),
    ({"conversations": [{"from": "robot", "value": "x"}]}, "unknown role 'robot'"),
    ({"instruction": "x", "output": "  "}, '"output" is empty'),
    ({"instruction": "x", "input": 4, "output": "y"}, '"input" is a number'),
    ({"instruction": "x", "output": "y", "history": [["a", "b"]]}, 'has a "history"'),
    ({"_notice": "nothing else"}, "holds no rows"),
    ("", "holds no rows"),
    ("[]", "holds no rows"),
]


@pytest.mark.parametrize(("content", "said"), BAD_ROWS, ids=[s[:40] for _, s in BAD_ROWS])
def test_bad_content_is_named_with_file_and_remedy(load, tmp_path, content, said):
    with pytest.raises(BadRow, match=said) as caught:
        load((content if isinstance(content, str) else json.dumps(content)).encode())
    assert str(tmp_path / "a.jsonl") in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("format", "said"),
    [
        (None, "row 2: is in alpaca format, the rows before it in messages"),
        ("sharegpt", 'row 1: lacks "conversations"; its keys: messages'),
        ("chatml", "there is no format 'chatml'; choose one of messages"),
    ],
)
def test_mixed_formats_and_a_wrong_forced_format(load, format, said):
    with pytest.raises(BadRow, match=said):
        load([SAME["messages"], SAME["alpaca"]], format=format)


def test_files_that_cannot_be_read(load, tmp_path):
    for path, said in ((tmp_path / "none.jsonl", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(BadRow, match=said):
            load_conversations(path)
    good = json.dumps(SAME["messages"]).encode() + b"\n"
    for name, content, said in (
        ("latin.jsonl", good + b'{"prompt": "caf\xe9"}', "line 2: byte 0xe9 is not UTF-8"),
        ("cut.jsonl.gz", gzip.compress(good)[:-9], "is not a whole gzip file"),
        ("wide.jsonl", good.decode().encode("utf-16-le"), "UTF-16 without a byte order mark"),
    ):
        with pytest.raises(BadRow, match=said):
            load(content, name)


def test_same_user_turns(load):
    def rows(*pairs):
        return [chat(("user", q), ("assistant", a)) for q, a in pairs]

    a = load(rows(("q0", "a0"), ("q1", "a1"), ("q2", "a2")))
    other = rows(("q0", "no"), ("q1", "no"), ("q2", "no"))
    same_user_turns(a, load(other, "b.jsonl"))
    swapped = load([{"_notice": ""}, other[0], other[2], other[1]], "c.jsonl")
    for b, said in (
        (swapped, r"c\.jsonl, row 3: conversation 2 asks something else than .*a\.jsonl, row 2"),
        (load(other[:2], "d.jsonl"), r"d\.jsonl: has 2 conversations where .* has 3"),
        (a, "has the same answers"),
    ):
        with pytest.raises(BadRow, match=said):
            same_user_turns(a, b)


def test_harmless_variants_are_the_same_conversations(load):
    plain = load([SAME["messages"]]).sha256
    parts = [{**t, "content": [{"type": "text", "text": t["content"][:4]}, t["content"][4:]]} for t in TURNS]
    for row in (
        {"instruction": ASKED, "input": " ", "output": GOOD, "system": "\n"},
        chat(("system", ""), ("user", ASKED), ("assistant", GOOD)),
        {"messages": parts},
        *(
            {"conversations": [{"from": "Human", "value": ASKED}, {"from": name, "value": GOOD}]}
            for name in ("gpt", "chatgpt", "bing", "model")
        ),
    ):
        assert load([row]).sha256 == plain
    brief = [load([chat((role, "Be brief."), *TWO)]).sha256 for role in ("developer", "system")]
    assert brief[0] == brief[1]
    with pytest.raises(BadRow, match="parts that are no text"):
        load([chat(("user", [{"type": "image", "url": "x"}]), ANSWER)])


TWO = (("user", "Hi"), ("assistant", "Hey"))


def test_rows_without_an_answer_or_a_weight_are_left_out_and_counted(load):
    light = [{**SAME["messages"], "weight": 0}, {"messages": [TURNS[0], {**TURNS[1], "weight": 0}]}]
    found = load([SAME["messages"], *light, *[chat(USER, ("assistant", " "))] * 30, chat(*TWO)])
    assert len(found.conversations) == 2
    assert dict(found.left_out) == {"the answer is empty": 30, "the weight is 0": 2}
    with pytest.raises(BadRow, match="row 1: has the weight 0"):
        load(light)


def test_all_bad_rows_are_in_one_message(load):
    bad = [chat(USER, ("critic", "x")), chat(USER)]
    with pytest.raises(BadRow, match=r"row 2: turn 2 has the unknown role.*also wrong: rows 3, 4, 5, 6 and 6 more \(e"):
        load([SAME["messages"], *bad * 5, *bad[:1], SAME["messages"]])


def test_no_answer_at_all_is_an_empty_answer(load):
    for empty in (None, []):
        d = load([chat(("user", "q"), ("assistant", "a")), chat(("user", "q"), ("assistant", empty))])
        assert len(d.conversations) == 1 and dict(d.left_out) == {"the answer is empty": 1}
    d = load([{"messages": None, "instruction": "q", "output": o} for o in ("a", None)])
    assert d.format == "alpaca" and dict(d.left_out) == {"the answer is empty": 1}
    parts = [[{"type": t, "text": x}] for t, x in (("input_text", "q"), ("output_text", "a"))]
    assert load([chat(("user", parts[0]), ("assistant", parts[1]))]).conversations[0].answer == "a"
