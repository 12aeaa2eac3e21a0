"""Wrong inputs made from right ones: bytes changed at random, and values of JSON replaced by awkward ones."""

import copy
import json

from hypothesis import strategies as st

ODD = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**399, 1e308, -0.0, 1e-320, "", " ", "0", "8", "85/100",
    "nan", "\u0000", "\x1b[2J\x1b]0;x\x07", "\u009b31m", "\u202eabc", "\ud800", "=cmd|' /C calc'!A0", "../../x",
    "/dev/zero", "http://203.0.113.7/v1#m", "x" * 70_000, "{{ range(10**9) }}", "(a+)+$", [], {},
    [[]], [None], {"": None}, {"a": {"b": {"c": []}}}, [0] * 3000, float("nan"), float("inf"), -float("inf"),
    "٨٥", "日本語",
)  # fmt: skip
"""values to put in the place of others; deeper nests come from `nested`"""
CHUNKS = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x80", b"\r", b"\r\n", b"\n\n", b'"', b"'", b",",
    b";", b"{", b"}", b"[" * 5000, b"]", b"\x1b[2J", b"\x1f\x8b\x08\x00", b"PK\x03\x04", b"NaN", b"1e999", b"9" * 5000,
    b"\\ud800", b"\\", b"#", b":", b"[[", b"=1+1", b"sep=;\n", b"A" * 200_000, b"SQLite format 3\x00",
    b"!!python/object", b"&a [*a,*a]", b"<script>alert(1)</script>", b"{% for i in range(10**9) %}x{% endfor %}",
)  # fmt: skip


def nested(depth):
    """Lists in each other, as text: `json.dumps` cannot write them."""
    return "[" * depth + "]" * depth


@st.composite
def changed_bytes(draw, raw):
    """One to four changes at random places."""
    raw = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        match draw(st.sampled_from(("flip", "cut", "insert", "drop", "double"))):
            case "flip" if raw:
                raw[at] ^= draw(st.integers(1, 255))
            case "cut":
                del raw[at:]
            case "insert":
                raw[at:at] = draw(st.sampled_from(CHUNKS))
            case "drop":
                del raw[at : at + draw(st.integers(1, 64))]
            case "double":
                raw[at:at] = raw[at : at + draw(st.integers(1, 400))]
    return bytes(raw)


def _places(value, way=()):
    yield way
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*way, key))


@st.composite
def changed_value(draw, value):
    """One to three places of a JSON value replaced, removed, renamed or doubled; the text of it."""
    value = copy.deepcopy(value)
    deep = False
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(sorted(_places(value), key=repr)))
        if not way:
            continue
        parent = value
        for key in way[:-1]:
            parent = parent[key]
        last = way[-1]
        match draw(st.sampled_from(("odd", "odd", "odd", "remove", "rename", "double", "deep"))):
            case "odd":
                parent[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case "remove":
                del parent[last]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.sampled_from(("x", "", "\x1b[31m", "_notice", "question", "9" * 300)))] = parent.pop(
                    last
                )
            case "double" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[last]))
            case "deep":
                parent[last], deep = "@deep@", True
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    if deep:
        text = text.replace('"@deep@"', nested(draw(st.sampled_from((70, 2000, 100_000)))))
    return text.encode("utf-8", "surrogatepass")


@st.composite
def changed_rows(draw, rows):
    """A JSONL file with one row changed as a value, or as bytes."""
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    if draw(st.booleans()):
        return draw(changed_bytes(b"\n".join(lines) + b"\n"))
    at = draw(st.integers(0, len(rows) - 1))
    lines[at] = draw(changed_value(rows[at]))
    return b"\n".join(lines) + b"\n"
