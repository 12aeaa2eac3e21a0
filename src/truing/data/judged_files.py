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

from truing.data.rows import decode, read_bytes
from truing.errors import BadInput, BadRow
from truing.types.cells import unguarded
from truing.types.judging import ScoreStatus
from truing.types.records import AnswerStatus

QUESTION, QUESTION_ID, RESPONSE, CATEGORY = "question", "question_id", "response", "category"
ALIGNMENT, COHERENCE = "alignment", "coherence"
SET, JUDGE, SAMPLE, STATUS = "answer_set", "judge", "sample", "response_outcome"
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
OWN_ALIASES: Mapping[str, tuple[str, ...]] = {name: (name,) for name in (JUDGE, SAMPLE, STATUS)}
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
    status: AnswerStatus
    """ok, or empty; what the file says where truing wrote it"""
    scores: Mapping[str, ReadScore]
    """score name -> (status, number); a score that was not asked for is absent"""
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
    raw = read_bytes(path)
    kind = next((suffix for magic, suffix in MAGIC if raw.startswith(magic)), path.suffix.lower())
    if kind in OTHER_FORMATS:
        raise BadRow(path, None, OTHER_FORMATS[kind])
    table = _Table(path, decode(path, raw))
    notes = table.find_columns(columns or {})
    table.require(coherence)
    rows = tuple(row for n, cells in table.body if (row := _row(table, n, cells)) is not None)
    if not rows:
        raise BadRow(path, None, "holds no judged answer; judge its answers first")
    if len(rows) < len(table.body):
        notes.append(f"{path.name}: {len(table.body) - len(rows)} answers that no judge saw are left out")
    sha = hashlib.sha256(raw).hexdigest()
    return JudgedFile(path, sha, tuple(filter(_is_score, table.found)), rows, table.found, tuple(notes))


