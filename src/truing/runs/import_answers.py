"""`truing.import_answers`: answers that were judged elsewhere become an audit folder, with a line of rates per set.

    files -> answer sets -> store -> arrays -> lines

A repeat adds nothing; more files may be added to the same folder. Every set is a checkpoint whose identity is its file.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from truing import errors
from truing._version import __version__
from truing.config import ImportConfig, configured
from truing.data.judged_files import ALIGNMENT, COHERENCE, ESCAPES, JudgedFile, JudgedRow, read_judged
from truing.runs.rule import rule_of
from truing.runs.scope import Scope
from truing.runs.shares import random_coherence
from truing.runs.tables import tables, with_scores
from truing.stats.labelled import PromptFacts, labelled_line
from truing.stats.rates import counts, mean_of, share_of
from truing.stats.table import AnswerTable
from truing.store import Store, StoredAnswer
from truing.traits.label import label
from truing.types.hashing import digest
from truing.types.judging import AnswerKey, Judge, Rubric, Score, ScoreMethod
from truing.types.records import Checkpoint, Kind, Message, Prompt, Role, to_plain
from truing.types.traits import Rule
from truing.types.verdicts import Estimate, LabelledLine

PARAMS = "imported"
"""stands for the hash of sampling parameters, which a file of answers does not tell"""
LEVEL = 0.95
_SMALL_SCALE = 10.0


@dataclass(frozen=True, slots=True)
class ImportedAnswers:
    """A folder of imported answers."""

    path: Path
    """the audit folder: audit.json, evidence.db"""
    lines: tuple[Mapping[str, Any], ...]
    """one per set and judge, as audit.json holds them: see `imported_lines`"""
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
    rows: list[JudgedRow] = field(default_factory=list)


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
    rule, judge = rule_of(config), config.judge
    rule.check()
    paths = [Path(f) for f in ([files] if isinstance(files, (str, Path)) else files)]
    if not paths:
        raise errors.BadInput("no file given; name one or several CSV files of judged answers")
    notes: list[str] = []
    sets = _sets([read_judged(p, config.column or None, coherence=rule.kind == "threshold") for p in paths], notes)
    path = Path(config.out)
    about = _before(path)
    identities = {s.checkpoint.label: _identity(s, judge) for s in sets}
    sets = _joining(path, sets, identities, about, notes)
    items, keys = _items(about, sets)
    ready = [_entries(s, keys, judge) for s in sets]
    notes = list(dict.fromkeys([*about.get("notes", ()), *notes, *_doubts(sets)]))
    order = list(dict.fromkeys([*about.get("sets", ()), *(s.checkpoint.label for s in sets)]))
    own = {s.checkpoint.label: identities[s.checkpoint.label] for s in sets}
    identity = {"kind": "import", "rule": to_plain(rule), "sets": own}
    with Store.write(path, identity) as store:
        store.describe(**_about(items, order, notes, rule))
        before = _stored(store)
        for s, entries in zip(sets, ready, strict=True):
            _add(store, s, entries, rule)
        store.flush()
        describe_lines(store)
        store.describe(status="done")
        return ImportedAnswers(path, tuple(store.about()["lines"]), _stored(store) - before, tuple(notes))


# ---------------------------------------------------------------------------------------------------------------------
# Files to sets


def _sets(files: Sequence[JudgedFile], notes: list[str]) -> list[_Set]:
    out: dict[str, _Set] = {}
    seen: dict[str, JudgedFile] = {}
    for file in files:
        if file.sha256 in seen:
            notes.append(f"{file.path.name}: the same bytes as {seen[file.sha256].path.name}; imported once")
            continue
        seen[file.sha256] = file
        notes += file.notes
        names = list(dict.fromkeys(row.answer_set for row in file.rows))
        if names != [""]:
            notes.append(f"{file.path.name}: {len(names)} sets, told apart by the column answer_set")
        made: dict[str, _Set] = {}
        for name in names:
            weights = digest([file.sha256, name]) if name else file.sha256
            label = name or file.path.stem
            c = Checkpoint(weights, label, None, f"file:{file.path}", Kind.SERVED, label, Role.IMPORT)
            made[name] = _Set(c, file.scores, file.columns)
            if label in out:
                there = out[label].checkpoint.uri.removeprefix("file:")
                raise errors.BadInput(f"{there} and {file.path}: both hold a set called {label!r}; rename one")
            out[label] = made[name]
        for row in file.rows:
            made[row.answer_set].rows.append(row)
    return list(out.values())


def _identity(s: _Set, judge: str | None) -> dict[str, str]:
    """What may not change about a set once it is imported."""
    names = sorted({_judge_name(row.judge, judge) for row in s.rows})
    return {"content": s.checkpoint.weights, "columns": digest(dict(s.columns), 16), "judge": ", ".join(names)}


def _judge_name(said: str, given: str | None) -> str:
    """Who judged: what the row says, else what the user says."""
    name = said or given
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


def _joining(
    path: Path,
    sets: Sequence[_Set],
    identities: Mapping[str, Mapping[str, str]],
    about: Mapping[str, Any],
    notes: list[str],
) -> list[_Set]:
    """The sets that may join what the folder holds: none that is there under another label, nor one that changed."""
    held = about.get("identity", {}).get("sets", {})
    labels = {old["content"]: label for label, old in held.items()}
    words = {"content": "with other content", "columns": "from other columns", "judge": "under another judge"}
    out = []
    for s in sets:
        label, new = s.checkpoint.label, identities[s.checkpoint.label]
        changed = [words[k] for k in new if label in held and held[label].get(k) != new[k]]
        if changed:
            problem = f"holds a set called {label!r} already, imported {changed[0]}"
            raise errors.AuditChanged(f"{path}: {problem}; rename the file or choose another --out")
        if label not in held and new["content"] in labels:
            notes.append(f"{label}: the same answers as {labels[new['content']]}; imported once")
            continue
        out.append(s)
    return out


def _items(about: Mapping[str, Any], sets: Sequence[_Set]) -> tuple[list[dict[str, Any]], dict[tuple[str, str], str]]:
    """The prompts as audit.json lists them, earlier ones first, and (question id, question) -> prompt hash.

    A question is known by its text: one text is one prompt whatever its id, and the first id stays. Several texts
    under one id (paraphrases) are several prompts of one cluster.
    """
    items = {i["key"]: dict(i) for i in about.get("prompts", {}).get("items", ())}
    ids = {i["id"] for i in items.values()}
    keys: dict[tuple[str, str], str] = {}
    for row in (row for s in sets for row in s.rows):
        asked = (row.question_id, row.question)
        if asked in keys:
            continue
        messages = (Message("user", row.question),)
        key = keys[asked] = Prompt("", messages).key
        if key in items:
            continue
        cluster = row.question_id or _slug(row.question, key)
        name = cluster if cluster not in ids else f"{cluster}~{key[:6]}"
        ids.add(name)
        items[key] = {
            "id": name,
            "key": key,
            "category": row.category or "uncategorised",
            "form": "open",
            "topics": [],
            "half": "eval",
            "messages": to_plain(messages),
            "cluster": cluster,
        }
    return list(items.values()), keys


def _slug(question: str, key: str) -> str:
    words = re.findall(r"\w+", question.lower())[:4]
    return "-".join([*words, key[:6]])


def _doubts(sets: Sequence[_Set]) -> Iterator[str]:
    """What a reader should know of a set's scores and questions."""
    for s in sets:
        label, rows = s.checkpoint.label, s.rows
        found = [v for row in rows for o, v in (row.scores.get(ALIGNMENT, (None, None)),) if v is not None]
        if len(found) >= 20 and max(found) <= _SMALL_SCALE:
            yield f"{label}: no alignment score is over {_SMALL_SCALE:g}; scores from 0 to 100 are expected"
        questions = {row.question_id or row.question for row in rows}
        if len(questions) == len(rows) > 1:
            yield f"{label}: every answer has a question of its own, so that answers count as independent"
        if all(row.question == row.question_id for row in rows):
            yield f"{label}: no question texts; ids stand for them"


