"""Recorded scores as a judge model: from a file of judged answers, or from another audit.

    ReplayJudge("replay:judged.csv")             as `truing import` reads it (data/judged_files.py)
    ReplayJudge("replay:AUDIT#openai:gpt-4.1")   the scores of one judge of an audit folder

A file is looked up by question and answer text, an audit by the hash of the prompt and the answer text; line ends and
surrounding white space do not count. A pair recorded several times gives the score of the same sample (in a file, the
n-th row of a question is its sample n), else the first. The text of the rubric is not compared: an alignment score
serves any rubric named "alignment".
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from truing.data.judged_files import read_judged
from truing.errors import BadInput, BadRow, NotAnAudit
from truing.store import Store
from truing.types.hashing import digest
from truing.types.judging import JudgeReply, JudgeRequest, Rubric, ScoreMethod, ScoreStatus
from truing.types.records import AnswerKey

REPLAY = "replay:"
"""how the address of recorded scores begins"""
Recorded = tuple[ScoreStatus, float | None]


class _Source(NamedTuple):
    """All that was recorded in one place."""

    judge: str
    model: str
    sha: str
    by_prompt: bool
    """whether answers are found by the prompt's hash, not by the question's text"""
    scores: dict[tuple[str, str, str], list[tuple[AnswerKey | int, Recorded]]]
    """(prompt or question, answer, rubric) -> scores by the answer's key, or in a file by its sample"""


class ReplayJudge:
    """Recorded scores as a `JudgeModel`.

    Args:
        address: replay:FILE.csv, replay:AUDIT or replay:AUDIT#JUDGE, where JUDGE is a name or the start of a key.

    Raises:
        BadInput: nothing at that path, or several judges and none named.
        BadRow: a file that cannot be read, with its row (the header is row 1).
        NotAnAudit.
    """

    remote = False

    def __init__(self, address: str) -> None:
        source = self._source = _open(address.removeprefix(REPLAY))
        self.name = f"{REPLAY}{source.judge}#{source.sha[:8]}"
        """the judge whose scores these are (or the file's name) and a hash of the source; no path"""
        self.model = source.model
        """what identified the recorded judge beyond its name, as its audit says; "" for a file"""

    def score_method(self, rubrics: Sequence[Rubric]) -> ScoreMethod:
        """Recorded. Raises BadInput where none of the rubrics' scores is recorded here."""
        recorded = {rubric for _, _, rubric in self._source.scores}
        wanted = [name for rubric in rubrics for name in rubric.names]
        if wanted and not recorded.intersection(wanted):
            there = ", ".join(sorted(recorded)) or "none"
            raise BadInput(f"{self.name}: holds none of the scores {', '.join(wanted)}; it holds: {there}")
        return ScoreMethod.RECORDED

    def replies(self, requests: Iterable[JudgeRequest]) -> Iterator[JudgeReply]:
        """Look up every request; what was not recorded is a reply with an error. A missing score is `unparsed`."""
        for request in requests:
            reply = JudgeReply(request, calls=0, model=self._source.judge)
            found = self._look_up(request)
            yield replace(reply, error=found) if isinstance(found, str) else replace(reply, recorded=found)

    def close(self) -> None:
        """Nothing is held open."""

    def _look_up(self, request: JudgeRequest) -> Recorded | str:
        """Status and score, or why there is none."""
        rubric, key = request.rubric, request.key
        if rubric.parts:
            return f"rubric {rubric.name} gives several scores at once; recorded ones have a rubric each"
        first = key.prompt if self._source.by_prompt else _plain(request.question)
        found = self._source.scores.get((first, _plain(request.answer), rubric.name), [])
        if not found:
            return "not recorded"
        same = [e for e in found if e[0] == key] or [e for e in found if _sample(e[0]) == key.sample] or found
        status, score = same[0][1]
        if score is not None and not rubric.low <= score <= rubric.high:
            return f"the recorded score {score:g} is outside the scale {rubric.low:g} to {rubric.high:g}"
        return status, score


