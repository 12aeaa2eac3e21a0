"""What an audit is asked to do, settled before a model is loaded: targets, base, control, prompts, task rows."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from truing import errors
from truing.config import AuditConfig
from truing.data.conversations import load_conversations, same_user_turns
from truing.data.domain_words import domain_words
from truing.data.prompts import known_answers, load_prompts
from truing.models.base import Backend, listed
from truing.models.checkpoints import find_run
from truing.models.download import resolve_model
from truing.models.simulated import SIMULATED, open_simulated
from truing.models.weights import ADAPTER_CONFIG
from truing.runs.rule import rule_of
from truing.traits.load import load_trait
from truing.types.progress import Progress
from truing.types.records import Checkpoint, Conversation, Kind, Prompt, PromptSet, Role, SamplingParams, to_plain
from truing.types.traits import Rule, Trait
from truing.types.verdicts import Finding

REPEATED = "the row is a repeat of another"


@dataclass(frozen=True, slots=True)
class Plan:
    """What an audit is asked to do, settled before a model is loaded."""

    config: AuditConfig
    """every option"""
    targets: tuple[str, ...]
    """as given"""
    base: str
    """name or path of the base"""
    subject: tuple[Checkpoint, ...]
    """checkpoints of the run, without step 0"""
    controls: tuple[tuple[Checkpoint, ...], ...]
    """checkpoints of each control, at steps of the subject"""
    trait: Trait
    """what is measured"""
    rule: Rule
    """how scores become labels: the trait's, with what the options say otherwise"""
    prompts: PromptSet
    """the prompts that are asked"""
    whole: PromptSet
    """the prompt set, uncut"""
    rows: tuple[Conversation, ...]
    """held-out task rows, each once"""
    control_rows: tuple[Conversation, ...]
    """control answers to the same rows"""
    task_answers: tuple[str, ...]
    """answers of all rows of the task file"""
    control_answers: tuple[str, ...]
    """control answers of all of them"""
    words: tuple[str, ...]
    """words of the training domain; once the base has answered, those that it does not use itself"""
    sampling: SamplingParams
    """how answers are sampled"""
    asked: Mapping[str, Any]
    """all of it as plain data, kept in audit.json"""
    simulated: Backend | None = None
    """the simulated backend, if the target is one"""
    notes: tuple[str, ...] = ()
    """what was settled or left out, a line each"""
    findings: tuple[Finding, ...] = ()
    """what must accompany the verdict"""

    @property
    def labels(self) -> bool:
        """Whether answers are labelled: by a judge, or by the trait's own scorer."""
        return _labels(self.config, self.trait, self.words)

    @property
    def scored(self) -> tuple[Prompt, ...]:
        """Prompts with reference answers, whose likelihood every checkpoint tells."""
        return tuple(p for p in self.prompts.prompts if p.has_references)

    @property
    def answered(self) -> tuple[Prompt, ...]:
        """Prompts that every checkpoint answers once, for health and for reading."""
        return self.prompts.only(None, self.config.answers).prompts


def resolve(target: str | Path | Sequence[str | Path], config: AuditConfig, progress: Progress | None = None) -> Plan:
    """Find the checkpoints, prompts and rows that are meant; `progress` is told how reading the weights goes on.

    Raises:
        BadInput: any of its kinds; nothing has been loaded or written yet.
    """
    targets = (str(target),) if isinstance(target, (str, Path)) else tuple(map(str, target))
    controls = config.control
    if not targets:
        raise errors.BadModel("no target given; name a folder of checkpoints")
    if config.task_control is not None and config.task is None:
        raise errors.BadInput("--task-control needs --task: it holds other answers to the same user turns")
    task = _task(config)
    words = domain_words(task.answers, control_answers=task.control_answers)
    trait = _trait(config, words)
    whole, chosen, asked_prompts, prompt_notes = _prompts(config, trait)
    simulated, findings = None, ()
    if targets[0].startswith(SIMULATED):
        simulated = open_simulated(targets[0], chosen, task.rows, task.control_rows)
        subject, control_runs = simulated.run(Role.SUBJECT), (simulated.run(Role.CONTROL),) if controls else ()
        found_base, notes, findings = targets[0], ["no model is involved: a simulated run"], (Finding("simulated"),)
    else:
        subject, found_base, notes = _subject(targets, config, progress)
        control_runs = tuple(_control(c, subject, notes, config, progress) for c in controls)
    notes += prompt_notes
    return Plan(
        config=config,
        targets=targets,
        base=found_base,
        subject=subject,
        controls=control_runs,
        trait=trait,
        rule=rule_of(config, trait),
        prompts=chosen,
        whole=whole,
        rows=task.rows,
        control_rows=task.control_rows,
        task_answers=task.answers,
        control_answers=task.control_answers,
        words=words,
        sampling=_sampling(config, trait, _labels(config, trait, words)),
        asked={
            "targets": list(targets),
            "base": found_base,
            "control": list(controls),
            **asked_prompts,
            "trait": trait.name,
            "trait_source": str(Path(trait.folder).resolve()) if trait.folder else trait.name,
            "trait_sha256": trait.sha256,
            **task.asked,
            "options": to_plain(config),
        },
        simulated=simulated,
        notes=tuple(notes),
        findings=findings,
    )


