"""Stored outcome streams: a search asks for the same answers in the same order, and claims the same."""

import pytest

from golden import cases, results

SECTIONS = {"searches": (cases.SEARCHES, cases.run_search), "scans": (cases.SCANS, cases.run_scan)}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_case_is_recorded(section):
    assert set(results.load(section)) == set(SECTIONS[section][0])


@pytest.mark.parametrize(("section", "name"), [(s, name) for s, (names, _) in SECTIONS.items() for name in names])
def test_reads_and_claims(section, name):
    every, run = SECTIONS[section]
    assert not results.differences(run(*every[name]), results.load(section)[name])
