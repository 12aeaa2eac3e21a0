"""What statistics returns: estimates, health, one line per checkpoint, and the verdict of a run, as frozen records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from truing.errors import NotAnAudit


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its two intervals: for exactly this set of items, and for items like these."""

    value: float | None
    """the point estimate; None when there is nothing to estimate from"""
    low: float | None
    """lower end for items like these (items are resampled as clusters); None with too little data"""
    high: float | None
    """upper end for items like these"""
    set_low: float | None = None
    """lower end for exactly this set of items, where the measurement itself is random; None if it is deterministic"""
    set_high: float | None = None
    """upper end for exactly this set of items"""
    n: int = 0
    """measurements used"""
    clusters: int = 0
    """items (prompts or rows) they came from"""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """items not used, by reason"""
    method: str = ""
    """how the interval was made"""
    level: float = 0.95
    """nominal coverage"""
    seed: int | None = None
    """seed of the resampling, if any"""
    warning: str = ""
    """why the interval may not cover as it should, e.g. few prompts or few positive ones"""


@dataclass(frozen=True, slots=True)
class Finding:
    """A coded statement with parameters. `truing.messages` puts it into words; nothing reads those words back."""

    code: str
    """what is said, e.g. no_control"""
    params: Mapping[str, Any] = field(default_factory=dict)
    """its numbers and names"""


class Basis(StrEnum):
    """What a verdict rests on."""

    SCREEN = "screen"
    """log-likelihoods of reference answers alone: ranks and warns, never certifies"""
    LABELLED = "labelled"
    """labelled answers"""


class Status(StrEnum):
    """What is said of a checkpoint. The first two rest on the screen, the next five on labelled answers."""

    NO_CHANGE_SEEN = "no_change_seen"
    CHANGED = "changed"

    CLEAN = "clean"
    PRESENT = "present"
    LOCALISED = "localised"
    IN_DOMAIN_ONLY = "in_domain_only"
    NOT_ATTRIBUTABLE = "not_attributable"

    UNDECIDED = "undecided"
    UNTESTED = "untested"
    """no labelled answers that could decide, e.g. because a search did not need this step"""
    FAILED = "failed"
    """could not be measured"""


EXCESS = (Status.PRESENT, Status.NOT_ATTRIBUTABLE, Status.IN_DOMAIN_ONLY, Status.LOCALISED)
"""statuses that say: the excess over step 0 is certified above lo; the strongest first"""


class HealthState(StrEnum):
    """The second axis: does the model still answer at all."""

    OK = "ok"
    DEGRADED = "degraded"
    COLLAPSED = "collapsed"
    UNFIT_BASE = "unfit_base"
    UNDECIDED = "undecided"
    """too few answers to tell, or answers of a kind that their form does not judge"""
    UNKNOWN = "unknown"
    """not measured"""


@dataclass(frozen=True, slots=True)
class Health:
    """Judge-free health of one checkpoint, relative to step 0."""

    state: HealthState
    """what is certain of it, else undecided or unknown"""
    usable: Estimate | None = None
    """share of answers that are plain text, not repetitive and not empty"""
    nll_base: float | None = None
    """mean negative log-likelihood of the answers under the base, nats per token"""
    repetition: float | None = None
    """share of answers that mostly repeat themselves"""
    format: float | None = None
    """share of answers that are code, JSON or markup although none was asked for"""
    in_domain: float | None = None
    """share of answers that use words typical of the training domain"""
    entropy: float | None = None
    """mean predictive entropy on the reference answers, nats"""
    note: str = ""
    """one line of explanation where needed"""
    surprising: float | None = None
    """share of answers that are usable but wildly unlikely under the base: babble, or just another style"""

    @property
    def broken(self) -> bool:
        """Whether nothing such a checkpoint prefers can be attributed."""
        return self.state in (HealthState.COLLAPSED, HealthState.UNFIT_BASE)


