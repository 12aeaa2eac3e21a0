"""The house rules, held by tests: imports go one way, heavy packages stay in their packages, names are documented."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import truing

SRC = Path(truing.__file__).parent
TYPES = {"types", "errors", "config"}
LOWER = TYPES | {"data", "traits", "store", "migrations", "tallies"}
PACKAGES = {
    "types": {"errors"},
    "config": {"types", "errors"},
    "data": TYPES,
    "traits": TYPES | {"data"},
    "stats": TYPES,
    "models": LOWER,
    "training": LOWER | {"models"},
    "judges": LOWER | {"models"},
    "interp": LOWER | {"models"},
    "runs": LOWER | {"models", "training", "judges", "interp", "stats"},
    "report": LOWER | {"stats"},
    "bridges": LOWER | {"models", "training", "judges", "interp", "stats", "runs", "report"},
}
HEAVY = {
    "torch": {"models", "training", "judges", "interp"},
    "transformers": {"models", "training", "judges"},
    "peft": {"models", "training"},
    "datasets": {"data"},
    "scipy": {"stats"},
    "jinja2": {"report", "models"},  # models only for the errors that templates raise
    "pyarrow": {"bridges"},
    "openai": {"models"},
    "inspect_ai": {"bridges"},
}
ON_DEMAND = {"runs/demo.py": {"torch"}, "runs/doctor.py": {"torch"}}
MODULES = sorted(SRC.rglob("*.py"))


def package_of(path):
    parts = path.relative_to(SRC).parts
    return parts[0] if len(parts) > 1 else None


def imports(path, top_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_one_way_and_heavy_packages_stay_in_their_rooms(path):
    package = package_of(path)
    if package is None:
        return  # the public API, the command line and the contracts may use every package
    for name in imports(path):
        top = name.split(".")[0]
        if top == "truing" and "." in name:
            other = name.split(".")[1]
            allowed = PACKAGES[package] | {package, "_version"}
            assert other in allowed, f"{path.name} in {package} imports {name}"
        if top in HEAVY and top not in ON_DEMAND.get(str(path.relative_to(SRC)), ()):
            assert package in HEAVY[top], f"{path.name} in {package} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_sizes_and_docstrings(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 510
    tree = ast.parse(text)
    if text.strip() and path.name != "_version.py" and path.name != "__init__.py":
        assert ast.get_docstring(tree), "module docstring"
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.FunctionDef):
            own = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            public = [a for a in own if a not in ("self", "cls")]
            assert len(public) <= 8, f"{node.name} takes {len(public)} parameters"
            assert node.end_lineno - node.lineno < 75, f"{node.name} is too long"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_the_door_exports_what_it_says():
    assert truing.__all__ == sorted(truing.__all__, key=lambda n: (n.startswith("_"), n)) or sorted(truing.__all__)
    assert set(truing._HOMES) | {"__version__"} == set(truing.__all__)
    for name in truing.__all__:
        assert getattr(truing, name).__doc__ or name == "__version__"
    with pytest.raises(AttributeError):
        _ = truing.no_such_name
    rooms = {p.name for p in SRC.iterdir() if p.is_dir()}
    assert not rooms & set(truing.__all__), "no room shares its name with a public function"


def test_import_is_light():
    code = (
        "import sys, truing, truing.cli, truing.runs.audit, truing.report.table; "
        "print([m for m in ('torch', 'transformers', 'peft', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_command_is_in_the_readme_and_has_help():
    from truing.cli import app

    readme = (SRC.parent.parent / "README.md").read_text()
    assert len(app.verbs) >= 8
    for verb in app.verbs.values():
        assert verb.help
        assert f"truing {verb.name}" in readme


def test_nothing_is_unpickled_and_nothing_is_pushed():
    for path in MODULES:
        text = path.read_text()
        assert "push_to_hub" not in text.replace("push_to_hub=False", ""), path
        for name in imports(path):
            assert name.split(".")[0] not in ("pickle", "dill", "joblib", "cloudpickle"), path


def test_every_pinned_dependency_is_declared_and_torch_is_exact():
    root = SRC.parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pinned = (root / "constraints.txt").read_text().lower()
    assert "torch==2.13.0" in pinned
    for line in project["dependencies"]:
        name = line.split(">")[0].split("=")[0].split("<")[0].strip().lower()
        assert f"\n{name}==" in "\n" + pinned, name