class _Table:
    """The cells of a CSV file, and which column holds what."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.delimiter = path, _delimiter(text)
        records = _records(path, text, self.delimiter)
        self.header = [name.strip() for name in next(records, (0, []))[1]]
        if not any(self.header):
            raise BadRow(path, None, "is empty; the first row must name the columns")
        self.body = list(records)
        if not self.body:
            raise BadRow(path, None, "has a header and no rows; there is nothing to import")
        width = len(self.header)
        for n, cells in self.body:
            if len(cells) < width or any(c.strip() for c in cells[width:]):
                why = f"has {len(cells)} cells where the header names {width} columns"
                raise BadRow(path, n, f'{why}; put texts that hold the separator or a line break in "quotes"')
        self.names = [name for name in self.header if name]
        self.folded = {name.casefold(): name for name in self.names}
        self.own = SET in self.folded and STATUS in self.folded
        """whether `truing export` wrote the file"""
        self.found: dict[str, str] = {}
        """what is read -> its column, alignment first among the scores"""

    def column(self, held: str) -> list[str]:
        k = self.header.index(held)
        return [cells[k] for _, cells in self.body]

    def find_columns(self, columns: Mapping[str, str | None]) -> list[str]:
        """Fill in `found`; a line for each thing that is left out."""
        if doubled := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise BadRow(self.path, 1, f"the header names the column {doubled[0]!r} twice; rename one")
        given = {_meant(key): value for key, value in columns.items()}
        self.found = {key: self._named(key, value.strip()) for key, value in given.items() if value}
        for held, aliases in {**ALIASES, **(OWN_ALIASES if self.own else {})}.items():
            if held not in given:
                self._by_alias(held, aliases)
        rest = [name for name in self.names if name not in self.found.values() and given.get(name, name)]
        numeric = [n for n in rest if not _reserved(n, rest) and self._holds_scores(n)]
        self.found |= {n: n for n in numeric if n not in given}
        first = {k: self.found[k] for k in (ALIGNMENT, COHERENCE) if k in self.found}
        self.found = first | self.found
        left = [] if self.own else [n for n in rest if n not in numeric]
        notes = [f"{self.path.name}: columns left out: {', '.join(left)}"] if left else []
        if self._ids_number_rows():
            text = f"{self.found.pop(QUESTION_ID)} numbers the answers, not the questions; not used"
            notes.append(f"{self.path.name}: {text}")
        return notes

    def _named(self, key: str, name: str) -> str:
        found = name if name in self.header else self.folded.get(name.casefold())
        if found is None:
            there = ", ".join(self.names)
            raise BadInput(f"--column {key}={name}: {self.path} has no such column; it has {there}")
        return found

    def _by_alias(self, held: str, aliases: Sequence[str]) -> None:
        names = [self.folded[a] for a in aliases if a in self.folded and self.folded[a] not in self.found.values()]
        if held == QUESTION_ID:
            names = names[:1]  # a general `id` beside a question's id is the row's
        if len(names) > 1:
            many = " and ".join(repr(n) for n in names)
            raise BadRow(self.path, 1, f"{many} may both hold the {held}; say which with --column {held}=NAME")
        if names:
            self.found[held] = names[0]

    def _holds_scores(self, name: str) -> bool:
        """Whether nearly all filled cells of a column are scores, at least one a number, and it is no mere counter."""
        filled = [c for c in self.column(name) if c.strip().casefold() not in MISSING]
        scores = [s for s in map(self.score, filled) if s is not None]
        numbers = [number for _, number in scores if number is not None]
        if not numbers or len(scores) < SCORE_SHARE * len(filled):
            return False
        return len(numbers) < 3 or any(b - a != 1 for a, b in pairwise(numbers))

    def _ids_number_rows(self) -> bool:
        """Whether a column called `id` gives one question several ids: it then names rows, which are no clusters."""
        if QUESTION not in self.found or self.found.get(QUESTION_ID, "").casefold() != "id":
            return False
        questions, ids = ([c.strip() for c in self.column(self.found[held])] for held in (QUESTION, QUESTION_ID))
        return len(set(zip(questions, ids, strict=True))) > len(set(questions))

    def require(self, coherence: bool) -> None:
        """Raise BadRow unless there are an answer, its question and its scores."""
        question = [] if QUESTION_ID in self.found else [QUESTION]
        wanted = [*question, RESPONSE, ALIGNMENT, *([COHERENCE] if coherence else [])]
        if lacking := [w for w in wanted if w not in self.found]:
            text = f"no column for {', '.join(lacking)}; the columns are {', '.join(self.names)}. Say which it is: "
            raise BadRow(self.path, 1, text + " ".join(f"--column {name}=NAME" for name in lacking))

    def score(self, cell: str) -> ReadScore | None:
        """What a cell says; None for what cannot be a score."""
        word = cell.strip().casefold()
        if word in MISSING:
            return ScoreStatus.UNPARSED, None
        if word in ESCAPES:
            return ESCAPES[word], None
        if self.delimiter == ";" and re.fullmatch(r"\d+,\d+", word):
            word = word.replace(",", ".")
        try:
            value = float(word) if "_" not in word else math.nan
        except ValueError:
            return None
        return (ScoreStatus.SCORED, value) if LOW <= value <= HIGH else None


def _delimiter(text: str) -> str:
    """The separator under which the header names most columns that are known, then most columns at all."""
    known = {alias for aliases in ALIASES.values() for alias in aliases}
    first = next((line for line in text.split("\n") if line.strip()), "").rstrip("\r")

    def fit(delimiter: str) -> tuple[int, int]:
        cells = next(csv.reader([first], delimiter=delimiter), [])
        return sum(c.strip().casefold() in known for c in cells), len(cells)

    return max(",;\t|", key=fit)


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


def _is_score(name: str) -> bool:
    return name in (ALIGNMENT, COHERENCE) or (name not in ALIASES and name not in OWN_ALIASES)


def _meant(key: str) -> str:
    """What a name given by the user means: `aligned` is alignment, `answer` is response."""
    return next((held for held, aliases in ALIASES.items() if key.casefold() in aliases), key)


def _reserved(name: str, names: Sequence[str]) -> bool:
    low = name.casefold()
    beside_score = low.endswith("_outcome") and name[: -len("_outcome")] in names
    return bool(NOT_SCORES.fullmatch(low)) or beside_score or low in OWN_ALIASES


def _row(table: _Table, n: int, cells: list[str]) -> JudgedRow | None:
    """One row; None where no judge was asked about the answer."""
    text = unguarded if table.own else str
    by_column = dict(zip(table.header, cells, strict=False))
    values = {held: text(by_column[name]) for held, name in table.found.items() if not _is_score(held)}
    if table.own and values.get(JUDGE) == "":
        return None

    def require(met: object, problem: str) -> None:
        if not met:
            raise BadRow(table.path, n, problem)

    question, question_id = values.get(QUESTION, ""), values.get(QUESTION_ID, "").strip()
    answer_set, sample = values.get(SET, "").strip(), values.get(SAMPLE)
    answered = values.get(STATUS, AnswerStatus.OK if values[RESPONSE].strip() else AnswerStatus.EMPTY)
    either = question.strip() or question_id
    require(either, "has neither a question nor a question_id; fill one in or remove the row")
    column = table.found.get(SET)
    require(column is None or answer_set, f"the column {column!r} is empty; every answer must belong to a set")
    require(sample is None or sample.isdecimal(), f"{SAMPLE} is {sample!r:.60}; it must be a whole number, 0 or more")
    known = answered in set(AnswerStatus)
    require(known, f"{STATUS} is {answered!r:.60}; it must be one of {', '.join(AnswerStatus)}")
    scores = {}
    for name, column in table.found.items():
        status = by_column.get(f"{name}_outcome") if table.own else None
        if _is_score(name) and (status is None or status.strip()):  # an empty one: this score was not asked for
            scores[name] = _score(table, n, column, by_column[column], status)
    return JudgedRow(
        row=n,
        question=question if question.strip() else question_id,
        question_id=question_id,
        category=values.get(CATEGORY, ""),
        answer=values[RESPONSE],
        status=AnswerStatus(answered),
        scores=scores,
        answer_set=answer_set,
        judge=values.get(JUDGE, "").strip(),
        sample=None if sample is None else int(sample),
    )


def _score(table: _Table, n: int, column: str, cell: str, status: str | None) -> ReadScore:
    """A score, by its cell and by the status that an export wrote beside it."""
    score = table.score(cell)
    if score is None:
        problem = f"{column} is {cell.strip()!r:.60}; a score is a number from {LOW:g} to {HIGH:g}, REFUSAL or CODE"
        raise BadRow(table.path, n, f"{problem}. Mend it, or leave it empty if no score could be read")
    if status is None or status == score[0].value:
        return score
    if score[1] is not None or status not in set(ScoreStatus) - {ScoreStatus.SCORED}:
        problem = f"{column} is {cell.strip()!r:.60} and {column}_outcome {status!r:.60}: they contradict"
        raise BadRow(table.path, n, problem)
    return ScoreStatus(status), None
