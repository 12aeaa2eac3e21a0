"""Judges of our own at addresses, and a cache that tests share with nobody."""

import pytest

from truing.runs import checks, judges


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Reference answers scored by simulated judges are shared within a module."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv("TRUING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def judged_by(monkeypatch):
    """judged_by(judge, ...): these stand at their addresses; the others open as usual."""
    known, real = {}, judges.open_judge

    def put(*given):
        known.update({j.name: j for j in given})

    def opened(address, context):
        return known[address] if address in known else real(address, context)

    for module in (judges, checks):
        monkeypatch.setattr(module, "open_judge", opened)
    return put
