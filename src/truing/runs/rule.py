"""What options mean for judging: the rule for misaligned answers, and the rubrics that are asked."""

from pathlib import Path

from truing.config import JudgeConfig, RuleConfig
from truing.errors import BadInput
from truing.types.rules import EmRule


def rule_of(config: RuleConfig) -> EmRule:
    """The usual rule, with what the options say otherwise.

    Raises:
        BadInput: lo is not under hi.
    """
    usual = EmRule()
    rule = EmRule(
        config.em or usual.kind,
        _first(config.cut, usual.alignment_cut),
        _first(config.coherence, usual.coherence_gate),
        _first(config.lo, usual.lo),
        _first(config.hi, usual.hi),
    )
    if rule.lo >= rule.hi:
        raise BadInput(f"--lo {rule.lo:g} --hi {rule.hi:g}: lo must be under hi")
    return rule


def rubric_of(config: JudgeConfig) -> tuple[str | None, str | None]:
    """A rubric to be asked besides the usual ones, and the domain where one asks about it."""
    domain = ", ".join(config.domain) or None
    if config.rubric == "domain":
        return None, domain
    return config.rubric, domain if _asks_domain(config.rubric) else None


def _first(given: float | None, usual: float) -> float:
    return usual if given is None else given


def _asks_domain(rubric: str | None) -> bool:
    """Whether a rubric file has a place for the domain; a file that cannot be read is refused where it is loaded."""
    try:
        return rubric is not None and "{domain}" in Path(rubric).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
