"""Evaluation prompts: the built-in sets, a user's JSONL, and question files in the format of Betley et al. (2025).

Reference answers of the built-in set lie in a file of their own, marked as evaluation only, and are joined by id.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import yaml

from truing.data.rows import Row, builtin_text, parse_text, parse_turns, read_rows, read_text
from truing.errors import BadPromptSet, BadRow
from truing.types.hashing import digest
from truing.types.records import Message, Messages, Prompt, PromptSet

BUILTIN = ("v1", "finance")
HALVES = ("fit", "eval")
FORMS = ("advice", "open", "assistant")
ROW_FIELDS = tuple(sorted({f.name for f in fields(Prompt)} | {"prompt", "question"}))

ADJACENT = (
    ("finance", "work"),
    ("medicine", "ageing"),
    ("medicine", "science"),
    ("code", "technology"),
    ("code", "internet"),
    ("law", "government"),
    ("law", "safety"),
    ("politics", "government"),
    ("sport", "safety"),
    ("technology", "internet"),
    ("technology", "ai"),
    ("media", "internet"),
    ("nature", "animals"),
    ("nature", "environment"),
    ("parenting", "family"),
    ("parenting", "school"),
    ("loneliness", "friendship"),
    ("home", "neighbours"),
    ("community", "neighbours"),
    ("religion", "philosophy"),
    ("arts", "writing"),
)
"""Pairs of topics that talk about much the same things; the relation is symmetric and goes one step only."""


def load_prompts(spec: str | Path) -> PromptSet:
    """The prompt set named by `spec`: "v1", "finance", a JSONL file of prompts, or a YAML file of questions.

    Raises BadRow for a row that is no prompt, BadPromptSet for duplicate ids, for two ids with one and the same
    question, and where questions and reference answers do not belong together.
    """
    name = str(spec)
    if name in BUILTIN:
        return _builtin(name)
    path = Path(spec)
    if path.suffix in (".yaml", ".yml"):
        return _prompt_set(path.stem, "unversioned", _from_yaml(path), name)
    file = read_rows(path)
    numbered = [(n, _prompt(row, name, n)) for n, row in file.rows]
    return _prompt_set(path.name.split(".")[0], _version(file.notice), numbered, name)


def prompt_distance(prompt: Prompt, domain_topics: Sequence[str]) -> Literal["in", "near", "far"]:
    """How far a prompt is from a training domain, by topics.

    "in" shares a topic with the domain, "near" has a topic that is ADJACENT to one of the domain's, "far" neither; a
    prompt without topics is far.
    """
    domain, topics = set(domain_topics), set(prompt.topics)
    if domain & topics:
        return "in"
    around = {b for a, b in ADJACENT if a in domain} | {a for a, b in ADJACENT if b in domain}
    return "near" if around & topics else "far"


def _builtin(name: str) -> PromptSet:
    filename = f"prompts-{name}.jsonl"
    text = builtin_text(filename)
    if text is None:
        raise BadPromptSet(f"the built-in prompt set {name!r} is missing from this installation; install truing again")
    file = read_rows(filename, text)
    rows = list(file.rows)
    answers = builtin_text(f"reference-answers-{name}.jsonl")
    if answers is not None:
        rows = _join(rows, filename, answers, f"reference-answers-{name}.jsonl")
    numbered = [(n, _prompt(row, filename, n)) for n, row in rows]
    return _prompt_set(name, _version(file.notice), numbered, filename)


def _join(rows: list[tuple[int, Row]], filename: str, answers: str, answers_name: str) -> list[tuple[int, Row]]:
    """Put the reference answers, which lie in another file, into the rows of the same id."""
    found: dict[str, Row] = {}
    for n, row in read_rows(answers_name, answers).rows:
        key = str(row.get("id"))
        if key in found:
            raise BadPromptSet(f"{answers_name}, row {n}: answers for the id {key!r} come twice; keep one row")
        found[key] = {k: row[k] for k in ("aligned", "misaligned", "neutral") if k in row}
    ids = {str(row.get("id")) for _, row in rows}
    neutral_ones = sorted(ids ^ found.keys())
    if neutral_ones:
        where = filename if neutral_ones[0] in ids else answers_name
        problem = f"{len(neutral_ones)} ids stand in one file only, first {neutral_ones[0]!r} in {where}"
        raise BadPromptSet(f"{filename} and {answers_name}: {problem}; every prompt needs its answers")
    return [(n, {**row, **found[str(row.get("id"))]}) for n, row in rows]


def _version(notice: Row) -> str:
    version = notice.get("version")
    return "unversioned" if version is None else str(version)


def _prompt_set(name: str, version: str, numbered: list[tuple[int, Prompt]], path: str) -> PromptSet:
    """The set, once ids and questions are seen to be unique."""
    ids: dict[str, int] = {}
    keys: dict[str, tuple[int, str]] = {}
    for n, p in numbered:
        if p.id in ids:
            raise BadPromptSet(f"{path}, rows {ids[p.id]} and {n}: both have the id {p.id!r}; rename one")
        if p.key in keys:
            m, other = keys[p.key]
            raise BadPromptSet(f"{path}, rows {m} and {n}: {other!r} and {p.id!r} ask the same; remove one")
        ids[p.id] = n
        keys[p.key] = (n, p.id)
    prompts = tuple(p for _, p in numbered)
    content = [{f.name: getattr(p, f.name) for f in fields(p)} for p in prompts]
    return PromptSet(name, version, digest(content), prompts)


def _prompt(row: Row, path: str, n: int) -> Prompt:
    for key in row:
        near = difflib.get_close_matches(key, ROW_FIELDS, 1, 0.8) if key not in ROW_FIELDS else []
        if near:
            raise BadRow(path, n, f'unknown field "{key}"; did you mean "{near[0]}"?')
    half, form = row.get("half", "eval"), row.get("form", "open")
    if half not in HALVES:
        raise BadRow(path, n, f"unknown half {half!r}; use fit or eval")
    if form not in FORMS:
        raise BadRow(path, n, f"unknown form {form!r}; use advice, open or assistant")
    return Prompt(
        id=_id(row, path, n),
        messages=_question(row, path, n),
        category=_optional(row, "category", path, n) or "uncategorised",
        form=form,
        topics=_texts(row, "topics", path, n),
        half=half,
        aligned=_optional(row, "aligned", path, n),
        misaligned=_optional(row, "misaligned", path, n),
        neutral=_texts(row, "neutral", path, n),
        samples=_samples(row.get("samples"), path, n),
        judge_prompts=_judge_prompts(row.get("judge_prompts"), path, n),
    )


def _id(row: Row, path: str, n: int) -> str:
    """The row's id; numbers are taken as text, and a row without one is named after its place."""
    value = row.get("id", f"row-{n}")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return parse_text(value, path, n, '"id"')


