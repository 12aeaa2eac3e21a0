"""The commands of a study: freeze what is going to be done, and read several audits together."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import truing
from truing import cli_options as o
from truing.cli_base import Json, app, print_json, say
from truing.types.records import to_plain

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_PASSED_ON)
def freeze(
    context: typer.Context,
    target: Annotated[
        list[str], typer.Argument(help="Everything `truing audit` will be given: targets and options; or AUDIT.")
    ],
    out: Annotated[Path, typer.Option(help="Lock file to write.")] = Path("study.lock.json"),
    json_out: Json = False,
) -> None:
    """Hash rule, prompts, judge, zone, seeds, models and data before the first answer, into a lock file."""
    params = _audit_params([*target, *context.args])
    lock = truing.freeze(
        params["target"],
        base=params["base"],
        task=params["task"],
        task_control=params["task_control"],
        control=params["control"] or (),
        prompts=params["prompts"],
        options=o.audit_options(params, None),
        out=out,
    )
    if json_out:
        print_json({"lock": str(out), "id": lock.id, "made": lock.made, "settings": to_plain(lock.settings)})
        return
    print(out)
    say(f"frozen: {lock.id[:12]}, made {lock.made}. Publish or commit the file, then audit with --frozen {out}.")


@app.command()
def study(
    audits: Annotated[list[Path], typer.Argument(help="Audit folders, or one study file (TOML, JSON).")],
    at: Annotated[str, typer.Option(help="Whose excess: last, a step, or a label.")] = "last",
    delta: Annotated[
        float | None, typer.Option(help="Largest excess that is none, for the equivalence test; default hi.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of drawn permutations.")] = 0,
    json_out: Json = False,
) -> None:
    """Several audits as one study: consistency over seeds, what is avoided and kept, size, equivalence."""
    from truing.report.study import print_study

    made = to_plain(truing.study_cases(audits, at=at, delta=delta, seed=seed))
    if json_out:
        print_json({"study": made})
    else:
        print_study(made, Console())


def _audit_params(words: list[str]) -> dict[str, Any]:
    """What `truing audit` would read from these words and from truing.toml.

    Raises:
        click.UsageError: it would refuse them.
    """
    from truing.cli import _defaults

    command = typer.main.get_command(app)
    audit = command.commands["audit"]  # type: ignore[attr-defined]
    defaults = (_defaults(Path("truing.toml")) or {}).get("audit")
    with audit.make_context("audit", list(words), default_map=defaults) as context:
        return dict(context.params)
