"""Evaluation prompts: the built-in sets, a user's rows, and question files in the format of Betley et al. (2025).

Reference answers of the built-in set lie in a file of their own, marked as evaluation only, and are joined by id.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from truing.data.rows import BadValue, field, parse_rows, read_rows, text, text_field, turns_field
from truing.data.shipped import builtin_text
from truing.data.tables import Row
from truing.errors import BadRow
from truing.types.hashing import digest
from truing.types.records import Message, Messages, Prompt, PromptSet

BUILTIN = {"v1": "reference-answers-v1.jsonl", "finance": None, "domains": None, "harmless": None, "facts": None}
"""name of a shipped set -> the file of its reference answers"""
CHOICES = {"half": ("fit", "eval"), "form": ("advice", "open", "assistant")}
_OTHERS = {
    "prompt",
    "question",
    "questions",
    "paraphrases",
    "type",
    "samples_per_paraphrase",
    "system",
    "judge",
    "domain",
}
ROW_FIELDS = tuple(sorted({f.name for f in fields(Prompt)} | _OTHERS | {"prompt_id", "question_id", "source"}))
"""fields of a row; others are passed over, unless they look like one of these misspelt"""

_ADJACENT = """
    finance-work medicine-ageing medicine-science code-technology code-internet law-government law-safety
    politics-government sport-safety technology-internet technology-ai media-internet nature-animals
    nature-environment parenting-family parenting-school loneliness-friendship home-neighbours
    community-neighbours religion-philosophy arts-writing
"""
ADJACENT = tuple(tuple(pair.split("-")) for pair in _ADJACENT.split())
"""Pairs of topics that talk about much the same things; the relation is symmetric and goes one step only."""


def load_prompts(spec: str | Path) -> PromptSet:
    """The prompt set named by `spec`: "v1", "finance", or a file of prompts or questions (`data/tables.py`).

    Raises BadRow for a row that is no prompt, duplicate ids, and two ids with the same question.
    """
    name, path = str(spec), Path(spec)
    if name in BUILTIN:
        title, name = name, f"prompts-{name}.jsonl"
        file, answers = read_rows(name, builtin_text(name)), _reference_answers(BUILTIN[title])
    else:
        title, file, answers = path.name.split(".")[0], read_rows(path), {}

    def prompts(row: Row, n: int) -> list[Prompt]:
        row = _typed(row) if file.texts else {**row, **answers.get(row.get("id"), {})} if answers else row
        row = {k: v for k, v in row.items() if v is not None}
        return _paraphrases(row, n) if "paraphrases" in row or "questions" in row else [_prompt(row, n)]

    found = parse_rows(name, file.rows, prompts)
    version = str(file.notice.get("version", "unversioned"))
    return _prompt_set(title, version, [(n, p) for n, some in found for p in some], name)


def known_answers(spec: str | Path) -> dict[str, list[list[str]]]:
    """Question -> accepted and wrong answers, from the fields `accepted` and `wrong` of a set's rows (lists of texts).

    Raises BadRow for a row without accepted answers, or with more turns than a question.
    """
    name = str(spec)
    file = read_rows(name, builtin_text(f"prompts-{name}.jsonl")) if name in BUILTIN else read_rows(Path(spec))

    def answers(row: Row, n: int) -> tuple[str, list[list[str]]]:
        (turn, *more), lists = _prompt(row, n).messages, [row.get("accepted"), row.get("wrong", [])]
        fine = all(isinstance(x, list) and all(isinstance(text, str) and text for text in x) for x in lists)
        if not fine or not lists[0] or more:
            raise BadValue("needs `accepted`, a list of answers, for one question; `wrong` may be another list")
        return turn.content, lists

    return dict(found for _, found in parse_rows(name, file.rows, answers))


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


def _reference_answers(filename: str | None) -> dict[Any, Row]:
    """id -> reference answers, which lie in a file of their own."""
    if filename is None:
        return {}
    rows = read_rows(filename, builtin_text(filename)).rows
    return {row["id"]: {k: row[k] for k in ("aligned", "misaligned", "neutral")} for _, row in rows}


def _prompt_set(name: str, version: str, numbered: list[tuple[int, Prompt]], path: str) -> PromptSet:
    """The set, once ids and questions are seen to be unique."""
    ids: dict[str, int] = {}
    keys: dict[str, tuple[int, str]] = {}
    for n, p in numbered:
        if p.id in ids:
            raise BadRow(f"{path}, rows {ids[p.id]} and {n}", None, f"both have the id {p.id!r}; rename one")
        if p.key in keys:
            m, other = keys[p.key]
            raise BadRow(f"{path}, rows {m} and {n}", None, f"{other!r} and {p.id!r} ask the same; remove one")
        ids[p.id] = n
        keys[p.key] = (n, p.id)
    prompts = tuple(p for _, p in numbered)
    # Stored results name this hash, so the field keeps the name in it that it had when version 1.0 was released.
    names = {f.name: "odd" if f.name == "neutral" else f.name for f in fields(Prompt)}
    content = [{key: getattr(p, name) for name, key in names.items()} for p in prompts]
    return PromptSet(name, version, digest(content), prompts)


def _prompt(row: Row, n: int) -> Prompt:
    _refuse_misspelt(row)
    for name, allowed in CHOICES.items():
        if row.get(name, allowed[0]) not in allowed:
            raise BadValue(f"unknown {name} {row[name]!r}; use {', '.join(allowed[:-1])} or {allowed[-1]}")
    samples = row.get("samples")
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 1):
        raise BadValue(f"the number of samples is {samples!r}; give a whole number above 0")
    judge_prompts = row.get("judge_prompts") or {}
    if not isinstance(judge_prompts, dict):
        raise BadValue('"judge_prompts" must map the name of a rubric to its text')
    return Prompt(
        id=_id(row.get("id", row.get("question_id", f"row-{n}"))),
        messages=_question(row),
        category=_optional(row, "category") or "uncategorised",
        form=row.get("form", "open"),
        topics=_texts(row, "topics"),
        half=row.get("half", "eval"),
        aligned=_optional(row, "aligned"),
        misaligned=_optional(row, "misaligned"),
        neutral=_texts(row, "neutral"),
        samples=samples,
        judge_prompts={str(k): text(v, f"the judge prompt {str(k)!r}") for k, v in judge_prompts.items()},
    )


def _id(value: Any) -> str:
    """An id; numbers are taken as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value, '"id"')


