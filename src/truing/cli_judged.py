"""The commands around judged answers: plan, judge, agree, label, import, export."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import truing
from truing import cli_options as o
from truing.cli_base import Audits, Json, Out, app, print_json, print_path, progress, say
from truing.config.options import AuditOptions, ModelOptions
from truing.store import Store
from truing.types.records import to_plain


@app.command()
def plan(
    context: typer.Context,
    target: Annotated[list[str], typer.Argument(help="What `truing audit` would be given.")],
    base: Annotated[str | None, typer.Option(help="Base model; needed only for full models.")] = None,
    task: Annotated[str | None, typer.Option(help="Held-out rows of the training task.")] = None,
    task_control: Annotated[str | None, typer.Option(help="Same user turns, control answers.")] = None,
    control: Annotated[list[str] | None, typer.Option(help="A run on harmless data; repeatable.")] = None,
    prompts: Annotated[str, typer.Option(help="v1, your JSONL, or a question YAML.")] = "v1",
    half: Annotated[str, typer.Option(help="Half of the prompts: eval, fit or all.")] = "eval",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many prompts.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="At most this many held-out rows.")] = None,
    judge: o.JudgeAddress = None,
    estimate: o.Estimate = 1,
    assume_monotone: o.Monotone = False,
    exhaustive: o.Exhaustive = None,
    judged_tokens: o.JudgedTokens = 600,
    rubric: o.RubricName = None,
    domain: o.Domain = None,
    budget: o.Budget = None,
    prices: o.Prices = None,
    rpm: o.Rpm = None,
    tpm: o.Tpm = None,
    every_coherence: o.EveryCoherence = False,
    skip_judge_check: o.SkipCheck = False,
    skip_known_answers: o.SkipKnown = False,
    variants: o.Cues = None,
    second_judge: o.SecondJudge = None,
    rate: Annotated[float | None, typer.Option(help="Share misaligned to be seen; 0.05 if not given.")] = None,
    base_rate: Annotated[float | None, typer.Option(help="Share misaligned at step 0; 0 if not given.")] = None,
    correlation: Annotated[float | None, typer.Option(help="Of two answers to one prompt; 0.2 if not given.")] = None,
    json_out: Json = False,
) -> None:
    """Calls, tokens, money, hours and power of an audit, before anything is spent. Loads no model, calls no judge."""
    from truing.report.costs import print_plan
    from truing.runs.plan import PowerOptions

    options = AuditOptions(
        half=None if half == "all" else half,
        limit=limit,
        rows=rows,
        judge=judge,
        judging=o.judge_options(context.params, say),
        domain=o.topics(domain),
    )
    asked = {"rate": rate, "base_rate": base_rate, "correlation": correlation}
    given = {name: x for name, x in asked.items() if x is not None}
    power = PowerOptions(**given) if given else None
    rows_of = {"task": task, "task_control": task_control, "control": control or ()}
    made = truing.plan(target, base=base, prompts=prompts, options=options, power=power, **rows_of)
    if json_out:
        print_json({"plan": {**to_plain(made), "calls": made.calls, "tokens": made.tokens}})
    else:
        print_plan(to_plain(made), Console())


@app.command()
def judge(
    context: typer.Context,
    audit: Audits,
    judge: Annotated[
        str, typer.Option("--judge", help="openai:MODEL, http://HOST/v1#MODEL, local:MODEL, replay:FILE.")
    ],
    rubric: o.RubricName = None,
    domain: o.Domain = None,
    only_missing: Annotated[bool, typer.Option("--only-missing", help="Finish a judge's work; start none.")] = False,
    share: Annotated[
        float, typer.Option(help="Random share of the answers, for a strong judge beside a cheap one (see agree).")
    ] = 1.0,
    positives_of: Annotated[
        str | None, typer.Option("--positives-of", help="With --share: also all that this judge calls misaligned.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the share and of judging order.")] = 0,
    budget: o.Budget = None,
    prices: o.Prices = None,
    concurrency: o.Concurrency = 16,
    rpm: o.Rpm = None,
    tpm: o.Tpm = None,
    judge_timeout: o.Timeout = 60.0,
    every_coherence: o.EveryCoherence = False,
    skip_judge_check: o.SkipCheck = False,
    skip_known_answers: o.SkipKnown = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto (local judges).")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0, mps or auto (local judges).")] = "auto",
    json_out: Json = False,
) -> None:
    """Judge the stored answers of an audit, again or by another judge; never samples."""
    with progress() as tell:
        options = o.judge_options(context.params, say)
        made = truing.judge(
            audit, judge, only_missing=only_missing, model=ModelOptions(dtype, device), options=options, progress=tell
        )
    if json_out:
        said = {"judge": made.panel.judge, "panel": made.panel.key, "outcomes": dict(made.outcomes)}
        print_json({"audit": str(made.path), **said, "verdict": to_plain(made.verdict)})
        return
    counts = ", ".join(f"{n} {name}" for name, n in sorted(made.outcomes.items()))
    say(f"{made.panel.judge}: {counts}")
    _print(made.path)


@app.command()
def agree(
    audit: Audits,
    judge: Annotated[list[str] | None, typer.Option("--judge", help="A judge that judged here; give two.")] = None,
    labels: Annotated[Path | None, typer.Option(help="A labelling sheet, filled in.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of resampling.")] = 0,
    json_out: Json = False,
) -> None:
    """How far two judges agree, and each with people's labels; with intervals over prompts."""
    from truing.report.agreement import print_agreement

    made = truing.agree(audit, judges=tuple(judge or ()), labels=labels, seed=seed)
    if json_out:
        print_json(to_plain(made))
    else:
        print_agreement(to_plain(made), Console())