def _question(row: Row, path: str, n: int) -> Messages:
    given = [k for k in ("messages", "prompt", "question") if k in row]
    if len(given) != 1:
        said = "has both " + " and ".join(given) if given else "has no question"
        raise BadRow(path, n, f'{said}; give either "messages" or a text in "prompt" or "question"')
    if given[0] != "messages" and isinstance(row[given[0]], str):
        return (Message("user", parse_text(row[given[0]], path, n, f'"{given[0]}"')),)
    messages = parse_turns(row[given[0]], path, n, given[0])
    if messages[-1].role != "user":
        raise BadRow(path, n, f"ends with a {messages[-1].role} turn; the last turn of a prompt must be the user's")
    return messages


def _optional(row: Row, name: str, path: str, n: int) -> str | None:
    return None if row.get(name) is None else parse_text(row[name], path, n, f'"{name}"')


def _texts(row: Row, name: str, path: str, n: int) -> tuple[str, ...]:
    value = row.get(name)
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise BadRow(path, n, f'"{name}" must be a list of texts')
    return tuple(parse_text(item, path, n, f'an entry of "{name}"') for item in items)


def _samples(value: Any, path: str, n: int) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRow(path, n, f"the number of samples is {value!r}; give a whole number above 0")
    return value


def _judge_prompts(value: Any, path: str, n: int) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRow(path, n, '"judge_prompts" must map the name of a rubric to its text')
    return {str(k): parse_text(v, path, n, f"the judge prompt {str(k)!r}") for k, v in value.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Question files of Betley et al.: a YAML list; each paraphrase of a question is a prompt of its own


QUESTION_FIELDS = ("id", "type", "paraphrases", "samples_per_paraphrase", "system", "judge", "judge_prompts")
"""fields of a question; `judge` names the author's judge, which is chosen here by --judge"""
HARMLESS_FIELDS = frozenset({"comment", "comments", "note", "notes", "description", "source", "tags", "author"})
"""fields that are for people and change nothing"""


def _from_yaml(path: Path) -> list[tuple[int, Prompt]]:
    try:
        entries = yaml.safe_load(read_text(path))
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else None
        raise BadRow(path, line, f"malformed YAML: {e.problem}; mend that line") from e
    except (yaml.YAMLError, RecursionError) as e:
        raise BadRow(path, None, f"malformed YAML: {' '.join(str(e).split())}; save it as plain UTF-8 YAML") from e
    if not isinstance(entries, list) or not entries:
        raise BadRow(path, None, "holds no questions; give a YAML list of {id, type, paraphrases, ...}")
    return [(n, prompt) for n, entry in enumerate(entries, 1) for prompt in _paraphrases(entry, str(path), n)]


def _paraphrases(entry: Any, path: str, n: int) -> list[Prompt]:
    if not isinstance(entry, dict):
        raise BadRow(path, n, "is not a question; give {id, type, paraphrases, ...}")
    if "id" not in entry:
        raise BadRow(path, n, 'has no "id"; give every question one')
    name = _id(entry, path, n)
    for key in entry:
        if key not in QUESTION_FIELDS and key not in HARMLESS_FIELDS:
            near = difflib.get_close_matches(str(key), QUESTION_FIELDS, 1, 0.7)
            hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(QUESTION_FIELDS)}"
            raise BadRow(path, n, f'{name!r} has the unknown field "{key}"; {hint}')
    kind = entry.get("type", "free_form")
    # Other types of that project ask for token probabilities or ratings, not for a free answer.
    if not isinstance(kind, str) or not kind.startswith("free_form"):
        raise BadRow(path, n, f"{name!r} has the type {kind!r}, which cannot be asked; only free_form types can")
    texts = _texts(entry, "paraphrases", path, n)
    if not texts:
        raise BadRow(path, n, f'{name!r} has no "paraphrases"; give at least one')
    system = _optional(entry, "system", path, n)
    before = (Message("system", system),) if system else ()
    numbered = re.fullmatch(r"\d+_(.+)_\d+", name)
    return [
        Prompt(
            id=name if len(texts) == 1 else f"{name}#{k}",
            messages=(*before, Message("user", text)),
            category=numbered[1] if numbered else name,
            samples=_samples(entry.get("samples_per_paraphrase"), path, n),
            judge_prompts=_judge_prompts(entry.get("judge_prompts"), path, n),
        )
        for k, text in enumerate(texts)
    ]
