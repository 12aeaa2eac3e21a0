"""Without inspect_ai the export says what to install, and does so before it reads or writes anything."""

import sys

import pytest

from truing import errors
from truing.bridges.inspect_log import write_log


def test_the_error_holds_the_install_line(tmp_path, monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == "inspect_ai" or m.startswith("truing.bridges.inspect_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(errors.MissingExtra, match=r"pip install 'truing\[inspect\]'"):
        write_log(tmp_path / "no-audit", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_module_is_not_taken_for_a_missing_one(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.setitem(sys.modules, "truing.bridges.inspect_build", None)
    with pytest.raises(ModuleNotFoundError):
        write_log(tmp_path / "no-audit", tmp_path / "out")
