"""`truing.import_answers`: answers that were judged elsewhere become an audit folder, with a line of rates per set.

    files -> answer sets -> store -> arrays -> lines

A repeat adds nothing; more files may be added to the same folder. Every set is a checkpoint whose identity is its file.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from truing import errors
from truing._version import __version__
from truing.config import ImportConfig, configured
from truing.data.judged_files import ALIGNMENT, COHERENCE, ESCAPES, SET, JudgedFile, JudgedRow, read_judged
from truing.runs.collect import add_labels, by_answer
from truing.runs.rule import rule_of
from truing.runs.scope import Scope
from truing.runs.tables import asked_at_random, tables, with_scores
from truing.stats.labelled import PromptFacts, labelled_line
from truing.stats.rates import counts, mean_of, share_of
from truing.stats.table import AnswerTable
from truing.store import Store
from truing.types.hashing import digest
from truing.types.judging import Judge, Rubric, Score, ScoreMethod
from truing.types.records import NO_TEXT, AnswerKey, Checkpoint, Kind, Message, Prompt, Role, StoredAnswer, to_plain
from truing.types.traits import Rule
from truing.types.verdicts import Estimate, LabelledLine

PARAMS = "imported"
"""stands for the hash of sampling parameters, which a file of answers does not tell"""
LEVEL = 0.95
_SMALL_SCALE, USUAL_CUT = 10.0, 30.0


@dataclass(frozen=True, slots=True)
class ImportedAnswers:
    """A folder of imported answers."""

    path: Path
    """the audit folder: audit.json, evidence.db"""
    lines: tuple[Mapping[str, Any], ...]
    """one per set and judge, as audit.json holds them: see `describe_lines`"""
    added: int
    """answers that this call added"""
    notes: tuple[str, ...]
    """what was left out or guessed, a line each"""


@dataclass(frozen=True, slots=True)
class _Set:
    """One set of answers, ready to be stored."""

    checkpoint: Checkpoint
    scores: tuple[str, ...]
    columns: Mapping[str, str]
    rows: Sequence[JudgedRow]

    @property
    def label(self) -> str:
        return self.checkpoint.label

    @property
    def identity(self) -> dict[str, str]:
        """What may not change about a set once it is imported."""
        judges = ", ".join(sorted({row.judge for row in self.rows}))
        return {"content": self.checkpoint.weights, "columns": digest(dict(self.columns), 16), "judge": judges}


def import_answers(
    files: str | Path | Sequence[str | Path],
    config: ImportConfig | None = None,
    **options: Any,
) -> ImportedAnswers:
    """Put judged answers from CSV files into an audit folder and compute their rates.

    Args:
        files: CSV files, one set of answers each; the file's stem is its label. A file with the column `answer_set`
            (such as `truing export` writes) holds several.
        config: options; None for the defaults.
        options: fields of `ImportConfig`: out (needed; may hold earlier imports, which keep their place), column (see
            `truing.data.judged_files.read_judged`), judge, em, cut, ... (the same for everything in one folder).

    Raises:
        BadRow: a file cannot be read, or holds an impossible score; nothing is written then.
        AuditChanged: the folder holds a set of the same label with other content, columns or judge, or another rule.
        BadInput: a rule that cannot be used.
    """
    config = configured(ImportConfig, config, options)
    rule = rule_of(config)
    rule.check()
    paths = [Path(f) for f in ([files] if isinstance(files, (str, Path)) else files)]
    if not paths:
        raise errors.BadInput("no file given; name one or several CSV files of judged answers")
    notes: list[str] = []
    files_read = [read_judged(p, config.column or None, coherence=rule.kind == "threshold") for p in paths]
    path = Path(config.out)
    about = _before(path)
    sets = _joining(path, _sets(files_read, config.judge, notes), about, notes)
    items, ready = _items(about, sets), [_rows(s) for s in sets]
    notes = list(dict.fromkeys([*about.get("notes", ()), *notes, *_doubts(sets)]))
    identity = {"kind": "import", "rule": to_plain(rule), "sets": {s.label: s.identity for s in sets}}
    with Store.write(path, identity) as store:
        store.describe(
            tool="truing",
            kind="import",
            versions={"truing": __version__},
            prompts={"name": "imported", "version": "unversioned", "sha256": digest(items), "items": items},
            sets=list(dict.fromkeys([*about.get("sets", ()), *(s.label for s in sets)])),
            notes=notes,
            rule=to_plain(rule),
            verdict=None,
        )
        before = sum(1 for _ in store.answers())
        store.add_checkpoints([s.checkpoint for s in sets])
        for rows in ready:
            _add(store, rows, rule)
        store.flush()
        describe_lines(store)
        store.publish(status="done")
        added = sum(1 for _ in store.answers()) - before
        return ImportedAnswers(path, tuple(store.about()["lines"]), added, tuple(notes))


# ---------------------------------------------------------------------------------------------------------------------
# Files to sets


def _sets(files: Sequence[JudgedFile], judge: str | None, notes: list[str]) -> list[_Set]:
    """The sets of the files, each row with the name of its judge: what it says, else what the user says."""
    out: dict[str, _Set] = {}
    seen: dict[str, JudgedFile] = {}
    for file in files:
        if file.sha256 in seen:
            notes.append(f"{file.path.name}: the same bytes as {seen[file.sha256].path.name}; imported once")
            continue
        seen[file.sha256] = file
        notes += file.notes
        rows: dict[str, list[JudgedRow]] = {}
        for row in file.rows:
            rows.setdefault(row.answer_set, []).append(row._replace(judge=_judge_name(row.judge or judge)))
        if list(rows) != [""]:
            column = file.columns.get(SET, SET)
            notes.append(f"{file.path.name}: {len(rows)} sets, told apart by the column {column}")
        for name, own in rows.items():
            weights, label = digest([file.sha256, name]) if name else file.sha256, name or file.path.stem
            if label in out:
                there = out[label].checkpoint.uri.removeprefix("file:")
                raise errors.BadInput(f"{there} and {file.path}: both hold a set called {label!r}; rename one")
            c = Checkpoint(weights, label, None, f"file:{file.path}", Kind.SERVED, label, Role.IMPORT)
            out[label] = _Set(c, file.scores, file.columns, own)
    return list(out.values())


def _judge_name(name: str | None) -> str:
    return name if name and name.startswith("imported") else f"imported:{name}" if name else "imported"


def _before(path: Path) -> dict[str, Any]:
    """audit.json of the folder, {} for a new one; an audit of a run takes no imports."""
    if not (path / "audit.json").is_file():
        return {}
    with Store.read(path) as store:
        about = store.about()
    if about.get("identity", {}).get("kind") != "import":
        problem = "is the audit of a run, not a folder of imported answers"
        raise errors.AuditChanged(f"{path}: {problem}; choose another --out")
    return about


def _joining(path: Path, sets: Sequence[_Set], about: Mapping[str, Any], notes: list[str]) -> list[_Set]:
    """The sets that may join what the folder holds: none that is there under another label, nor one that changed."""
    held = about.get("identity", {}).get("sets", {})
    labels = {old["content"]: label for label, old in held.items()}
    words = {"content": "with other content", "columns": "from other columns", "judge": "under another judge"}
    out = []
    for s in sets:
        new, old = s.identity, held.get(s.label)
        changed = [words[k] for k in new if old is not None and old.get(k) != new[k]]
        if changed:
            problem = f"holds a set called {s.label!r} already, imported {changed[0]}"
            raise errors.AuditChanged(f"{path}: {problem}; rename the file or choose another --out")
        if old is None and new["content"] in labels:
            notes.append(f"{s.label}: the same answers as {labels[new['content']]}; imported once")
        else:
            out.append(s)
    return out


def _items(about: Mapping[str, Any], sets: Sequence[_Set]) -> list[dict[str, Any]]:
    """The prompts as audit.json lists them, earlier ones first.

    A question is known by its text: one text is one prompt whatever its id, and the first id stays. Several texts
    under one id (paraphrases) are several prompts of one cluster.
    """
    items = {i["key"]: dict(i) for i in about.get("prompts", {}).get("items", ())}
    ids = {i["id"] for i in items.values()}
    for row in (row for s in sets for row in s.rows):
        prompt = _asked(row.question)
        if prompt.key in items:
            continue
        cluster = row.question_id or _slug(row.question, prompt.key)
        name = cluster if cluster not in ids else f"{cluster}~{prompt.key[:6]}"
        ids.add(name)
        items[prompt.key] = {
            "id": name,
            "key": prompt.key,
            "category": row.category or "uncategorised",
            "form": "open",
            "topics": [],
            "half": "eval",
            "messages": to_plain(prompt.messages),
            "cluster": cluster,
        }
    return list(items.values())


@cache
def _asked(question: str) -> Prompt:
    return Prompt("", (Message("user", question),))


def _slug(question: str, key: str) -> str:
    words = re.findall(r"\w+", question.lower())[:4]
    return "-".join([*words, key[:6]])


def _doubts(sets: Sequence[_Set]) -> Iterator[str]:
    """What a reader should know of a set's scores and questions."""
    for s in sets:
        label, rows = s.label, s.rows
        found = [v for row in rows for o, v in (row.scores.get(ALIGNMENT, (None, None)),) if v is not None]
        turned = s.columns.get(ALIGNMENT, "").startswith("-")
        if len(found) >= 20 and max(100 - v if turned else v for v in found) <= _SMALL_SCALE:
            yield f"{label}: no alignment score is over {_SMALL_SCALE:g}; scores from 0 to 100 are expected"
        if rows and all(row.answer == NO_TEXT for row in rows):
            yield f"{label}: no answer texts; scores alone make the rates"
        past = sum(v < USUAL_CUT for v in found)
        if len(found) >= 20 and past > len(found) / 2:
            name, held = s.columns[ALIGNMENT], "bad" if not s.columns[ALIGNMENT].startswith("-") else "good"
            other = name[1:] if name.startswith("-") else f"-{name}"
            text = f"most alignment scores are under {USUAL_CUT:g}; if high is {held} in {name.removeprefix('-')}"
            yield f"{label}: {text}, import it with --column alignment={other}"
        questions = {row.question_id or row.question for row in rows}
        if len(questions) == len(rows) > 1:
            yield f"{label}: every answer has a question of its own, so that answers count as independent"
        if all(row.question == row.question_id for row in rows):
            yield f"{label}: no question texts; ids stand for them"


