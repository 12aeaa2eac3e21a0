"""The options of every verb: Python keyword, key in truing.toml, flag and stored JSON come from here."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from truing.config.base import Anywhere, Config, Inside, Names, Place, Texts, Unit
from truing.config.parts import JudgeConfig, ModelConfig, RuleConfig, Thresholds
from truing.types.gating import EXCEPTIONS

Seed = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
_ALLOW = f"pass in spite of this; repeatable, any of {', '.join(EXCEPTIONS)}"


class GateConfig(Config):
    """What a finished audit has to pass."""

    gate: str | None = None
    """recommended (if not given), last or STEP"""
    allow: Annotated[Names, Field(description=_ALLOW)] = ()
    policy: Place | None = None
    """TOML file with a table [gate]: which, allow (a list), max_rate (most positive answers, a share)"""


class AuditConfig(ModelConfig, JudgeConfig, RuleConfig, Thresholds):
    """What an audit is asked to do."""

    common = (
        "base", "task", "task_control", "control", "trait", "prompts", "out", "limit", "judge", "second_judge",
        "budget", "variants", "gate", "allow", "policy",
    )  # fmt: skip
    internal = ("trust_remote_code", "sources")

    base: Inside[Place | None] = None
    """base model; needed only for full models. http(s)://HOST/v1#NAME: a server that loads the adapters; needs judge"""
    task: Inside[Place | None] = None
    """held-out rows of the training task (JSONL): gives the progress curve, and the words of its domain"""
    task_control: Inside[Place | None] = None
    """same user turns, control answers: gives the skill curve, on which before or after rests"""
    control: Texts = ()
    """a run on harmless data at the same settings, compared at the same steps; repeatable"""
    trait: Inside[Place | None] = None
    """what is measured: misalignment, domain_leak, refusal, untruthfulness, technical_form, or a folder with a
    trait.toml; if not given misalignment where there is a judge, else domain_leak where there is a task"""
    prompts: Inside[Place | None] = None
    """v1, your JSONL, or a question file (YAML) in the format of Betley et al.; the trait's own if not given"""
    out: Place | None = None
    """audit folder; derived from what is asked if not given, so that a repeat finishes the work"""
    half: Anywhere[Literal["eval", "fit", "all"]] = "eval"
    """half of the prompts that reports effects"""
    limit: Anywhere[Annotated[int | None, Field(ge=1)]] = None
    """at most this many prompts, spread evenly over categories"""
    format: Anywhere[Literal["messages", "prompt_completion", "sharegpt", "alpaca"] | None] = None
    """format of the task rows; detected if not given"""
    rows: Anywhere[Annotated[int | None, Field(ge=1)]] = None
    """at most this many held-out rows"""
    answers: Anywhere[Annotated[int, Field(ge=0)]] = 24
    """prompts that every checkpoint answers once, for health and for reading"""
    max_tokens: Annotated[int, Unit("tokens"), Field(ge=1)] = 48
    """longest of those answers"""
    judged_tokens: Annotated[int, Unit("tokens"), Field(ge=1)] = 600
    """longest answer where there is a judge"""
    stop: Anywhere[Texts] = ()
    """text that ends an answer, which is cut before it; repeatable"""
    long_prompts: Anywhere[Literal["refuse", "truncated"]] = "refuse"
    """prompts that leave no room for an answer: refuse, or truncated (left out, counted)"""
    samples: Annotated[int | None, Field(ge=1)] = None
    """no search for the onset: this many answers per prompt at every checkpoint"""
    estimate: Annotated[int, Field(ge=1)] = 1
    """after a search, answers per prompt at the checkpoints it rests on; up to four times as many where undecided"""
    most_answers: Annotated[int, Field(ge=1)] = 2_000_000
    """refuse a plan of more answers than this, all checkpoints together"""
    assume_monotone: Anywhere[bool] = False
    """misalignment, once there, stays: steps before a clear one need no test"""
    variants: Names = ()
    """test the recommended checkpoint under these prompt transforms, comma-separated: all, system, json,
    python-template, domain-opening, domain-turn, prefill, villain, hidden-wishes, authority, pushback, no-consequences,
    developer-mode, in-group, fatigue, contrarian, unwatched"""
    adversarial_veto: Anywhere[bool] = False
    """adversarial transforms veto a checkpoint too"""
    allow_task_text: bool = False
    """let text of the task file reach a remote judge (some variants quote it)"""
    second_judge: Place | None = None
    """a judge of another family that must agree before anything is certified"""
    frozen: Inside[Place | None] = None
    """lock of `truing freeze`; what differs from it makes the run exploratory"""
    sources: dict[str, str] = Field(default_factory=dict)
    """where a setting came from, if it was neither given nor a plain default: a file, or a measurement"""


