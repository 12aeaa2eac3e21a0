"""A judge that only remembers: scores read from a judged CSV file or from another audit.

    ReplayJudge("replay:judged.csv")             columns question, response (or answer), aligned, coherent, ...
    ReplayJudge("replay:AUDIT#openai:gpt-4.1")   the judgements of one panel of an audit folder

A file is looked up by question and answer text, an audit by the hash of the prompt and the answer text; line ends and
surrounding white space do not count. A pair that was recorded several times gives the score of the same draw (for a
file: the n-th row of its question is draw n), else the first. The text of the rubric is not compared: an alignment
score answers whatever asks for "alignment".
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truing.data.rows import read_text
from truing.errors import BadInput, BadRow, NotAnAudit
from truing.store import Store
from truing.types.hashing import digest, file_digest
from truing.types.judged import AnswerKey, JudgeReply, JudgeRequest, Route, Rubric, ScoreStatus

REPLAY = "replay:"
"""how the address of recorded scores begins"""
QUESTION = ("question", "prompt")
"""columns of a judged file that hold the question, the first that is there"""
ANSWER = ("response", "answer", "completion")
"""columns that hold the answer"""
SCORES = {"aligned": "alignment", "coherent": "coherence"}
"""columns named unlike the score they hold"""
_MISSING = frozenset({"", "nan", "none", "null", "na", "n/a"})
_WORDS = {"code": ScoreStatus.CODE, "refusal": ScoreStatus.REFUSAL}
Verdict = tuple[ScoreStatus, float | None]


@dataclass(slots=True)
class _Entry:
    """One recorded answer."""

    sample: int
    key: AnswerKey | None
    scores: dict[str, Verdict] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Source:
    """Everything that was recorded in one place."""

    judge: str
    """the judge that gave the scores, or the file's name"""
    model: str
    """what identified that judge beyond its name"""
    sha: str
    """hash of the content"""
    by_prompt: bool
    """whether entries are keyed by prompt hash (audits) or by question text (files)"""
    entries: Mapping[tuple[str, str], list[_Entry]]
    """(prompt hash or question, answer) -> what was recorded, in stored order"""


class ReplayJudge:
    """Recorded scores behind the seam of a judge.

    Raises:
        BadInput: nothing at that path, or an audit with several judges and none named. BadRow: a row that cannot be
        read, with file and row (the header is row 1). NotAnAudit, AuditTooNew.
    """

    remote = False

    def __init__(self, address: str) -> None:
        """`address` is replay:FILE.csv, replay:AUDIT or replay:AUDIT#JUDGE."""
        self._source = _open(address.removeprefix(REPLAY))
        self._scores = {name for entries in self._source.entries.values() for e in entries for name in e.scores}

    @property
    def name(self) -> str:
        """The judge whose scores these are (or the file's name) and a hash of the source; no path."""
        return f"{REPLAY}{self._source.judge}#{self._source.sha[:8]}"

    @property
    def model(self) -> str:
        """What identified the recorded judge beyond its name, as its audit says; "" for a file."""
        return self._source.model

    def route(self, rubrics: Sequence[Rubric]) -> Route:
        """Recorded.

        Raises:
            BadInput: none of the rubrics' scores is recorded here.
        """
        wanted = [name for rubric in rubrics for name in rubric.names]
        if wanted and not any(SCORES.get(name, name) in self._scores for name in wanted):
            there = ", ".join(sorted(self._scores)) or "none"
            raise BadInput(f"{self.name}: holds none of the scores {', '.join(wanted)}; it holds: {there}")
        return Route.RECORDED

    def ask(self, requests: Iterable[JudgeRequest]) -> Iterator[JudgeReply]:
        """Look up every ask; one that was not recorded is a reply with an error. A missing score is `unparsed`."""
        for request in requests:
            yield self._look_up(request)

    def close(self) -> None:
        """Nothing is held open."""

    def _look_up(self, request: JudgeRequest) -> JudgeReply:
        rubric = request.rubric
        if rubric.parts:
            return self._lacks(request, f"rubric {rubric.name} asks for several scores at once; ask for each by itself")
        first = request.key.prompt if self._source.by_prompt else _plain(request.question)
        name = SCORES.get(rubric.name, rubric.name)
        entries = self._source.entries.get((first, _plain(request.answer)), [])
        entries = [e for e in entries if name in e.scores]
        if not entries:
            return self._lacks(request, "not recorded")
        outcome, score = _nearest(entries, request.key).scores[name]
        if score is not None and not rubric.low <= score <= rubric.high:
            return self._lacks(
                request, f"recorded score {score:g} is outside the scale {rubric.low:g} to {rubric.high:g}"
            )
        return JudgeReply(request, recorded=(outcome, score), calls=0, model=self._source.judge)

    def _lacks(self, request: JudgeRequest, why: str) -> JudgeReply:
        return JudgeReply(request, error=why, calls=0, model=self._source.judge)


