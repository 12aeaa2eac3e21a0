"""The errors, in one tree. The message says what happened, where, and what to do; `exit_code` is the command line's."""


class TruingError(Exception):
    """Base of every error raised on purpose; never raised itself."""

    exit_code = 1


class BadInput(TruingError):
    """Something the user gave cannot be used; the user can mend it."""

    exit_code = 2


class BadModel(BadInput):
    """A model, its checkpoints, adapters, tokenizer or template cannot be found or do not fit each other."""


class UnreadableCheckpoint(BadInput):
    """Weights exist only as DeepSpeed or FSDP shards, or as pickles, which can run code when loaded."""


class DamagedWeights(BadInput):
    """A weight file is truncated, unreadable or holds NaN."""


class BadRow(BadInput):
    """A row of a data file cannot be used; the message names file and row."""

    def __init__(self, path: object, row: int | None, problem: str) -> None:
        where = f"{path}, row {row}" if row is not None else f"{path}"
        super().__init__(f"{where}: {problem}")


class BadRecipe(BadInput):
    """A training recipe is incomplete, contradicts itself or cannot be run."""


class Unsupported(BadInput):
    """The backend cannot do what the plan needs."""


class NotAnAudit(BadInput):
    """The folder is not an audit, is damaged, or was written by a newer version."""


class AuditChanged(BadInput):
    """The audit folder was made with another base, rule or rendered prompt."""


class AuditLocked(BadInput):
    """Another process is writing to the audit, or training in the folder."""


class DiskFull(BadInput):
    """No space is left; what was committed is safe."""


class BadLock(BadInput):
    """A freeze cannot be read, was edited after it was made, or is asked for after answers were sampled."""


class BadStudy(BadInput):
    """Audits cannot be one study: none given, a bad list, different rules, judges or prompts, or one run twice."""


class BadRubric(BadInput):
    """A question put to a judge cannot be used: no answer in it, an unknown placeholder, a scale that is none."""


class UselessJudge(BadInput):
    """A judge whose scores tell nothing: all fail, all the same, or good answers no better than bad ones."""


class BadEndpoint(BadInput):
    """A served model cannot be used: address, prices, limits, key, a name reused, or every call is refused."""


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
