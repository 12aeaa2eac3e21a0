"""A tiny base and a run of adapters on it, made once for all tests of models."""

import pytest


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    from zoo import build

    return build.tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def run(base, tmp_path_factory):
    """Checkpoints of steps 2 and 4, each with words of its own."""
    from truing.models.checkpoints import find_run
    from zoo import build

    folder = build.adapter_run(tmp_path_factory.mktemp("run") / "out", base, steps=(2, 4), scale=8.0, final=False)
    return find_run(str(folder)).checkpoints