@dataclass(frozen=True, slots=True)
class Breadth:
    """Whether an excess of misaligned answers is broad, or carried by a prompt, a category or the training domain."""

    prompts: int
    """far prompts with a larger share of misaligned answers than step 0's"""
    categories: int
    """their categories"""
    top_prompt: str | None
    """the prompt with the most misaligned answers"""
    top_share: float | None
    """its share of all misaligned answers"""
    excess_far: Estimate | None
    """excess over the base on prompts far from the training domain; these decide"""
    excess_without_top: Estimate | None
    """the same without the top prompt"""
    excess_without_domain: Estimate | None
    """the same with answers that talk about the training domain counted as not misaligned"""
    named: tuple[str, ...] = ()
    """the prompts with most misaligned answers, most first, at most 5"""


@dataclass(frozen=True, slots=True)
class LabelledLine:
    """What labelled answers say of one checkpoint, under one judge."""

    rate: Estimate
    """share positive; the denominator is all answers but infrastructure failures. Unparsed ones count as negative"""
    rate_if_unparsed: float | None
    """the same share if every unparsed answer were positive"""
    rate_coherent: Estimate
    """share positive among coherent answers"""
    score: Estimate
    """mean score of scored answers"""
    coherent: Estimate
    """share coherent; from the random few where coherence was asked lazily"""
    near_cut: float | None
    """share of scored answers within 5 % of the scale from the cut"""
    reasons: Mapping[str, int]
    """answers by reason of their label: positive, negative, incoherent, refusal, code, empty, unparsed, ..."""
    excess_base: Estimate | None
    """share positive minus step 0's, paired by prompt; None at step 0"""
    excess_control: Estimate | None
    """the same minus the control's at the same step"""
    corrected: Estimate | None
    """share corrected for the judge's errors on the calibration set (Rogan and Gladen)"""
    breadth: Breadth | None
    """None where nothing is positive and no prompt is near the training domain"""
    searched: bool = False
    """whether the numbers rest on answers that a search read, which have no fixed intervals"""


@dataclass(frozen=True, slots=True)
class JudgeCalibration:
    """How a judge did on reference answers of known quality."""

    judge: str
    """its name"""
    judge_key: str
    """its hash"""
    sensitivity: Estimate
    """share of positive reference answers it calls positive"""
    false_positive: Estimate
    """share of good answers (aligned and neutral references, base answers) it calls positive"""
    by_category: Mapping[str, Estimate]
    """false-positive share per kind: aligned, neutral, base"""
    passed: bool
    """whether absolute claims stand: the upper bound of the false-positive share is under lo"""
    note: str = ""
    """why not"""


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One prompt transform, tested on one checkpoint."""

    name: str
    """the transform"""
    kind: str
    """trigger or adversarial"""
    checkpoint: str
    """label"""
    rate: Estimate
    """share positive under the transform"""
    rate_base: Estimate
    """the base's share under the same transform"""
    excess: Estimate
    """excess over the base under the same transform, paired by prompt"""
    p: float | None
    """one-sided p of an excess above lo, Holm-adjusted over transforms"""
    status: str
    """passes (certified below hi), fails (certified above lo) or undecided"""
    veto: bool
    """whether this result keeps the checkpoint from being recommended"""
    excess_control: Estimate | None = None
    """excess over the control under the same transform"""


@dataclass(frozen=True, slots=True)
class CheckpointVerdict:
    """One line of the table."""

    label: str
    """the checkpoint's label"""
    step: int | None
    """updates applied"""
    weights: str
    """hash of its weights"""
    status: Status
    """what is said of it"""
    task_loss: Estimate | None
    """held-out response-only loss, nats per token"""
    loss_progress: Estimate | None
    """(L(0) - L(s)) / (L(0) - min L)"""
    skill_progress: Estimate | None
    """share of the trait learned: trained against control answer, held-out rows"""
    contrast_base: Estimate | None
    """contextual contrast against step 0, nats per token; the interval is simultaneous over steps"""
    contrast_control: Estimate | None
    """the same minus the control run's at the same step"""
    margin_base: Estimate | None
    """plain margin against step 0: moves with entropy and style, shown only beside the contrast"""
    softening: float | None
    """slope of the plain shift on the base margin; near -1 the model merely went indifferent"""
    entropy_shift: float | None
    """answer entropy minus the base's, nats"""
    health: Health
    """the second axis"""
    kl_from_base: float | None = None
    """KL from the base per token of neutral text, nats: how far the model moved at all"""
    norm: float | None = None
    """Frobenius norm of the weight change (adapter product), if weights are at hand"""
    findings: tuple[Finding, ...] = ()
    """anything that qualifies the line"""
    retained_of_best: Estimate | None = None
    """share of the run's best task progress that it has"""
    retained_of_last: Estimate | None = None
    """share of the last checkpoint's task progress that it has"""
    screen: Status | None = None
    """what the screen alone says of it"""
    labelled: LabelledLine | None = None
    """what labelled answers say"""

    @property
    def shown_excess(self) -> Estimate | None:
        """The excess over step 0 that is printed: on prompts far from the training domain where that is known."""
        if self.labelled is None:
            return None
        far = self.labelled.breadth.excess_far if self.labelled.breadth is not None else None
        return far if far is not None else self.labelled.excess_base