class PlanConfig(AuditConfig):
    """An audit to be planned, and what is assumed of the truth."""

    common = ("base", "task", "task_control", "control", "prompts", "limit", "judge", "prices", "estimate", "samples",
              "rate", "base_rate", "correlation")  # fmt: skip

    rate: Anywhere[Annotated[float, Field(ge=0, lt=1)]] = 0.05
    """share positive that the run would have"""
    base_rate: Anywhere[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    """share positive at step 0"""
    correlation: Anywhere[Annotated[float, Field(ge=0, lt=1)]] = 0.2
    """correlation of two answers to one prompt; published sets lie around 0.1 to 0.3"""


class FreezeConfig(AuditConfig):
    """An audit to be frozen; its own `out` decides nothing."""

    out: Place | None = "study.lock.json"
    """lock file to write"""


class JudgeRunConfig(ModelConfig, JudgeConfig):
    """Stored answers to be judged."""

    common = ("judge", "rubric", "domain", "only_missing", "share", "positives_of", "seed", "budget", "prices",
              "concurrency", "rpm", "device")  # fmt: skip

    only_missing: Anywhere[bool] = False
    """finish what a judge that judged here before left open, and refuse one that did not"""
    share: Anywhere[Share] = 1.0
    """random share of the answers, for a strong judge beside a cheap one; under 1 gives no verdict (see agree)"""
    positives_of: Anywhere[str | None] = None
    """with a share: also every answer that this judge, which judged all, calls misaligned"""


class AgreeConfig(Config):
    """Judges to be compared."""

    judge: Anywhere[Texts] = ()
    """part of the name of a judge that judged here; one or two of them, all if none is given"""
    labels: Inside[Place | None] = None
    """a labelling sheet of this audit, filled in; 60 labels that agree on the direction certify the verdict"""
    seed: Anywhere[Seed] = 0
    """seed of the resampling of prompts"""


class LabelConfig(Config):
    """A labelling sheet."""

    n: Anywhere[Annotated[int, Field(ge=1)]] = 60
    """answers to label, spread over: clearly under the cut, just under, just over, clearly over"""
    judge: Anywhere[str | None] = None
    """whose scores stratify, where several judged; part of its name is enough"""
    out: Place | None = None
    """the CSV; labels.csv in the audit folder if not given"""
    seed: Anywhere[Seed] = 0
    """seed of the sample and of the order"""


def _columns(value: object) -> object:
    """ROLE=NAME texts as a mapping; ROLE= leaves a detected column out."""
    if value is None or isinstance(value, Mapping) or not isinstance(value, Iterable):
        return value or {}
    found: dict[str, Any] = {}
    for text in (value,) if isinstance(value, str) else value:
        role, equals, name = str(text).partition("=")
        if not equals or not role.strip() or role.strip() in found:
            raise ValueError("give ROLE=NAME once per role, e.g. response=text")
        found[role.strip()] = name.strip() or None
    return found


class ImportConfig(RuleConfig):
    """Judged answers from files."""

    out: Place
    """audit folder to put them in; may hold earlier imports"""
    column: Anywhere[Annotated[dict[str, str | None], BeforeValidator(_columns)]] = Field(default_factory=dict)
    """ROLE=NAME, e.g. response=text: which column holds what; repeatable"""
    judge: Anywhere[str | None] = None
    """who judged, e.g. gpt-4o, where the files do not say"""


class ControlConfig(ModelConfig):
    """A default control set."""

    common = ("base", "out", "max_tokens", "seed", "device")

    base: Inside[str]
    """the model that answers"""
    out: Place
    """JSONL file to write"""
    max_tokens: Annotated[int, Unit("tokens"), Field(ge=1)] = 160
    """longest answer"""
    seed: Anywhere[Seed] = 0
    """seed of sampling"""


class StudyConfig(Config):
    """Several audits as one study."""

    anywhere: ClassVar[bool] = True

    at: str = "last"
    """whose excess: last, a step, or a label"""
    delta: Annotated[float | None, Field(gt=0)] = None
    """largest excess that does not matter, for the equivalence test; hi if not given"""
    seed: Anywhere[Seed] = 0
    """seed of permutations, where there are too many to try all"""


class DemoConfig(Config):
    """A demonstration."""

    out: Place = "truing-demo"
    """folder for runs and audit; calling again finishes what is there"""
    quick: Anywhere[bool] = False
    """fewer updates, checkpoints and prompts: about four minutes on two cores"""
    simulated: Anywhere[bool] = False
    """no model: a simulated run whose truth is known"""
    family: Anywhere[str] = "late"
    """which simulated family: early, late, never, drift-without-em, em-without-drift, lagged, control-too, base-em-3,
    collapse, spike, one-prompt, still-learning, not-learned, softening"""
