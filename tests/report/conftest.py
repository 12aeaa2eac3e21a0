from pathlib import Path

import pytest

from report.audits import VARIANTS, make_audit


@pytest.fixture
def audit(tmp_path):
    """Make a folder of a named variant: audit("drifting", status=..., answers=..., evil=...)."""

    def make(variant: str, **options) -> Path:
        return make_audit(tmp_path / variant, VARIANTS[variant](), evil=variant == "hostile", **options)

    return make