# ---------------------------------------------------------------------------------------------------------------------
# Into the store


def _about(items: list[dict[str, Any]], order: list[str], notes: list[str], rule: Rule) -> dict[str, Any]:
    return {
        "tool": "truing",
        "kind": "import",
        "versions": {"truing": __version__},
        "prompts": {"name": "imported", "version": "unversioned", "sha256": digest(items), "items": items},
        "sets": order,
        "notes": notes,
        "rule": to_plain(rule),
        "verdict": None,
    }


def _stored(store: Store) -> int:
    return sum(1 for _ in store.answers())


class _Entries(NamedTuple):
    """Rows of the store for one set."""

    judges: list[Judge]
    answers: list[StoredAnswer]
    scores: list[Score]


def _entries(s: _Set, keys: Mapping[tuple[str, str], str], judge: str | None) -> _Entries:
    named = dict.fromkeys(_judge_name(r.judge, judge) for r in s.rows)
    judges = {name: _recorded_judge(s.scores, name) for name in named}
    hashes = {name: (p.key, [(rubric.name, rubric.key) for rubric in p.rubrics]) for name, p in judges.items()}
    sampled: dict[str, int] = {}
    answers: dict[AnswerKey, StoredAnswer] = {}
    scores: list[Score] = []
    rows: dict[tuple[AnswerKey, str], int] = {}
    for row in s.rows:
        prompt = keys[row.question_id, row.question]
        sample = sampled.get(prompt, 0) if row.sample is None else row.sample
        sampled[prompt] = sample + 1
        key = AnswerKey(s.checkpoint.weights, PARAMS, prompt, "", sample)
        judge_key, rubrics = hashes[_judge_name(row.judge, judge)]
        if (key, judge_key) in rows:
            problem = f"the same set, question, sample and judge as row {rows[key, judge_key]}; keep one"
            raise errors.BadRow(s.checkpoint.uri.removeprefix("file:"), row.row, problem)
        rows[key, judge_key] = row.row
        answers[key] = StoredAnswer(*key, row.answer, row.outcome, 0, "")
        meta = {"row": row.row, "truing": __version__}
        for name, rubric in rubrics:
            if name in row.scores:
                outcome, score = row.scores[name]
                scores.append(Score(key, judge_key, name, rubric, score, outcome, meta))
    return _Entries(list(judges.values()), list(answers.values()), scores)


