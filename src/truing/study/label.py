"""A blind labelling sheet: stored answers for people to judge, drawn around the judge's cut, in random order.

    audit -> one panel's scores -> strata around the cut -> n answers -> CSV (item, question, answer, label, note)

The sheet tells neither the step, nor the checkpoint, nor any score. The weights of the draw stay in audit.json, so that
agreement can be weighted back to all answers.
"""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from truing.base import errors
from truing.base.hashing import digest
from truing.base.judged import ResponseKey
from truing.base.records import Prompt
from truing.base.store import Store, StoredResponse
from truing.judging.rubrics import rendered_question
from truing.stats.judged_evidence import Fate
from truing.study.judge import stored_prompts, stored_rule
from truing.study.judged import fated, with_judgements

COLUMNS = ("item", "question", "answer", "label", "note")
LABELS = ("aligned", "misaligned", "incoherent", "refusal", "unsure")
"""what may stand in the column label; empty is not labelled yet"""
NEAR = 10.0
"""points around the cut that count as near it"""
_RISKY = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class LabelItem:
    """One row of a sheet."""

    item: str
    """names the answer, tells nothing about it"""
    question: str
    """the prompt, as a judge would see it"""
    answer: str
    """the answer, untrusted"""
    label: str = ""
    """one of `LABELS`, or empty"""
    note: str = ""
    """anything the labeller wrote"""


@dataclass(frozen=True, slots=True)
class _Drawn:
    response: StoredResponse
    stratum: str
    weight: float


def label(
    audit: str | Path, *, n: int = 60, out: str | Path | None = None, judge: str | None = None, seed: int = 0
) -> Path:
    """Write a blind labelling sheet; one that is there already keeps its labels.

    Args:
        audit: an audit with judged answers.
        n: answers to label, spread evenly over: clearly under the cut, just under, just over, clearly over.
        out: the CSV; default `labels.csv` in the audit folder.
        judge: whose scores stratify, where several have judged; part of its name is enough.
        seed: of the draw and of the order.

    Raises:
        BadInput: nothing judged, an unknown judge, or a sheet for other answers is there.
    """
    path = Path(audit)
    sheet = Path(out) if out is not None else path / "labels.csv"
    if n < 1:
        raise errors.BadInput(f"--n {n}: label at least one answer")
    with Store.read(path) as store:
        about = store.about()
        panel = chosen_panel(store, judge)
        drawn = _draw(store, about, panel, n, seed)
    items = [_item(d.response, {p.key: p for p in stored_prompts(about).prompts}) for d in drawn]
    if sheet.exists():
        there = {i.item for i in read_sheet(sheet)}
        if there != {i.item for i in items}:
            raise errors.BadInput(f"{sheet}: holds other answers than these {len(items)}; finish it, or give --out NEW")
        return sheet
    write_sheet(sheet, items)
    with Store.write(path, {}) as store:
        kept: dict[str, Any] = dict(about.get("labelling") or {})
        kept |= {i.item: {"weight": d.weight, "stratum": d.stratum} for i, d in zip(items, drawn, strict=True)}
        store.describe(labelling=kept, status=about.get("status", "done"))
    return sheet


def item_name(key: ResponseKey) -> str:
    """The name of an answer on a sheet."""
    return digest(list(key), 12)


def chosen_panel(store: Store, judge: str | None) -> str:
    """The panel whose judge's name contains `judge`; the only one if None.

    Raises:
        BadInput: none, or several.
    """
    names = {key: str(about["judge"]) for key, about in store.panels().items()}
    found = [key for key, name in names.items() if judge is None or judge == key or judge in name]
    if len(found) == 1:
        return found[0]
    if not names:
        raise errors.BadInput(f"{store.path}: nothing is judged; `truing judge AUDIT --judge URI` does it")
    said = f"--judge {judge} is none of" if not found else "several judges: choose with --judge one of"
    raise errors.BadInput(f"{store.path}: {said} {', '.join(sorted(set(names.values())))}")


def read_sheet(path: Path) -> list[LabelItem]:
    """The rows of a sheet.

    Raises:
        BadRow: a missing column, an unknown label, an item twice.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            rows = list(csv.DictReader(f))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise errors.BadRow(path, None, f"cannot be read ({e}); save the sheet as UTF-8 CSV") from e
    out, seen = [], set()
    for n, row in enumerate(rows, 2):
        if "item" not in row or "label" not in row:
            raise errors.BadRow(path, 1, f'needs the columns "item" and "label"; it has {", ".join(row)}')
        said = (row["label"] or "").strip().lower()
        if said and said not in LABELS:
            raise errors.BadRow(path, n, f"unknown label {said!r}; use {', '.join(LABELS)}, or leave it empty")
        if row["item"] in seen:
            raise errors.BadRow(path, n, f"item {row['item']} stands twice; keep one")
        seen.add(row["item"])
        question, answer, note = (_bare(row.get(name) or "") for name in ("question", "answer", "note"))
        out.append(LabelItem(row["item"], question, answer, said, note))
    return out


def write_sheet(path: Path, items: Sequence[LabelItem]) -> None:
    """Write a sheet whole or not at all. What a spreadsheet would run as a formula gets an apostrophe in front."""
    part = path.with_name(path.name + ".part")
    with open(part, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(COLUMNS)
        writer.writerows([i.item, _cell(i.question), _cell(i.answer), i.label, _cell(i.note)] for i in items)
    os.replace(part, path)


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_RISKY) else text


def _bare(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith(_RISKY) else text


def _item(r: StoredResponse, prompts: Mapping[str, Prompt]) -> LabelItem:
    return LabelItem(item_name(r.key), rendered_question(prompts[r.prompt].messages), r.text)


def _draw(store: Store, about: Mapping[str, Any], panel: str, n: int, seed: int) -> list[_Drawn]:
    """Answers in random order, spread evenly over the strata; the weight is how many answers each stands for."""
    rule, known = stored_rule(about), {p.key for p in stored_prompts(about).prompts}
    strata: dict[str, list[StoredResponse]] = {}
    for r, said in with_judgements(store, panel):
        if r.prompt not in known:
            continue
        answer = fated(r, said, rule)
        if answer.fate is Fate.JUDGED:
            strata.setdefault(_stratum(answer.alignment - rule.alignment_cut), []).append(r)
    if not strata:
        raise errors.BadInput(f"{store.path}: no scored answers under that judge")
    rng = np.random.default_rng(seed)
    out = []
    for (name, members), share in zip(
        sorted(strata.items()), _shares([len(m) for _, m in sorted(strata.items())], n), strict=True
    ):
        chosen = rng.permutation(len(members))[:share]
        out += [_Drawn(members[k], name, len(members) / share) for k in chosen]
    return [out[k] for k in rng.permutation(len(out))]


def _stratum(over: float) -> str:
    if over < 0:
        return "under" if over < -NEAR else "just under"
    return "over" if over >= NEAR else "just over"


def _shares(sizes: Sequence[int], n: int) -> list[int]:
    """n spread as evenly as the sizes allow."""
    shares = [0] * len(sizes)
    for _ in range(min(n, sum(sizes))):
        open_ones = [k for k, size in enumerate(sizes) if shares[k] < size]
        shares[min(open_ones, key=lambda k: shares[k])] += 1
    return shares


def labelled(sheet: Path) -> Iterator[tuple[str, bool]]:
    """(item, whether a person calls it misaligned) of a sheet; what is empty or unsure is passed over."""
    for i in read_sheet(sheet):
        if i.label and i.label != "unsure":
            yield i.item, i.label == "misaligned"
