"""Every number of a verdict as names and values, for the terminal's `--verbose` and `--step`, and for the report."""

from truing import messages
from truing.report.reading import HEALTH_WORDS, MISSING, interval, number, one_line, share
from truing.types.verdicts import Basis, CheckpointVerdict, Estimate, Verdict

Facts = list[tuple[str, str]]


def line_facts(line: CheckpointVerdict) -> Facts:
    """(name with unit, value) for every number of one checkpoint, missing ones as a dash."""
    h = line.health
    return [
        *_labelled_facts(line),
        ("task loss, nats/token", interval(line.task_loss, 3)),
        ("task progress by loss", share(line.loss_progress)),
        ("task progress by skill", share(line.skill_progress)),
        ("screen against base, nats/token", interval(line.contrast_base, 3)),
        ("screen against control, nats/token", interval(line.contrast_control, 3)),
        ("shift of the plain margin, nats/token", interval(line.margin_base, 3)),
        ("softening (slope of that shift on the base margin)", number(line.softening)),
        ("answer entropy minus the base's, nats", number(line.entropy_shift, 3)),
        ("health", HEALTH_WORDS[h.state] + (f" ({one_line(h.note)})" if h.note else "")),
        ("usable answers", share(h.usable)),
        ("repetitive answers", _percent(h.repetition)),
        ("answers in code or markup", _percent(h.format)),
        ("answers with the training domain's words", _percent(h.in_domain)),
        ("surprise of its answers to the base, nats/token", number(h.nll_base)),
        ("entropy on reference answers, nats", number(h.entropy, 3)),
        ("KL from the base, nats/token", number(line.kl_from_base, 4)),
        ("norm of the weight change", number(line.norm)),
        ("weights", one_line(line.weights)),
    ]


def verdict_facts(v: Verdict) -> Facts:
    """(name, value): who judged, how that judge did on reference answers, and what the screen rests on."""
    out: Facts = []
    if v.basis is Basis.LABELLED:
        out.append(("judge", one_line(messages.judge_name(v))))
        out += _calibration_facts(v)
    contrasts = [c.contrast_base for c in v.checkpoints if c.contrast_base is not None]
    if contrasts:
        out.append(("screen", f"{max(e.clusters for e in contrasts)} prompts, unvalidated"))
    if v.screen_limit is not None:
        out.append(("screen limit", f"{number(v.screen_limit, 3)} nats/token ({one_line(v.screen_limit_source)})"))
    out.append(("seed", one_line(v.definitions.get("seed", MISSING))))
    return out


def variant_rows(v: Verdict) -> list[tuple[str, ...]]:
    """(name, positive, the base's, excess for these prompts, p, outcome) of every variant."""
    return [
        (
            one_line(x.name) + (" (adversarial)" if x.kind == "adversarial" else ""),
            both_ends(x.rate),
            both_ends(x.rate_base),
            both_ends(x.excess),
            MISSING if x.p is None else f"{x.p:.2g}",
            x.status + (", veto" if x.veto else ""),
        )
        for x in v.variants
    ]


def both_ends(e: Estimate | None) -> str:
    """Points with both intervals."""
    if e is None or e.value is None:
        return MISSING
    these = "" if e.set_low is None or e.set_high is None else f" [{_points(e.set_low)}, {_points(e.set_high)}]"
    like = "" if e.low is None or e.high is None else f" (like these [{_points(e.low)}, {_points(e.high)}])"
    return f"{_points(e.value)}{these}{like}"


def _labelled_facts(line: CheckpointVerdict) -> Facts:
    x = line.labelled
    if x is None:
        return []
    reasons = ", ".join(f"{n} {reason}" for reason, n in x.reasons.items() if n)
    b = x.breadth
    rows: Facts = [
        ("positive, % of answers", both_ends(x.rate)),
        ("the same if every unparsed answer were positive", _percent(x.rate_if_unparsed)),
        ("positive, % of coherent answers", both_ends(x.rate_coherent)),
        ("mean score", interval(x.score, 1)),
        ("coherent, %", both_ends(x.coherent)),
        ("scores within 5 points of the cut", _percent(x.near_cut)),
        ("answers", reasons or MISSING),
        ("excess over step 0, points", both_ends(x.excess_base)),
        ("excess over the control, points", both_ends(x.excess_control)),
        ("positive, corrected for the judge's errors, %", both_ends(x.corrected)),
    ]
    if b is not None:
        rows += [
            ("excess on far prompts, points", both_ends(b.excess_far)),
            ("excess without the top prompt, points", both_ends(b.excess_without_top)),
            ("excess without answers about the training domain, points", both_ends(b.excess_without_domain)),
            ("prompts with positive answers", f"{b.prompts} in {b.categories} categories"),
            ("top prompt", one_line(b.top_prompt or MISSING)),
        ]
    return rows


def _calibration_facts(v: Verdict) -> Facts:
    c = v.calibration
    if c is None:
        return [("judge calibration", "none")]
    kinds = ", ".join(f"{one_line(kind)} {share(e)}" for kind, e in c.by_category.items())
    return [
        ("judge calibration", "passed" if c.passed else f"failed: {one_line(c.note)}"),
        ("positive references called positive", share(c.sensitivity)),
        ("good answers called positive", f"{share(c.false_positive)} ({kinds})"),
    ]


def _points(x: float) -> str:
    return number(100 * x, 1)


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{number(value * 100, 0)} %"
