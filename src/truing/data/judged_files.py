"""Reading judged answers from a CSV file: one row per answer, with its question and its scores.

Columns are told by their names or by a mapping. A missing score is a judgement that could not be parsed; a score that
cannot be one (150, "abc") is an error that names file, row, column and value. Rows are numbered as a spreadsheet shows
them: the header is row 1, and a text over several lines is one row.
"""

import csv
import hashlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from truing.errors import BadInput, BadRow
from truing.types.judging import ScoreStatus
from truing.types.records import AnswerStatus

QUESTION, QUESTION_ID, RESPONSE, CATEGORY = "question", "question_id", "response", "category"
ALIGNMENT, COHERENCE = "alignment", "coherence"
SET, JUDGE, DRAW, FATE = "answer_set", "judge", "sample", "response_outcome"
ALIASES: Mapping[str, tuple[str, ...]] = {
    QUESTION: ("question", "prompt"),
    QUESTION_ID: ("question_id", "prompt_id", "id"),
    RESPONSE: ("response", "answer", "completion"),
    CATEGORY: ("category",),
    ALIGNMENT: ("aligned", "alignment"),
    COHERENCE: ("coherent", "coherence"),
    SET: (SET,),
}
"""what a column holds -> the names it is known by, any case"""
OWN_ALIASES: Mapping[str, tuple[str, ...]] = {JUDGE: (JUDGE,), DRAW: (DRAW,), FATE: (FATE,)}
"""read only in files that `truing export` wrote (they have `answer_set` and `response_outcome`)"""
NOT_SCORES = re.compile(
    r"(|.*id|.*index|unnamed: \d+|run|role|checkpoint|label|step|seed|draw|sample|tokens|n|params|weights)"
)
"""names of numeric columns that are no scores"""
MISSING = frozenset(("", "nan", "none", "null", "na", "n/a", "<na>"))
ESCAPES = {"refusal": ScoreStatus.REFUSAL, "code": ScoreStatus.CODE}
LOW, HIGH = 0.0, 100.0
SCORE_SHARE = 0.9
"""share of the filled cells that must be scores before a column of any other name counts as one"""
OTHER_FORMATS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "is a spreadsheet; save it as CSV (UTF-8) and import that"),
    **dict.fromkeys((".json", ".jsonl"), "is JSON; write its rows to a CSV file with a header and import that"),
    **dict.fromkeys((".parquet", ".feather"), "is a binary table; write it as CSV and import that"),
    **dict.fromkeys((".gz", ".zip", ".zst"), "is compressed; unpack it and import the CSV"),
}
MAGIC = ((b"PK\x03\x04", ".xlsx"), (b"\xd0\xcf\x11\xe0", ".xls"), (b"PAR1", ".parquet"), (b"\x1f\x8b", ".gz"))
# A formula to a spreadsheet, or one behind the apostrophes that an export put in front.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")

ReadScore = tuple[ScoreStatus, float | None]


class JudgedRow(NamedTuple):
    """One answer with its scores."""

    row: int
    """as a spreadsheet numbers it"""
    question: str
    """its text; the id where the file has no texts"""
    question_id: str
    """its id; empty where the file has none"""
    category: str
    """of the question; empty where the file has none"""
    answer: str
    """the answer, verbatim and untrusted"""
    outcome: AnswerStatus
    """ok, or empty; what the file says where truing wrote it"""
    scores: Mapping[str, ReadScore]
    """score name -> (outcome, number); a score that was not asked for is absent"""
    answer_set: str
    """which of several sets in one file; empty where the file is one set"""
    judge: str
    """who judged; empty where the file does not say"""
    sample: int | None
    """which one of several answers; None where the file does not say"""


@dataclass(frozen=True, slots=True)
class JudgedFile:
    """A file of judged answers."""

    path: Path
    """where it was"""
    sha256: str
    """of its bytes"""
    scores: tuple[str, ...]
    """names of the scores, alignment first"""
    rows: tuple[JudgedRow, ...]
    """in file order"""
    columns: Mapping[str, str]
    """what was read -> the column it was read from"""
    notes: tuple[str, ...]
    """what was left out or guessed, a line each"""


def guarded(text: str) -> str:
    """`text` with an apostrophe before what a spreadsheet would run as a formula; `unguarded` takes it off again."""
    return f"'{text}" if _FORMULA.match(text) else text


