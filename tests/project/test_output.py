"""One file writes to the terminal; all others hand it their text."""

import ast
from pathlib import Path

import pytest

import truing

SRC = Path(truing.__file__).parent
OWN_WAY = ("cli_output.py", "trial_child.py")
"""the one file that prints, and a process of its own whose output its parent reads"""
FILES = [p for p in sorted(SRC.rglob("*.py")) if p.name not in OWN_WAY]
CALLS = {"print", "pprint", "Console", "echo", "secho", "print_json", "getpass", "StreamHandler"}
OWN = {("sys", "stdout"), ("sys", "stderr"), ("sys", "__stdout__"), ("sys", "__stderr__"), ("os", "write")}


def written(tree):
    """Names by which a file would print by itself; a console that it is handed is one of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            handed = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "console"
            if name in CALLS and not handed:
                yield f"{name}()"
        if isinstance(node, ast.Attribute) and (getattr(node.value, "id", ""), node.attr) in OWN:
            yield f"sys.{node.attr}"
        if isinstance(node, ast.ImportFrom) and node.module in ("sys", "rich"):
            yield from (f"{node.module}.{a.name}" for a in node.names if a.name in ("stdout", "stderr", "print"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_nothing_prints_but_the_one_file_that_cleans(path):
    assert list(written(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_the_test_sees_what_it_looks_for():
    text = "print(1); click.echo(1); c = Console(); sys.stderr.write('x'); console.print(1)\nfrom sys import stdout"
    assert list(written(ast.parse(text))) == ["sys.stdout", "print()", "echo()", "Console()", "sys.stderr"]
