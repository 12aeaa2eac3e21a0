"""How far judges agree with each other and with people, and what a strong judge on a share of the answers tells.

stored judgements -> scores and flags per answer -> agreement; with labels: precision, recall;
with a judge of a random share: the prediction-powered rate of every checkpoint
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from truing import errors, messages
from truing.config import AgreeConfig, configured
from truing.runs.certify import SheetLabels, compared, people_opinion, plain_labels, with_certificate
from truing.runs.label import item_name
from truing.runs.scope import Scope, stored_prompts, stored_scope
from truing.runs.shares import random_share
from truing.runs.tables import chosen_judge, judges_here
from truing.stats.agreement import Agreement, PrecisionRecall, Rated, agreement, precision_recall
from truing.stats.correction import prediction_powered
from truing.stats.table import Index, certified
from truing.store import Store
from truing.types.labels import LabelItem, read_sheet
from truing.types.records import AnswerKey, Checkpoint, Role, to_plain
from truing.types.traits import Label
from truing.types.verdicts import Estimate, Verdict


@dataclass(frozen=True, slots=True)
class WithPeople:
    """One judge against a labelling sheet."""

    judge: str
    """its name"""
    labelled: int
    """answers with a label that decides, and judged"""
    agreement: PrecisionRecall
    """precision and recall of its flags, weighted back to all answers"""
    kappa: Estimate
    """Cohen's kappa of its flags with the labels"""
    certifies: bool
    """whether they certify the direction of the verdict"""
    why: str
    """what that rests on, or what is missing"""


@dataclass(frozen=True, slots=True)
class Powered:
    """A checkpoint's rate from a cheap judge on all answers and a strong one on a random share."""

    label: str
    """the checkpoint"""
    cheap: str
    """who judged all answers"""
    strong: str
    """who judged the share"""
    em: Estimate
    """share misaligned under the strong judge, prediction-powered"""
    sampled: int
    """answers the strong judge saw"""


@dataclass(frozen=True, slots=True)
class Agreed:
    """What comes of comparing judges."""

    judges: tuple[str, ...]
    """the judges compared, in order"""
    pair: Agreement | None
    """the two of them, if there are two"""
    people: tuple[WithPeople, ...] = ()
    """each against the labels, if there are labels"""
    powered: tuple[Powered, ...] = ()
    """rates by checkpoint, where one of two judges saw a random share"""
    notes: tuple[str, ...] = ()
    """what could not be computed, and why"""


@dataclass(frozen=True, slots=True)
class _Judge:
    """A judge and what it said."""

    key: str
    about: Mapping[str, Any]
    said: Mapping[AnswerKey, Label]
    places: Mapping[str, int]
    """prompt hash -> index"""

    @property
    def name(self) -> str:
        return str(self.about["judge"])

    def rated(self, keys: Sequence[AnswerKey]) -> Rated:
        """Scores and flags of these answers; NaN for what it has not judged."""
        found = [self.said.get(k) for k in keys]
        flags = [np.nan if x is None else float(bool(x.value)) for x in found]
        return Rated(np.array([np.nan if x is None else x.score for x in found]), np.array(flags))

    def at(self, keys: Sequence[AnswerKey]) -> Index:
        """Index of each answer's prompt."""
        return np.array([self.places[k.prompt] for k in keys], dtype=np.int64)


def agree(audit: str | Path, config: AgreeConfig | None = None, **options: Any) -> Agreed:
    """Compare the judges of an audit, on the answers that they both judged.

    Args:
        audit: its folder.
        config: options; None for the defaults.
        options: fields of `AgreeConfig`: judge, labels, seed. 60 labels that agree with the judge and confirm the
            direction certify the audit's verdict; they are kept with it, so that a repeat does not forget them.

    Raises:
        BadInput: fewer judges than the comparison needs, more than two, or a sheet of another audit.
    """
    path, config = Path(audit), configured(AgreeConfig, config, options)
    with Store.read(path) as store:
        about, names = store.about(), {c.weights: _title(c) for c in store.checkpoints()}
        scope = stored_scope(store, about, stored_prompts(about).prompts)
        judges = _judges(store, scope, config.judge)
        if len(judges) == 1 and config.labels is None:
            raise errors.BadInput(
                f"{path}: one judge alone agrees with itself; name a second with --judge, or --labels"
            )
        pair, powered, people, given = None, (), (), {}
        if len(judges) == 2:
            a, b = judges
            keys = [k for k in a.said if k in b.said]
            rated = a.rated(keys), b.rated(keys), a.at(keys), len(a.places)
            pair = agreement(*rated, rule=scope.rule, seed=config.seed)
            powered = tuple(_powered(a, b, names))
        if config.labels is not None:
            weights = about.get("labelling") or {}
            given = _given(read_sheet(Path(config.labels)), judges, weights)
            labels = SheetLabels(given, {k: float(v["weight"]) for k, v in weights.items()})
            verdict = Verdict.from_plain(about["verdict"]) if about.get("verdict") else None
            people = tuple(_people(store, scope, j, labels, verdict, config.seed) for j in judges)
    result = Agreed(tuple(j.name for j in judges), pair, people, powered, pair.notes if pair else ())
    _keep(path, result, given)
    return result


