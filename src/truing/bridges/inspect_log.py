"""An audit as logs of Inspect: `truing export AUDIT --to inspect`, then `inspect view --log-dir FOLDER`.

    store -> answers of a checkpoint under one set of sampling parameters and one transform -> log -> file

One log per checkpoint is what `inspect view` compares best: a row each, with the EM rate as the headline. A sample is a
prompt, its epoch is the draw + 1; every judge is a scorer of its own, named as the panel names it.
"""

import errno
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from truing import errors
from truing.runs.collect import random_coherence
from truing.runs.judge import stored_prompts, stored_rule
from truing.runs.tables import ALIGNMENT, COHERENCE, with_scores
from truing.store import Store, StoredAnswer
from truing.types.hashing import digest
from truing.types.judging import AnswerKey, Score
from truing.types.records import Checkpoint, Prompt, SamplingParams
from truing.types.traits import Rule

INSTALL = "logs of Inspect need its package: pip install 'truing[inspect]'"
Rows = list[tuple[StoredAnswer, list[Score]]]


@dataclass(frozen=True, slots=True)
class LogFrame:
    """What all logs of an audit share."""

    id: str
    """hash of the audit's identity; the ids of logs and samples are made from it"""
    created: datetime
    """when the audit was last written to"""
    about: Mapping[str, Any]
    """audit.json"""
    prompts: Mapping[str, Prompt]
    """prompt hash -> prompt"""
    clusters: Mapping[str, str]
    """prompt hash -> id of the cluster it belongs to, where that is not the prompt itself"""
    rule: Rule
    """what counts as misaligned"""
    panels: Mapping[str, Mapping[str, Any]]
    """panel -> what it is"""
    scorers: Mapping[str, str]
    """panel -> name of its scorer: the judge, with the panel's hash where two panels have one judge"""
    sampling: SamplingParams | None
    """how answers were drawn, where audit.json says it"""


@dataclass(frozen=True, slots=True)
class LogGroup:
    """The answers of one log."""

    name: str
    """file name without its ending"""
    weights: str
    """weight hash of the checkpoint"""
    checkpoint: Checkpoint | None
    """the first checkpoint with these weights; None if it is no longer listed"""
    params: str
    """hash of the sampling parameters"""
    transform: str
    """name of the prompt transform; empty for none"""
    rows: Rows
    """answers with what was said of them"""
    scores: Mapping[str, tuple[str, ...]]
    """panel -> names of its scores; the panels that have judged here"""
    random_coherence: Mapping[str, frozenset[AnswerKey] | None]
    """panel -> answers whose coherence was asked whatever the alignment; None for all of them"""

    @property
    def label(self) -> str:
        """The checkpoint in a few words."""
        return self.checkpoint.label if self.checkpoint else self.weights[:8]


def write_log(audit: str | Path, out: str | Path | None = None) -> Path:
    """Write an audit's answers and scores as logs of Inspect; returns their folder.

    Where an audit was judged, the answers of the kinds that were judged are written; else all of them, without scores.
    A repeat replaces the logs of the same checkpoints. One checkpoint is in memory at a time.

    Args:
        audit: the audit folder; it may still be running.
        out: folder of the logs; the default is `inspect` in the audit folder.

    Raises:
        MissingExtra: inspect_ai is not installed. NotAnAudit, AuditTooNew: no readable audit.
        BadInput: there is nothing to write, or `out` cannot be written. DiskFull.
    """
    try:
        from truing.bridges.inspect_build import eval_log, save
    except ModuleNotFoundError as e:
        if (e.name or "").split(".")[0] != "inspect_ai":
            raise
        raise errors.MissingExtra(INSTALL) from e
    folder = Path(out) if out is not None else Path(audit) / "inspect"
    if folder.suffix == ".eval" or folder.is_file():
        raise errors.BadInput(f"{folder}: the logs are one per checkpoint; name a folder with --out")
    written = 0
    with Store.read(Path(audit)) as store:
        frame = _frame(store)
        for group in _groups(store, frame):
            _replace(folder / f"{group.name}.eval", lambda part, g=group: save(eval_log(g, frame), part))
            written += 1
    if not written:
        raise errors.BadInput(f"{audit}: holds no answers yet, so there is nothing to export; let the audit run first")
    return folder