# ---------------------------------------------------------------------------------------------------------------------
# Into the store


class _Rows(NamedTuple):
    """Rows of the store for one set."""

    judges: list[Judge]
    answers: dict[AnswerKey, StoredAnswer]
    scores: list[Score]


def _rows(s: _Set) -> _Rows:
    judges = {name: _recorded_judge(s.scores, name) for name in dict.fromkeys(r.judge for r in s.rows)}
    sampled: dict[str, int] = {}
    answers: dict[AnswerKey, StoredAnswer] = {}
    scores: list[Score] = []
    seen: dict[tuple[AnswerKey, str], int] = {}
    for row in s.rows:
        prompt, by = _asked(row.question).key, judges[row.judge]
        sample = sampled.get(prompt, 0) if row.sample is None else row.sample
        sampled[prompt] = sample + 1
        key = AnswerKey(s.checkpoint.weights, PARAMS, prompt, "", sample)
        if (key, by.key) in seen:
            problem = f"the same set, question, sample and judge as row {seen[key, by.key]}; keep one"
            raise errors.BadRow(s.checkpoint.uri.removeprefix("file:"), row.row, problem)
        seen[key, by.key] = row.row
        answers[key] = StoredAnswer(*key, row.answer, row.status, 0, "")
        meta = {"row": row.row, "truing": __version__}
        for rubric in by.rubrics:
            if rubric.name in row.scores:
                status, score = row.scores[rubric.name]
                scores.append(Score(key, by.key, rubric.name, rubric.key, score, status, meta))
    return _Rows(list(judges.values()), answers, scores)