def _judges(store: Store, scope: Scope, wanted: Sequence[str]) -> list[_Judge]:
    """The judges to be compared, one or two, with their labels of the plain answers."""
    here = judges_here(store)
    keys = [chosen_judge(store, name) for name in wanted] if wanted else list(here)
    if not here:
        raise errors.BadInput(f"{store.path}: nothing is judged; `truing judge AUDIT --judge URI` does it")
    if len(set(keys)) != len(keys) or len(keys) > 2:
        names = ", ".join(sorted(str(found["judge"]) for found in here.values()))
        raise errors.BadInput(f"{store.path}: {len(keys)} judges to compare; name two of {names} with --judge")
    places = {p.key: k for k, p in enumerate(scope.prompts)}
    return [_Judge(key, here[key], plain_labels(store, scope, key), places) for key in keys]


def _title(c: Checkpoint) -> str:
    """A checkpoint's name, with its run where that is not the subject."""
    return c.label if c.role is not Role.CONTROL or c.step == 0 else f"{c.label} ({c.run})"


def _powered(a: _Judge, b: _Judge, names: Mapping[str, str]) -> Iterator[Powered]:
    """Where one of two judges saw a random share of what the other saw."""
    strong, cheap = sorted((b, a), key=lambda j: float(j.about.get("share", 1.0)))
    share = float(strong.about.get("share", 1.0))
    if share >= 1 or float(cheap.about.get("share", 1.0)) < 1:
        return
    # The share as it was drawn, not what happens to be judged: a larger share may have been begun since.
    asked = frozenset(random_share(list(cheap.said), share, int(strong.about.get("share_seed", 0))))
    # Where the strong judge was also asked about all that the cheap one calls misaligned, those are drawn for certain.
    certain = strong.about.get("positives_of") == cheap.key
    for weights, name in names.items():
        keys = [k for k in cheap.said if k.weights == weights]
        if not keys:
            continue
        flags, truth = cheap.rated(keys).misaligned, strong.rated(keys).misaligned
        sampled = np.array([k in asked for k in keys]) | (certain & (flags == 1))
        q = (share, 1.0) if certain else share
        em = prediction_powered(flags, truth, sampled, cheap.at(keys), len(cheap.places), q=q)
        yield Powered(name, cheap.name, strong.name, em, int(sampled.sum()))


def _given(sheet: Sequence[LabelItem], judges: Sequence[_Judge], drawn: Mapping[str, Any]) -> dict[str, str]:
    """Item -> label of a sheet.

    Raises:
        BadInput: it holds items that are not of this audit.
    """
    known = {item_name(k) for j in judges for k in j.said} | drawn.keys()
    if strangers := [i.item for i in sheet if i.item not in known]:
        raise errors.BadInput(f"the sheet holds {len(strangers)} items that are not of this audit, e.g. {strangers[0]}")
    return {i.item: i.label for i in sheet if i.label}


def _people(
    store: Store, scope: Scope, judge: _Judge, labels: SheetLabels, verdict: Verdict | None, seed: int
) -> WithPeople:
    found = compared(judge.said, scope, labels, seed=seed)
    certifies, why = False, "there is no verdict that they could certify"
    if verdict is not None and verdict.judge_key == judge.key:
        made = certified(verdict, people_opinion(store, scope, verdict, labels))
        certifies, why = made.certified, made.certified_by
    elif verdict is not None:
        why = f"the verdict rests on {verdict.judge or 'the screen'}, not on this judge"
    shares = precision_recall(found.own, found.human, weight=found.weight)
    return WithPeople(judge.name, len(found.own), shares, found.kappa, certifies, why)


def _keep(path: Path, result: Agreed, given: Mapping[str, str]) -> None:
    """Agreement belongs to the audit, and so do labels: those given anew replace what was given before."""
    with Store.write(path, {}, running=False) as store:
        store.describe(agreement=to_plain(result), **({"blind_labels": dict(given)} if given else {}))
        about = store.about()
        if given and about.get("verdict"):
            scope = stored_scope(store, about, stored_prompts(about).prompts)
            verdict = with_certificate(Verdict.from_plain(about["verdict"]), store, scope)
            store.describe(verdict=to_plain(verdict), sentence=messages.sentence(verdict))