def _trait(config: AuditConfig, words: tuple[str, ...]) -> Trait:
    """The trait that is asked for; else misalignment, or without a judge talk of the domain that has these words."""
    with config.given("trait"):
        trait = load_trait(config.trait or ("domain_leak" if words and config.judge is None else "misalignment"))
    if trait.scorer is not None and trait.scorer["kind"] == "facts":
        with config.given("prompts" if config.prompts else "trait"):
            trait = replace(trait, scorer={"kind": "facts", "answers": known_answers(config.prompts or trait.prompts)})
    if trait.of_domain and not words:
        raise errors.BadInput(
            f"--trait {config.trait}: works by the words of the training domain, and there are none; give --task, rows "
            "whose answers are in English"
        )
    return trait


def _labels(config: AuditConfig, trait: Trait, words: tuple[str, ...]) -> bool:
    if trait.scorer is None:
        return config.judge is not None
    return bool(words) or not trait.of_domain


def _prompts(config: AuditConfig, trait: Trait) -> tuple[PromptSet, PromptSet, dict[str, str], list[str]]:
    """The whole set, what is asked of it, how both are named in audit.json, and notes."""
    source = config.prompts or trait.prompts
    with config.given("prompts" if config.prompts else "trait"):
        whole = load_prompts(source)
    half = config.half if any(p.half == config.half and p.has_references for p in whole.prompts) else None
    chosen = whole.only(half, config.limit)
    asked = {
        "prompts": f"{chosen.name} {chosen.version}" + (f", {half} half" if half else ""),
        "prompts_source": str(Path(source).resolve()) if Path(source).is_file() else source,
    }
    lacking = half is None and config.half != "all"
    notes = [f"no prompt of the {config.half} half has reference answers: all prompts are used"] if lacking else []
    return whole, chosen, asked, notes


def _sampling(config: AuditConfig, trait: Trait, labels: bool) -> SamplingParams:
    """How answers are sampled; labelled answers and those for health are the same, sampled once."""
    more: dict[str, Any] = dict(trait.decoding)
    longest = more.pop("max_tokens", config.judged_tokens if labels else config.max_tokens)
    return SamplingParams(longest, seed=config.seed, stop=config.stop, long_prompts=config.long_prompts, **more)


def _subject(
    targets: tuple[str, ...], config: AuditConfig, progress: Progress | None
) -> tuple[tuple[Checkpoint, ...], str, list[str]]:
    base = config.base
    found = [find_run(t, allow_pickle=config.allow_pickle, progress=progress) for t in targets]
    notes = [note for run in found for note in run.notes]
    checkpoints: dict[str, Checkpoint] = {}
    for run in found:
        for c in run.checkpoints:
            # Single models given side by side are told apart by what the user called them.
            label = run.label if run.label and len(run.checkpoints) == 1 else c.label
            if label in checkpoints:
                text = f"two targets hold a checkpoint called {label}; audit them apart or name one LABEL=TARGET"
                raise errors.BadModel(text)
            checkpoints[label] = Checkpoint(c.weights, label, c.step, c.uri, c.kind, "subject", Role.SUBJECT, c.meta)
    steps = [c.step for c in checkpoints.values() if c.step is not None]
    if len(steps) != len(set(steps)):
        raise errors.BadModel("two targets hold checkpoints of the same step; audit the runs one at a time")
    hints: dict[str, list[str]] = {}
    for c in checkpoints.values():
        if c.meta.get("base"):
            hints.setdefault(str(c.meta["base"]), []).append(c.label)
    if base is None:
        if len(hints) > 1:
            each = "; ".join(f"{hint:.200} by {listed(labels)}" for hint, labels in sorted(hints.items()))
            raise errors.BadModel(f"the adapters name different bases ({each}); choose with --base MODEL")
        base = _named_base(targets[0], checkpoints.values())
        notes.append(f"base {base}, named by the adapters")
    elif others := sorted(hints.keys() - {base}):
        notes.append(f"adapters name {listed(others)} as their base; measured on {base} as asked")
    ordered = sorted(checkpoints.values(), key=lambda c: (c.step is None, c.step or 0))
    return tuple(ordered), base, notes


