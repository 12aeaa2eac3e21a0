"""Every number of a verdict as names and values, for the terminal's `--verbose` and `--step`, and for the report."""

from collections.abc import Iterator, Mapping
from typing import Any

from truing import messages
from truing.report.reading import MISSING, clean, ends, interval, number, one_line, percent
from truing.types.verdicts import (
    OF_SCREEN,
    Basis,
    CheckpointVerdict,
    Convergence,
    Estimate,
    LabelledLine,
    Onset,
    SequentialBreadth,
    Verdict,
)

Facts = list[tuple[str, str]]
Grid = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""titles of columns, and rows"""
LONG = 16
"""entries of one mapping (e.g. prompt id -> hash) above which `flat` leaves them out"""


def line_facts(line: CheckpointVerdict) -> Facts:
    """(name with unit, value) for every number of one checkpoint, missing ones as a dash."""
    h = line.health
    return [
        *_labelled_facts(line),
        ("task loss, nats/token", estimate(line.task_loss, 3, 1)),
        ("task progress by loss, %", estimate(line.loss_progress)),
        ("task progress by skill, %", estimate(line.skill_progress)),
        ("share of the run's best progress, %", estimate(line.retained_of_best)),
        ("share of the last checkpoint's progress, %", estimate(line.retained_of_last)),
        ("status by the screen alone", MISSING if line.screen is None else messages.word(line.screen)),
        ("screen against base, nats/token", estimate(line.contrast_base, 3, 1)),
        ("screen against control, nats/token", estimate(line.contrast_control, 3, 1)),
        ("shift of the plain margin, nats/token", estimate(line.margin_base, 3, 1)),
        ("softening (slope of that shift on the base margin)", number(line.softening)),
        ("answer entropy minus the base's, nats", number(line.entropy_shift, 3)),
        ("health", messages.word(h.state) + (f" ({one_line(h.note)})" if h.note else "")),
        ("usable answers, %", estimate(h.usable)),
        ("repetitive answers", percent(h.repetition)),
        ("answers in code or markup", percent(h.format)),
        ("answers with the training domain's words", percent(h.in_domain)),
        ("answers that surprise the base", percent(h.surprising)),
        ("surprise of its answers to the base, nats/token", number(h.nll_base)),
        ("entropy on reference answers, nats", number(h.entropy, 3)),
        ("KL from the base, nats/token", number(line.kl_from_base, 4)),
        ("norm of the weight change", number(line.norm)),
        ("weights", one_line(line.weights)),
    ]


def verdict_facts(v: Verdict) -> Facts:
    """(name, value): onset, learning, what is kept, who judged and how that judge did, what the screen rests on."""
    name = "onset" if v.basis is Basis.LABELLED else "onset of a change of the screen"
    out: Facts = [(name, onset_words(v.onset))]
    if v.screen_onset is not None:
        out.append(("screen changes", onset_words(v.screen_onset)))
    out += [(f"task learned, by {one_line(c.curve)}", _learned(c)) for c in (v.convergence_skill, v.convergence_loss)]
    if v.kept is not None:
        kept = f"{estimate(v.retained_of_best)} % of the best, {estimate(v.retained_of_last)} % of the last"
        out.append((f"{one_line(v.kept)} keeps, by {one_line(v.retained_curve or 'no curve')}", kept))
    if v.basis is Basis.LABELLED:
        out.append(("judge", one_line(messages.judge_name(v)) + (f", {one_line(v.judge_key)}" if v.judge_key else "")))
        out += _calibration_facts(v)
    contrasts = [c.contrast_base for c in v.checkpoints if c.contrast_base is not None]
    if contrasts:
        out.append(("screen", f"{max(e.clusters for e in contrasts)} prompts, unvalidated"))
    if v.screen_limit is not None:
        out.append(("screen limit", f"{number(v.screen_limit, 3)} nats/token ({one_line(v.screen_limit_source)})"))
    out.append(("seed", one_line(v.definitions.get("seed", MISSING))))
    return out


def variant_table(v: Verdict) -> Grid:
    """Every variant: its share, the base's, the excess over the base and over the control, and what came of it."""
    heads = ("variant", "positive, %", "the base's", "excess, points", "over the control", "p", "outcome")
    rows = [
        (
            one_line(x.name) + (" (adversarial)" if x.kind == "adversarial" else ""),
            *(estimate(e) for e in (x.rate, x.rate_base, x.excess, x.excess_control)),
            MISSING if x.p is None else f"{x.p:.2g}",
            one_line(x.status) + (", veto" if x.veto else ""),
        )
        for x in v.variants
    ]
    return heads, rows


