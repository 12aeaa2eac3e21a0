"""`truing.export`: an audit's answers, scores and labels as one flat table, Parquet or CSV, or as logs of Inspect.

One row per answer and judge. Answers that no judge saw have one row with an empty judge; answers without a text (empty,
failed) have a row under every judge of their kind, since rates count them.

    answer_set run checkpoint step weights params   whose answer; answer_set names checkpoint and prompt variant
    prompt_id category variant sample question      to what
    answer response_outcome error tokens            what came back; the text is untrusted
    judge judge_key label reason                    who judged, and what the answer is: positive, negative or unusable
    SCORE SCORE_outcome ...                         a pair per score; both empty where it was not asked for

Rows are streamed in key order, never all in memory. CSV files get opened in spreadsheets and model output is untrusted,
so what would run there gets an apostrophe in front (`types.cells`; `truing import` takes it off again); Parquet holds
the exact text.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

from truing import errors
from truing._version import __version__
from truing.bridges.answers import JudgeUse, judged_answers, judges_used
from truing.files import whole
from truing.runs.scope import stored_rule
from truing.store import Store
from truing.types.cells import write_cells
from truing.types.records import Checkpoint, StoredAnswer

FORMATS = ("parquet", "csv", "inspect")
INSTALL = "logs of Inspect need its package: pip install 'truing[inspect]'"
ROW_GROUP = 4096
"""rows of a Parquet row group"""
INTEGERS = ("step", "sample", "tokens")
COLUMNS = (
    *("answer_set", "run", "checkpoint", "step", "weights", "params"),
    *("prompt_id", "category", "variant", "sample", "question"),
    *("answer", "response_outcome", "error", "tokens"),
    *("judge", "judge_key", "label", "reason"),
)
"""the fixed columns, texts but for `INTEGERS`; the scores follow"""
LABELS: Mapping[bool | None, str] = {True: "positive", False: "negative", None: "unusable"}

Row = dict[str, Any]


def export(audit: str | Path, *, to: str, out: str | Path | None = None) -> Path:
    """Write every stored answer with its scores and labels, replacing what is there whole; returns the path.

    Args:
        audit: the audit folder; it may still be running.
        to: parquet, csv or inspect (a log per checkpoint: see `truing.bridges.inspect_logs`).
        out: the file, or the folder of the logs; the default is `answers.parquet`, `answers.csv` or `inspect` in the
            audit folder.

    Raises:
        BadInput: an unknown format, nothing to write, or an `out` that cannot be written. NotAnAudit: no
            readable audit. BadInput: inspect without its package. DiskFull.
    """
    if to not in FORMATS:
        raise errors.BadInput(f"--to {to}: use {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if to == "inspect":
        return _write_logs(Path(audit), Path(out or Path(audit) / "inspect"), given=out is not None)
    path = Path(out) if out is not None else Path(audit) / f"answers.{to}"
    with Store.read(Path(audit)) as store, whole(path) as part:
        judges = judges_used(store)
        columns = _score_columns(judges.values())
        table = rows(store, judges, columns)
        (_write_parquet if to == "parquet" else _write_csv)(part, list(columns.values()), table)
    return path


def rows(store: Store, judges: Mapping[str, JudgeUse], columns: Mapping[str, str]) -> Iterator[Row]:
    """The rows of the table, streamed; what is missing is None.

    Args:
        store: the audit.
        judges: those that have a row.
        columns: score name -> its column.
    """
    about = store.about()
    checkpoints = {c.weights: c for c in reversed(store.checkpoints())}
    items = {item["key"]: item for item in about.get("prompts", {}).get("items", ())}
    for answer, judged in judged_answers(store, judges, stored_rule(about)):
        row = _answer(answer, checkpoints.get(answer.weights), items.get(answer.prompt, {}))
        if not judged:
            yield {**row, "judge": "", "judge_key": ""}
        for key, (found, scores) in sorted(judged.items()):
            cells: Row = {"label": LABELS[found.value], "reason": found.reason.word}
            for s in scores:
                cells |= {columns[s.rubric]: s.score, f"{columns[s.rubric]}_outcome": s.status.value}
            yield {**row, "judge": judges[key].name, "judge_key": key, **cells}


def _score_columns(judges: Iterable[JudgeUse]) -> dict[str, str]:
    """Score name -> its column, which no fixed column has."""
    names = dict.fromkeys(name for judge in judges for name in judge.names)
    return {name: f"{name}_score" if name in COLUMNS else name for name in names}


def _answer(r: StoredAnswer, c: Checkpoint | None, item: Mapping[str, Any]) -> Row:
    turns = item.get("messages", ())
    question = turns[0]["content"] if len(turns) == 1 else "\n\n".join(f"{t['role']}: {t['content']}" for t in turns)
    name = r.weights[:12] if c is None else c.label if c.label == c.run else f"{c.run}/{c.label}"
    return {
        "answer_set": f"{name} + {r.variant}" if r.variant else name,
        "run": c.run if c else None,
        "checkpoint": c.label if c else None,
        "step": c.step if c else None,
        "weights": r.weights,
        "params": r.params,
        "prompt_id": item.get("cluster") or item.get("id") or r.prompt,
        "category": item.get("category"),
        "variant": r.variant,
        "sample": r.sample,
        "question": question,
        "answer": r.text,
        "response_outcome": r.status.value,
        "error": r.error,
        "tokens": r.tokens,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _write_csv(path: Path, scores: list[str], table: Iterable[Row]) -> None:
    columns = [*COLUMNS, *(name for score in scores for name in (score, f"{score}_outcome"))]
    write_cells(path, chain([columns], ([row.get(name) for name in columns] for row in table)))


def _write_parquet(path: Path, scores: list[str], table: Iterator[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [pa.field(name, pa.int64() if name in INTEGERS else pa.string()) for name in COLUMNS]
    for score in scores:
        fields += [pa.field(score, pa.float64()), pa.field(f"{score}_outcome", pa.string())]
    schema = pa.schema(fields, metadata={"truing": __version__})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(table, ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _write_logs(audit: Path, folder: Path, *, given: bool) -> Path:
    try:
        from truing.bridges.inspect_logs import logs, save
    except ModuleNotFoundError as e:
        if (e.name or "").split(".")[0] != "inspect_ai":
            raise
        raise errors.BadInput(INSTALL) from e
    if folder.is_symlink() and not given:
        raise errors.BadInput(f"{folder}: is a link; name the folder it leads to with --out if that is where they go")
    if folder.suffix == ".eval" or folder.is_file():
        raise errors.BadInput(f"{folder}: the logs are one per checkpoint; name a folder with --out")
    written = 0
    with Store.read(audit) as store:
        for name, log in logs(store):
            with suppress(OSError):  # what is wrong with the place is said below
                folder.mkdir(parents=True, exist_ok=True)
            with whole(folder / f"{name}.eval") as part:
                save(log, part)
            written += 1
    if not written:
        raise errors.BadInput(f"{audit}: holds no answers yet, so there is nothing to export; let the audit run first")
    return folder