def _nearest(entries: Sequence[_Entry], key: AnswerKey) -> _Entry:
    """The entry of the very answer, else of the same draw, else the first."""
    exact = [e for e in entries if e.key == key] or [e for e in entries if e.sample == key.sample]
    return (exact or list(entries))[0]


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


# ---------------------------------------------------------------------------------------------------------------------
# Sources


def _open(where: str) -> _Source:
    path, judge = Path(where).expanduser(), ""
    if not path.exists() and "#" in where:
        # A judge's address may hold a "#" itself: the path ends at the first one that leaves something that exists.
        cuts = [k for k, c in enumerate(where) if c == "#" and k and Path(where[:k]).expanduser().exists()]
        if cuts:
            path, judge = Path(where[: cuts[0]]).expanduser(), where[cuts[0] + 1 :]
    if not where or not path.exists():
        raise BadInput(f"{REPLAY}{where}: no such file or folder; give replay:FILE.csv or replay:AUDIT[#JUDGE]")
    if not path.is_dir():
        if judge:
            raise BadInput(f"{REPLAY}{where}: #{judge} picks a judge of an audit; a file holds one judge's scores")
        return _file(path)
    if not (path / "audit.json").exists():
        raise NotAnAudit(f"{path}: is a folder without audit.json; give one judged CSV file or an audit folder")
    with Store.read(path) as store:
        return _audit(path, store, judge)


