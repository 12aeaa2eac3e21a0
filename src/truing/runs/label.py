"""A blind labelling sheet: stored answers for people to judge, drawn around the judge's cut, in random order.

    audit -> one judge's scores -> strata around the cut -> n answers -> CSV (item, question, answer, label, note)

The sheet tells neither the step, nor the checkpoint, nor any score. The weights of the draw stay in audit.json, so that
agreement can be weighted back to all answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from truing import errors
from truing.config import LabelConfig, configured
from truing.files import whole
from truing.judges.rubrics import rendered_question
from truing.runs.scope import stored_prompts, stored_rule, stored_scope
from truing.runs.tables import chosen_judge, labelled_answers
from truing.store import Store
from truing.types.hashing import digest
from truing.types.labels import LABELS, LabelItem, guide_of, read_sheet, write_sheet
from truing.types.records import AnswerKey, StoredAnswer
from truing.types.traits import SCORED, Rule

NEAR = 0.1
"""share of the scale around the cut that makes the inner strata"""
STRATA = ("under", "just under", "just over", "over")
"""parts of the scale from which a sheet draws"""


@dataclass(frozen=True, slots=True)
class _Sampled:
    answer: StoredAnswer
    stratum: str
    weight: float


def label(audit: str | Path, config: LabelConfig | None = None, **options: Any) -> Path:
    """Write a blind labelling sheet; one that is there already keeps its labels.

    Args:
        audit: an audit with judged answers.
        config: options; None for the defaults.
        options: fields of `LabelConfig`: n, out, judge, seed.

    Raises:
        BadInput: nothing judged, an unknown judge, or a sheet for other answers is there.
    """
    path, config = Path(audit), configured(LabelConfig, config, options)
    sheet = Path(config.out) if config.out is not None else path / "labels.csv"
    with Store.read(path) as store:
        about = store.about()
        judge_key = chosen_judge(store, config.judge)
        sampled = _sample(store, about, judge_key, config.n, config.seed)
    asked = {p.key: rendered_question(p.messages) for p in stored_prompts(about).prompts}
    items = [LabelItem(item_name(d.answer.key), asked[d.answer.prompt], d.answer.text) for d in sampled]
    if sheet.exists():
        there = {i.item for i in read_sheet(sheet)}
        if there != {i.item for i in items}:
            raise errors.BadInput(f"{sheet}: holds other answers than these {len(items)}; finish it, or give --out NEW")
        return sheet
    # First the weights, then the sheet: a sheet whose weights are lost would be taken for an even draw.
    with Store.write(path, {}, running=False) as store:
        kept: dict[str, Any] = dict(about.get("labelling") or {})
        kept |= {i.item: {"weight": d.weight, "stratum": d.stratum} for i, d in zip(items, sampled, strict=True)}
        store.describe(labelling=kept)
    write_sheet(sheet, items)
    with whole(guide_of(sheet)) as part:
        part.write_text(_guide(), encoding="utf-8")
    return sheet


def _guide() -> str:
    """What may be written into the column "label", and what it means."""
    lines = [f"{word:<12}{meaning}" for word, meaning in LABELS.items()]
    return "\n".join(["In the column label of the sheet, one of", "", *lines, "", "or nothing: not labelled yet.", ""])


def item_name(key: AnswerKey) -> str:
    """The name of an answer on a sheet."""
    return digest(list(key), 12)


def _sample(store: Store, about: Mapping[str, Any], judge_key: str, n: int, seed: int) -> list[_Sampled]:
    """Answers in random order, spread evenly over the strata; the weight is how many answers each stands for."""
    rule, prompts = stored_rule(about), stored_prompts(about).prompts
    known, params = {p.key for p in prompts}, stored_scope(store, about, prompts).params
    strata: dict[str, list[StoredAnswer]] = {}
    for r, found in labelled_answers(store, judge_key, rule, params):
        if r.prompt in known and not r.variant and found.reason in SCORED:
            strata.setdefault(stratum(found.score, rule), []).append(r)
    if not strata:
        raise errors.BadInput(f"{store.path}: no scored answers under that judge")
    rng, ordered = np.random.default_rng(seed), sorted(strata.items())
    out = []
    for (name, members), share in zip(ordered, _shares([len(m) for _, m in ordered], n), strict=True):
        chosen = rng.permutation(len(members))[:share]
        out += [_Sampled(members[k], name, len(members) / share) for k in chosen]
    return [out[k] for k in rng.permutation(len(out))]


def stratum(score: float, rule: Rule) -> str:
    """Where a score lies about the cut: one of `STRATA`."""
    over = (score - rule.cut) / (rule.high - rule.low)
    side = "under" if over < 0 else "over"
    return f"just {side}" if -NEAR <= over < NEAR else side


def _shares(sizes: Sequence[int], n: int) -> list[int]:
    """n spread as evenly as the sizes allow."""
    shares = [0] * len(sizes)
    for _ in range(min(n, sum(sizes))):
        open_ones = [k for k, size in enumerate(sizes) if shares[k] < size]
        shares[min(open_ones, key=lambda k: shares[k])] += 1
    return shares
