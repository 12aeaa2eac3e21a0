"""What several test files use."""

import pytest


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    """No test talks to a service, or sends a key, that the environment happens to name."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "TRUING_JUDGE_API_KEY", "TRUING_SERVED_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run_cli(capsys, monkeypatch):
    """Runs the command line in this process; gives exit code, stdout, stderr."""
    from truing import cli

    def run(*args):
        monkeypatch.setattr("sys.argv", ["truing", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = e.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def smollm2():
    """The real 135M model: a local backend that is opened once, of which only `use` and answers may be taken."""
    from truing.config import ModelConfig
    from truing.models.download import cache_dir
    from truing.models.hf import LocalBackend

    if not (cache_dir() / "models" / "smollm2-135m" / "config.json").exists():
        pytest.skip("smollm2-135m is not in the cache: truing models get smollm2-135m")
    return LocalBackend("smollm2-135m", (), ModelConfig(dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def seeds(tmp_path_factory):
    """Audits of three seeds of a run that turns late, and one of a run that never does; only copies may be changed."""
    from runs.study_audits import audited

    folder = tmp_path_factory.mktemp("seeds")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("TRUING_CACHE", str(folder / "cache"))
        return [audited(folder / f"late{s}", s) for s in (1, 2, 3)], audited(folder / "never", 1, "never")