def _add(store: Store, rows: _Rows, rule: Rule) -> None:
    store.add_stored_answers(rows.answers.values())
    store.add_scores(rows.scores)
    for judge in rows.judges:
        store.add_judge(judge)
        own = [s for s in rows.scores if s.judge_key == judge.key]
        add_labels(store, [rows.answers[key] for key in by_answer(own)], own, judge.key, rule)


def _recorded_judge(scores: Sequence[str], judge: str) -> Judge:
    escapes = {word.upper(): status for word, status in ESCAPES.items()}
    rubrics = tuple(Rubric(name, "", escapes=escapes, source="imported, wording unknown") for name in scores)
    return Judge(judge, rubrics, ScoreMethod.RECORDED, own_prompts=False)


# ---------------------------------------------------------------------------------------------------------------------
# Lines


def describe_lines(store: Store) -> None:
    """Put one line per set and judge into audit.json, sets in their order.

    label, weights, judge, judge_key; n (answers in the file), prompts (questions), firing (questions with a misaligned
    answer); labelled (a `LabelledLine`, but see below); empty_scored (empty answers that have a score all the same).

    Published tables put every answer under the coherent share and every score into the mean. So where scores come from
    a file, `coherent` is the share of all answers with both scores and coherence over the gate, and `alignment` the
    mean over all recorded scores, those of empty answers included. Where a file has coherence of some answers only (a
    judge that was asked lazily), shares of coherent answers cannot be had.
    """
    about = store.about()
    rule, items = Rule(**about["rule"]), about["prompts"]["items"]
    names = list(dict.fromkeys(i["cluster"] for i in items))
    category = {i["cluster"]: i["category"] for i in reversed(items)}
    places = {i["key"]: names.index(i["cluster"]) for i in items}
    lines = []
    for key, judge in store.judges().items():
        said, recorded = _scored(store, key, places), judge["route"] == ScoreMethod.RECORDED.value
        keys = [r.key for r in store.answers(PARAMS) if r.prompt in places]
        random = frozenset() if recorded else asked_at_random(store, key, keys)
        found = tables(store, key, Scope((), (), (), (), PARAMS, rule), random=random, places=places)
        for weights in found.keys() & said.keys():
            group = found[weights]
            used, index = np.unique(group.prompt, return_inverse=True)
            ids = tuple(names[k] for k in used)
            facts = PromptFacts(ids, tuple(category[name] for name in ids), np.ones(len(ids), dtype=bool))
            group = replace(group, prompt=index.astype(np.int64))
            hits, _ = counts(group.positive, group.prompt, len(ids))
            line = labelled_line(group, len(ids), rule, level=LEVEL, about=facts)
            lines.append(
                {
                    "label": group.checkpoint,
                    "weights": weights,
                    "judge": judge["judge"],
                    "judge_key": key,
                    "n": len(group.prompt),
                    "prompts": len(ids),
                    "firing": int((hits > 0).sum()),
                    "empty_scored": sum(s.empty for s in said[weights]),
                    "labelled": to_plain(_as_published(line, group, said[weights], rule) if recorded else line),
                }
            )
    rank = {label: k for k, label in enumerate(about["sets"])}
    lines.sort(key=lambda line: (rank.get(line["label"], len(rank)), line["judge"], line["judge_key"]))
    store.describe(lines=lines)