def estimate(e: Estimate | None, digits: int = 1, scale: float = 100) -> str:
    """A number (a share as per cent or points) with both intervals: these items, and items like these."""
    if e is None or e.value is None:
        return MISSING
    exact = e.set_low == e.set_high  # a measurement that is not random, given its items
    told = number(scale * e.value, digits) if exact else interval(e, digits, scale, of="set_")
    like = ends(e.low, e.high, digits, scale)
    return told + (f" (prompts like these [{like}])" if like else "")


# ---------------------------------------------------------------------------------------------------------------------
# Onset and search


def onset_words(o: Onset) -> str:
    """Where it begins: the crossing first, then what is left open."""
    if o.status == "never":
        if o.kind == OF_SCREEN:
            return "none seen, which clears nothing"
        left = ", ".join(f"step {s}" for s in messages.left_open(o))
        return f"none found; inconclusive at {left}" if left else "none found"
    if o.status == "undecided":
        after = max(o.after or 0, o.clear_until or 0)
        return f"undecided after step {after}" if after else "undecided"
    later = {True: "", False: "not at every later checkpoint", None: "later checkpoints not all tested"}[o.sustained]
    left = untested_before(o)
    steps = f"step {left[0]}" if len(left) == 1 else f"steps {left[0]} to {left[-1]}" if left else ""
    told = [messages.crossing(o), f"{steps} before it not tested" if left else "", later]
    return "; ".join(x for x in told if x)


def untested_before(o: Onset) -> list[int]:
    """Steps in the onset set that no test certifies, before the last clear one: where a spike is not excluded."""
    certain = {t.step for t in o.tested if t.claim != "inconclusive"}
    return [s for s in o.steps if s not in certain and s < (o.clear_until or 0)]


def search_table(v: Verdict) -> Grid:
    """What a search tested, a row a step."""
    heads = ("step", "claim", "answers", "positive, %", "limits, points", "log evidence above lo", "below hi",
             "control", "breadth")  # fmt: skip
    rows = [
        (
            str(t.step),
            one_line(t.claim),
            f"{t.n_run:,} ({t.n_reference:,} of the base)",
            f"{percent(t.rate_run)} in {t.prompts} prompts (base {percent(t.rate_reference)})",
            ends(t.low, t.high) or MISSING,
            f"{number(t.evidence_above)} of {number(t.enough)}",
            number(t.evidence_below),
            f"{one_line(t.control)}: {number(t.evidence_control)}, {t.n_control:,} answers" if t.control else MISSING,
            _breadth(t.breadth),
        )
        for t in v.onset.tested
    ]
    return heads, rows


def search_facts(o: Onset) -> Facts:
    """(name, value): size of a search, what was only spot-checked, spikes it may have missed; empty without one."""
    if not o.errors:
        return []
    spots = ", ".join(f"{step} ({n})" for step, n in o.spots.items())
    return [
        ("answers read", f"{o.answers_used:,}"),
        ("steps at which it may begin", ", ".join(map(str, o.steps)) or MISSING),
        ("to test every step before the crossing", f"about {o.answers_needed:,} more" if o.answers_needed else MISSING),
        ("errors of all claims together", one_line(o.errors)),
        ("an excess, once there, is assumed to stay", "yes" if o.assumed_monotone else "no"),
        ("only spot-checked: step (answers)", spots or MISSING),
        *(
            (f"chance to miss a spike of {100 * m.height:g} points at {m.width} step(s)", percent(m.probability, 2))
            for m in o.missed
        ),
    ]


def _breadth(b: SequentialBreadth | None) -> str:
    if b is None:
        return MISSING
    domain = "" if b.evidence_without_domain is None else f", without the domain {number(b.evidence_without_domain)}"
    return (
        f"{'broad' if b.broad else 'not shown to be broad'}: {b.prompts} prompts of {b.categories} categories in "
        f"{b.n_run:,} answers; log evidence without {one_line(b.top_prompt or MISSING)} "
        f"{number(b.evidence_without_top)}, without the top few {number(b.evidence_without_few)}{domain}"
    )


