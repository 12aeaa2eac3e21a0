"""The report's charts: task progress, shift of the contrast, and the shift per category, from a verdict."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from truing.report.axes import StepAxis
from truing.report.judged import searched
from truing.report.reading import chosen, interval, number, one_line, share, step_name
from truing.report.search import bracket, open_steps
from truing.report.svg import Chart, Series, Window, frame_of
from truing.types.verdicts import Basis, CheckpointVerdict, Convergence, Estimate, Status, Verdict

Point = tuple[float, float | None, float | None]


def progress_chart(verdict: Verdict) -> Chart | None:
    """Both task-progress curves against step; None where no task was measured."""
    curves = [
        ("trait (trained against control answer)", "teal", False, lambda c: c.skill_progress),
        ("loss (held-out answers)", "violet", True, lambda c: c.loss_progress),
    ]
    series = tuple(series_of(verdict, *curve, anchored=False) for curve in curves)
    series = tuple(s for s in series if any(s.points))
    if not series:
        return None
    at = verdict.definitions.get("converged_at")
    return Chart(
        title="Task progress against step",
        description=in_words(
            verdict, [("by trait", lambda c: c.skill_progress), ("by loss", lambda c: c.loss_progress)], share
        ),
        unit="task progress, share of the gain",
        axis=axis_of(verdict),
        series=series,
        lines=((float(at), f"learned: {number(float(at) * 100, 0)} %"),) if isinstance(at, (int, float)) else (),
        windows=windows_of(verdict),
        chosen=chosen_mark(verdict),
        failed=failed_marks(verdict),
        percent=True,
    )


def margin_chart(verdict: Verdict) -> Chart | None:
    """Shift of the contextual contrast against base and control, against step; None where neither was measured."""
    series = (
        series_of(verdict, "against base", "red", False, lambda c: c.contrast_base),
        series_of(verdict, "against control", "blue", True, lambda c: c.contrast_control),
    )
    series = tuple(s for s in series if any(s.points))
    if not series:
        return None
    limit = verdict.delta_m
    windows = windows_of(verdict, drift=True)
    return Chart(
        title="Shift of the contextual contrast against step",
        description=in_words(
            verdict,
            [("against base", lambda c: c.contrast_base), ("against control", lambda c: c.contrast_control)],
            interval,
            windows,
        ),
        unit="shift of the contrast, nats per token (up: towards the misaligned answer)",
        axis=axis_of(verdict),
        series=series,
        lines=((limit, f"drift limit {number(limit, 3)}"),) if limit is not None else (),
        windows=windows,
        chosen=chosen_mark(verdict),
        failed=failed_marks(verdict),
    )


def category_charts(verdict: Verdict, summary: Mapping[str, Any]) -> list[tuple[str, Chart]]:
    """(category, chart) for the shift against base within each category, all on one y scale."""
    out = []
    for category, rows in (summary.get("categories") or {}).items():
        by_label = {row.get("label"): row for row in rows if row.get("value") is not None}
        points: list[Point | None] = []
        for line in verdict.checkpoints:
            row = by_label.get(line.label)
            points.append((row["value"], row.get("low"), row.get("high")) if row else None)
        series = Series("against base", "red", False, _anchored(verdict, tuple(points)))
        if not any(points):
            continue
        name = one_line(category).replace("_", " ")
        values = "; ".join(
            f"{step_name(line)}: {number(p[0])}" for line, p in zip(verdict.checkpoints, points, strict=True) if p
        )
        limit = ((verdict.delta_m, ""),) if verdict.delta_m is not None else ()
        chart = Chart(f"Shift of the contrast: {name}", values, "", axis_of(verdict), (series,), limit)
        out.append((name, replace(chart, failed=failed_marks(verdict))))
    if not out:
        return []
    frame = frame_of(*(chart for _, chart in out))
    return [(name, replace(chart, frame=frame)) for name, chart in out]


def axis_of(verdict: Verdict) -> StepAxis:
    """The x axis of a run."""
    lines = verdict.checkpoints
    return StepAxis(tuple(c.step for c in lines), tuple(one_line(c.label) for c in lines))


def series_of(
    verdict: Verdict,
    name: str,
    colour: str,
    second: bool,
    pick: Callable[[CheckpointVerdict], Estimate | None],
    *,
    anchored: bool = True,
) -> Series:
    """One curve: an estimate of every checkpoint. Anchored: a shift against step 0 is zero at step 0."""
    points = tuple(_point(pick(c)) for c in verdict.checkpoints)
    return Series(name, colour, second, _anchored(verdict, points) if anchored else points)


def _point(e: Estimate | None) -> Point | None:
    return (e.value, e.low, e.high) if e is not None and e.value is not None else None


def _anchored(verdict: Verdict, points: tuple[Point | None, ...]) -> tuple[Point | None, ...]:
    """With the zero that a shift against step 0 is at step 0 by definition, where there is anything to anchor."""
    at_base = [c.step == 0 and c.status is not Status.FAILED for c in verdict.checkpoints]
    if not any(points):
        return points
    return tuple((0.0, 0.0, 0.0) if p is None and base else p for p, base in zip(points, at_base, strict=True))


def windows_of(verdict: Verdict, *, drift: bool = False) -> tuple[Window, ...]:
    """When the task was learned, and the onset: of drift where asked or where margins decide, else of misalignment."""
    out = []
    for c, colour, what in (
        (verdict.convergence_skill, "teal", "trait learned"),
        (verdict.convergence_loss, "violet", "loss converged"),
    ):
        if c.status == "converged" and c.step is not None and not out:
            start, end = _learned_within(verdict, c, c.step)
            out.append(Window(f"{what}, {_between(start, end)}", colour, start, end))
    judged = verdict.basis is Basis.JUDGED
    onset, what = verdict.onset, "misalignment" if judged else "drift"
    if judged and drift:
        onset, what = verdict.drift_onset, "drift"
    elif judged and searched(verdict):
        return (*out, *_searched_windows(verdict))
    if onset is not None and onset.status == "found" and onset.latest is not None:
        start = onset.after if onset.after is not None else 0
        out.append(Window(f"{what} onset, {_between(start, onset.latest)}", "red", start, onset.latest))
    elif onset is not None and onset.status == "undecided" and onset.earliest is not None:
        start = onset.after if onset.after is not None else 0
        out.append(Window(f"{what} undecided after step {start}", "amber", start, None))
    return tuple(out)


def _searched_windows(verdict: Verdict) -> Iterator[Window]:
    """Where it crosses, and apart from that the earlier steps that no test vouches for."""
    onset, open_ = verdict.onset, open_steps(verdict.onset)
    start, end = bracket(onset)
    if onset.status == "found" and end is not None:
        yield Window(f"misalignment onset, {_between(start or 0, end)}", "red", start or 0, end)
    elif onset.status == "undecided" and onset.earliest is not None:
        clear = max(onset.clear_until or 0, onset.after or 0)
        yield Window(f"misalignment undecided after step {clear}", "amber", clear, None)
    if open_:
        before = max((c.step for c in verdict.checkpoints if c.step is not None and c.step < open_[0]), default=0)
        yield Window(f"spike not excluded, {_between(open_[0], open_[-1])}", "amber", before, open_[-1])


def _learned_within(verdict: Verdict, c: Convergence, step: int) -> tuple[int, int]:
    """The window that decides before or after: from the checkpoint before the interval's low end to its high end."""
    if c.low is None or c.high is None:
        return (c.after if c.after is not None else 0), step
    low = c.low
    return max((x.step for x in verdict.checkpoints if x.step is not None and x.step < low), default=0), c.high