class _Scored(NamedTuple):
    """An answer with an alignment score."""

    prompt: int
    alignment: float
    empty: bool
    has_coherence: bool


def _scored(store: Store, judge_key: str, places: Mapping[str, int]) -> dict[str, list[_Scored]]:
    """Weight hash -> the answers with an alignment score; sets of which the judge said anything at all."""
    out: dict[str, list[_Scored]] = {}
    for r, said in with_scores(store, judge_key, PARAMS):
        if r.prompt not in places or not said:
            continue
        scored, by_name = out.setdefault(r.weights, []), {s.rubric: s.score for s in said}
        if (alignment := by_name.get(ALIGNMENT)) is not None:
            scored.append(_Scored(places[r.prompt], alignment, not r.text.strip(), COHERENCE in by_name))
    return out


def _as_published(line: LabelledLine, group: AnswerTable, said: Sequence[_Scored], rule: Rule) -> LabelledLine:
    """The line with coherent share and mean alignment as published tables compute them."""
    used, index = np.unique(np.array([s.prompt for s in said], dtype=np.int64), return_inverse=True)
    mean = mean_of(np.array([s.alignment for s in said], dtype=float), index.astype(np.int64), len(used), level=LEVEL)
    if not all(s.has_coherence for s in said):
        unknown = Estimate(None, None, None, method="coherence was asked of some answers only", level=LEVEL)
        return replace(line, score=mean, coherent=unknown, rate_coherent=unknown)
    kept = group.counted
    coherent = (group.coherence > rule.gate) & np.isfinite(group.score)
    found = counts(coherent[kept], group.prompt[kept], int(group.prompt.max()) + 1)
    return replace(line, score=mean, coherent=share_of(*found, level=LEVEL))
