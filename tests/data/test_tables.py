"""One reader: the same rows in every form that people have them in are the same rows; what is no table is named."""

import csv
import gzip
import io
import json
import sys
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from truing import files
from truing.data.conversations import load_conversations
from truing.data.prompts import load_prompts
from truing.data.tables import INSPECT, read_table
from truing.errors import BadRow

ROWS = [{"prompt": f"How, {k}; and why?", "completion": f'Slowly, "{k}"\n| then\ttwice.'} for k in range(3)]
TABLE = pa.Table.from_pylist(ROWS)


def as_csv(separator, encoding="utf-8", first=""):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator).writerows([ROWS[0], *(r.values() for r in ROWS)])
    return (first + out.getvalue()).encode(encoding)


def written(write):
    out = io.BytesIO()
    write(out)
    return out.getvalue()


def stream(out):
    with pa.ipc.new_stream(out, TABLE.schema) as writer:
        writer.write_table(TABLE)


def zipped(**named):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in named.items():
            z.writestr(name.replace("__", "."), content)
    return out.getvalue()


LINES = "\n".join(map(json.dumps, ROWS)).encode()
PARQUET = written(lambda out: pq.write_table(TABLE, out))
COLUMNS = {name: [r[name] for r in ROWS] for name in ROWS[0]}
FORMS = {
    "lines": LINES,
    "list": json.dumps(ROWS, indent=2).encode(),
    "objects over several lines": "\n".join(json.dumps(r, indent=2) for r in ROWS).encode(),
    "one list in an object": json.dumps({"version": 1, "data": ROWS}).encode(),
    "columns": json.dumps(COLUMNS).encode(),
    "columns of pandas": json.dumps({k: dict(enumerate(v)) for k, v in COLUMNS.items()}).encode(),
    "yaml": b"# mine\n---\n" + "\n".join(f"- {json.dumps(r)}" for r in ROWS).encode(),
    "comma": as_csv(","),
    "semicolon, with a mark": as_csv(";", "utf-8-sig"),
    "separator declared": as_csv(";", "utf-8-sig", "sep=;\r\n"),
    "tabs in UTF-16, as Excel writes them": as_csv("\t", "utf-16"),
    "parquet": PARQUET,
    "arrow": written(stream),
    "gzip": gzip.compress(LINES),
    "zip": zipped(task__jsonl=LINES),
    "zip of a Mac": zipped(**{"task__csv": as_csv(";"), "__MACOSX/__task": b"x"}),
    "gzip of parquet": gzip.compress(PARQUET),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["a.jsonl", "b"])
def test_the_content_tells_what_a_file_is(tmp_path, form, name):
    (tmp_path / name).write_bytes(FORMS[form])
    assert [dict(row) for _, row in read_table(tmp_path / name).rows] == ROWS
    assert [c.answer for c in load_conversations(tmp_path / name).conversations] == [r["completion"] for r in ROWS]
    assert [p.messages[0].content for p in load_prompts(tmp_path / name).prompts] == [r["prompt"] for r in ROWS]


def test_a_folder_that_datasets_saved(tmp_path):
    (tmp_path / "set" / "train").mkdir(parents=True)
    (tmp_path / "set" / "train" / "data-00000.arrow").write_bytes(written(stream))
    state = tmp_path / "set" / "train" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "data-00000.arrow"}]}))
    splits = tmp_path / "set" / "dataset_dict.json"
    for given, where in ((["train"], tmp_path / "set"), (["train", "test"], tmp_path / "set" / "train")):
        splits.write_text(json.dumps({"splits": given}))
        assert [dict(row) for _, row in read_table(where).rows] == ROWS
    with pytest.raises(BadRow, match=r"holds the splits train, test; name one: .*/set/SPLIT"):
        read_table(tmp_path / "set")
    with pytest.raises(BadRow, match=r"is a folder; name one file in it .*data-00000.arrow"):
        read_table(tmp_path)
    for name in ("../x.arrow", "/etc/passwd", "..", 3):
        state.write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(BadRow, match="which is none in the folder"):
            read_table(tmp_path / "set" / "train")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zipped(a__csv=b"x", b__csv=b"y"), r"is a zip archive of 2 files \(a\.csv, b\.csv\); unpack it and name one"),
        (zipped(**{"[Content_Types]__xml": b""}), r"is a spreadsheet or document; save it as CSV"),
        (zipped(**{"header__json": b"{}", "samples/1_epoch_1__json": b"{}"}), INSPECT[:40]),
        (PARQUET[:-9], "is not a whole Parquet or Arrow file"),
        (gzip.compress(LINES)[:-9], "is not a whole gzip file"),
        (b"version https://git-lfs.github.com/spec/v1\noid x", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "is a web page; download the file itself"),
        (b"\x28\xb5\x2f\xfd..", "is compressed with zstd; unpack it"),
        (b"\x80\x04\x95", "is a pickle, which is never opened"),
        ("prompt;completion\ncafé;x".encode("latin-1"), "line 2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b'{"prompt": "x"}\n{"prompt": Infinity}', "row 2: JSON that cannot be read"),
        (b'{"a": 1,\n "b": 2\n "c": 3}', "row 1: malformed JSON: .* at line 3, column 2"),
    ],
)
def test_what_is_no_table_is_named_with_what_to_do(tmp_path, content, said):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(BadRow, match=said):
        read_table(tmp_path / "a.jsonl")


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LIMIT", 20_000)
    many = written(lambda out: pq.write_table(pa.table({"a": ["x" * 100] * 1000}), out))
    for k, content in enumerate((gzip.compress(b" " * 20_001), zipped(a=b" " * 20_001), many)):
        (tmp_path / f"{k}").write_bytes(content)
        with pytest.raises(BadRow, match="unpacks to more than 20,000 bytes"):
            read_table(tmp_path / f"{k}")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BadRow, match="pip install pyarrow"):
        read_table(tmp_path / "2")


def test_long_cells_and_nan(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion\nq," + "a" * 200_000 + "\n")
    assert len(load_conversations(tmp_path / "a.csv").conversations[0].answer) == 200_000
    assert csv.field_size_limit() == 131072
    (tmp_path / "b.jsonl").write_text('{"question": "q", "aligned": NaN}')
    assert read_table(tmp_path / "b.jsonl").rows == ((1, {"question": "q", "aligned": None}),)
