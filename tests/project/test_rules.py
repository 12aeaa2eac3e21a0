"""The house rules, held by tests: imports go one way, heavy packages stay in their packages, names are documented."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import truing

SRC = Path(truing.__file__).parent
TESTS = Path(__file__).parents[1]
LOWEST = {"types", "errors", "files", "config", "messages", "_version"}
LOWER = LOWEST | {"store", "database", "migrations", "data", "traits"}
ENGINES = {"models", "training", "judges", "interp"}
ALLOWED = {
    "types": {"errors", "files"},
    "errors": {"types"},
    "files": {"errors"},
    "config": {"types", "errors", "files"},
    "finding_texts": set(),
    "messages": {"types", "errors", "config", "finding_texts"},
    "migrations": LOWEST,
    "database": LOWEST | {"migrations"},
    "stored_rows": LOWEST,
    "belonging": LOWEST,
    "store": LOWEST | {"stored_rows", "migrations", "database", "belonging"},
    "data": LOWEST,
    "traits": LOWEST | {"data"},
    "stats": {"types", "errors", "config"},
    "models": LOWER,
    "training": LOWER | {"models"},
    "judges": LOWER | {"models"},
    "interp": LOWER | {"models"},
    "runs": LOWER | ENGINES | {"stats"},
    "report": LOWER | {"stats"},
}
"""package or file -> what it may import; bridges, the command line, the contracts and the public API may import all"""
HEAVY = {
    "torch": {"models", "training", "judges", "interp"},
    "transformers": {"models", "training", "judges", "interp"},
    "peft": {"models", "training", "judges", "interp"},
    "scipy": {"stats"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "pyarrow": {"bridges"},
    "openai": {"models"},
    "inspect_ai": {"bridges"},
    "wordfreq": {"data"},
    **{name: set() for name in ("pickle", "dill", "joblib", "cloudpickle")},
}
"""package from elsewhere -> which of ours may import it: nothing is ever unpickled"""
EXCEPTIONS = {
    ("runs/demo.py", "torch"): "measures how fast this machine is",
    ("runs/doctor.py", "torch"): "lists devices",
    ("data/tables.py", "pyarrow"): "reads Parquet and Arrow, where a file is one",
    ("models/hf.py", "jinja2"): "errors that chat templates raise",
    ("models/trial_child.py", "jinja2"): "renders untrusted chat templates in a process of its own",
}
LONGEST_CHAIN, LONGEST_FUNCTION, MOST_PARAMETERS, LONGEST_FILE = 12, 60, 8, 520


def module_name(path):
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(p): p for p in sorted(SRC.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}


def imports(name, tree):
    """Every import, those inside functions too, but for those of type checkers: (module, names taken from it)."""
    typing = {
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.dump(i.test)
        for n in ast.walk(i)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            yield from ((a.name, ()) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            yield node.module or "", tuple(a.name for a in node.names)


def own_imports(name, tree):
    """The files of the project that a file loads."""
    for module, names in imports(name, tree):
        below = [f"{module}.{n}" for n in names if f"{module}.{n}" in PATHS]
        yield from below
        if module in PATHS and len(below) < max(len(names), 1):
            yield module


GRAPH = {name: set(own_imports(name, tree)) - {name} for name, tree in TREES.items()}


@pytest.mark.parametrize("name", PATHS)
def test_imports_go_one_way_and_heavy_packages_stay_where_they_belong(name):
    parts = name.split(".")
    package, file = parts[1] if len(parts) > 1 else "", str(PATHS[name].relative_to(SRC))
    for module, _ in imports(name, TREES[name]):
        top, *rest = module.split(".")
        if top == "truing" and package in ALLOWED and rest:
            assert rest[0] in ALLOWED[package] | {package, "_version"}, f"{file} imports {module}"
        if top in HEAVY and (file, top) not in EXCEPTIONS:
            assert package in HEAVY[top], f"{file} imports {module}"


def test_no_file_imports_itself_through_others_and_chains_are_short():
    length, way = {}, []

    def chain(name):
        assert name not in way, f"a circle: {' > '.join([*way[way.index(name) :], name])}"
        if name not in length:
            way.append(name)
            length[name] = max((chain(other) for other in sorted(GRAPH[name])), default=[], key=len)
            way.pop()
            length[name] = [name, *length[name]]
        return length[name]

    longest = max((chain(name) for name in GRAPH), key=len)
    assert len(longest) <= LONGEST_CHAIN, " > ".join(longest)


@pytest.mark.parametrize("name", PATHS)
def test_sizes_and_docstrings(name):
    text, tree = PATHS[name].read_text(encoding="utf-8"), TREES[name]
    assert len(text.splitlines()) <= LONGEST_FILE
    if text.strip() and PATHS[name].name not in ("_version.py", "__init__.py"):
        assert ast.get_docstring(tree), "module docstring"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            size = (node.end_lineno or 0) - node.lineno + 1
            assert size <= LONGEST_FUNCTION, f"{node.name} has {size} lines"
            taken = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            public = [a for a in taken if a not in ("self", "cls")]
            assert node.name.startswith("_") or len(public) <= MOST_PARAMETERS, f"{node.name} takes {len(public)}"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda p: str(p.relative_to(TESTS)))
def test_tests_use_no_private_name(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ours = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "truing":
            assert not [a.name for a in node.names if is_private(a.name)], node.module
            ours |= {a.asname or a.name for a in node.names}
        elif isinstance(node, ast.Import):
            ours |= {(a.asname or a.name).split(".")[0] for a in node.names if a.name.split(".")[0] == "truing"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, (ast.Attribute, ast.Call)):
                root = root.value if isinstance(root, ast.Attribute) else root.func
            assert not (isinstance(root, ast.Name) and root.id in ours), f"line {node.lineno}: .{node.attr}"


def test_the_public_api_is_documented():
    assert len(set(truing.__all__)) == len(truing.__all__)
    for name in truing.__all__:
        assert getattr(truing, name).__doc__ or name == "__version__"
    with pytest.raises(AttributeError):
        _ = truing.no_such_name
    assert not {p.name for p in SRC.iterdir() if p.is_dir()} & set(truing.__all__), "a package hides a function"


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("truing, truing.cli, truing.report.table", ("numpy", "scipy", "jinja2")),
        ("truing.runs.audit", ("torch", "transformers", "peft", "matplotlib", "wordfreq", "ftfy")),
    ],
)
def test_import_is_light(modules, heavy):
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_command_is_in_the_readme_and_has_help():
    from truing.cli import app

    readme = (SRC.parent.parent / "README.md").read_text()
    assert len(app.verbs) >= 8
    for verb in app.verbs.values():
        assert verb.help
        assert f"truing {verb.name}" in readme


def test_nothing_is_pushed():
    assert not [p for p in PATHS.values() if "push_to_hub" in p.read_text().replace("push_to_hub=False", "")]


def test_every_pinned_dependency_is_declared_and_torch_is_exact():
    root = SRC.parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pinned = (root / "constraints.txt").read_text().lower()
    assert "torch==2.13.0" in pinned
    for line in project["dependencies"]:
        name = line.split(">")[0].split("=")[0].split("<")[0].strip().lower()
        assert f"\n{name}==" in "\n" + pinned, name