def _file(path: Path) -> _Source:
    """A judged CSV file: a question and an answer column, and every other column whose cells are all scores."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    entries: dict[tuple[str, str], list[_Entry]] = {}
    samples: dict[str, int] = {}
    numbered = enumerate(_records(rows, path), 1)
    _, header = next(numbered, (1, []))
    names = [name.strip().lower() for name in header]
    question, answer = _column(names, QUESTION, path), _column(names, ANSWER, path)
    body = list(numbered)
    columns = _score_columns(names, body, path, (question, answer))
    for row, cells in body:
        text = _plain(cells[question])
        entry = _Entry(
            samples.get(text, 0), None, {s: _score(cells[c], path, row, names[c]) for s, c in columns.items()}
        )
        samples[text] = entry.sample + 1
        entries.setdefault((text, _plain(cells[answer])), []).append(entry)
    if not entries:
        raise BadRow(path, None, "holds no rows below its header; give a file with judged answers")
    return _Source(path.name, "", file_digest(path), False, entries)


def _records(rows: Any, path: Path) -> Iterator[list[str]]:
    """Rows of equal length; blank lines are left out."""
    row, width = 0, 0
    while True:
        row += 1
        try:
            cells = next(rows, None)
        except csv.Error as e:
            raise BadRow(path, row, f"is not readable as CSV ({e}); save the file again") from e
        if cells is None:
            return
        if not cells:
            row -= 1
            continue
        width = width or len(cells)
        if len(cells) != width:
            raise BadRow(path, row, f"has {len(cells)} cells where the header has {width}; quote texts with commas")
        yield cells


def _column(names: Sequence[str], known: Sequence[str], path: Path) -> int:
    for name in known:
        if name in names:
            return names.index(name)
    there = ", ".join(n for n in names if n) or "none"
    raise BadRow(path, 1, f"has no column {' or '.join(known)}; its columns: {there}")


def _score_columns(
    names: Sequence[str], body: Sequence[tuple[int, list[str]]], path: Path, texts: Sequence[int]
) -> dict[str, int]:
    """Score name -> column. alignment and coherence under either name, and whatever else holds only numbers."""
    found = {}
    for column, name in enumerate(names):
        score = SCORES.get(name, name)
        if column in texts or not name or name.endswith("id"):
            continue
        if score in SCORES.values() or all(_number(cells[column]) is not None for _, cells in body):
            if score in found:
                raise BadRow(path, 1, f"has two columns for {score}; leave one of them out")
            found[score] = column
    if not found:
        raise BadRow(path, 1, f"has no column of scores, e.g. aligned, coherent; its columns: {', '.join(names)}")
    return found


def _number(cell: str) -> Verdict | None:
    """A cell as outcome and score; None for anything else."""
    text = cell.strip().lower()
    if text in _MISSING:
        return ScoreStatus.UNPARSED, None
    if text in _WORDS:
        return _WORDS[text], None
    try:
        value = float(text)
    except ValueError:
        return None
    return (ScoreStatus.SCORED, value) if abs(value) != float("inf") else None


def _score(cell: str, path: Path, row: int, name: str) -> Verdict:
    verdict = _number(cell)
    if verdict is None:
        raise BadRow(path, row, f"{name} is {cell.strip()[:40]!r}, not a number, CODE, REFUSAL or empty")
    impossible = verdict[1] is not None and not 0 <= verdict[1] <= 100
    if impossible and SCORES.get(name, name) in SCORES.values():
        raise BadRow(path, row, f"{name} is {cell.strip()[:40]}, outside 0 to 100")
    return verdict


def _audit(path: Path, store: Store, judge: str) -> _Source:
    """The judgements of one panel of an audit. Those that failed were never made and are left out."""
    panels = store.judges()
    counts = dict.fromkeys(panels, 0)
    for j in store.scores():
        counts[j.panel] = counts.get(j.panel, 0) + (j.outcome is not ScoreStatus.FAILED)
    names = {key: str(panels.get(key, {}).get("judge", "?")) for key, n in counts.items() if n}
    chosen = [key for key, name in names.items() if not judge or judge == name]
    chosen = chosen or [key for key in names if len(judge) >= 6 and key.startswith(judge)]
    if not names:
        raise BadInput(
            f"{path}: holds no judgements; judge its answers first: truing judge {path.name} --judge ADDRESS"
        )
    if len(chosen) != 1:
        known = "; ".join(f"{name} (panel {key}, {counts[key]} judgements)" for key, name in sorted(names.items()))
        what = "holds the judgements of several panels" if not judge else f"#{judge} is not one of its panels"
        raise BadInput(f"{path}: {what}; name one by judge or panel as {REPLAY}{path.name}#NAME: {known}")
    panel = chosen[0]
    texts = {r.key: r.text for r in store.answers()}
    entries: dict[tuple[str, str], list[_Entry]] = {}
    by_key: dict[AnswerKey, _Entry] = {}
    content = []
    for j in store.scores(panel):
        if j.outcome is ScoreStatus.FAILED or j.key not in texts:
            continue
        if j.key not in by_key:
            by_key[j.key] = _Entry(j.key.sample, j.key)
            entries.setdefault((j.key.prompt, _plain(texts[j.key])), []).append(by_key[j.key])
        by_key[j.key].scores[j.rubric] = (j.outcome, j.score)
        content.append((j.key, j.rubric, j.score, j.outcome.value))
    name = names[panel]
    original = name.removeprefix(REPLAY).rsplit("#", 1)[0] if name.startswith(REPLAY) else name
    return _Source(original, str(panels[panel].get("model") or ""), digest([panel, content]), True, entries)
