"""End to end: simulated runs, a served one and a tiny real one get the statuses, onsets and numbers recorded."""

import pytest

from golden import cases, results

TOLERANCE = {"likelihoods": 1e-4}
"""of numbers on a real model; everything else to 1e-9"""


@pytest.fixture(scope="module", autouse=True)
def cache():
    with cases.own_cache():
        yield


def compare(section, name, verdict, tolerance):
    """Each part of a verdict with what was recorded of it."""
    for part, found in cases.parts(name, verdict).items():
        wanted = results.load(f"{section}_{part}")[name]
        assert not results.differences(found, wanted, tolerance.get(part, 1e-9), at=f"{part}: {name}")


@pytest.mark.parametrize(
    ("section", "names"), [("simulated", cases.SIMULATED), ("served", cases.SERVED), ("real", cases.REAL)]
)
def test_every_case_is_recorded(section, names):
    assert set(results.load(f"{section}_statuses")) == set(names)


@pytest.mark.parametrize("name", cases.SIMULATED)
def test_simulated(tmp_path, name):
    compare("simulated", name, cases.run_simulated(name, tmp_path), {})


@pytest.mark.parametrize("name", cases.SERVED)
def test_served(tmp_path, name):
    compare("served", name, cases.run_served(name, tmp_path), {})


@pytest.mark.torch
@pytest.mark.parametrize("name", cases.REAL)
def test_real(tmp_path, name):
    compare("real", name, cases.run_real(name, tmp_path), TOLERANCE)
