"""What several test files use."""

import pytest

KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "TRUING_JUDGE_API_KEY", "TRUING_SECOND_JUDGE_API_KEY")
KEYS += ("TRUING_SERVED_API_KEY",)


@pytest.fixture(scope="session", autouse=True)
def no_keys():
    """No test talks to a service, or sends a key, that the environment happens to name."""
    with pytest.MonkeyPatch.context() as m:
        for name in KEYS:
            m.delenv(name, raising=False)
        yield


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


@pytest.fixture
def call(run_cli, monkeypatch, tmp_path):
    """The command line in a folder of the test's own, on a terminal of 150 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path.parent / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))  # and not that of whoever runs the tests
    return run_cli


@pytest.fixture(scope="session")
def smollm2():
    """The real 135M model: a local backend that is opened once, of which only `use` and answers may be taken."""
    from truing.config import ModelConfig
    from truing.models.cache import cache_dir
    from truing.models.hf import LocalBackend

    if not (cache_dir() / "models" / "smollm2-135m" / "config.json").exists():
        pytest.skip("smollm2-135m is not in the cache: truing models get smollm2-135m")
    return LocalBackend("smollm2-135m", (), ModelConfig(dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def audited_seed(tmp_path_factory):
    """audited_seed(1), audited_seed(1, "never"): an audit made once; only copies may be changed."""
    from runs.study_audits import audited

    folder, made = tmp_path_factory.mktemp("seeds"), {}

    def get(seed, family="late"):
        if (seed, family) not in made:
            with pytest.MonkeyPatch.context() as m:
                m.setenv("TRUING_CACHE", str(folder / "cache"))
                made[seed, family] = audited(folder / f"{family}{seed}", seed, family)
        return made[seed, family]

    return get


@pytest.fixture
def seeds(audited_seed):
    """Audits of three seeds of a run that turns late, and one of a run that never does."""
    return [audited_seed(s) for s in (1, 2, 3)], audited_seed(1, "never")