def unguarded(text: str) -> str:
    """`text` without the apostrophe that `guarded` put in front."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def read_judged(
    path: str | Path, columns: Mapping[str, str | None] | None = None, *, coherence: bool = True
) -> JudgedFile:
    """All answers of a CSV file with a header (separated by comma, semicolon, tab or bar; UTF-8).

    Args:
        path: the file.
        columns: what a column holds -> its name, where the names say it otherwise: question, question_id, response,
            alignment, coherence, category, answer_set, or any name for a further score; None or "" leaves it out.
        coherence: whether a column of coherence scores is required.

    Raises:
        BadRow: no such file, not CSV, no rows, a column that is missing or doubtful, an impossible score.
        BadInput: `columns` names a column that is not there.
    """
    path = Path(path)
    raw = _raw(path)
    text = _text(path, raw)
    delimiter = _delimiter(text)
    records = _records(path, text, delimiter)
    header = [name.strip() for name in next(records, (0, []))[1]]
    if not any(header):
        raise BadRow(path, None, "is empty; the first row must name the columns")
    body = []
    for n, cells in records:
        if len(cells) < len(header) or any(c.strip() for c in cells[len(header) :]):
            why = f"has {len(cells)} cells where the header names {len(header)} columns"
            raise BadRow(path, n, f'{why}; put texts that hold the separator or a line break in "quotes"')
        body.append((n, cells))
    if not body:
        raise BadRow(path, None, "has a header and no rows; there is nothing to import")
    found, left_out = _detect(path, header, body, columns or {}, delimiter)
    if _are_row_ids(header, body, found):
        left_out.append(f"{path.name}: {found.pop(QUESTION_ID)} numbers the answers, not the questions; not used")
    _require(path, header, found, coherence)
    rows, skipped = _rows(path, header, body, found, delimiter)
    notes = [*left_out, *skipped]
    scores = tuple(name for name in found if _is_score(name))
    return JudgedFile(path, hashlib.sha256(raw).hexdigest(), scores, tuple(rows), found, tuple(notes))


# ---------------------------------------------------------------------------------------------------------------------
# Bytes to cells


def _raw(path: Path) -> bytes:
    if path.is_dir():
        raise BadRow(path, None, "is a folder; name the CSV files in it")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise BadRow(path, None, "there is no such file; check the path") from None
    except OSError as e:
        raise BadRow(path, None, f"cannot be read ({e.strerror}); check the path and its permissions") from e
    kind = next((suffix for magic, suffix in MAGIC if raw.startswith(magic)), path.suffix.lower())
    if kind in OTHER_FORMATS:
        raise BadRow(path, None, OTHER_FORMATS[kind])
    return raw


def _text(path: Path, raw: bytes) -> str:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadRow(path, None, "is UTF-16 text; save it as CSV (UTF-8)")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        before = raw[: e.start].decode("utf-8-sig", errors="replace")
        row = max(1, sum(1 for _ in csv.reader(io.StringIO(before, newline=""), delimiter=_delimiter(before))))
        problem = f"byte {raw[e.start]:#04x} is not UTF-8; save the file as CSV (UTF-8)"
        raise BadRow(path, row, problem) from e


def _delimiter(text: str) -> str:
    """The separator under which the header names most columns that are known, then most columns at all."""
    known = {alias for aliases in ALIASES.values() for alias in aliases}
    first = next((line for line in text.split("\n") if line.strip()), "")
    best, most = ",", (-1, -1)
    for delimiter in ",;\t|":
        cells = next(csv.reader([first.rstrip("\r")], delimiter=delimiter), [])
        score = (sum(c.strip().casefold() in known for c in cells), len(cells))
        if score > most:
            best, most = delimiter, score
    return best


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(row number, cells) of every row that is not blank. Strict: an open quote must not swallow the rows after it."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    n = 0
    try:
        for n, cells in enumerate(reader, 1):
            if any(c.strip() for c in cells):
                yield n, cells
    except csv.Error as e:
        problem = f"is not well-formed CSV ({e}, near line {reader.line_num}); look for a quote that is not closed"
        raise BadRow(path, n + 1, problem) from e


# ---------------------------------------------------------------------------------------------------------------------
# Which column is what


def _is_score(name: str) -> bool:
    return name in (ALIGNMENT, COHERENCE) or (name not in ALIASES and name not in OWN_ALIASES)


def _detect(
    path: Path,
    header: Sequence[str],
    body: Sequence[tuple[int, list[str]]],
    columns: Mapping[str, str | None],
    delimiter: str,
) -> tuple[dict[str, str], list[str]]:
    """What is read -> its column, alignment first among the scores, and a line for what is left out."""
    doubled = sorted({name for name in header if name and header.count(name) > 1})
    if doubled:
        raise BadRow(path, 1, f"the header names the column {doubled[0]!r} twice; rename one")
    folded = {name.casefold(): name for name in header}
    own = SET in folded and FATE in folded
    given = {_field(key): value for key, value in columns.items()}
    found = {key: _named(path, header, key, value) for key, value in given.items() if value}
    for field, aliases in {**ALIASES, **(OWN_ALIASES if own else {})}.items():
        if field in given:
            continue
        names = [folded[a] for a in aliases if a in folded and folded[a] not in found.values()]
        if field == QUESTION_ID and len(names) > 1:
            names = names[:1]  # a general `id` beside a question's id is the row's
        if len(names) > 1:
            many = " and ".join(repr(n) for n in names)
            raise BadRow(path, 1, f"{many} may both hold the {field}; say which with --column {field}=NAME")
        if names:
            found[field] = names[0]
    rest = [name for name in header if name and name not in found.values() and given.get(name, name)]
    numeric = [n for n in rest if not _reserved(n, rest) and _holds_scores(header.index(n), body, delimiter)]
    found |= {n: n for n in numeric if n not in given}
    left = [] if own else [n for n in rest if n not in numeric]
    notes = [f"{path.name}: columns left out: {', '.join(left)}"] if left else []
    order = [k for k in (ALIGNMENT, COHERENCE) if k in found]
    return {k: found[k] for k in (*order, *(k for k in found if k not in order))}, notes


def _field(key: str) -> str:
    """The field that a name given by the user means: `aligned` is alignment, `answer` is response."""
    return next((field for field, aliases in ALIASES.items() if key.casefold() in aliases), key)


def _named(path: Path, header: Sequence[str], key: str, name: str) -> str:
    for column in header:
        if column == name.strip() or column.casefold() == name.strip().casefold():
            return column
    raise BadInput(f"--column {key}={name}: {path} has no such column; it has {', '.join(filter(None, header))}")


def _reserved(name: str, names: Sequence[str]) -> bool:
    low = name.casefold()
    is_companion = low.endswith("_outcome") and name[: -len("_outcome")] in names
    return bool(NOT_SCORES.fullmatch(low)) or is_companion or low in OWN_ALIASES


def _holds_scores(k: int, body: Sequence[tuple[int, list[str]]], delimiter: str) -> bool:
    """Whether nearly all filled cells of a column are scores, at least one a number, and it is not a mere counter."""
    filled = [cells[k] for _, cells in body if cells[k].strip().casefold() not in MISSING]
    scores = [s for s in (_score(c, delimiter) for c in filled) if s is not None]
    numbers = [s[1] for s in scores if s[1] is not None]
    if not numbers or len(scores) < SCORE_SHARE * len(filled):
        return False
    counter = len(numbers) > 2 and all(b - a == 1 for a, b in pairwise(numbers))
    return not counter


def _are_row_ids(header: Sequence[str], body: Sequence[tuple[int, list[str]]], found: Mapping[str, str]) -> bool:
    """Whether a column called `id` gives one question several ids: it then names rows, which are no clusters."""
    if QUESTION not in found or found.get(QUESTION_ID, "").casefold() != "id":
        return False
    q, i = header.index(found[QUESTION]), header.index(found[QUESTION_ID])
    pairs = {(cells[q].strip(), cells[i].strip()) for _, cells in body}
    return len(pairs) > len({question for question, _ in pairs})


def _require(path: Path, header: Sequence[str], found: Mapping[str, str], coherence: bool) -> None:
    wanted = [RESPONSE, ALIGNMENT, *([COHERENCE] if coherence else [])]
    lacking = [w for w in wanted if w not in found]
    if QUESTION not in found and QUESTION_ID not in found:
        lacking.insert(0, QUESTION)
    if lacking:
        there = ", ".join(name for name in header if name)
        remedy = " ".join(f"--column {name}=NAME" for name in lacking)
        raise BadRow(path, 1, f"no column for {', '.join(lacking)}; the columns are {there}. Say which it is: {remedy}")


# ---------------------------------------------------------------------------------------------------------------------
# Cells to answers


def _score(cell: str, delimiter: str) -> ReadScore | None:
    """What a cell says; None for what cannot be a score."""
    word = cell.strip().casefold()
    if word in MISSING:
        return ScoreStatus.UNPARSED, None
    if word in ESCAPES:
        return ESCAPES[word], None
    if delimiter == ";" and re.fullmatch(r"\d+,\d+", word):
        word = word.replace(",", ".")
    try:
        value = float(word) if "_" not in word else math.nan
    except ValueError:
        return None
    return (ScoreStatus.SCORED, value) if LOW <= value <= HIGH else None


def _rows(
    path: Path,
    header: Sequence[str],
    body: Sequence[tuple[int, list[str]]],
    found: Mapping[str, str],
    delimiter: str,
) -> tuple[list[JudgedRow], list[str]]:
    at = {field: header.index(name) for field, name in found.items()}
    own = FATE in found
    scores = [name for name in found if _is_score(name)]
    said = {s: header.index(f"{s}_outcome") for s in scores if own and f"{s}_outcome" in header}
    text = unguarded if own else str
    out, unjudged = [], 0
    for n, cells in body:
        values = {field: text(cells[k]) for field, k in at.items() if not _is_score(field)}
        if own and JUDGE in values and not values[JUDGE]:
            unjudged += 1  # answers that no judge was asked about
            continue
        question, question_id = values.get(QUESTION, "").strip(), values.get(QUESTION_ID, "").strip()
        if not question and not question_id:
            raise BadRow(path, n, "has neither a question nor a question_id; fill one in or remove the row")
        if SET in values and not values[SET].strip():
            raise BadRow(path, n, f"the column {found[SET]!r} is empty; every answer must belong to a set")
        read = {}
        for name in scores:
            outcome = cells[said[name]] if name in said else None
            score = _cell(path, n, found[name], cells[at[name]], outcome, delimiter)
            if score is not None:
                read[name] = score
        answer = values[RESPONSE]
        fate = _fate(path, n, values.get(FATE), answer)
        sample = _sample(path, n, values.get(DRAW))
        texts = (values.get(QUESTION, question) if question else question_id, question_id, values.get(CATEGORY, ""))
        set_name, judge = values.get(SET, "").strip(), values.get(JUDGE, "").strip()
        out.append(JudgedRow(n, *texts, answer, fate, read, set_name, judge, sample))
    if not out:
        raise BadRow(path, None, "holds no judged answer; judge its answers first")
    return out, [f"{path.name}: {unjudged} answers that no judge saw are left out"] if unjudged else []


def _cell(path: Path, n: int, column: str, cell: str, outcome: str | None, delimiter: str) -> ReadScore | None:
    """One score; None where the file says that it was not asked for."""
    if outcome is not None and not outcome.strip():
        return None
    score = _score(cell, delimiter)
    if score is None:
        problem = f"{column} is {cell.strip()!r:.60}; a score is a number from {LOW:g} to {HIGH:g}, REFUSAL or CODE"
        raise BadRow(path, n, f"{problem}. Mend it, or leave it empty if no score could be read")
    if outcome is None or outcome == score[0].value:
        return score
    if score[1] is not None or outcome not in set(ScoreStatus) - {ScoreStatus.SCORED}:
        raise BadRow(path, n, f"{column} is {cell.strip()!r:.60} and {column}_outcome {outcome!r:.60}: they contradict")
    return ScoreStatus(outcome), None


def _fate(path: Path, n: int, said: str | None, answer: str) -> AnswerStatus:
    if said is None:
        return AnswerStatus.OK if answer.strip() else AnswerStatus.EMPTY
    try:
        return AnswerStatus(said)
    except ValueError:
        known = ", ".join(AnswerStatus)
        raise BadRow(path, n, f"{FATE} is {said!r:.60}; it must be one of {known}") from None


def _sample(path: Path, n: int, said: str | None) -> int | None:
    if said is None:
        return None
    if not said.isdecimal():
        raise BadRow(path, n, f"{DRAW} is {said!r:.60}; it must be a whole number, 0 or more")
    return int(said)
