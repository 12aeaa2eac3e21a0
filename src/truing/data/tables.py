"""One reader for whatever holds rows: CSV, JSON, JSONL, YAML, Parquet, Arrow, or a folder of `datasets`.

What a file is, is told by its content. Rows are numbered as people find them: by line in JSONL, as a spreadsheet shows
them in CSV (the header is row 1, and a text over several lines is one row), by place elsewhere.
"""

import csv
import gzip
import hashlib
import io
import re
import zipfile
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from truing import files
from truing.errors import BadRow

Row = Mapping[str, Any]
Numbered = list[tuple[int, Any]]

MOST_ROWS = 5_000_000
"""rows of the largest table"""
MOST_VALUES = 1_000_000
"""values of the largest YAML file: a small one can repeat itself without end"""
_KNOWN = {"question", "question_id", "prompt", "prompt_id", "id", "response", "answer", "completion", "instruction"}
_KNOWN |= {"input", "output", "system", "messages", "category", "aligned", "alignment", "coherent", "coherence"}
_KNOWN |= {"answer_set", "item", "label", "note"}
"""names of columns that are read: what a header is known by"""
_ROW_KEYS = frozenset(("messages", "prompt", "question", "conversations", "instruction", "id", "completion"))
_OTHERS = (
    (b"\xd0\xcf\x11\xe0", "is a spreadsheet of Excel; save it as CSV (UTF-8)"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; unpack it"),
    (b"\xfd7zXZ", "is compressed with xz; unpack it"),
    (b"BZh", "is compressed with bzip2; unpack it"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it"),
    (b"Rar!", "is a RAR archive; unpack it"),
    (b"%PDF", "is a PDF; give the rows as CSV or JSONL"),
    (b"SQLite format 3", "is an SQLite database; write its rows to a CSV file"),
    (b"\x93NUMPY", "is a NumPy array; write its rows to a CSV file"),
    (b"\x89HDF", "is an HDF5 file; write its rows to a CSV file"),
    (b"\x80\x04", "is a pickle, which is never opened; write its rows to a CSV file"),
    (b"version https://git-lfs", "is only the pointer to a file in Git LFS; fetch it with git lfs pull"),
)
INSPECT = (
    "is a log of Inspect, not a table; write its scores to one, in Python: "
    'inspect_ai.analysis.samples_df("LOG").to_csv("scores.csv"), and import that with '
    "--column question=input --column alignment=score_NAME"
)
_PLAIN = re.compile(r"[^/\\]+")
_TABLES = (".parquet", ".jsonl", ".csv", ".json", ".arrow", ".gz", ".zip", ".tsv", ".yaml", ".yml", ".ndjson")
_MOST_LISTED = 1000


class Table(NamedTuple):
    """The rows of a file."""

    rows: tuple[tuple[int, Any], ...]
    """(number, row); a row of a JSON or YAML file need not be a mapping"""
    names: tuple[str, ...]
    """columns in their order"""
    sha256: str
    """of the file's bytes"""
    separator: str = ""
    """of a CSV file; its values are texts"""

    @property
    def decimal_comma(self) -> bool:
        """Whether a number may be written 67,5."""
        return self.separator in (";", "\t", "|")


def read_table(path: str | Path) -> Table:
    """All rows of a file, or of a folder that `datasets` saved.

    Raises:
        BadRow: no such file, too large, unpacks to too much, damaged, or not a table; with the row where that is known.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    raw = _bytes(path)
    content, name = raw, path.name.lower()
    for _ in range(3):  # packed twice at most
        if content.startswith(b"\x1f\x8b"):
            content, name = _gunzipped(path, content), name.removesuffix(".gz")
        elif content.startswith(b"PK\x03\x04"):
            content, name = _member(path, content)
    sha256 = hashlib.sha256(raw).hexdigest()
    if content.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
        return _named(list(enumerate(_arrow_rows(path, content), 1)), sha256)
    return parse_table(path, _text(path, content), sha256, name)


def parse_table(path: object, text: str, sha256: str = "", name: str = "") -> Table:
    """All rows of a text: JSON or YAML where it begins like it, else CSV. Raises BadRow as `read_table`."""
    begin = text.lstrip()
    if begin[:15].lower().startswith(("<!doctype html", "<html")):
        raise BadRow(path, None, "is a web page; download the file itself (its raw form)")
    if name.endswith((".yaml", ".yml")) or re.match(r"(#.*\n|\s)*(---\s|- )", text):
        return _named(_unwrapped(_yaml_values(path, text)), sha256)
    said = name.endswith((".json", ".jsonl", ".ndjson")) and not re.search(r"[,;\t|]", begin.partition("\n")[0])
    if begin.startswith(("{", "[")) or said:
        values = _json_values(path, text)
        if len(values) == 1 and isinstance(values[0][1], dict) and {"eval", "samples"} <= values[0][1].keys():
            raise BadRow(path, None, INSPECT)
        return _named(_unwrapped(values), sha256)
    return _csv(path, text, sha256)


def _named(rows: Numbered, sha256: str) -> Table:
    names = dict.fromkeys(str(name) for _, row in rows if isinstance(row, dict) for name in row)
    return Table(tuple(rows), tuple(names), sha256)


# ---------------------------------------------------------------------------------------------------------------------
# Bytes


def _bytes(path: Path) -> bytes:
    return files.read_bytes(path, limit=files.LIMIT, error=_problem(path))


def _problem(path: Path) -> Callable[[str], BadRow]:
    return lambda text: BadRow(path, None, text.removeprefix(f"{path}: "))


def _gunzipped(path: Path, raw: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as f:
            return _bounded(path, f.read(files.LIMIT + 1))
    except (OSError, EOFError, zlib.error) as e:
        raise BadRow(path, None, f"is not a whole gzip file ({e}); compress or download it again") from e


def _bounded(path: Path, content: bytes) -> bytes:
    if len(content) > files.LIMIT:
        raise BadRow(path, None, f"unpacks to more than {files.LIMIT:,} bytes, the most that is read; split it")
    return content


def _member(path: Path, raw: bytes) -> tuple[bytes, str]:
    """The one file in a zip archive, and its name."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = [n for n in archive.namelist() if not re.search(r"(^|/)(__MACOSX/|\.[^/]*$)|/$", n)]
            if "[Content_Types].xml" in names or "content.xml" in names:
                raise BadRow(path, None, "is a spreadsheet or document; save it as CSV (UTF-8)")
            if any(n == "header.json" or n.startswith(("_journal/", "samples/")) for n in names):
                raise BadRow(path, None, INSPECT)
            if len(names) != 1:
                shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise BadRow(path, None, f"is a zip archive of {len(names)} files ({shown}); unpack it and name one")
            with archive.open(names[0]) as f:
                return _bounded(path, f.read(files.LIMIT + 1)), PurePosixPath(names[0]).name.lower()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as e:
        raise BadRow(path, None, f"cannot be unpacked ({e}); unpack it yourself, or download it again") from e


def _text(path: Path, raw: bytes) -> str:
    """UTF-8, or UTF-16 that says so."""
    if other := next((what for magic, what in _OTHERS if raw.startswith(magic)), None):
        raise BadRow(path, None, other)
    wide = raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        problem = f"line {line}: byte {raw[e.start]:#04x} is not {'UTF-16' if wide else 'UTF-8'}"
        raise BadRow(path, None, f"{problem}; save the file as UTF-8") from e
    if "\x00" in text[:4]:
        raise BadRow(path, None, "is not UTF-8 (UTF-16 without a byte order mark?); save the file as UTF-8")
    return text


# ---------------------------------------------------------------------------------------------------------------------
# JSON and YAML


def _json_values(path: object, text: str) -> Numbered:
    """The parts of one list, or values one after another: one a line, or an object over several lines."""
    found: Numbered = []
    try:
        for line, value in files.parse_jsons(text):
            found.append((line, value))
            _check_count(path, len(found))
    except files.BadJson as e:
        if e.position is None:
            raise BadRow(path, e.line, f"JSON that cannot be read ({e}); simplify the row") from e
        raise BadRow(path, e.line, f"malformed JSON: {e} at {e.position}; every row must be one JSON object") from e
    if len(found) == 1 and isinstance(found[0][1], list):
        return list(enumerate(found[0][1], 1))
    return found


def _yaml_values(path: object, text: str) -> Numbered:
    if len(text) > files.CONFIG_LIMIT:
        raise BadRow(path, None, f"is YAML of more than {files.CONFIG_LIMIT:,} characters; write it as JSONL")
    try:
        value = yaml.safe_load(text)
        _check_values(value)
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        raise BadRow(path, None, f"malformed YAML: {' '.join(str(e).split())}; save it as plain UTF-8 YAML") from e
    return list(enumerate(value, 1)) if isinstance(value, list) else [] if value is None else [(1, value)]


def _check_values(value: Any) -> None:
    """ValueError for what repeats or holds itself without end."""
    todo, seen = [(value, 0)], 0
    while todo:
        part, depth = todo.pop()
        seen += 1
        if depth > files.DEPTH or seen + len(todo) > MOST_VALUES:
            raise ValueError(f"nested more than {files.DEPTH} deep, or more than {MOST_VALUES:,} values")
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        todo += [(p, depth + 1) for p in parts]


def _unwrapped(rows: Numbered) -> Numbered:
    """Rows that one object holds: as its only list of objects, or column by column as pandas writes them."""
    if len(rows) != 1 or not isinstance(rows[0][1], dict) or not rows[0][1]:
        return rows
    only, values = rows[0][1], list(rows[0][1].values())
    lists = [v for v in values if isinstance(v, list) and v and all(isinstance(x, dict) for x in v)]
    if len(lists) == 1 and not _ROW_KEYS & only.keys():
        return list(enumerate(lists[0], 1))
    if len(values) > 1 and all(isinstance(v, dict) and v.keys() == values[0].keys() for v in values):
        values = [list(v.values()) for v in values]
    columns = len(values) > 1 and all(isinstance(v, list) and len(v) == len(values[0]) for v in values)
    if columns and not any(isinstance(x, dict) for v in values for x in v):
        return [(n, dict(zip(only, cells, strict=True))) for n, cells in enumerate(zip(*values, strict=True), 1)]
    return rows


def _check_count(path: object, n: int) -> None:
    if n > MOST_ROWS:
        raise BadRow(path, None, f"holds more than {MOST_ROWS:,} rows, the most that is read; split it")


# ---------------------------------------------------------------------------------------------------------------------
# CSV


def _csv(path: object, text: str, sha256: str) -> Table:
    declared = re.match(r'\s*"?sep=([,;\t|])"?\r?\n', text)  # how Excel is told the separator
    text = text[declared.end() :] if declared else text
    separator = declared[1] if declared else _separator(text)
    records = _records(path, text, separator)
    header = [name.strip() for name in next(records, (0, []))[1]]
    if not any(header):
        raise BadRow(path, None, "is empty; the first row must name the columns")
    names = [name for name in header if name]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise BadRow(path, 1, f"the header names the column {doubled[0]!r} twice; rename one")
    rows: Numbered = []
    for n, cells in records:
        if len(cells) < len(header) or any(c.strip() for c in cells[len(header) :]):
            why = f"has {len(cells)} cells where the header names {len(header)} columns"
            raise BadRow(path, n, f'{why}; put texts that hold the separator or a line break in "quotes"')
        rows.append((n, {name: cell for name, cell in zip(header, cells, strict=False) if name}))
    _check_count(path, len(rows))
    if not rows:
        raise BadRow(path, None, "has a header and no rows; there is nothing to read")
    return Table(tuple(rows), tuple(names), sha256, separator)


def _separator(text: str) -> str:
    """The separator under which the header names most columns that are known, then most columns at all."""
    first = next((line for line in re.split(r"[\r\n]", text) if line.strip()), "")

    def fit(separator: str) -> tuple[int, int]:
        cells = next(_lines([first], separator), [])
        return sum(c.strip().casefold() in _KNOWN for c in cells), len(cells)

    return max(",;\t|", key=fit)


def _lines(source: Iterable[str], separator: str, *, strict: bool = False) -> Iterator[list[str]]:
    """Cells of each record, of any length."""
    before = csv.field_size_limit(files.LIMIT)
    try:
        yield from csv.reader(source, delimiter=separator, strict=strict)
    finally:
        csv.field_size_limit(before)


def _records(path: object, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(row number, cells) of every row that is not blank. Strict: an open quote must not swallow the rows after it."""
    n = 0
    try:
        for n, cells in enumerate(_lines(io.StringIO(text, newline=""), separator, strict=True), 1):
            if any(c.strip() for c in cells):
                yield n, cells
    except csv.Error as e:
        raise BadRow(path, n + 1, f"is not well-formed CSV ({e}); look for a quote that is not closed") from e


# ---------------------------------------------------------------------------------------------------------------------
# Parquet and Arrow


def _folder(path: Path) -> Table:
    """What `datasets` saved with save_to_disk: Arrow files named in state.json, or a folder for each split."""
    if (path / "dataset_dict.json").is_file():
        splits = files.read_object(path / "dataset_dict.json", error=_problem(path)).get("splits")
        splits = [s for s in splits if isinstance(s, str) and _PLAIN.fullmatch(s)] if isinstance(splits, list) else []
        if len(splits) != 1:
            raise BadRow(path, None, f"holds the splits {', '.join(splits) or 'none'}; name one: {path}/SPLIT")
        return _folder(path / splits[0])
    if not (path / "state.json").is_file():
        found = (p for p in islice(path.rglob("*"), _MOST_LISTED) if p.is_file() and not p.name.startswith("."))
        there = sorted((str(p.relative_to(path)) for p in found), key=lambda n: (not n.endswith(_TABLES), n))[:5]
        raise BadRow(path, None, f"is a folder; name one file in it (it holds {', '.join(there) or 'no file'})")
    state = files.read_object(path / "state.json", error=_problem(path))
    shards = state.get("_data_files")
    names = [s.get("filename") if isinstance(s, dict) else None for s in shards] if isinstance(shards, list) else []
    rows, sha = [], hashlib.sha256()
    for name in names:
        if not isinstance(name, str) or not _PLAIN.fullmatch(name) or name in (".", ".."):
            raise BadRow(path / "state.json", None, f"names the file {name!r:.80}, which is none in the folder")
        raw = _bytes(path / name)
        sha.update(raw)
        rows += _arrow_rows(path / name, raw)
        _check_count(path, len(rows))
    return _named(list(enumerate(rows, 1)), sha.hexdigest())


def _arrow_rows(path: Path, raw: bytes) -> list[dict[str, Any]]:
    """Rows of a Parquet file, an Arrow file or an Arrow stream; a cell that holds nothing is None."""
    try:
        import pyarrow as pa
    except ImportError as e:
        raise BadRow(path, None, "is a binary table, and pyarrow is not there to read it: pip install pyarrow") from e
    rows: list[dict[str, Any]] = []
    size = 0
    try:
        for batch in _batches(raw):
            size += batch.nbytes
            if size > files.LIMIT or len(rows) + batch.num_rows > MOST_ROWS:
                limit = f"{files.LIMIT:,} bytes or {MOST_ROWS:,} rows"
                raise BadRow(path, None, f"unpacks to more than {limit}, the most that is read; split it")
            rows += [{k: _plain(v) for k, v in row.items()} for row in batch.to_pylist()]
    except (pa.ArrowException, OSError, ValueError, OverflowError) as e:
        problem = " ".join(str(e).split())[:120]
        raise BadRow(path, None, f"is not a whole Parquet or Arrow file ({problem}); download it again") from e
    return rows


def _batches(raw: bytes) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if raw.startswith(b"PAR1"):
        yield from pq.ParquetFile(pa.BufferReader(raw)).iter_batches(batch_size=1024)
    elif raw.startswith(b"ARROW1"):
        reader = pa.ipc.open_file(pa.BufferReader(raw))
        yield from (reader.get_batch(k) for k in range(reader.num_record_batches))
    else:
        yield from pa.ipc.open_stream(pa.BufferReader(raw))


def _plain(value: Any) -> Any:
    """A value as JSON would hold it."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and value != value:
        return None
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
