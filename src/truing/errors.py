"""The errors, in one tree. Each is named for the mistake; the message says what happened, where, and what to do.

TruingError              exit 1  (ours; never raised itself)
  BadInput               exit 2  the user can mend it
    NoCheckpoints, AmbiguousTarget, ShardedTrainingState, PickledWeights, DamagedWeights, AdapterMismatch,
    AlteredBase, WrongBase, NoChatTemplate, TemplateMismatch, BadRow, BadPromptSet, BadRecipe, ReferenceLeak,
    ModelUnavailable, MissingExtra, Unsupported, PromptTooLong, TooLittleMemory, AuditChanged, AuditTooNew,
    NotAnAudit, AuditLocked, DiskFull, BadRubric, UselessJudge, BadEndpoint, MissingKey, EndpointRefused,
    ServedNameReused,
    BadStudy, MixedStudy, SameRun, BadLock, FrozenTooLate
  GateFailed             exit 3  a release gate said no
  Unfinished             exit 4  finished with failed checkpoints or the budget spent
    JudgeDown, BudgetSpent, JudgeMoved
  Interrupted            exit 130  stopped by the user; the same command goes on
"""


class TruingError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class BadInput(TruingError):
    """Something the user gave cannot be used; the message names it and the remedy."""

    exit_code = 2


class NoCheckpoints(BadInput):
    """A target holds no checkpoint."""


class AmbiguousTarget(BadInput):
    """A target holds several runs and one must be chosen."""


class ShardedTrainingState(BadInput):
    """A checkpoint holds only DeepSpeed or FSDP shards."""


class PickledWeights(BadInput):
    """Weights exist only as pickles, which can run code when loaded."""


class DamagedWeights(BadInput):
    """A weight file is truncated, unreadable or holds NaN."""


class AdapterMismatch(BadInput):
    """An adapter's tensors do not all reach the base model."""


class AlteredBase(BadInput):
    """An adapter whose initialisation changed the base weights, so that "adapter off" is not step 0."""


class WrongBase(BadInput):
    """The base model is missing, unknown or contradicts the checkpoints."""


class NoChatTemplate(BadInput):
    """The tokenizer has no chat template."""


class TemplateMismatch(BadInput):
    """Checkpoints of one audit bring different templates or tokenizers."""


class BadRow(BadInput):
    """A row of a data file cannot be read; the message names file and row."""

    def __init__(self, path: object, row: int | None, problem: str) -> None:
        where = f"{path}, row {row}" if row is not None else f"{path}"
        super().__init__(f"{where}: {problem}")


class BadPromptSet(BadInput):
    """A prompt set as a whole is unusable, e.g. duplicate ids."""


class BadRecipe(BadInput):
    """A training recipe is incomplete or contradicts itself."""


class ReferenceLeak(BadInput):
    """Training data contains evaluation-only reference answers."""


class ModelUnavailable(BadInput):
    """A model cannot be fetched, or what was fetched is not what was asked for."""


class MissingExtra(BadInput):
    """An optional dependency is not installed; the message holds the install line."""


class Unsupported(BadInput):
    """The backend cannot do what the plan needs."""


class PromptTooLong(BadInput):
    """A prompt leaves no room for an answer in the model's context."""


class TooLittleMemory(BadInput):
    """The memory bound does not hold one answer."""


class AuditChanged(BadInput):
    """The audit folder was made with another base, rule or rendered prompt."""


class AuditTooNew(BadInput):
    """The audit folder was written by a newer version."""


class NotAnAudit(BadInput):
    """The folder is not an audit, or is damaged."""


class AuditLocked(BadInput):
    """Another process is writing to the audit, or training in the folder."""


class DiskFull(BadInput):
    """No space is left; what was committed is safe."""


class BadRubric(BadInput):
    """A question put to a judge cannot be used: no answer in it, an unknown placeholder, a scale that is none."""


class UselessJudge(BadInput):
    """A judge whose scores tell nothing: all fail, all the same, or good answers no better than bad ones."""


class NotAsked(BadInput):
    """An outcome was told for an answer that was never asked, or told twice."""


class BadEndpoint(BadInput):
    """The address, prices, limits or budget of a served model cannot be used."""


class MissingKey(BadInput):
    """A service needs a key and the environment holds none; the message names the variable, never a key."""


class EndpointRefused(BadInput):
    """A service refuses every call: wrong key, no right to the model, or no money left in the account."""


class ServedNameReused(BadInput):
    """A served name stands for other weights than before; the server may answer from what it remembers of the old."""


class BadStudy(BadInput):
    """The list of a study's audits cannot be used: no audits, an unknown field, a checkpoint that none of them has."""


class MixedStudy(BadInput):
    """Audits of one study were made with different rules, judges or prompts; their numbers cannot be put together."""


class SameRun(BadInput):
    """Two cases of a study are one run: the same folder, or the same weights after training."""


class BadLock(BadInput):
    """A freeze cannot be read, or was edited after it was made."""


class FrozenTooLate(BadInput):
    """A freeze is asked for after answers were drawn; it would freeze nothing."""


class GateFailed(TruingError):
    """A release gate said no."""

    exit_code = 3


class Unfinished(TruingError):
    """The work ended with failed checkpoints or a spent budget."""

    exit_code = 4


class JudgeDown(Unfinished):
    """A served model cannot be reached or fails every call; nothing more was sent."""


class BudgetSpent(Unfinished):
    """The budget for a served model is spent; what it paid for is kept and a larger budget goes on from there."""


class JudgeMoved(Unfinished):
    """Fixed answers got other scores at the end than at the start: its scores cannot be compared with each other."""


class Interrupted(TruingError):
    """The user stopped the work; what was committed is kept and the same command goes on from there."""

    exit_code = 130
