"""`truing.export`: an audit's answers and scores as one flat table, Parquet or CSV, or as a log that Inspect opens.

One row per answer and judge (wide: a column per score). Answers that no judge saw have one row with an empty judge.
Answers without a text (empty, failed) have a row under every judge of their kind, since rates count them.

    answer_set run label step weights params      whose answer; answer_set names checkpoint and prompt transform
    prompt_id category transform draw question    to what
    answer response_outcome error tokens          what came back; the text is untrusted
    judge panel                                   who judged; empty where nobody did
    SCORE SCORE_outcome ...                       a pair per score; both empty where it was not asked for

Rows are streamed in key order, never all in memory. CSV files get opened in spreadsheets and model output is untrusted,
so a text that starts with = + - @ or a control character gets an apostrophe in front (`truing import` takes it off
again); Parquet holds the exact text.
"""

import csv
import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from truing import errors
from truing._version import __version__
from truing.data.judged_files import guarded
from truing.runs.tables import with_scores
from truing.store import Store, StoredAnswer
from truing.types.judging import Score
from truing.types.records import AnswerStatus, Checkpoint

FORMATS = ("parquet", "csv", "inspect")
BATCH = 4096
"""rows of a Parquet row group"""
COLUMNS: Mapping[str, type] = {
    "answer_set": str,
    "run": str,
    "label": str,
    "step": int,
    "weights": str,
    "params": str,
    "prompt_id": str,
    "category": str,
    "transform": str,
    "sample": int,
    "question": str,
    "answer": str,
    "response_outcome": str,
    "error": str,
    "tokens": int,
    "judge": str,
    "panel": str,
}
"""the fixed columns and what they hold; the scores follow"""
WITH_TEXT = (AnswerStatus.OK, AnswerStatus.TRUNCATED)

Row = dict[str, Any]


def export(audit: str | Path, *, to: str, out: str | Path | None = None) -> Path:
    """Write every stored answer with its scores to one file, replacing it whole; returns its path.

    Args:
        audit: the audit folder; it may still be running.
        to: parquet, csv or inspect.
        out: the file; the default is `answers.parquet`, `answers.csv` or the log's own name, in the audit folder.

    Raises:
        BadInput: an unknown format, or an `out` that cannot be written. NotAnAudit, AuditTooNew: no readable audit.
        MissingExtra: inspect without its package. DiskFull.
    """
    if to not in FORMATS:
        raise errors.BadInput(f"--to {to}: use {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if to == "inspect":
        from truing.bridges.inspect_log import write_log

        return write_log(audit, out)
    path = Path(out) if out is not None else Path(audit) / f"answers.{to}"
    with Store.read(Path(audit)) as store:
        layout = _layout(store)
        part = path.with_name(path.name + ".part")
        try:
            if path.is_dir():
                raise errors.BadInput(f"{path}: is a folder; name a file with --out")
            (_write_parquet if to == "parquet" else _write_csv)(part, layout, rows(store, layout))
            part.replace(path)
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                text = f"{path}: no space left on the disk; free some and repeat the command"
                raise errors.DiskFull(text) from e
            raise errors.BadInput(f"{path}: cannot be written ({e.strerror or e}); choose another --out") from e
        finally:
            part.unlink(missing_ok=True)
    return path


@dataclass(frozen=True, slots=True)
class Layout:
    """What the rows of an audit look like."""

    checkpoints: Mapping[str, Checkpoint]
    """weight hash -> the first checkpoint that has it"""
    items: Mapping[str, Mapping[str, Any]]
    """prompt hash -> its entry in audit.json"""
    judges: Mapping[str, str]
    """panel -> name of the judge"""
    kinds: Mapping[str, frozenset[tuple[str, str]]]
    """panel -> (params, transform) of the answers it judged"""
    scores: Mapping[str, str]
    """score name -> its column"""

    @property
    def columns(self) -> dict[str, type]:
        """Every column and what it holds."""
        out = dict(COLUMNS)
        for column in self.scores.values():
            out |= {column: float, f"{column}_outcome": str}
        return out


def rows(store: Store, layout: Layout) -> Iterator[Row]:
    """The rows of the table, streamed; what is missing is None."""
    for r, said in with_scores(store):
        by_panel: dict[str, list[Score]] = {}
        for j in said:
            by_panel.setdefault(j.judge_key, []).append(j)
        if r.outcome not in WITH_TEXT or not r.text.strip():
            for panel, kinds in layout.kinds.items():
                if (r.params, r.transform) in kinds:
                    by_panel.setdefault(panel, [])
        row = _answer(r, layout)
        for panel, scores in sorted(by_panel.items()) or [("", [])]:
            cells: Row = {}
            for j in scores:
                column = layout.scores[j.rubric]
                cells |= {column: j.score, f"{column}_outcome": j.outcome.value}
            yield {**row, "judge": layout.judges.get(panel, panel), "panel": panel, **cells}


def _layout(store: Store) -> Layout:
    about = store.about()
    kinds: dict[str, set[tuple[str, str]]] = {}
    names: dict[str, None] = {}
    panels = store.judges()
    for panel in panels.values():
        for rubric in panel["rubrics"]:
            names |= dict.fromkeys(rubric["parts"] or [rubric["name"]])
    for j in store.scores():
        kinds.setdefault(j.judge_key, set()).add((j.key.params, j.key.transform))
        names.setdefault(j.rubric)
    return Layout(
        {c.weights: c for c in reversed(store.checkpoints())},
        {item["key"]: item for item in about.get("prompts", {}).get("items", ())},
        {key: panel["judge"] for key, panel in panels.items()},
        {panel: frozenset(found) for panel, found in kinds.items()},
        {name: f"{name}_score" if name in COLUMNS else name for name in names},
    )


def _answer(r: StoredAnswer, layout: Layout) -> Row:
    c, item = layout.checkpoints.get(r.weights), layout.items.get(r.prompt, {})
    turns = item.get("messages", ())
    question = turns[0]["content"] if len(turns) == 1 else "\n\n".join(f"{t['role']}: {t['content']}" for t in turns)
    name = r.weights[:12] if c is None else c.label if c.label == c.run else f"{c.run}/{c.label}"
    return {
        "answer_set": f"{name} + {r.transform}" if r.transform else name,
        "run": c.run if c else None,
        "label": c.label if c else None,
        "step": c.step if c else None,
        "weights": r.weights,
        "params": r.params,
        "prompt_id": item.get("cluster") or item.get("id") or r.prompt,
        "category": item.get("category"),
        "transform": r.transform,
        "sample": r.sample,
        "question": question,
        "answer": r.text,
        "response_outcome": r.outcome.value,
        "error": r.error,
        "tokens": r.tokens,
    }


def _write_csv(path: Path, layout: Layout, table: Iterable[Row]) -> None:
    columns = layout.columns
    texts = [name for name, kind in columns.items() if kind is str]
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(columns), lineterminator="\n")
        writer.writerow({name: guarded(name) for name in columns})
        for row in table:
            writer.writerow(row | {name: guarded(row[name]) for name in texts if row.get(name)})


def _write_parquet(path: Path, layout: Layout, table: Iterator[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    fields = [pa.field(name, kinds[kind]) for name, kind in layout.columns.items()]
    schema = pa.schema(fields, metadata={"truing": __version__})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _batches(table):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _batches(table: Iterator[Row]) -> Iterator[Sequence[Row]]:
    while batch := list(islice(table, BATCH)):
        yield batch