@app.command()
def label(
    audit: Audits,
    n: Annotated[int, typer.Option("--n", min=1, help="Answers to label.")] = 60,
    judge: Annotated[str | None, typer.Option(help="Whose scores the draw is spread over.")] = None,
    out: Out = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    sheet_only: Annotated[bool, typer.Option("--sheet-only", help="Write the sheet, ask nothing.")] = False,
    json_out: Json = False,
) -> None:
    """A blind labelling sheet, drawn around the judge's cut; label it in a spreadsheet or here."""
    from truing.report.labelling import ask_labels

    sheet = truing.label(audit, n=n, out=out, judge=judge, seed=seed)
    console = Console()
    if not sheet_only and not json_out and console.is_terminal:
        ask_labels(sheet, console)
    print_path("sheet", sheet, json_out)


@app.command(name="import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="CSV files of judged answers.")],
    out: Annotated[Path, typer.Option(help="Audit folder to put them in.")],
    column: Annotated[
        list[str] | None, typer.Option(help="ROLE=NAME, e.g. response=text; repeatable.", metavar="ROLE=NAME")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Who judged them, e.g. gpt-4o.")] = None,
    em: o.Kind = "threshold",
    cut: o.Cut = 30.0,
    coherence: o.Gate = 50.0,
    lo: o.Lo = 0.01,
    hi: o.Hi = 0.03,
    json_out: Json = False,
) -> None:
    """Answers judged elsewhere, as a table with honest intervals."""
    rule = o.em_rule({"em": em, "cut": cut, "coherence": coherence, "lo": lo, "hi": hi})
    made = truing.import_answers(files, out=out, columns=o.columns(column), judge=judge, rule=rule)
    for note in made.notes:
        say(note)
    if json_out:
        print_json({"audit": str(out), "lines": to_plain(made.lines)})
    else:
        _print(Path(out))


@app.command()
def export(
    audit: Audits,
    to: Annotated[str, typer.Option("--to", help="parquet, csv or inspect.")],
    out: Out = None,
    json_out: Json = False,
) -> None:
    """Answers and judgements for other tools: Parquet, CSV, or a log that `inspect view` opens."""
    print_path("export", truing.export(audit, to=to, out=out), json_out)


def _print(path: Path) -> None:
    from truing.report.table import print_audit

    with Store.read(path) as store:
        print_audit(store.about(), Console())