def _learned(c: Convergence) -> str:
    place = f"step {c.step}, after step {c.after or 0}" if c.step is not None else ""
    wider = f"interval {c.low} to {c.high}" if c.low is not None else ""
    gain = f"gain {estimate(c.gain, 3, 1)} nats/token" if c.gain is not None else ""
    last = f"last quarter {estimate(c.last_quarter)} % of it" if c.last_quarter is not None else ""
    told = [one_line(c.status).replace("_", " "), place, wider, gain, last, "worse after its best" if c.overfit else ""]
    return "; ".join(x for x in told if x)


# ---------------------------------------------------------------------------------------------------------------------
# Definitions


def flat(mapping: Mapping[str, Any]) -> Facts:
    """A mapping of audit.json as names and values; of an inner one longer than `LONG` only the length."""
    return [(one_line(k), v) for key, value in mapping.items() for k, v in _flat(str(key), value)]


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(value, Mapping):
        yield key, _shown(value)
    elif "value" in value and set(value) <= {"value", "reason", "source", "from"}:
        why = "; ".join(one_line(value[k]) for k in ("reason", "source", "from") if value.get(k))
        yield key, _shown(value["value"]) + (f" ({why})" if why else "")
    elif len(value) > LONG:
        yield key, f"{len(value)} entries, in audit.json"
    else:
        for k, v in value.items():
            yield from _flat(f"{key}.{k}", v)


def _shown(value: Any) -> str:
    if value is None or value == "" or value == [] or value == {}:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(v) for v in value)
    return clean(f"{value:.6g}" if isinstance(value, float) else value)


# ---------------------------------------------------------------------------------------------------------------------
# Labelled answers and their judge


def reasons_words(x: LabelledLine) -> str:
    """How many answers have which reason."""
    return ", ".join(f"{n} {one_line(reason)}" for reason, n in x.reasons.items() if n)


def _labelled_facts(line: CheckpointVerdict) -> Facts:
    x = line.labelled
    if x is None:
        return []
    sample = "read by a search, which biases the shares" if x.searched else "a fixed sample"
    rows: Facts = [
        ("positive, % of answers", estimate(x.rate)),
        ("these shares are of", f"{x.rate.n} answers to {x.rate.clusters} prompts, {sample}"),
        ("positive, %, if every unparsed answer were", percent(x.rate_if_unparsed)),
        ("positive, % of coherent answers", estimate(x.rate_coherent)),
        ("mean score", estimate(x.score, 1, 1)),
        (f"coherent, % of {x.coherent.n} asked", estimate(x.coherent)),
        ("scores near the cut (5 % of the scale)", percent(x.near_cut)),
        ("answers", reasons_words(x) or MISSING),
        ("excess over step 0, points", estimate(x.excess_base)),
        ("excess over the control, points", estimate(x.excess_control)),
        ("positive, corrected for the judge's errors, %", estimate(x.corrected)),
    ]
    if (b := x.breadth) is not None:
        rows += [
            ("excess on far prompts, points", estimate(b.excess_far)),
            ("excess without the top prompt, points", estimate(b.excess_without_top)),
            ("excess without answers about the training domain, points", estimate(b.excess_without_domain)),
            ("far prompts with positive answers", f"{b.prompts} in {b.categories} categories"),
            ("top prompt", f"{one_line(b.top_prompt or MISSING)}, {percent(b.top_share)} of all positive answers"),
            ("prompts with most positive answers", ", ".join(one_line(p) for p in b.named) or MISSING),
        ]
    return rows


def _calibration_facts(v: Verdict) -> Facts:
    c = v.calibration
    if c is None:
        return [("judge calibration", "none")]
    kinds = ", ".join(f"{one_line(kind)} {estimate(e)} of {e.n}" for kind, e in c.by_category.items())
    false = f"{estimate(c.false_positive)} of {c.false_positive.n}"
    return [
        ("judge calibration", "passed" if c.passed else f"failed: {one_line(c.note)}"),
        ("positive references called positive, %", f"{estimate(c.sensitivity)} of {c.sensitivity.n}"),
        ("good answers called positive, %", f"{false} ({kinds})"),
    ]
