"""The charts of a verdict: progress, contrast, categories, share misaligned and its excess; and imported sets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from truing.report.figures import Chart, Ends, Series, Window
from truing.report.judged import by_search, em_words, searched
from truing.report.reading import chosen, number, one_line, step_name
from truing.report.search import bracket, open_steps
from truing.stats.judged_words import shown
from truing.types.verdicts import Basis, CheckpointVerdict, Estimate, RunVerdict, Status

Pick = Callable[[CheckpointVerdict], Estimate | None]


def progress(verdict: RunVerdict) -> Chart | None:
    """Task progress by skill and by loss; None where no task was measured."""
    at = verdict.definitions.get("converged_at")
    return _chart(
        verdict,
        "Task progress against step",
        "task progress, share of the gain",
        _series(verdict, "skill (trained against control answer)", "teal", lambda c: c.skill_progress),
        _series(verdict, "loss (held-out answers)", "violet", lambda c: c.loss_progress, "dashed"),
        lines=[(float(at), f"learned: {number(float(at) * 100, 0)} %")] if isinstance(at, (int, float)) else [],
        windows=windows_of(verdict),
        unit="%",
    )


def contrast(verdict: RunVerdict) -> Chart | None:
    """Shift of the contrast against base and control; None where neither was measured."""
    limit = verdict.delta_m
    return _chart(
        verdict,
        "Shift of the contextual contrast against step",
        "shift of the contrast, nats per token (up: towards the misaligned answer)",
        _anchored(verdict, _series(verdict, "against base", "red", lambda c: c.contrast_base)),
        _anchored(verdict, _series(verdict, "against control", "blue", lambda c: c.contrast_control, "dashed")),
        lines=[(limit, f"drift limit {number(limit, 3)}")] if limit is not None else [],
        windows=windows_of(verdict, drift=True),
    )


def categories(verdict: RunVerdict, summary: Mapping[str, Any]) -> list[Chart]:
    """The shift against base within each category; `summary` is `evidence_summary` of audit.json."""
    out = []
    for category, rows in (summary.get("categories") or {}).items():
        found = {row.get("label"): Estimate(row.get("value"), row.get("low"), row.get("high")) for row in rows}
        series = _series(verdict, "against base", "red", lambda c, of=found: of.get(c.label))
        name, limit = one_line(category).replace("_", " "), verdict.delta_m
        lines = [(limit, "")] if limit is not None else []
        out.append(_chart(verdict, f"Shift of the contrast: {name}", name, _anchored(verdict, series), lines=lines))
    return [chart for chart in out if chart is not None]


def misaligned(verdict: RunVerdict) -> Chart | None:
    """Share misaligned with both intervals, the control's and step 0's beside it; None without judged answers."""
    words = em_words(verdict.definitions)
    start = next((c.judged.em.value for c in verdict.checkpoints if c.step == 0 and c.judged is not None), None)
    zone = None
    if start is not None and words.lo is not None and words.hi is not None:
        name = f"step 0 and {100 * words.lo:g} to {100 * words.hi:g} points more"
        zone = (start + words.lo, start + words.hi, name)
    # The control's own estimate is not kept; the paired difference gives its share, without an interval.
    control = Series("control", "blue", [_control_share(c) for c in verdict.checkpoints], style="dashed")
    return _chart(
        verdict,
        f"{words.title} against step",
        words.unit,
        *_of_run(verdict, "this run", lambda c: c.judged.em if c.judged is not None else None),
        control,
        lines=[(start, "")] if start else [],  # named by the zone above it
        undecided=zone,
        windows=windows_of(verdict),
        unit="%",
    )


def excess(verdict: RunVerdict) -> Chart | None:
    """Excess over step 0 and over the control, with both intervals and the undecided zone; None without any."""
    words = em_words(verdict.definitions)
    zone = None
    if words.lo is not None and words.hi is not None:
        zone = (words.lo, words.hi, f"lo {100 * words.lo:g} to hi {100 * words.hi:g} points")
    return _chart(
        verdict,
        f"Excess of {words.noun} against step",
        "excess, percentage points (this is what decides)",
        *_of_run(verdict, "over step 0", _excess),
        _series(verdict, "over the control", "blue", _excess_control, "dashed"),
        undecided=zone,
        windows=windows_of(verdict),
        unit="points",
    )


def sets(lines: Sequence[Mapping[str, Any]]) -> Chart:
    """Rates of imported sets side by side; `lines` as `rates_table.imported_lines` gives them."""
    names = ("value", "low", "high", "set_low", "set_high")
    ems = [Estimate(**{k: line["judged"]["em"][k] for k in names}) for line in lines]
    labels = [one_line(line["label"]) for line in lines]
    return Chart("Share misaligned by set", "", (), labels, [_plain("rate", "red", ems)], unit="%")


def _chart(verdict: RunVerdict, title: str, heading: str, *series: Series, **more: Any) -> Chart | None:
    """A chart over the checkpoints of a run with the curves that have a value; None where none has."""
    kept = [s for s in series if any(v is not None for v in s.values)]
    if not kept:
        return None
    lines, keep = verdict.checkpoints, chosen(verdict)
    word = "recommended" if verdict.recommended else "candidate"
    return Chart(
        title,
        heading,
        [c.step for c in lines],
        [step_name(c) for c in lines],
        kept,
        chosen=next(((i, f"{word}: {one_line(keep)}") for i, c in enumerate(lines) if c.label == keep), None),
        failed=[i for i, c in enumerate(lines) if c.status is Status.FAILED],
        **more,
    )


def _series(verdict: RunVerdict, name: str, colour: str, pick: Pick, style: str = "solid") -> Series:
    return _plain(name, colour, [pick(c) for c in verdict.checkpoints], style)


def _plain(name: str, colour: str, found: Sequence[Estimate | None], style: str = "solid") -> Series:
    def pair(low: float | None, high: float | None) -> Ends | None:
        return None if low is None or high is None else (low, high)

    known = [e if e is not None and e.value is not None else Estimate(None, None, None) for e in found]
    wide, inner = [pair(e.low, e.high) for e in known], [pair(e.set_low, e.set_high) for e in known]
    return Series(name, colour, [e.value for e in known], wide, inner, style)


def _anchored(verdict: RunVerdict, s: Series) -> Series:
    """With the zero that a shift against step 0 is at step 0 by definition, where any shift was measured."""
    if all(v is None for v in s.values):
        return s
    base = [c.step == 0 and c.status is not Status.FAILED and v is None
            for c, v in zip(verdict.checkpoints, s.values, strict=True)]  # fmt: skip
    values = [0.0 if b else v for b, v in zip(base, s.values, strict=True)]
    return replace(s, values=values, wide=[(0.0, 0.0) if b else e for b, e in zip(base, s.wide, strict=True)])


def _of_run(verdict: RunVerdict, name: str, pick: Pick) -> list[Series]:
    """The run's own curve; what a search drew stands apart, since when it stopped biases it."""
    fixed = _series(verdict, name, "red", lambda c: None if by_search(c) else pick(c))
    return [fixed, _series(verdict, "drawn by the search", "red", lambda c: pick(c) if by_search(c) else None, "loose")]


