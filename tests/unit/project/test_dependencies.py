"""DESIGN.md §2: which room may know of which."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGE, SOURCES = ROOT / "tacfast", ROOT / "csrc"

# What each room may import from the rest of the package; a room may always import from itself.
TEXT, SHOWN, FILES, LAZY, PROCESSES = "_text", "_shown", "_files", "_lazy", "_processes"
SOLVER, DETECTION, MODELS, JACKKNIFE = "solver", "detection", "models", "jackknife"
LOW = {SOLVER, DETECTION, MODELS, "data", TEXT, SHOWN, FILES, LAZY, PROCESSES}
ALLOWED = {
    TEXT: set(),
    FILES: set(),
    LAZY: set(),
    PROCESSES: {TEXT},
    SHOWN: {TEXT},
    SOLVER: {SHOWN, FILES},
    DETECTION: {SOLVER, SHOWN, TEXT},
    MODELS: {SOLVER, TEXT, SHOWN, FILES, LAZY, PROCESSES},
    JACKKNIFE: {SOLVER, DETECTION, SHOWN},
    "data": {SHOWN, TEXT, LAZY},
    "attacks": LOW,
    "scanning": LOW | {JACKKNIFE},
    "defenses": LOW | {"scanning"},
    "_info": {SOLVER},
    "training": LOW | {"attacks"},
    "evaluation": LOW | {"scanning", "attacks", "defenses"},
    "report": LOW | {JACKKNIFE, "_info", "scanning", "attacks", "defenses", "evaluation"},
}
TOP = {"__init__", "__main__", "cli", "demo", "commands"}  # may import everything
# The one way up: what a result shows of itself is looked up inside the method that is asked for it, never on import.
VIEWS, ASKED = ["report", "views"], {SHOWN, SOLVER, DETECTION, JACKKNIFE, "scanning"}
ALGEBRA = {"cmath", "cstdint"}


def late(tree):
    """Imports inside a function."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {node for function in functions for node in ast.walk(function)}


def imports(path, *, but_late=False):
    """Dotted names, without the leading ``tacfast``, of what a module imports from the package."""
    package, tree = ["tacfast", *path.relative_to(PACKAGE).parts[:-1]], ast.parse(path.read_text())
    skipped = late(tree) if but_late else set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names = [[*base, *(node.module or "").split("."), alias.name] for alias in node.names]
        else:
            continue
        yield from ([part for part in name if part][1:] for name in names if name[0] == "tacfast")


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_python_dependencies_point_one_way(path):
    here = room(path)
    if here in TOP:
        return
    assert here in ALLOWED, f"a new room: say in ALLOWED what {here} may import"
    rooms = {room(module) for module in MODULES} - {"__init__"}
    names = [name for name in imports(path) if name and name[0] in rooms]
    if here in ASKED:
        assert VIEWS not in imports(path, but_late=True)
        names = [name for name in names if name != VIEWS]
    assert {name[0] for name in names} - {here} <= ALLOWED[here]


def test_only_one_module_imports_the_extension():
    users = {str(path.relative_to(PACKAGE)) for path in MODULES if any("_C" in name for name in imports(path))}
    assert users == {"solver/_compiled.py"}


def test_the_order_of_rooms_has_no_cycle():
    for a, below in ALLOWED.items():
        assert all(a not in ALLOWED[b] for b in below)


def includes(folder):
    for path in sorted((SOURCES / folder).glob("*.*")):
        if path.suffix in (".h", ".cpp", ".cu", ".cuh"):
            for line in path.read_text().splitlines():
                if match := re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line):
                    yield path.name, match.group(1)


def test_core_is_algebra_only():
    found = list(includes("core"))
    assert found
    for name, header in found:
        assert header in ALGEBRA or header.startswith("core/"), f"{name} includes {header}"
    for path in (SOURCES / "core").iterdir():
        code = re.sub(r"//.*", "", path.read_text())
        for word in (r"\bnew\b", r"\bthrow\b", r"\bmalloc\b", r"\bprintf\b", r"std::(vector|string|function)"):
            assert not re.search(word, code), f"{path.name}: {word}"


@pytest.mark.parametrize(("folder", "stranger"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_backends_do_not_see_each_other(folder, stranger):
    for name, header in includes(folder):
        assert not header.startswith(f"{stranger}/"), name


def test_only_the_bindings_know_of_python_and_nothing_knows_of_torch():
    for folder in ("core", "cpu", "cuda", "."):
        for name, header in includes(folder):
            assert not re.match(r"(torch|ATen|c10)/", header), f"{name} includes {header}"
            assert name == "bindings.cpp" or not re.match(r"(pybind11/|Python\.h)", header), name