def _between(start: int, end: int) -> str:
    return f"at step {end}" if start == end else f"steps {start} to {end}"


def chosen_mark(verdict: Verdict) -> tuple[int, str] | None:
    """(index, words) of the checkpoint to keep."""
    label = chosen(verdict)
    word = "recommended" if verdict.recommended else "candidate"
    for i, line in enumerate(verdict.checkpoints):
        if line.label == label:
            return i, f"{word}: {one_line(label)}"
    return None


def failed_marks(verdict: Verdict) -> tuple[int, ...]:
    """Indices of the checkpoints that could not be measured."""
    return tuple(i for i, c in enumerate(verdict.checkpoints) if c.status is Status.FAILED)


def in_words(
    verdict: Verdict,
    curves: list[tuple[str, Callable[[CheckpointVerdict], Estimate | None]]],
    say: Callable[[Estimate | None], str],
    windows: tuple[Window, ...] | None = None,
) -> str:
    """A chart for those who cannot see it."""
    parts = []
    for line in verdict.checkpoints:
        values = [f"{name} {say(pick(line))}" for name, pick in curves if pick(line) is not None]
        if line.status is Status.FAILED:
            values = ["failed"]
        if values:
            parts.append(f"{step_name(line)}: {', '.join(values)}")
    marks = [w.name for w in (windows_of(verdict) if windows is None else windows)]
    picked = chosen_mark(verdict)
    return ". ".join([*parts, *marks, *([picked[1]] if picked else [])]) + "."