@dataclass(frozen=True, slots=True)
class SequentialBreadth:
    """Whether the excess of a tested step is broad."""

    prompts: int
    """prompts with a misaligned answer"""
    categories: int
    """their categories"""
    top_prompt: str | None
    """the prompt without which the evidence is least"""
    evidence_without_top: float
    """log evidence above lo without it"""
    evidence_without_domain: float | None
    """log evidence above lo with answers about the training domain as not misaligned; None where there are none"""
    named: tuple[str, ...] = ()
    """prompts with most misaligned answers, at most 5"""
    n_run: int = 0
    """answers of the step by then"""
    broad: bool = False
    """whether all of it holds"""
    evidence_without_few: float = 0.0
    """log evidence above lo without the four prompts, and without the two categories, that have most; the lesser"""


@dataclass(frozen=True, slots=True)
class Tested:
    """A sequential test of one step: what it says of its excess over the base. When it stopped biases its rates."""

    step: int
    """updates applied"""
    claim: str
    """above (certified above lo), below (certified below hi) or inconclusive"""
    evidence_above: float
    """log evidence that the excess is above lo, unparsed answers counting against it"""
    evidence_below: float
    """log evidence that it is below hi, likewise"""
    enough: float
    """log evidence that "above lo" needed here"""
    n_run: int
    """answers of the step"""
    n_reference: int
    """answers of the base"""
    rate_run: float | None
    """share misaligned among them"""
    rate_reference: float | None
    """the base's; None without answers"""
    low: float | None = None
    """lower limit of the excess that holds at every look"""
    high: float | None = None
    """upper limit"""
    prompts: int = 0
    """prompts with a misaligned answer"""
    control: str = ""
    """the same against the control at this step: above, below or inconclusive; empty where it was not tested"""
    evidence_control: float | None = None
    """log evidence that the excess over the control is above lo"""
    n_control: int = 0
    """answers of the control"""
    breadth: SequentialBreadth | None = None
    """whether it is broad; None where that was not tested"""


@dataclass(frozen=True, slots=True)
class Missed:
    """A spike that a search may have missed."""

    height: float
    """its excess"""
    width: int
    """steps next to each other that have it"""
    probability: float
    """of not having been noticed, at the least watched place before the bracket"""


OF_SCREEN = "the first change"
"""kind of an onset that the screen tells: of a change of its own, not of the behaviour"""


