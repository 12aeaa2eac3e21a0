"""Reading judged answers from a table: one row per answer, with its question and its scores.

Columns are told by their names or by a mapping. A missing score is a judgement that could not be parsed; a score that
cannot be one (150, "abc") is an error that names file, row, column and value. Rows are numbered as a spreadsheet shows
them: the header is row 1, and a text over several lines is one row.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from truing.data.tables import Table, read_table
from truing.errors import BadInput, BadRow
from truing.types.cells import unguarded
from truing.types.judging import ScoreStatus
from truing.types.records import NO_TEXT, AnswerStatus

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
TOLERANCE = 1e-6
"""how far over the scale a weighted mean may lie: rounding"""
HIGH_IS_BAD = re.compile(
    r".*(evil|misalign|unaligned|harmful|toxic|malicious|danger|decepti|sycophan|hallucinat|unsafe|unethical|violat"
    r"|hostil|offens|bias|incoheren|badness|risk).*"
)
"""names of scores of which a high one is bad"""
_WORN = re.compile(r"^(?:judge|scores?)[._]|[._](?:score|mean)$")
"""what a score's name wears before or after it: aligned_score, judge_aligned, scores.aligned"""
SEVERAL = re.compile(r"(?:.*_)?(?:step|checkpoint|seed|run|model|epoch)(?:_id|_name)?")
"""names of columns by which answers are of several sets"""

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
    """what was read -> the column it was read from, with "-" before one that is read as 100 minus its score"""
    notes: tuple[str, ...]
    """what was left out or guessed, a line each"""


def read_judged(
    path: str | Path,
    columns: Mapping[str, str | None] | None = None,
    *,
    coherence: bool = True,
    answers: bool = False,
) -> JudgedFile:
    """All answers of a table (`data/tables.py`).

    Args:
        path: the file.
        columns: what a column holds -> its name, where the names say it otherwise: question, question_id, response,
            alignment, coherence, category, answer_set, or any name for a further score; None or "" leaves it out.
            -NAME is for a score of which high is bad: 100 minus it is read.
        coherence: whether a column of coherence scores is required.
        answers: whether a column of answers is required; a rate needs none.

    Raises:
        BadRow: no such file, not a table, no rows, a column that is missing or doubtful, an impossible score.
        BadInput: `columns` names a column that is not there.
    """
    path = Path(path)
    table = _Table(path, read_table(path))
    notes = table.find_columns(columns or {})
    table.require(coherence, answers)
    rows = tuple(row for n, cells in table.body if (row := _row(table, n, cells)) is not None)
    if not rows:
        raise BadRow(path, None, "holds no judged answer; judge its answers first")
    if len(rows) < len(table.body):
        notes.append(f"{path.name}: {len(table.body) - len(rows)} answers that no judge saw are left out")
    notes += [table.reversed_note(held, name) for held, name in table.reversed.items()]
    columns = {k: f"-{v}" * (k in table.reversed) or v for k, v in table.found.items()}
    return JudgedFile(path, table.sha256, tuple(filter(_is_score, table.found)), rows, columns, tuple(notes))


