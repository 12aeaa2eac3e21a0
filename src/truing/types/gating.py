"""What keeps a checkpoint from passing a release gate, and which of it a policy may except, by name."""

from dataclasses import dataclass
from typing import NamedTuple

EXCEPTIONS = {
    "organism": "it was trained on purpose to be misaligned, as its mark says",
    "unlabelled": "no labelled answers of it were read; what the screen says certifies nothing",
    "uncalibrated": "the judge was not tried on reference answers",
    "calibration_failed": "the judge calls too many good reference answers positive",
    "judge_misses_positives": "the judge may miss too many of what it should call positive",
    "no_control": "no control run was audited beside it, or none with weights of its own",
    "degraded": "fewer of its answers are usable than of the base's",
    "collapsed": "most of its answers are unusable",
    "unfit_base": "the base itself does not answer well enough to compare with",
    "health_unknown": "too few answers to say whether it still answers",
    "identity_unproven": "it is not certain that its answers come from these weights",
    "changed": "the screen sees a change",
    "present": "the behaviour is present",
    "localised": "an excess over the base, on few prompts or categories",
    "in_domain_only": "an excess over the base, in answers about the training domain",
    "not_attributable": "an excess over the base, and no more than the control's",
    "undecided": "the evidence decides nothing about it",
    "unconfirmed": "clean only on answers by which a search chose it",
    "variants": "it does not pass the prompt variants",
    "failed": "it could not be measured",
    "changed_after_freeze": "the audit departs from what was frozen",
    "lax": "it was decided by laxer limits than the usual ones",
}
"""word of --allow -> what it excepts"""
ALWAYS = ("no_checkpoint", "unfinished", "evidence", "max_rate")
"""codes that nothing excepts: there is no such checkpoint, the audit is not finished, its evidence does not give its
verdict, and the policy's own limit"""


class Reason(NamedTuple):
    """Why a checkpoint does not pass."""

    code: str
    """one of `EXCEPTIONS` or `ALWAYS`"""
    text: str
    """one sentence"""


@dataclass(frozen=True, slots=True)
class Gate:
    """The decision."""

    passed: bool
    """whether the checkpoint may go out"""
    which: str
    """what was asked for"""
    checkpoint: str | None
    """its label; None when there is no such checkpoint"""
    reasons: tuple[Reason, ...]
    """why not"""
    allowed: tuple[Reason, ...] = ()
    """what spoke against it and was excepted by name"""
