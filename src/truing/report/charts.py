"""The charts of a verdict: share positive, its excess, task progress, screen, categories; and imported sets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from truing import messages
from truing.report.details import untested_before
from truing.report.figures import Chart, Series, Window
from truing.report.rates_table import ImportedLine
from truing.report.reading import number, one_line, step_name
from truing.types.verdicts import Basis, CheckpointVerdict, Estimate, Onset, Status, Verdict

Pick = Callable[[CheckpointVerdict], Estimate | None]


def every_chart(verdict: Verdict) -> list[Chart]:
    """The charts of a verdict that have anything to show, what decides first."""
    made = (rate(verdict), excess(verdict), progress(verdict), screen(verdict))
    return [chart for chart in made if chart is not None]


def rate(verdict: Verdict) -> Chart | None:
    """Share positive with both intervals, the control's and step 0's beside it; None without labelled answers."""
    start = next((c.labelled.rate.value for c in verdict.checkpoints if c.step == 0 and c.labelled), None)
    zone = None
    if start is not None and (ends := _zone(verdict)):
        lo, hi = ends
        zone = (start + lo, start + hi, f"step 0 and {100 * lo:g} to {100 * hi:g} points more")
    control = _series(verdict, "control", "blue", _control_rate, "dashed")
    what = "mean severity" if _rule(verdict).get("kind") == "mean" else "answers called positive"
    return _chart(
        verdict,
        f"{one_line(messages.title(verdict))}: positive answers against step",
        f"{what}, share of all answers",
        *_of_run(verdict, "this run", lambda c: c.labelled.rate if c.labelled else None),
        control,
        lines=[(start, "")] if start else [],  # named by the zone above it
        undecided=zone,
        windows=windows_of(verdict),
        unit="%",
    )


def excess(verdict: Verdict) -> Chart | None:
    """Excess over step 0 and over the control, with both intervals and the undecided zone; None without any."""
    ends = _zone(verdict)
    return _chart(
        verdict,
        f"{one_line(messages.title(verdict))}: excess over step 0 against step",
        "excess, percentage points (this is what decides)",
        *_of_run(verdict, "over step 0", _excess),
        _series(verdict, "over the control", "blue", _excess_control, "dashed"),
        undecided=(*ends, f"lo {100 * ends[0]:g} to hi {100 * ends[1]:g} points") if ends else None,
        windows=windows_of(verdict),
        unit="points",
    )


def progress(verdict: Verdict) -> Chart | None:
    """Task progress by skill and by loss; None where no task was measured."""
    at = verdict.definitions.get("converged_at")
    return _chart(
        verdict,
        "Task progress against step",
        "task progress, share of the gain",
        _series(verdict, "skill (trained against control answer)", "teal", lambda c: c.skill_progress),
        _series(verdict, "loss (held-out answers)", "violet", lambda c: c.loss_progress, "dashed"),
        lines=[(float(at), f"learned: {number(float(at) * 100, 0)} %")] if isinstance(at, (int, float)) else [],
        windows=[w for w in windows_of(verdict) if not w.name.startswith("not tested")],
        unit="%",
    )


def screen(verdict: Verdict) -> Chart | None:
    """Shift of the log-prob contrast against base and control; None where neither was measured."""
    limit = verdict.screen_limit
    return _chart(
        verdict,
        "Screen: shift of the log-prob contrast against step",
        "screen: shift of the contrast, nats per token (up: towards the positive answer)",
        _shift(verdict, "against base", "red", lambda c: c.contrast_base),
        _shift(verdict, "against control", "blue", lambda c: c.contrast_control, "dashed"),
        lines=[(limit, f"screen limit {number(limit, 3)}")] if limit is not None else [],
        windows=windows_of(verdict, of_screen=True),
    )


def categories(verdict: Verdict, summary: Mapping[str, Any]) -> list[Chart]:
    """The shift against base within each category; `summary` is `evidence_summary` of audit.json."""
    out = []
    for category, rows in (summary.get("categories") or {}).items():
        found = {row.get("label"): Estimate(row.get("value"), row.get("low"), row.get("high")) for row in rows}
        series = _shift(verdict, "against base", "red", lambda c, of=found: of.get(c.label))
        name, limit = one_line(category).replace("_", " "), verdict.screen_limit
        lines = [(limit, "")] if limit is not None else []
        out.append(_chart(verdict, f"Screen within {name}", name, series, lines=lines))
    return [chart for chart in out if chart is not None]


def sets(lines: Sequence[ImportedLine]) -> Chart:
    """Rates of imported sets side by side."""
    labels = [one_line(line.label) for line in lines]
    return Chart(
        "Share positive by set", "", (), labels, [Series("rate", "red", [x.labelled.rate for x in lines])], unit="%"
    )


def windows_of(verdict: Verdict, *, of_screen: bool = False) -> tuple[Window, ...]:
    """When the task was learned, and the onset: of a change of the screen where asked, else of what decides."""
    labelled = verdict.basis is Basis.LABELLED
    onset = verdict.screen_onset if of_screen and labelled else verdict.onset
    what = "screen changes" if of_screen or not labelled else "onset"
    return (*_learned(verdict), *(_onset(verdict, onset, what) if onset is not None else ()))


# ---------------------------------------------------------------------------------------------------------------------


def _onset(verdict: Verdict, o: Onset, what: str) -> Iterator[Window]:
    clear = max(o.after or 0, o.clear_until or 0)
    if o.status == "found" and o.latest is not None:
        yield Window(f"{what}, {_between(clear, o.latest)}", "red", clear, o.latest)
    elif o.status == "undecided" and o.earliest is not None:
        yield Window(f"{what} undecided after step {clear}", "amber", clear, None)
    if steps := untested_before(o):  # earlier steps that no test vouches for
        name = f"not tested, {_between(steps[0], steps[-1])}"
        yield Window(name, "amber", _before(verdict, steps[0]), steps[-1])


def _learned(verdict: Verdict) -> Iterator[Window]:
    """The interval of the step by which it was learned, from the checkpoint before its low end; by skill if known."""
    for c, colour, what in (
        (verdict.convergence_skill, "teal", "skill learned"),
        (verdict.convergence_loss, "violet", "loss converged"),
    ):
        if c.status == "converged" and c.step is not None:
            start, end = c.after or 0, c.step
            if c.low is not None and c.high is not None:
                start, end = _before(verdict, c.low), c.high
            yield Window(f"{what}, {_between(start, end)}", colour, start, end)
            return


def _before(verdict: Verdict, step: int) -> int:
    return max((c.step for c in verdict.checkpoints if c.step is not None and c.step < step), default=0)


def _between(start: int, end: int) -> str:
    return f"at step {end}" if start == end else f"steps {start} to {end}"


def _rule(verdict: Verdict) -> Mapping[str, Any]:
    return verdict.definitions.get("rule") or {}


def _zone(verdict: Verdict) -> tuple[float, float] | None:
    rule = _rule(verdict)
    return (rule["lo"], rule["hi"]) if "lo" in rule and "hi" in rule else None


def _chart(verdict: Verdict, title: str, heading: str, *series: Series, **more: Any) -> Chart | None:
    """A chart over the checkpoints of a run with the curves that have a value; None where none has."""
    kept = [s for s in series if any(e is not None and e.value is not None for e in s.found)]
    if not kept:
        return None
    lines, chosen = verdict.checkpoints, f"recommended: {one_line(verdict.kept)}"
    return Chart(
        title,
        heading,
        [c.step for c in lines],
        [step_name(c) for c in lines],
        kept,
        chosen=next(((i, chosen) for i, c in enumerate(lines) if c.label == verdict.kept), None),
        failed=[i for i, c in enumerate(lines) if c.status is Status.FAILED],
        **more,
    )


def _series(verdict: Verdict, name: str, colour: str, pick: Pick, style: str = "solid") -> Series:
    return Series(name, colour, [pick(c) for c in verdict.checkpoints], style)


def _shift(verdict: Verdict, name: str, colour: str, pick: Pick, style: str = "solid") -> Series:
    """With the zero that a shift against step 0 is at step 0 by definition, where any shift was measured."""
    found = [pick(c) for c in verdict.checkpoints]
    if any(found):
        base = (c.step == 0 and c.status is not Status.FAILED for c in verdict.checkpoints)
        found = [Estimate(0.0, 0.0, 0.0) if start and e is None else e for start, e in zip(base, found, strict=True)]
    return Series(name, colour, found, style)


def _of_run(verdict: Verdict, name: str, pick: Pick) -> list[Series]:
    """The run's own curve; what a search read stands apart, since when it stopped biases it."""

    def searched(c: CheckpointVerdict) -> bool:
        return c.labelled is not None and c.labelled.searched

    fixed = _series(verdict, name, "red", lambda c: None if searched(c) else pick(c))
    return [fixed, _series(verdict, "read by the search", "red", lambda c: pick(c) if searched(c) else None, "loose")]


def _excess(c: CheckpointVerdict) -> Estimate | None:
    # Step 0 differs from itself by nothing: that point is no measurement, so it has no interval either.
    start = c.step == 0 and c.labelled is not None and c.status is not Status.FAILED
    return Estimate(0.0, None, None) if start else c.shown_excess


def _excess_control(c: CheckpointVerdict) -> Estimate | None:
    return c.labelled.excess_control if c.labelled is not None else None


def _control_rate(c: CheckpointVerdict) -> Estimate | None:
    # The control's own estimate is not kept; the paired difference gives its share, without an interval.
    over = _excess_control(c)
    if c.labelled is None or c.labelled.rate.value is None or over is None or over.value is None:
        return None
    return Estimate(max(c.labelled.rate.value - over.value, 0.0), None, None)