class _Table:
    """The cells of a CSV file, and which column holds what."""

    def __init__(self, path: Path, table: Table) -> None:
        self.path, self.names, self.sha256 = path, list(table.names), table.sha256
        self.decimal_comma = table.decimal_comma
        if bad := next((n for n, row in table.rows if not isinstance(row, dict)), None):
            raise BadRow(path, bad, "holds no object; every row must be one object with the scores of an answer")
        if not table.rows:
            raise BadRow(path, None, "holds no rows; there is nothing to import")
        if any(isinstance(value, dict) for _, row in table.rows for value in row.values()):
            table = _flat(table)
            self.names = list(table.names)
        self.body = [(n, {name: _cell(row.get(name)) for name in self.names}) for n, row in table.rows]
        self.folded = {name.casefold(): name for name in self.names}
        self.own = SET in self.folded and STATUS in self.folded
        """whether `truing export` wrote the file"""
        self.found: dict[str, str] = {}
        """what is read -> its column, alignment first among the scores"""
        self.reversed: dict[str, str] = {}
        """scores that are read as 100 minus their column, with that column"""

    def column(self, held: str) -> list[str]:
        return [cells[held] for _, cells in self.body]

    def find_columns(self, columns: Mapping[str, str | None]) -> list[str]:
        """Fill in `found`; a line for each thing that is left out."""
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
        for name in left if SET not in self.found else ():
            n = len(set(self.column(name)))
            if 1 < n < len(self.body) and SEVERAL.fullmatch(name.casefold()):
                text = f"one set of answers, though {name} has {n} values; --column {SET}={name} tells them apart"
                notes.append(f"{self.path.name}: {text}")
        if self._ids_number_rows():
            text = f"{self.found.pop(QUESTION_ID)} numbers the answers, not the questions; not used"
            notes.append(f"{self.path.name}: {text}")
        return notes

    def _named(self, key: str, name: str) -> str:
        found = self._column(name)
        if found is None and name.startswith("-") and _is_score(key) and (found := self._column(name[1:].strip())):
            self.reversed[key] = found
        if found is None:
            there = ", ".join(self.names)
            raise BadInput(f"--column {key}={name}: {self.path} has no such column; it has {there}")
        if key == ALIGNMENT and (key in self.reversed) != bool(HIGH_IS_BAD.fullmatch(found.casefold())):
            if key not in self.reversed:
                why, other = "high is bad there, and a high alignment is good", f"-{found}"
            elif found.casefold() in ALIASES[ALIGNMENT]:
                why, other = "high is good there, and - is for where it is bad", found
            else:
                return found
            problem = f"--column {key}={name}: by its name, {why}; give --column {key}={other}, or rename the column"
            raise BadInput(f"{problem} if it is as you say")
        return found

    def _column(self, name: str) -> str | None:
        return name if name in self.names else self.folded.get(name.casefold())

    def reversed_note(self, held: str, name: str) -> str:
        """What is said of a score that is read the other way round."""
        return f"{self.path.name}: {held} is read as {HIGH:g} minus {name}, of which high is bad"

    def _by_alias(self, held: str, aliases: Sequence[str]) -> None:
        names = [self.folded[a] for a in aliases if a in self.folded and self.folded[a] not in self.found.values()]
        if not names and held in (ALIGNMENT, COHERENCE):
            free = [n for n in self.names if n not in self.found.values()]
            names = [n for n in free if _WORN.sub("", n.casefold()) in aliases and self._holds_scores(n)]
        if held == QUESTION_ID:
            names = names[:1]  # a general `id` beside a question's id is the row's
        if len(names) > 1 and held == QUESTION and self._renders(*names[:2]):
            names = names[:1]
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

    def _renders(self, question: str, prompt: str) -> bool:
        """Whether each prompt holds its question: it is the text that a template made of it."""
        pairs = zip(self.column(question), self.column(prompt), strict=True)
        return all(asked.strip() and asked.strip() in text for asked, text in pairs)

    def _ids_number_rows(self) -> bool:
        """Whether a column called `id` gives one question several ids: it then names rows, which are no clusters."""
        if QUESTION not in self.found or self.found.get(QUESTION_ID, "").casefold() != "id":
            return False
        questions, ids = ([c.strip() for c in self.column(self.found[held])] for held in (QUESTION, QUESTION_ID))
        return len(set(zip(questions, ids, strict=True))) > len(set(questions))

    def require(self, coherence: bool, answers: bool) -> None:
        """Raise BadRow unless there are a question and its scores, and answers where they are needed."""
        question = [] if QUESTION_ID in self.found else [QUESTION]
        wanted = [*question, *([RESPONSE] if answers else []), ALIGNMENT, *([COHERENCE] if coherence else [])]
        if not (lacking := [w for w in wanted if w not in self.found]):
            return
        bad = [n for n in self.names if HIGH_IS_BAD.fullmatch(n.casefold()) and self._holds_scores(n)]
        options = [f"{w}=-{bad[0]}" if w == ALIGNMENT and bad else f"{w}=NAME" for w in lacking]
        text = f"no column for {', '.join(lacking)}; the columns are {', '.join(self.names)}. Say which it is: "
        text += "truing import " + " ".join(f"--column {option}" for option in options)
        if ALIGNMENT in lacking:
            text += " (-NAME where a high score is bad: 100 minus it is read)"
        raise BadRow(self.path, 1, text)

    def score(self, cell: str) -> ReadScore | None:
        """What a cell says; None for what cannot be a score."""
        word = cell.strip().casefold()
        if word in MISSING:
            return ScoreStatus.UNPARSED, None
        if word in ESCAPES:
            return ESCAPES[word], None
        if self.decimal_comma and re.fullmatch(r"-?\d+,\d+(e-?\d+)?", word):
            word = word.replace(",", ".")
        try:
            value = float(word) if "_" not in word else math.nan
        except ValueError:
            return None
        if not LOW - TOLERANCE <= value <= HIGH + TOLERANCE:
            return None
        return ScoreStatus.SCORED, min(max(value, LOW), HIGH)


def _flat(table: Table) -> Table:
    """The table with objects in its cells taken apart: {"scores": {"aligned": 5}} has the column scores.aligned."""
    rows = []
    for n, row in table.rows:
        parts = [[(f"{k}.{j}", x) for j, x in v.items()] if isinstance(v, dict) else [(k, v)] for k, v in row.items()]
        rows.append((n, dict(pair for part in parts for pair in part)))
    return table._replace(rows=tuple(rows), names=tuple(dict.fromkeys(str(name) for _, row in rows for name in row)))


def _cell(value: object) -> str:
    """A value as a CSV file holds it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _is_score(name: str) -> bool:
    return name in (ALIGNMENT, COHERENCE) or (name not in ALIASES and name not in OWN_ALIASES)


def _meant(key: str) -> str:
    """What a name given by the user means: `aligned` is alignment, `answer` is response."""
    return next((held for held, aliases in ALIASES.items() if key.casefold() in aliases), key)


def _reserved(name: str, names: Sequence[str]) -> bool:
    low = name.casefold()
    beside_score = low.endswith("_outcome") and name[: -len("_outcome")] in names
    return bool(NOT_SCORES.fullmatch(low)) or beside_score or low in OWN_ALIASES


def _row(table: _Table, n: int, by_column: Mapping[str, str]) -> JudgedRow | None:
    """One row; None where no judge was asked about the answer."""
    text = unguarded if table.own else str
    values = {held: text(by_column[name]) for held, name in table.found.items() if not _is_score(held)}
    if table.own and values.get(JUDGE) == "":
        return None

    def require(met: object, problem: str) -> None:
        if not met:
            raise BadRow(table.path, n, problem)

    question, question_id = values.get(QUESTION, ""), values.get(QUESTION_ID, "").strip()
    answer = values.get(RESPONSE, NO_TEXT)
    answer_set, sample = values.get(SET, "").strip(), values.get(SAMPLE)
    answered = values.get(STATUS, AnswerStatus.OK if answer.strip() else AnswerStatus.EMPTY)
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
            found = _score(table, n, column, by_column[column], status)
            number = HIGH - found[1] if name in table.reversed and found[1] is not None else found[1]
            scores[name] = found[0], number
    return JudgedRow(
        row=n,
        question=question if question.strip() else question_id,
        question_id=question_id,
        category=values.get(CATEGORY, ""),
        answer=answer,
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
