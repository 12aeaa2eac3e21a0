"""End to end: simulated runs, a served one and a tiny real one get the statuses, onsets and numbers recorded."""

import pytest

from golden import cases, results

TOLERANCE = {"real_likelihoods": 1e-4}
"""of numbers on a real model; everything else to 1e-9"""
RUNS = [
    pytest.param(section, name, marks=pytest.mark.torch if section == "real" else ())
    for section, (names, _) in cases.RUNS.items()
    for name in names
]


@pytest.fixture(scope="module", autouse=True)
def cache():
    with cases.own_cache():
        yield


@pytest.mark.parametrize("section", cases.RUNS)
def test_every_case_is_recorded(section):
    assert set(results.load(f"{section}_statuses")) == set(cases.RUNS[section][0])


@pytest.mark.parametrize(("section", "name"), RUNS)
def test_what_is_said_and_its_numbers(tmp_path, section, name):
    for part, found in cases.parts(name, *cases.RUNS[section][1](name, tmp_path)).items():
        file = f"{section}_{part}"
        wanted = results.load(file)[name]
        assert not results.differences(found, wanted, TOLERANCE.get(file, 1e-9), at=f"{part}: {name}")
