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


class Basis(StrEnum):
    """What a verdict rests on."""

    MARGIN = "margin"
    JUDGED = "judged"


class Status(StrEnum):
    """What is said of a checkpoint. The first row is all that margins may say; the others need judged answers."""

    NO_DRIFT_SEEN = "no_drift_seen"
    DRIFT = "drift"
    DRIFT_UNCONTROLLED = "drift_uncontrolled"
    DRIFT_NOT_ATTRIBUTABLE = "drift_not_attributable"
    BROKEN = "broken"
    UNDECIDED = "undecided"
    FAILED = "failed"
    UNJUDGED = "unjudged"

    CLEAN = "clean"
    EMERGENT = "emergent"
    EMERGENT_UNCONTROLLED = "emergent_uncontrolled"
    LOCALISED = "localised"
    DOMAIN_LEAK = "domain_leak"
    MISALIGNED_NOT_ATTRIBUTABLE = "misaligned_not_attributable"


MARGIN_DRIFTS = frozenset({Status.DRIFT, Status.DRIFT_UNCONTROLLED, Status.DRIFT_NOT_ATTRIBUTABLE})


class HealthState(StrEnum):
    """The second axis: does the model still answer at all."""

    OK = "ok"
    DEGRADED = "degraded"
    COLLAPSED = "collapsed"
    UNFIT_BASE = "unfit_base"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Health:
    """Judge-free health of one checkpoint, relative to step 0."""

    state: HealthState
    """ok, degraded, collapsed, unfit_base or unknown (too few answers)"""
    usable: Estimate | None = None
    """share of answers that are plain text, not repetitive, not empty and not wildly unlikely under the base"""
    nll_base: float | None = None
    """mean negative log-likelihood of the answers under the base, nats per token"""
    repetition: float | None = None
    """share of answers that mostly repeat themselves"""
    format: float | None = None
    """share of answers that are code, JSON or markup although none was asked for"""
    leak: float | None = None
    """share of answers that use words typical of the training domain"""
    entropy: float | None = None
    """mean predictive entropy on the reference answers, nats"""
    note: str = ""
    """one line of explanation where needed"""


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
class JudgedLine:
    """What judged answers say of one checkpoint, under one judge."""

    em: Estimate
    """share misaligned; the denominator is all answers but infrastructure failures. Unparsed count as not misaligned"""
    em_if_unparsed: float | None
    """the same share if every unparsed answer were misaligned"""
    em_coherent: Estimate
    """share misaligned among answers judged coherent"""
    alignment: Estimate
    """mean alignment of scored answers"""
    coherent: Estimate
    """share coherent; from the random few where coherence was asked lazily"""
    near_cut: float | None
    """share of scored answers within 5 points of the cut"""
    outcomes: Mapping[str, int]
    """answers by what became of them: misaligned, incoherent, aligned, refusal, code, empty, unparsed, failed, ..."""
    excess_base: Estimate | None
    """share misaligned minus step 0's, paired by prompt; None at step 0"""
    excess_control: Estimate | None
    """the same minus the control's at the same step"""
    corrected: Estimate | None
    """share corrected for the judge's own errors on the known-answer test (Rogan and Gladen)"""
    breadth: Breadth | None
    """None where nothing is misaligned and no prompt is near the training domain"""


@dataclass(frozen=True, slots=True)
class JudgeValidity:
    """How a judge did on answers whose quality is known."""

    judge: str
    """its name"""
    panel: str
    """hash of the panel"""
    sensitivity: Estimate
    """share of misaligned reference answers it calls misaligned"""
    false_positive: Estimate
    """share of good answers (aligned and odd references, base answers) it calls misaligned"""
    by_category: Mapping[str, Estimate]
    """false-positive share per kind: aligned, odd, base"""
    absolute: bool
    """whether absolute claims stand: the upper bound of the false-positive share is under lo"""
    note: str = ""
    """why not"""


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One prompt transform, tested on one checkpoint."""

    name: str
    """the transform"""
    kind: str
    """cue or adversarial"""
    checkpoint: str
    """label"""
    em: Estimate
    """share misaligned under the transform"""
    em_base: Estimate
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
    basis: Basis
    """what that rests on"""
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
    notes: tuple[str, ...] = ()
    """anything that qualifies the line"""
    retained_of_best: Estimate | None = None
    """share of the run's best task progress that it has"""
    retained_of_last: Estimate | None = None
    """share of the last checkpoint's task progress that it has"""
    drift: Status | None = None
    """what margins alone say of it, where judged answers decide the status"""
    judged: JudgedLine | None = None
    """what judged answers say"""


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
class RunVerdict:
    """What is said of a run, and of each of its checkpoints."""

    basis: Basis
    """margin or judged"""
    sentence: str
    """the verdict in words, no stronger than its evidence"""
    checkpoints: tuple[CheckpointVerdict, ...]
    """by step"""
    onset: Onset
    """drift onset (margin) or EM onset (judged)"""
    convergence_loss: Convergence
    """on the loss curve"""
    convergence_skill: Convergence
    """on the trait curve; only this one carries a before or after"""
    gap: str
    """before, after, not_separable or unknown: onset relative to trait convergence"""
    candidate: str | None
    """label of the candidate checkpoint (margin basis)"""
    recommended: str | None
    """label of the recommended checkpoint (judged basis only)"""
    retained_of_best: Estimate | None
    """share of the best task progress the candidate keeps"""
    retained_of_last: Estimate | None
    """share of the last checkpoint's task progress the candidate keeps"""
    retained_curve: str | None
    """the curve retained is measured on: trait or loss"""
    delta_m: float | None
    """drift threshold, nats per token"""
    delta_m_source: str
    """where the threshold comes from: benign controls or placebo pairs"""
    warnings: tuple[str, ...] = ()
    """everything a reader must know before believing the sentence"""
    definitions: Mapping[str, Any] = field(default_factory=dict)
    """every rule and threshold used, with its value"""
    judge: str | None = None
    """the judge the statuses rest on; None for margins"""
    panel: str | None = None
    """hash of its panel"""
    certified: bool = False
    """whether a second judge of another family, or blind labels, agree on the direction"""
    certified_by: str = ""
    """who agrees, or what is missing"""
    validity: JudgeValidity | None = None
    """the judge's known-answer test"""
    variants: tuple[VariantResult, ...] = ()
    """the recommended checkpoint under prompt transforms"""
    drift_onset: Onset | None = None
    """onset of margin drift, where `onset` is that of judged misalignment"""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "RunVerdict":
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
