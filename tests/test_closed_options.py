"""Options with few possible values: another one is refused with the list, before anything is opened or written."""

import pytest

CLOSED = [
    ("audit", "--dtype", "f8", "'auto', 'float32', 'bfloat16' or 'float16'"),
    ("plan", "--dtype", "fp32", "'auto', 'float32', 'bfloat16' or 'float16'"),
    ("judge", "--dtype", "half", "'auto', 'float32', 'bfloat16' or 'float16'"),
    ("control", "--dtype", "f8", "'auto', 'float32', 'bfloat16' or 'float16'"),
    ("audit", "--device", "gpu", "use auto, cpu, cuda, cuda:1 or mps"),
    ("control", "--device", "cuda:x", "use auto, cpu, cuda, cuda:1 or mps"),
    ("freeze", "--device", "meta", "use auto, cpu, cuda, cuda:1 or mps"),
    ("audit", "--format", "chatml", "'messages', 'prompt_completion', 'sharegpt' or 'alpaca'"),
    ("audit", "--half", "both", "'eval', 'fit' or 'all'"),
    ("audit", "--em", "median", "'threshold' or 'mean'"),
    ("audit", "--long-prompts", "cut", "'refuse' or 'truncated'"),
    ("audit", "--path-map", "here", "give LOCAL=REMOTE"),
    ("audit", "--variants", "yaml", "yaml"),
    ("audit", "--gate", "best", "recommended, last or a step"),
    ("export", "--to", "xlsx", "'parquet', 'csv' or 'inspect'"),
    ("demo", "--family", "sudden", "sudden"),
]


@pytest.mark.parametrize(("command", "option", "value", "said"), CLOSED)
def test_an_impossible_value_is_refused_with_what_is_possible(
    tmp_path, monkeypatch, call, command, option, value, said
):
    monkeypatch.chdir(tmp_path)
    arguments = {"control": ("careless-finance", "--base", "nowhere", "--out", "out"), "demo": ("--simulated",)}
    given = arguments.get(command, ("simulated:late", *(("--judge", "simulated:") if option == "--variants" else ())))
    code, out, err = call(command, *given, option, value)
    assert (code, out) == (2, "") and option in err and value in err and said in " ".join(err.split())
    assert not list(tmp_path.iterdir())
