"""What options mean for judging: the rule for misaligned answers, and the rubrics that are asked."""

from dataclasses import replace
from pathlib import Path

from truing.config import JudgeConfig, RuleConfig
from truing.types.traits import Rule, Trait


def rule_of(config: RuleConfig, trait: Trait | None = None) -> Rule:
    """The trait's rule, with what the options say otherwise.

    Raises:
        BadInput: a rule that nothing could be decided by.
    """
    usual = trait.rule if trait is not None else Rule()
    given = {"kind": config.em, "cut": config.cut, "gate": config.coherence, "lo": config.lo, "hi": config.hi}
    rule = replace(usual, **{name: value for name, value in given.items() if value is not None})
    rule.check()
    return rule


def rubric_of(config: JudgeConfig) -> tuple[str | None, str | None]:
    """A rubric to be asked besides the usual ones, and the domain where one asks about it."""
    domain = ", ".join(config.domain) or None
    if config.rubric == "domain":
        return None, domain
    return config.rubric, domain if _asks_domain(config.rubric) else None


def _asks_domain(rubric: str | None) -> bool:
    """Whether a rubric file has a place for the domain; a file that cannot be read is refused where it is loaded."""
    try:
        return rubric is not None and "{domain}" in Path(rubric).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