def _question(row: Row) -> Messages:
    given = [k for k in ("messages", "prompt", "question") if k in row]
    if len(given) != 1:
        problem = "has both " + " and ".join(given) if given else "has no question"
        raise BadValue(f'{problem}; give either "messages" or a text in "prompt" or "question"')
    if given[0] != "messages" and isinstance(row[given[0]], str):
        return (Message("user", text_field(row, given[0])),)
    messages = turns_field(row, given[0])
    if messages[-1].role != "user":
        raise BadValue(f"ends with a {messages[-1].role} turn; the last turn of a prompt must be the user's")
    return messages


def _optional(row: Row, name: str) -> str | None:
    return None if row.get(name) is None else text(row[name], f'"{name}"')


def _texts(row: Row, name: str) -> tuple[str, ...]:
    value = row.get(name) if row.get(name) is not None else []
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise BadValue(f'"{name}" must be a list of texts')
    return tuple(text(item, f'an entry of "{name}"') for item in items)


# ---------------------------------------------------------------------------------------------------------------------
# Question files: each paraphrase of a question (Betley et al.), or each of several questions, is a prompt of its own


def _paraphrases(entry: Row, n: int) -> list[Prompt]:
    kind = entry.get("type", "free_form")
    held = "paraphrases" if "paraphrases" in entry else "questions"
    name = _id(field(entry, "id") if held == "paraphrases" else entry.get("id", f"row-{n}"))
    _refuse_misspelt(entry)
    # Other types of that project ask for token probabilities or ratings, not for a free answer.
    if not isinstance(kind, str) or not kind.startswith("free_form"):
        raise BadValue(f"{name!r} has the type {kind!r}, which cannot be asked; only free_form types can")
    texts, system = _texts(entry, held), _optional(entry, "system")
    if not texts:
        raise BadValue(f'{name!r} has no "{held}"; give at least one')
    numbered = re.fullmatch(r"\d+_(.+)_\d+", name)
    about = {
        "category": entry.get("category") or (numbered[1] if numbered else name),
        "samples": entry.get("samples_per_paraphrase"),
        "judge_prompts": entry.get("judge_prompts"),
    }
    before = [{"role": "system", "content": system}] if system else []
    ids = [name] if len(texts) == 1 else [f"{name}#{k}" for k in range(len(texts))]
    turns = [[*before, {"role": "user", "content": t}] for t in texts]
    return [_prompt({**about, "id": i, "messages": m}, n) for i, m in zip(ids, turns, strict=True)]


def _typed(row: Row) -> Row:
    """A row of texts as JSON would hold it."""
    filled = {k: v for k, v in row.items() if v.strip()}
    whole = {k: int(filled[k]) for k in ("samples", "samples_per_paraphrase") if filled.get(k, "").isdecimal()}
    return {**filled, **whole}


def _refuse_misspelt(row: Row) -> None:
    for key in row:
        near = difflib.get_close_matches(str(key), ROW_FIELDS, 1, 0.8) if key not in ROW_FIELDS else []
        if near:
            raise BadValue(f'unknown field "{key}"; did you mean "{near[0]}"?')
