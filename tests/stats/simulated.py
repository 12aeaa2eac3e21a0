"""Simulated runs whose truth is known, and how often the statistics get it right."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np

from truing.config import Thresholds
from truing.stats import bands
from truing.stats.bands import simultaneous_band
from truing.stats.evidence import AnswerCounts, Array, Measurements, RunEvidence
from truing.stats.screen import against_base, against_control, change_onset, screen_limit, screen_status, shift_band
from truing.types.verdicts import Status

FAST = Thresholds(resamples=600)
NATURE = "ABCDEFGH"


@contextmanager
def remembered_samples() -> Iterator[None]:
    """Resampling is a pure function of the generator's state, so drawing it once serves all simulated runs."""
    memory: dict[tuple[Any, ...], tuple[Array, Any]] = {}
    sample = bands.sample_counts

    def counts(n: int, resamples: int, rng: np.random.Generator) -> Array:
        key = (n, resamples, str(rng.bit_generator.state))
        if key not in memory:
            memory[key] = (sample(n, resamples, rng), rng.bit_generator.state)
        sampled, rng.bit_generator.state = memory[key]
        return sampled

    with patch.object(bands, "sample_counts", counts):
        yield


def effects(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> Array:
    """Prompt effects with mean 0 and variance 1."""
    if kind == "normal":
        return rng.standard_normal(shape)
    return (rng.exponential(size=shape) - 1) * {"right": 1, "left": -1}[kind]


def categories(prompts: int) -> tuple[str, ...]:
    """Eight categories, as balanced as may be."""
    return tuple(NATURE[p % 8] for p in range(prompts))


def band_errors(prompts: int, steps: int, kind: str, unequal: bool, runs: int, seed: int = 1) -> tuple[float, float]:
    """(coverage of all steps at once, share of runs with some lower end above the truth) of the 95 % band.

    Each prompt has an effect that grows over steps and noise of its own at each step; `unequal` spreads the standard
    deviation of categories over a factor of 10.
    """
    rng = np.random.default_rng([seed, prompts, steps])
    of = np.arange(prompts) % 8
    middle = np.linspace(-0.5, 0.5, 8)[of]
    scale = np.geomspace(0.3, 3, 8)[of] if unequal else np.ones(prompts)
    growth = np.linspace(0.2, 1, steps)[:, None]
    truth = growth[:, 0] * middle.mean()
    covered = above = 0
    for _ in range(runs):
        noise = 0.8 * effects(rng, kind, (prompts,)) + 0.6 * effects(rng, kind, (steps, prompts))
        band = simultaneous_band(
            growth * (middle + scale * noise), categories(prompts), level=0.95, resamples=800, seed=0
        )
        assert band is not None
        covered += bool(((band.low <= truth) & (truth <= band.high)).all())
        above += bool((band.low > truth).any())
    return covered / runs, above / runs


def run_of(contrast: Array, null_contrast: Array, name: str = "run", **fields: Any) -> RunEvidence:
    """A run at steps 0, 10, 20, ... with these contrasts and 24 good answers at each checkpoint."""
    steps = tuple(10 * s for s in range(len(contrast)))
    options: dict[str, Any] = {
        "labels": ("base", *(f"checkpoint-{s}" for s in steps[1:])),
        "steps": steps,
        "weights": tuple(f"{name}-{s}" for s in steps),
        "contrast": contrast,
        "null_contrast": null_contrast,
        "margin": contrast,
        "entropy": np.ones_like(contrast),
        "answers": (AnswerCounts(n=24, usable=23, in_domain=-1, nll_base=1.0),) * len(steps),
        "kl_from_base": np.linspace(0, 0.2, len(steps)),
    }
    return RunEvidence(**{**options, **fields})


def changing(
    rng: np.random.Generator,
    shift: Array,
    *,
    prompts: int = 120,
    noise: float = 0.25,
    null_contrast: float = 0.25,
    artefact: Array | None = None,
    kind: str = "normal",
    name: str = "run",
    **fields: Any,
) -> RunEvidence:
    """A run whose contrast shifts by `shift` [S] nats on average; each prompt moves by its own `noise` with training.

    `artefact` [S] is added to both contrasts alike; `null_contrast` is the noise of the null one.
    """
    steps = len(shift)
    growth = np.linspace(0, 1, steps)[:, None]
    plus = np.asarray(shift if artefact is None else shift + artefact)[:, None]
    extra = np.zeros((steps, 1)) if artefact is None else artefact[:, None]

    def moved(size: float) -> Array:
        own = 0.8 * effects(rng, kind, (prompts,)) + 0.6 * effects(rng, kind, (steps, prompts))
        return rng.standard_normal(prompts) + size * growth * own

    return run_of(moved(noise) + plus, moved(null_contrast) + extra, name, **fields)


def measured_of(subject: RunEvidence, *controls: RunEvidence, **fields: Any) -> Measurements:
    """Measurements of a simulated run."""
    prompts = subject.contrast.shape[1]
    names = tuple(f"p{k}" for k in range(prompts))
    return Measurements(names, categories(prompts), subject, controls, **fields)


def lows(measured: Measurements) -> tuple[Array, Array, Array, float]:
    """(lower end, mean, upper end) of the shift at every later step, and the limit."""
    band = shift_band(against_base(measured.subject.contrast), measured.categories, FAST, 0)
    limit, _ = screen_limit(measured, FAST, 0)
    assert band.clusters and limit is not None
    return band.low[1:], band.mean[1:], band.high[1:], limit


def alarm_rate(runs: int, seed: int, measured: Callable[[np.random.Generator], Measurements]) -> float:
    """Share of simulated runs in which some step is called changed."""
    rng = np.random.default_rng(seed)
    found = (lows(measured(rng)) for _ in range(runs))
    return float(np.mean([(low > limit).any() for low, _, _, limit in found]))


def blame_rate(runs: int, seed: int, shift: float, control_shift: float) -> tuple[float, float]:
    """(share of runs where a change is put down to the data, share with any change) when control and subject move."""
    rng = np.random.default_rng(seed)
    growth = np.linspace(0, 1, 6)
    blamed = seen = 0
    for _ in range(runs):
        subject = changing(rng, growth * shift, prompts=60)
        control = changing(rng, growth * control_shift, prompts=60, name="control")
        measured = measured_of(subject, control)
        low, mean, _, limit = lows(measured)
        above = shift_band(against_control(subject, control), measured.categories, FAST, 0).low[1:]
        found = [screen_status(low[s], mean[s], above[s], True, limit) for s in range(5)]
        changed = [findings for status, findings in found if status is Status.CHANGED]
        blamed += () in changed
        seen += bool(changed)
    return blamed / runs, seen / runs


def onset_coverage(runs: int, seed: int) -> tuple[float, float]:
    """(share of found onsets whose set holds the first step truly over the limit, mean size of the set)."""
    rng = np.random.default_rng(seed)
    truth = np.array([0.0, 0.005, 0.02, 0.05, 0.08, 0.11, 0.14, 0.17, 0.2])
    steps = tuple(range(0, 90, 10))
    held, sizes = [], []
    for _ in range(runs):
        low, mean, high, limit = lows(measured_of(changing(rng, truth, prompts=60)))
        later = [screen_status(a, m, float("nan"), False, limit)[0] for a, m in zip(low, mean, strict=True)]
        onset = change_onset(steps, (Status.NO_CHANGE_SEEN, *later), (True, *(bool(h <= limit) for h in high)))
        if onset.status == "found":
            held.append(next((s for s, t in zip(steps, truth, strict=True) if t > limit), None) in onset.steps)
            sizes.append(len(onset.steps))
    return float(np.mean(held)), float(np.mean(sizes))


def learning(rng: np.random.Generator, truth: Array, rows: int, *, own: float = 0.3, noise: float = 0.05) -> Array:
    """[S, R] skill-like values: `truth` [S], rows that differ, learn at their own rate, and are noisy at each step."""
    rate = 1 + own * effects(rng, "right", (rows,))
    return 0.5 * rng.standard_normal(rows) + truth[:, None] * rate + noise * rng.standard_normal((len(truth), rows))


def with_task(run: RunEvidence, truth: Array, rng: np.random.Generator, rows: int = 30) -> RunEvidence:
    """The run with a skill and a loss curve that follow `truth` [S]."""
    tokens = np.full(rows, 20.0)
    skill = learning(rng, truth, rows)
    return replace(run, skill=skill, loss=(3.0 - learning(rng, truth, rows)) * tokens, tokens=tokens)
