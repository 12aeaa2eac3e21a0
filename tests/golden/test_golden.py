"""What is computed today is what was recorded: labels, numbers, reads and claims of searches, verdicts of runs."""

import pytest

from golden import cases, results

NUMBERS = dict(cases.number_cases())
STREAMS = {"searches": (cases.SEARCHES, cases.run_search), "scans": (cases.SCANS, cases.run_scan)}
EVERY = {"numbers": NUMBERS, **{section: names for section, (names, _) in STREAMS.items()}}
EVERY |= {f"{section}_statuses": names for section, (names, _) in cases.RUNS.items()}
RUNS = [
    pytest.param(section, name, marks=pytest.mark.torch if section == "real" else ())
    for section, (names, _) in cases.RUNS.items()
    for name in names
]
TOLERANCE = {"real_likelihoods": 1e-4}
"""of numbers on a real model; everything else to 1e-9"""


@pytest.mark.parametrize("section", EVERY)
def test_every_case_is_recorded(section):
    assert set(results.load(section)) == set(EVERY[section])


def test_labels():
    assert not results.differences(cases.run_labels(), results.load("labels"))


def test_imported_tables(tmp_path):
    assert not results.differences(cases.run_imported(tmp_path), results.load("imported"))


@pytest.mark.parametrize("table", sorted({c[0] for c in NUMBERS.values()}))
def test_numbers_of_stored_answer_tables(table):
    recorded = results.load("numbers")
    for name, case in NUMBERS.items():
        if case[0] == table:
            assert not results.differences(cases.run_number(case), recorded[name], at=name)


@pytest.mark.parametrize(("section", "name"), [(s, name) for s, (names, _) in STREAMS.items() for name in names])
def test_reads_and_claims_on_stored_streams(section, name):
    every, run = STREAMS[section]
    assert not results.differences(run(*every[name]), results.load(section)[name])


@pytest.fixture(scope="module")
def cache():
    with cases.own_cache():
        yield


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("section", "name"), RUNS)
def test_runs_end_to_end(tmp_path, section, name):
    for part, found in cases.parts(name, *cases.RUNS[section][1](name, tmp_path)).items():
        file = f"{section}_{part}"
        wanted = results.load(file)[name]
        assert not results.differences(found, wanted, TOLERANCE.get(file, 1e-9), at=f"{part}: {name}")