def _replace(path: Path, write: Any) -> None:
    """Write whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise errors.DiskFull(f"{path}: no space left on the disk; free some and repeat the command") from e
        raise errors.BadInput(f"{path}: cannot be written ({e.strerror or e}); choose another --out") from e
    finally:
        part.unlink(missing_ok=True)


def _frame(store: Store) -> LogFrame:
    about = store.about()
    items = (about.get("prompts") or {}).get("items") or ()
    panels = store.judges()
    judges = [p["judge"] for p in panels.values()]
    names = {k: p["judge"] if judges.count(p["judge"]) == 1 else f"{p['judge']} {k[:6]}" for k, p in panels.items()}
    return LogFrame(
        digest([about.get("identity"), about.get("sets")], 16),
        datetime.fromtimestamp(round((store.path / "evidence.db").stat().st_mtime), UTC),
        about,
        {item["key"]: p for item, p in zip(items, stored_prompts(about).prompts, strict=True)},
        {item["key"]: item["cluster"] for item in items if item.get("cluster")},
        stored_rule(about),
        panels,
        names,
        SamplingParams(**about["sampling"]) if about.get("sampling") else None,
    )


def _groups(store: Store, frame: LogFrame) -> Iterator[LogGroup]:
    """The answers of every log to be, one checkpoint at a time."""
    checkpoints = {c.weights: c for c in reversed(store.checkpoints())}
    kinds = {(j.key.params, j.key.transform) for j in store.scores()}
    for weights, of_weights in groupby(with_scores(store), key=lambda row: row[0].weights):
        groups: dict[tuple[str, str], Rows] = {}
        for row in of_weights:
            kind = (row[0].params, row[0].transform)
            if not kinds or kind in kinds:
                groups.setdefault(kind, []).append(row)
        transforms = [transform for _, transform in groups]
        for (params, transform), rows in groups.items():
            name = _name(checkpoints.get(weights), weights, transform, params * (transforms.count(transform) > 1))
            scores = _scores(rows, frame)
            random = {panel: _random_coherence(rows, panel) for panel in scores}
            yield LogGroup(name, weights, checkpoints.get(weights), params, transform, rows, scores, random)


def _random_coherence(rows: Rows, panel: str) -> frozenset[AnswerKey] | None:
    """The random few, chosen as judging chose them; None where no answer was spared the question."""
    said = [j for _, of_answer in rows for j in of_answer if j.judge_key == panel]
    aligned, coherent = ({j.key for j in said if j.rubric == name} for name in (ALIGNMENT, COHERENCE))
    if aligned <= coherent:
        return None
    return random_coherence([r.key for r, _ in rows], said[0].meta.get("seed", 0))


def _scores(rows: Rows, frame: LogFrame) -> dict[str, tuple[str, ...]]:
    """The panels that have judged these answers, each with the names of its scores, alignment and coherence first."""
    found: dict[str, dict[str, None]] = {}
    for _, said in rows:
        for j in said:
            names = found.setdefault(j.judge_key, dict.fromkeys((ALIGNMENT, COHERENCE)))
            names.setdefault(j.rubric)
    return {key: tuple(found[key]) for key in frame.panels if key in found}


def _name(c: Checkpoint | None, weights: str, transform: str, params: str) -> str:
    """A file name that sorts by step and is the same at every repeat."""
    step = "" if c is None or c.step is None else f"{c.step:06d}"
    parts = ["em", c.run if c else "", step, c.label if c and c.label != c.run else "", transform, weights[:8]]
    plain = (re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.")[:60] for part in (*parts, params[:6]))
    return "_".join(p for p in plain if p)