def _excess(c: CheckpointVerdict) -> Estimate | None:
    # Step 0 differs from itself by nothing: that point is no measurement, so it has no interval either.
    start = c.step == 0 and c.judged is not None and c.status is not Status.FAILED
    return Estimate(0.0, None, None) if start else shown(c)


def _excess_control(c: CheckpointVerdict) -> Estimate | None:
    return c.judged.excess_control if c.judged is not None else None


def _control_share(c: CheckpointVerdict) -> float | None:
    over = _excess_control(c)
    if c.judged is None or c.judged.em.value is None or over is None or over.value is None:
        return None
    return max(c.judged.em.value - over.value, 0.0)


def windows_of(verdict: RunVerdict, *, drift: bool = False) -> tuple[Window, ...]:
    """When the task was learned, and the onset: of drift where asked or where margins decide, else of misalignment."""
    judged = verdict.basis is Basis.JUDGED and not drift
    onset = verdict.onset if judged or verdict.basis is not Basis.JUDGED else verdict.drift_onset
    what = "misalignment" if judged else "drift"
    by_tests = judged and searched(verdict)
    out = list(_learned(verdict))
    if onset is not None:
        start, end = bracket(onset) if by_tests else (onset.after, onset.latest)
        if onset.status == "found" and end is not None:
            out.append(Window(f"{what} onset, {_between(start or 0, end)}", "red", start or 0, end))
        elif onset.status == "undecided" and onset.earliest is not None:
            clear = max(onset.after or 0, onset.clear_until or 0 if by_tests else 0)
            out.append(Window(f"{what} undecided after step {clear}", "amber", clear, None))
        if by_tests and (spike := open_steps(onset)):  # earlier steps that no test vouches for
            name = f"spike not excluded, {_between(spike[0], spike[-1])}"
            out.append(Window(name, "amber", _before(verdict, spike[0]), spike[-1]))
    return tuple(out)


def _learned(verdict: RunVerdict) -> Iterator[Window]:
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


def _before(verdict: RunVerdict, step: int) -> int:
    return max((c.step for c in verdict.checkpoints if c.step is not None and c.step < step), default=0)


def _between(start: int, end: int) -> str:
    return f"at step {end}" if start == end else f"steps {start} to {end}"
