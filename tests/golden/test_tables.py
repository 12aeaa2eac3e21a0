"""Stored answer tables give the numbers that were recorded, to 1e-9."""

import pytest

from golden import cases, results

NUMBERS = dict(cases.number_cases())


@pytest.fixture(scope="module")
def recorded():
    return results.load("numbers")


def test_every_case_is_recorded(recorded):
    assert set(recorded) == set(NUMBERS)


@pytest.mark.parametrize("table", sorted({c[0] for c in NUMBERS.values()}))
def test_numbers(recorded, table):
    for name, case in NUMBERS.items():
        if case[0] == table:
            assert not results.differences(cases.run_number(case), recorded[name], at=name)


def test_labels():
    assert not results.differences(cases.run_labels(), results.load("labels"))


def test_imported_tables(tmp_path):
    assert not results.differences(cases.run_imported(tmp_path), results.load("imported"))