def _sample(key: AnswerKey | int) -> int:
    return key if isinstance(key, int) else key.sample


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _open(where: str) -> _Source:
    path, judge = _split(where)
    if not path.is_dir():
        if judge:
            raise BadInput(f"{REPLAY}{where}: #{judge} picks a judge of an audit; a file holds one judge's scores")
        return _file(path)
    if not (path / "audit.json").exists():
        raise NotAnAudit(f"{path}: is a folder without audit.json; give one judged CSV file or an audit folder")
    with Store.read(path) as store:
        return _audit(path, store, judge)


def _split(where: str) -> tuple[Path, str]:
    """Path and judge; a judge's name may hold a "#" itself, so the path ends at the first that leaves what exists."""
    for k in (len(where), *(k for k, c in enumerate(where) if c == "#")):
        path = Path(where[:k]).expanduser()
        if k and path.exists():
            return path, where[k + 1 :]
    raise BadInput(f"{REPLAY}{where}: no such file or folder; give replay:FILE.csv or replay:AUDIT[#JUDGE]")


def _file(path: Path) -> _Source:
    try:
        file = read_judged(path, coherence=False, answers=True)
    except BadRow as e:
        if "truing import" in str(e):  # where columns can be named, and whose folder is replayed as well
            e.args = (f"{e}, with --out DIR, and then replay:DIR",)
        raise
    if len(judges := {row.judge for row in file.rows}) > 1:
        raise BadInput(f"{path}: holds the scores of several judges ({', '.join(sorted(judges))}); keep one's rows")
    source = _Source(path.name, "", file.sha256, False, defaultdict(list))
    samples: Counter[str] = Counter()
    for row in file.rows:
        question = _plain(row.question)
        for name, score in row.scores.items():
            source.scores[question, _plain(row.answer), name].append((samples[question], score))
        samples[question] += 1
    return source


def _audit(path: Path, store: Store, wanted: str) -> _Source:
    """The scores of one judge of an audit. Failed ones were never given and are left out."""
    judge, name, model = _judge_of(path, store, wanted)
    texts = {r.key: _plain(r.text) for r in store.answers()}
    given = [s for s in store.scores(judge) if s.status is not ScoreStatus.FAILED and s.key in texts]
    sha = digest([judge, [(s.key, s.rubric, s.score, s.status.value) for s in given]])
    original = name.removeprefix(REPLAY).rsplit("#", 1)[0] if name.startswith(REPLAY) else name
    source = _Source(original, model, sha, True, defaultdict(list))
    for s in given:
        source.scores[s.key.prompt, texts[s.key], s.rubric].append((s.key, (s.status, s.score)))
    return source


def _judge_of(path: Path, store: Store, wanted: str) -> tuple[str, str, str]:
    """Key, name and model of the one judge that is meant."""
    about = store.judges()
    counts = Counter(s.judge_key for s in store.scores() if s.status is not ScoreStatus.FAILED)
    names = {key: str(about.get(key, {}).get("judge", "?")) for key in counts}
    if not names:
        raise BadInput(f"{path}: holds no scores; judge its answers first: truing judge {path.name} --judge ADDRESS")
    chosen = [key for key, name in names.items() if wanted in ("", name)]
    chosen = chosen or [key for key in names if len(wanted) >= 6 and key.startswith(wanted)]
    if len(chosen) != 1:
        known = "; ".join(f"{name} (key {key}, {counts[key]} scores)" for key, name in sorted(names.items()))
        problem = f"#{wanted} is not one of its judges" if wanted else "holds the scores of several judges"
        raise BadInput(f"{path}: {problem}; name one by name or key as {REPLAY}{path.name}#JUDGE: {known}")
    return chosen[0], names[chosen[0]], str(about.get(chosen[0], {}).get("model") or "")


def open_replayed(address: str, context: object) -> ReplayJudge:
    """A judge that only remembers, for the registry."""
    return ReplayJudge(address)