def _named_base(target: str, checkpoints: Iterable[Checkpoint]) -> str:
    """The base that the adapters name, if it is there to be had. Raises BadModel."""
    remedy = "give it with --base MODEL"
    if not any(c.kind is Kind.ADAPTER for c in checkpoints):
        raise errors.BadModel(f"{target}: full models do not name their base; {remedy}")
    first = next((c for c in checkpoints if c.meta.get("base")), None)
    if first is None:
        raise errors.BadModel(f"{target}: base_model_name_or_path is empty in the adapters' {ADAPTER_CONFIG}; {remedy}")
    base = _no_server(str(first.meta["base"]))
    try:
        resolve_model(base)
    except errors.BadModel as e:
        packed = "; its weights are packed in 4 bits, so give those it was made from" if "bnb-4bit" in base else ""
        where = f"{ADAPTER_CONFIG} of {first.label}"
        raise errors.BadModel(f"the adapters name {base} as their base ({where}), but {e}; or {remedy}{packed}") from e
    return base


def _no_server(hint: str) -> str:
    """The base that adapters name, where that is a model. Raises BadModel where it is the address of anything else.

    Whoever made a folder would else decide where the user's key and prompts are sent.
    """
    if re.match(r"\s*[^/\s]*:", hint):
        text = "checkpoints name no server; if it is yours to ask, say so"
        raise errors.BadModel(
            f"the adapters name {hint:.200} as their base, which is an address: {text} (--base MODEL)"
        )
    return hint


def _control(
    target: str, subject: tuple[Checkpoint, ...], notes: list[str], config: AuditConfig, progress: Progress | None
) -> tuple[Checkpoint, ...]:
    with config.given("control"):
        run = find_run(target, role=Role.CONTROL, allow_pickle=config.allow_pickle, progress=progress)
    notes += [f"control: {note}" for note in run.notes]
    own, theirs = ({str(c.meta["base"]) for c in run if c.meta.get("base")} for run in (subject, run.checkpoints))
    if own and (others := sorted(theirs - own)):
        if config.base is None:
            text = f"{target}: the control's adapters name another base ({listed(others)}) than the subject's"
            raise errors.BadModel(f"{text} ({listed(own)}); choose one for both with --base MODEL")
        notes.append(f"control: its adapters name another base, {listed(others)}")
    steps = {c.step for c in subject if c.step is not None}
    kept = tuple(c for c in run.checkpoints if c.step in steps)
    if not kept:
        there = ", ".join(str(c.step) for c in run.checkpoints)
        raise errors.BadModel(f"{target}: the control has no checkpoint at a step of the subject (it has {there})")
    if {c.weights for c in kept} & {c.weights for c in subject}:
        raise errors.BadModel(f"{target}: the control holds the same weights as the subject; give another run")
    return kept


@dataclass(frozen=True, slots=True)
class _Task:
    rows: tuple[Conversation, ...] = ()
    control_rows: tuple[Conversation, ...] = ()
    answers: tuple[str, ...] = ()
    control_answers: tuple[str, ...] = ()
    asked: Mapping[str, Any] = field(default_factory=lambda: {"task": None})


def _task(config: AuditConfig) -> _Task:
    if config.task is None:
        return _Task()
    with config.given("task"):
        own = load_conversations(config.task, config.format)
    asked = {"task": config.task, "task_format": own.format, "task_sha256": own.sha256, "task_rows": 0}
    rows, others = own.conversations, ()
    if config.task_control is not None:
        with config.given("task_control"):
            other = load_conversations(config.task_control, config.format)
            same_user_turns(own, other)
        others = other.conversations
        asked |= {"task_control": config.task_control, "task_control_sha256": other.sha256}
    answers, control_answers = (tuple(row.answer for row in found) for found in (rows, others))
    first = list({row.key: k for k, row in reversed(list(enumerate(rows)))}.values())[::-1]
    repeated = len(rows) - len(first)
    kept = first[: config.rows]
    rows, others = tuple(rows[k] for k in kept), tuple(others[k] for k in kept) if others else ()
    lost = {**own.left_out, **({REPEATED: repeated} if repeated else {})}
    asked |= {"task_rows": len(rows), "task_rows_left_out": lost, "task_rows_changed": dict(own.changed)}
    return _Task(rows, others, answers, control_answers, asked)
