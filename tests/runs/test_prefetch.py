"""Prefetching fills a backend's batches without changing what a search reads."""

import pytest

import truing
from truing.models.simulated import SimulatedBackend
from truing.runs.collect import FIXED_FROM
from truing.store import Store


def searched(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(SimulatedBackend, "preferred_batch", batch)
    out = tmp_path / str(batch)
    options = {"judge": "simulated:", "control": "simulated:late", "limit": 30, "answers": 0, "skip_calibration": True}
    onset = truing.audit("simulated:late?steps=20,40,60,80,100", out=out, resamples=100, **options).verdict.onset
    with Store.read(out) as store:
        return onset, sum(a.sample < FIXED_FROM for a in store.answers())


@pytest.mark.parametrize(("batch", "most"), [(80, 1.3), pytest.param(256, 2.0, marks=pytest.mark.slow)])
def test_a_larger_batch_reads_the_same_answers_and_wastes_few(tmp_path, monkeypatch, batch, most):
    plain, sampled = searched(tmp_path, monkeypatch, 1)
    assert sampled == plain.answers_used
    onset, sampled = searched(tmp_path, monkeypatch, batch)
    assert onset == plain
    assert onset.answers_used < sampled <= most * onset.answers_used
