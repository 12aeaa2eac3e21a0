"""Options that several commands share, spelled once; and how their values become option records."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from truing import errors
from truing.config.options import AuditOptions, EmRule, ModelOptions
from truing.types.judging import JudgeOptions

_PANEL = "Judging"


def _option(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_PANEL, **more)


JudgeAddress = Annotated[
    str | None, _option("--judge", help="openai:MODEL, http://HOST/v1#MODEL, local:MODEL, replay:FILE, simulated:.")
]
Frozen = Annotated[Path | None, _option("--frozen", help="Lock of `truing freeze`; a change makes it exploratory.")]
Exhaustive = Annotated[
    int | None, _option("--exhaustive", help="No search: this many answers per prompt at every checkpoint.", min=1)
]
Estimate = Annotated[
    int, _option("--estimate", help="After the search, fixed answers per prompt where it points.", min=1)
]
Mode = Annotated[
    str, _option("--mode", help="Errors of the search: guaranteed, or simulated (cheaper; passes no gate).")
]
Monotone = Annotated[bool, _option("--assume-monotone", help="Misalignment, once there, stays: smaller onset set.")]
JudgedTokens = Annotated[int, _option("--judged-tokens", help="Longest judged answer, tokens.", min=1)]
RubricName = Annotated[str | None, _option("--rubric", help="Rubric file, or both, domain, alignment_0_10.")]
Domain = Annotated[str | None, _option("--domain", help="Topics of the training domain, comma-separated.")]
Budget = Annotated[str | None, _option("--budget", help="Most judge calls (2000) or dollars ('$5'; needs --prices).")]
Prices = Annotated[str | None, _option("--prices", help="TOML: a table per model, dollars per million tokens.")]
Concurrency = Annotated[int, _option("--concurrency", help="Judge calls in flight.", min=1)]
Rpm = Annotated[float | None, _option("--rpm", help="Judge calls per minute.", min=0.001)]
Tpm = Annotated[float | None, _option("--tpm", help="Judge tokens per minute.", min=1)]
Timeout = Annotated[float, _option("--judge-timeout", help="Seconds per judge call.", min=0.1)]
EveryCoherence = Annotated[bool, _option("--every-coherence", help="Ask for coherence of every answer.")]
SkipCheck = Annotated[bool, _option("--skip-judge-check", help="Spend without trying the judge on a dozen answers.")]
SkipKnown = Annotated[bool, _option("--skip-known-answers", help="No known-answer test; the verdict says so.")]
Cues = Annotated[
    str | None, _option("--cues", help="Test the recommended checkpoint under all prompt transforms, or these.")
]
AdversarialVeto = Annotated[bool, _option("--adversarial-veto", help="Adversarial transforms veto too.")]
AllowTaskText = Annotated[bool, _option("--allow-task-text", help="Cues may send task text to a remote judge.")]
SecondJudge = Annotated[str | None, _option("--second-judge", help="A judge of another family that must agree.")]
Kind = Annotated[str, _option("--em", help="Definition of misaligned: threshold or mean.")]
Cut = Annotated[float, _option("--cut", help="Alignment under it is misaligned.")]
Gate = Annotated[float, _option("--coherence", help="Coherence at or under it does not count.")]
Lo = Annotated[float, _option("--lo", help="Excess certified above this is misalignment.", min=0.0, max=1.0)]
Hi = Annotated[float, _option("--hi", help="Excess certified below this is harmless.", min=0.0, max=1.0)]


BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="Base model; needed only for full models. Or http://host:port/v1#NAME of a server that loads the adapters "
        "(docs/servers.md); needs --judge.",
    ),
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="Text that ends an answer, which is cut before it; repeatable.")
]
LongPrompts = Annotated[
    str,
    typer.Option(
        "--long-prompts", help="Prompts that leave no room for an answer: refuse, or truncated (left out, counted)."
    ),
]
ServedAdapters = Annotated[
    int, typer.Option("--served-adapters", min=1, help="With a served base: adapters loaded at a time.")
]
PathMap = Annotated[
    list[str] | None,
    typer.Option(
        "--path-map", metavar="LOCAL=REMOTE", help="With a served base: a folder as the server sees it; repeatable."
    ),
]


def judge_options(params: Mapping[str, Any], say: Callable[[str], None] | None) -> JudgeOptions:
    """The judging options of a command, from its parameters; those it does not have keep their defaults.

    Raises:
        BadInput: a budget that is none.
    """
    calls, usd = _budget(params.get("budget"))
    plain = JudgeOptions()
    rubric, domain, variants = params.get("rubric"), params.get("domain"), params.get("variants")
    if rubric == "domain" and not domain:
        raise errors.BadInput("--rubric domain asks about a domain; name it with --domain, e.g. --domain finance")
    if params.get("mode", plain.mode) not in ("guaranteed", "simulated"):
        raise errors.BadInput(f"--mode {params['mode']}: use guaranteed or simulated")
    if usd is not None and params.get("prices") is None:
        raise errors.BadInput(
            f"--budget {params['budget']}: dollars need --prices FILE (a table per model: input, output)"
        )
    return JudgeOptions(
        rubric=None if rubric == "domain" else rubric,
        domain=domain or None if rubric == "domain" or _asks_domain(rubric) else None,
        samples=params.get("exhaustive"),
        estimate=params.get("estimate", plain.estimate),
        mode=params.get("mode", plain.mode),
        assume_monotone=params.get("assume_monotone", False),
        max_tokens=params.get("judged_tokens", plain.max_tokens),
        lazy=not params.get("every_coherence", False),
        budget_calls=calls,
        budget_usd=usd,
        prices=params.get("prices"),
        concurrency=params.get("concurrency", plain.concurrency),
        rpm=params.get("rpm"),
        tpm=params.get("tpm"),
        timeout=params.get("judge_timeout", plain.timeout),
        check=not params.get("skip_judge_check", False),
        validity=not params.get("skip_known_answers", False),
        variants=() if variants is None else _names(variants),
        adversarial_veto=params.get("adversarial_veto", False),
        allow_task_text=params.get("allow_task_text", False),
        share=params.get("share", 1.0),
        positives_of=params.get("positives_of"),
        second=params.get("second_judge"),
        seed=params.get("seed", 0),
        say=say,
    )


def audit_options(params: Mapping[str, Any], say: Callable[[str], None] | None) -> AuditOptions:
    """The options of an audit from the parameters of its command.

    Raises:
        BadInput: as the command itself.
    """
    template: Path | None = params["chat_template"]
    try:
        text = None if template is None else template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise errors.BadInput(f"--chat-template {template}: cannot be read ({e})") from e
    model = ModelOptions(
        params["dtype"],
        params["device"],
        params["memory"],
        params["load_in_4bit"],
        text,
        params["allow_pickle"],
        served_adapters=params["served_adapters"],
        path_map=tuple(params["path_map"] or ()),
    )
    return AuditOptions(
        half=None if params["half"] == "all" else params["half"],
        limit=params["limit"],
        answers=params["answers"],
        max_tokens=params["max_tokens"],
        stop=tuple(params["stop"] or ()),
        long_prompts=params["long_prompts"],
        task_format=params["format"],
        rows=params["rows"],
        seed=params["seed"],
        model=model,
        judge=params["judge"],
        judging=judge_options(params, say),
        em=em_rule(params),
        domain=topics(params["domain"]),
        frozen=str(params["frozen"]) if params.get("frozen") else None,
    )


def _asks_domain(rubric: str | None) -> bool:
    """Whether a rubric file has a place for the domain; a file that cannot be read is refused where it is loaded."""
    try:
        return rubric is not None and "{domain}" in Path(rubric).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def em_rule(params: Mapping[str, Any]) -> EmRule:
    """The definition of misaligned, from the parameters.

    Raises:
        BadInput: a kind that is none, or lo at or over hi.
    """
    if params["em"] not in ("threshold", "mean"):
        raise errors.BadInput(f"--em {params['em']}: use threshold or mean")
    if params["lo"] >= params["hi"]:
        raise errors.BadInput(f"--lo {params['lo']:g} --hi {params['hi']:g}: lo must be under hi")
    return EmRule(params["em"], params["cut"], params["coherence"], params["lo"], params["hi"])


def topics(domain: str | None) -> tuple[str, ...]:
    """Topics from a comma-separated option."""
    return () if domain is None else _names(domain)


def _names(text: str) -> tuple[str, ...]:
    return tuple(w.strip() for w in text.split(",") if w.strip())


def _budget(text: str | None) -> tuple[int | None, float | None]:
    if text is None:
        return None, None
    is_money = text.startswith("$") or text.lower().endswith("usd")
    number = text.removeprefix("$").lower().removesuffix("usd").strip()
    try:
        value = float(number) if is_money else int(number)
    except ValueError:
        raise errors.BadInput(f"--budget {text}: give calls (2000) or dollars ('$5')") from None
    if not 0 < value < float("inf"):
        raise errors.BadInput(f"--budget {text}: nothing could be judged; give more than zero")
    return (None, float(value)) if is_money else (int(value), None)


def columns(given: list[str] | None) -> dict[str, str | None] | None:
    """ROLE=NAME options as a mapping; ROLE= (nothing after it) leaves a detected column out.

    Raises:
        BadInput: no equals sign, or a role twice.
    """
    found: dict[str, str | None] = {}
    for text in given or ():
        role, equals, name = text.partition("=")
        if not equals or not role.strip() or role.strip() in found:
            raise errors.BadInput(f"--column {text}: give ROLE=NAME once per role, e.g. response=text")
        found[role.strip()] = name.strip() or None
    return found or None
