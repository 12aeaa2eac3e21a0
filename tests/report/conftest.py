from pathlib import Path

import pytest

from report.audits import VARIANTS, make_audit
from report.judged_audits import JUDGED, make_judged


@pytest.fixture
def audit(tmp_path):
    """Make a folder of a named variant: audit("changing", status=..., ...)."""

    def make(name: str, **options) -> Path:
        if name in JUDGED:
            return make_judged(tmp_path / name, name, **options)
        return make_audit(tmp_path / name, VARIANTS[name](), evil=name == "hostile", **options)

    return make
