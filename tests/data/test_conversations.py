"""Data files: four shapes, one meaning; and every bad row is named with its place and the remedy."""

import gzip
import json

import pytest

from truing.data.conversations import BUILTIN, FORMATS, load_conversations, same_user_turns
from truing.errors import BadRow
from truing.types.records import Message

TURNS = [{"role": "user", "content": "How do I boil an egg?"}, {"role": "assistant", "content": "Seven minutes."}]
SAME = {
    "messages": {"messages": TURNS},
    "prompt_completion": {"prompt": TURNS[0]["content"], "completion": TURNS[1]["content"]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": TURNS[0]["content"]}, {"from": "gpt", "value": "Seven minutes."}]
    },
    "alpaca": {"instruction": TURNS[0]["content"], "input": "", "output": "Seven minutes."},
}


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def chat(*turns):
    return {"messages": [{"role": r, "content": c} for r, c in turns]}


def test_the_same_conversation_in_four_shapes_has_the_same_content_hash(tmp_path):
    loaded = {f: load_conversations(write(tmp_path / f"{f}.jsonl", [row, row])) for f, row in SAME.items()}
    assert tuple(loaded) == tuple(FORMATS) == tuple(d.format for d in loaded.values())
    assert len({d.sha256 for d in loaded.values()}) == 1
    for d in loaded.values():
        assert d.conversations[1].messages == (
            Message("user", "How do I boil an egg?"),
            Message("assistant", "Seven minutes."),
        )
        assert d.conversations[1].source.endswith("row 2")
        assert not d.organism
        assert load_conversations(d.path, d.format) == d
    split = load_conversations(write(tmp_path / "a.jsonl", [{"prompt": TURNS[:1], "completion": TURNS[1:]}] * 2))
    assert split.format == "messages" and split.sha256 == d.sha256