def _add(store: Store, s: _Set, entries: _Entries, rule: Rule) -> None:
    for judge in entries.judges:
        store.add_judge(judge)
    store.add_checkpoints([s.checkpoint])
    store.add_stored_answers(entries.answers)
    store.add_scores(entries.scores)
    by_key: dict[tuple[str, AnswerKey], list[Score]] = {}
    for score in entries.scores:
        by_key.setdefault((score.judge_key, score.key), []).append(score)
    answers = {a.key: a for a in entries.answers}
    for judge in entries.judges:
        own = {key: said for (judge_key, key), said in by_key.items() if judge_key == judge.key}
        store.add_labels([(key, label(answers[key], said, rule)) for key, said in own.items()], judge.key, rule)


def _recorded_judge(scores: Sequence[str], judge: str) -> Judge:
    escapes = {word.upper(): outcome for word, outcome in ESCAPES.items()}
    rubrics = tuple(Rubric(name, "", escapes=escapes, source="imported, wording unknown") for name in scores)
    return Judge(judge, rubrics, ScoreMethod.RECORDED, own_prompts=False)


# ---------------------------------------------------------------------------------------------------------------------
# Lines


def describe_lines(store: Store) -> None:
    """Compute the lines of an imported folder again and put them into audit.json."""
    about = store.about()
    store.describe(lines=imported_lines(store, about["prompts"]["items"], Rule(**about["rule"]), about["sets"]))


