import itertools

import pytest

from report.audits import make_audit


@pytest.fixture(scope="session")
def audit(tmp_path_factory):
    """The folder of a named audit: audit("changing", status=..., ...), made once; nobody writes to it."""
    root, numbers, made = tmp_path_factory.mktemp("audits"), itertools.count(), {}

    def get(name, **options):
        key = (name, repr(options))
        if key not in made:
            made[key] = make_audit(root / f"{name}-{next(numbers)}", name, **options)
        return made[key]

    return get
