"""The rule for misaligned answers as options."""


def flat(rule):
    """The options that make this rule; none for none."""
    if rule is None:
        return {}
    return {"em": rule.kind, "cut": rule.cut, "coherence": rule.gate, "lo": rule.lo, "hi": rule.hi}