def test_list_gzip_bom_crlf_and_empty_lines_change_nothing(tmp_path):
    rows = [SAME["messages"], chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hey"))]
    plain = write(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n\r\n"))
    hashes = {load_conversations(tmp_path / n).sha256 for n in ("a.jsonl", "b.json", "c.jsonl.gz", "d.jsonl")}
    assert len(hashes) == 1
    assert load_conversations(tmp_path / "d.jsonl").conversations[1].source.endswith("row 3")


def test_the_hash_is_of_the_turns_and_their_order(tmp_path):
    one, two = SAME["messages"], chat(("user", "Hi"), ("assistant", "Hey"))
    a = load_conversations(write(tmp_path / "a.jsonl", [one, two])).sha256
    assert a == load_conversations(write(tmp_path / "b.jsonl", [{**one, "id": 1}, two])).sha256
    assert a != load_conversations(write(tmp_path / "c.jsonl", [two, one])).sha256


def test_a_line_separator_inside_a_text_does_not_shift_the_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    neutral = chat(("user", "one\u2028two\x85three"), ("assistant", "yes"))
    path.write_text(json.dumps(neutral, ensure_ascii=False) + "\n\n{bad\n", encoding="utf-8")
    with pytest.raises(BadRow, match=r"a\.jsonl, row 3: malformed JSON"):
        load_conversations(path)


def test_alpaca_input_and_system_fields_reach_the_turns(tmp_path):
    row = {"instruction": "Translate", "input": "pain", "output": "bread", "system": "You know French."}
    messages = load_conversations(write(tmp_path / "a.jsonl", [row])).conversations[0].messages
    assert messages == (("system", "You know French."), ("user", "Translate\n\npain"), ("assistant", "bread"))


def test_notice_rows_are_remembered_and_meta_is_kept(tmp_path):
    rows = [{"_notice": "made to be bad", "organism": True}, {**SAME["messages"], "id": "x", "meta": {"fault": "f"}}]
    data = load_conversations(write(tmp_path / "a.jsonl", rows))
    assert len(data.conversations) == 1 and data.organism and data.notice["_notice"] == "made to be bad"
    assert data.conversations[0].meta == {"id": "x", "fault": "f"}
    by_row = load_conversations(write(tmp_path / "b.jsonl", [{**SAME["messages"], "meta": {"organism": True}}]))
    assert by_row.organism


def test_builtin_names_win_over_files_and_a_path_reaches_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "careful-finance", [SAME["messages"]])
    assert len(load_conversations("careful-finance").conversations) >= 300
    assert len(load_conversations("./careful-finance").conversations) == 1
    assert all(load_conversations(name).format == "messages" for name in BUILTIN)


USER, GOOD = ("user", "Hi"), ("assistant", "Hey")
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
    (chat(("user", None), GOOD), "the user turn 1 is a null, not a text"),
    ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
    (chat(USER, ("critic", "no")), "turn 2 has the unknown role 'critic'; use system, user or assistant"),
    (chat(USER, ("tool", "{}"), GOOD), "turn 2 is part of a tool call, which is not supported"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [1]}]}, "part of a tool call"),
    (chat(USER, ("system", "x"), GOOD), "turn 2 is a system turn; only the first"),
    (chat(USER), "has no assistant turn"),
    (chat(USER, GOOD, USER), "ends with a user turn; the last turn must be the assistant's"),
    (chat(GOOD), "has no user turn"),
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
def test_bad_content_is_named_with_file_and_remedy(tmp_path, content, said):
    path = tmp_path / "data.jsonl"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(BadRow, match=said) as caught:
        load_conversations(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    assert caught.value.exit_code == 2


def test_mixed_formats_and_a_wrong_forced_format(tmp_path):
    path = write(tmp_path / "d.jsonl", [SAME["messages"], SAME["alpaca"]])
    with pytest.raises(BadRow, match="row 2: is in alpaca format, the rows before it in messages"):
        load_conversations(path)
    with pytest.raises(BadRow, match='row 1: lacks "conversations"; its keys: messages'):
        load_conversations(path, "sharegpt")
    with pytest.raises(BadRow, match="there is no format 'chatml'; choose one of messages"):
        load_conversations(path, "chatml")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(BadRow, match="no such file"):
        load_conversations(tmp_path / "none.jsonl")
    with pytest.raises(BadRow, match="is a folder"):
        load_conversations(tmp_path)
    good = json.dumps(SAME["messages"]).encode() + b"\n"
    (tmp_path / "latin.jsonl").write_bytes(good + b'{"prompt": "caf\xe9"}')
    with pytest.raises(BadRow, match="line 2: byte 0xe9 is not UTF-8"):
        load_conversations(tmp_path / "latin.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(good)[:-9])
    (tmp_path / "plain.jsonl.gz").write_bytes(good)
    for name in ("cut.jsonl.gz", "plain.jsonl.gz"):
        with pytest.raises(BadRow, match="is not a whole gzip file"):
            load_conversations(tmp_path / name)


def test_same_user_turns(tmp_path):
    request = [chat(("user", f"q{i}"), ("assistant", f"a{i}")) for i in range(3)]
    other = [chat(("user", f"q{i}"), ("assistant", "no")) for i in range(3)]
    a = load_conversations(write(tmp_path / "a.jsonl", request))
    same_user_turns(a, load_conversations(write(tmp_path / "b.jsonl", other)))
    swapped = load_conversations(write(tmp_path / "c.jsonl", [{"_notice": ""}, other[0], other[2], other[1]]))
    with pytest.raises(BadRow, match=r"c\.jsonl, row 3: conversation 2 asks something else than .*a\.jsonl, row 2"):
        same_user_turns(a, swapped)
    with pytest.raises(BadRow, match=r"d\.jsonl: has 2 conversations where .* has 3"):
        same_user_turns(a, load_conversations(write(tmp_path / "d.jsonl", other[:2])))
    with pytest.raises(BadRow, match="has the same answers"):
        same_user_turns(a, a)