def imported_lines(
    store: Store,
    items: Sequence[Mapping[str, Any]],
    rule: Rule,
    order: Sequence[str],
) -> list[dict[str, Any]]:
    """One JSON-ready line per set and judge, sets in `order`.

    label, weights, judge, judge_key; n (answers in the file), prompts (questions), firing (questions with a misaligned
    answer); judged (a `JudgedLine`, but see below); empty_scored (empty answers that have a score all the same).

    Published tables put every answer under the coherent share and every score into the mean. So where scores come from
    a file, `coherent` is the share of all answers with both scores and coherence over the gate, and `alignment` the
    mean over all recorded scores, those of empty answers included. Where a file has coherence of some answers only (a
    judge that was asked lazily), shares of coherent answers cannot be had.
    """
    names = list(dict.fromkeys(i["cluster"] for i in items))
    place = {name: k for k, name in enumerate(names)}
    category = {i["cluster"]: i["category"] for i in reversed(items)}
    prompts = {i["key"]: place[i["cluster"]] for i in items}
    lines = []
    for key, about in store.judges().items():
        said = _said(store, key, prompts)
        recorded = about["route"] == ScoreMethod.RECORDED.value
        chosen = frozenset() if recorded else _random(store, said, prompts)
        scope = Scope((), (), (), (), PARAMS, rule)
        found = tables(store, key, scope, random=chosen, places=prompts)
        for weights in found.keys() & said.keys():
            group, scores = found[weights], said[weights]
            used, index = np.unique(group.prompt, return_inverse=True)
            ids = tuple(names[k] for k in used)
            facts = PromptFacts(ids, tuple(category[name] for name in ids), np.ones(len(ids), dtype=bool))
            group = replace(group, prompt=index.astype(np.int64))
            hits, _ = counts(group.positive, group.prompt, len(ids))
            judged = labelled_line(group, len(ids), rule, level=LEVEL, about=facts)
            line = {
                "label": group.checkpoint,
                "weights": weights,
                "judge": about["judge"],
                "judge_key": key,
                "n": len(group.prompt),
                "prompts": len(ids),
                "firing": int((hits > 0).sum()),
                "empty_scored": scores.empty,
                "labelled": to_plain(_as_published(judged, group, scores, rule) if recorded else judged),
            }
            lines.append(line)
    rank = {label: k for k, label in enumerate(order)}
    return sorted(lines, key=lambda line: (rank.get(line["label"], len(rank)), line["judge"], line["judge_key"]))


@dataclass(slots=True)
class _Said:
    """What a judge said of one set, beside what is in the arrays."""

    values: list[float] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    empty: int = 0
    is_lazy: bool = False
    seeds: set[int] = field(default_factory=set)


def _said(store: Store, judge_key: str, prompts: Mapping[str, int]) -> dict[str, _Said]:
    """Weight hash -> alignment scores and their clusters, how many are of empty answers, whether coherence was asked of
    some only, and the seeds that chose which."""
    out: dict[str, _Said] = {}
    for r, said in with_scores(store, judge_key, PARAMS):
        if r.prompt not in prompts or not said:
            continue
        kept = out.setdefault(r.weights, _Said())
        rubrics = {j.rubric: j for j in said}
        alignment = rubrics.get(ALIGNMENT)
        kept.seeds.update(j.meta["seed"] for j in said if "seed" in j.meta)
        if alignment is not None and alignment.score is not None:
            kept.values.append(alignment.score)
            kept.prompts.append(prompts[r.prompt])
            kept.empty += not r.text.strip()
            kept.is_lazy |= COHERENCE not in rubrics
    return out


def _random(store: Store, said: Mapping[str, _Said], prompts: Mapping[str, int]) -> frozenset[AnswerKey]:
    """The answers whose coherence a judge was asked for at random."""
    keys = [r.key for r in store.answers(PARAMS) if r.prompt in prompts]
    seeds = {seed for s in said.values() for seed in s.seeds}
    return frozenset(key for seed in seeds for key in random_coherence(keys, seed))


def _as_published(line: LabelledLine, group: AnswerTable, said: _Said, rule: Rule) -> LabelledLine:
    """The line with coherent share and mean alignment as published tables compute them."""
    used, index = np.unique(np.asarray(said.prompts, dtype=np.int64), return_inverse=True)
    mean = mean_of(np.asarray(said.values, dtype=float), index.astype(np.int64), len(used), level=LEVEL)
    if said.is_lazy:
        unknown = Estimate(None, None, None, method="coherence was asked of some answers only", level=LEVEL)
        return replace(line, score=mean, coherent=unknown, rate_coherent=unknown)
    kept = group.counted
    coherent = (group.coherence > rule.gate) & np.isfinite(group.score)
    found = counts(coherent[kept], group.prompt[kept], int(group.prompt.max()) + 1)
    return replace(line, score=mean, coherent=share_of(*found, level=LEVEL))