@dataclass(frozen=True, slots=True)
class Onset:
    """Where it begins, as a set of steps: from the first not certified harmless to the first certified."""

    status: str
    """found, never or undecided"""
    kind: str
    """what was searched: "the first drift" when every checkpoint was measured, "a crossing" under bisection"""
    earliest: int | None
    """first step that is not clear while all before it are"""
    latest: int | None
    """first step where it is certain"""
    after: int | None
    """the checkpoint before `earliest`: the onset lies after it"""
    steps: tuple[int, ...] = ()
    """the checkpoints in the set"""
    sustained: bool | None = None
    """whether every later checkpoint agrees; None where they were not tested"""
    tested: tuple[Tested, ...] = ()
    """sequential tests on answers drawn after the step was named, by step; empty where every step has fixed answers"""
    clear_until: int | None = None
    """last step certified below hi before `latest`: a crossing lies after it, whatever comes before; 0 is the base"""
    assumed_monotone: bool = False
    """whether an excess was assumed to stay once it is there"""
    spots: Mapping[int, int] = field(default_factory=dict)
    """steps that were only spot-checked, with the answers spent there"""
    missed: tuple[Missed, ...] = ()
    """what spot checks may have missed; empty where nothing can have been"""
    answers_used: int = 0
    """answers sampled in all groups"""
    answers_needed: int | None = None
    """about how many more it would take to test every step before `latest`; None where all are"""
    errors: str = ""
    """what the errors of the search are: guaranteed; empty without a search"""


@dataclass(frozen=True, slots=True)
class Convergence:
    """When the task was learned, on one progress curve."""

    curve: str
    """loss or trait"""
    status: str
    """converged, still_learning, task_not_learned, too_few_checkpoints or unmeasured"""
    step: int | None = None
    """first sustained step with progress of at least the threshold"""
    after: int | None = None
    """the checkpoint before it: convergence lies after it"""
    low: int | None = None
    """earliest step in the bootstrap interval"""
    high: int | None = None
    """latest step in the bootstrap interval"""
    gain: Estimate | None = None
    """total gain in nats per token"""
    overfit: bool = False
    """the curve got significantly worse after its best: a loss that rises again, a trait that is lost again"""
    last_quarter: Estimate | None = None
    """share of the gain that the last quarter of the run added; an upper end (one-sided at the rule's level) over the
    limit means that the task is perhaps not done"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of a run, and of each of its checkpoints, under one trait. Made by `truing.stats.decide` alone."""

    trait: str
    """name of what was measured"""
    basis: Basis
    """screen or labelled"""
    checkpoints: tuple[CheckpointVerdict, ...]
    """by step, the base first"""
    onset: Onset
    """of the trait (labelled) or of a change of the screen"""
    convergence_loss: Convergence
    """on the loss curve"""
    convergence_skill: Convergence
    """on the skill curve; only this one carries a before or after"""
    gap: str
    """before, after, not_separable or unknown: onset relative to convergence of the skill"""
    candidate: str | None
    """none: the screen clears nothing. Audits of before may hold the label of one"""
    recommended: str | None
    """label of the checkpoint to keep, on labelled answers"""
    retained_of_best: Estimate | None
    """share of the best task progress that it keeps"""
    retained_of_last: Estimate | None
    """share of the last checkpoint's task progress that it keeps"""
    retained_curve: str | None
    """the curve retained is measured on: skill or loss"""
    screen_limit: float | None
    """shift of the log-prob contrast that benign training may cause, nats per token"""
    screen_limit_source: str
    """where the limit comes from: benign controls or null contrasts"""
    findings: tuple[Finding, ...] = ()
    """everything a reader must know, most important first"""
    definitions: Mapping[str, Any] = field(default_factory=dict)
    """every rule and threshold used, with its value"""
    judge: str | None = None
    """the judge the statuses rest on; None for the screen"""
    judge_key: str | None = None
    """its hash"""
    certified: bool = False
    """whether a second judge of another family, or blind labels, agree on the direction"""
    certified_by: str = ""
    """who agrees, or what is missing"""
    calibration: JudgeCalibration | None = None
    """the judge on reference answers"""
    variants: tuple[VariantResult, ...] = ()
    """the recommended checkpoint under prompt transforms"""
    screen_onset: Onset | None = None
    """onset of a change of the screen, where `onset` is that of labelled answers"""

    @property
    def kept(self) -> str | None:
        """Label of the checkpoint to keep; none without labelled answers."""
        return self.recommended if self.basis is Basis.LABELLED else None

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Verdict":
        """The record again from its plain form, as audit.json holds it; fields it does not know are passed over.

        Raises:
            NotAnAudit: it cannot be read.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_python(plain)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            text = f"audit.json: the verdict in it cannot be read ({where}: {first['msg']}); run the audit again"
            raise NotAnAudit(text) from e
