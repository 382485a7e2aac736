"""`_C.pyi` says of the extension what that says of itself, and leaves out no field of the structs of arguments."""

import ast
import re
from pathlib import Path

import pytest

import tacfast
from tacfast.solver import _compiled

STUB = ast.parse((Path(tacfast.__file__).parent / "_C.pyi").read_text())
SOURCES = Path(__file__).parents[3] / "csrc"
# Fields that are not Python's to give: outputs, and what is told apart from the rest.
NOT_GIVEN = {("GapUpdate", "first_bad"), ("HeadPreparation", "finite"), ("WholeSolve", "workspace")}
NAMES = [node.name for node in STUB.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name != "_Cuda"]


def signature(function):
    """Names and types of what a definition takes, in order or by name, and the type of what it returns."""
    arguments = [
        [(each.arg, each.annotation and ast.unparse(each.annotation)) for each in group if each.arg != "self"]
        for group in (function.args.args, function.args.kwonlyargs)
    ]
    return *arguments, ast.unparse(function.returns).split("[")[0]


def told(function):
    """The same of a function of the extension, from the first line of its docstring."""
    line = function.__doc__.splitlines()[0].replace("tacfast._C.", "")
    line = re.sub(r"typing\.Supports(Int|Float)( \| typing\.SupportsIndex)?", lambda found: found[1].lower(), line)
    (definition,) = ast.parse(f"def {line}: ...").body
    return signature(definition)


def stubbed(name, body=STUB.body):
    (found,) = (node for node in body if getattr(node, "name", None) == name)
    return stubbed("__init__", found.body) if isinstance(found, ast.ClassDef) else signature(found)


def public(module):
    return {name for name in vars(module) if not name.startswith("__")} - {"cuda"}


def test_it_names_everything_once():
    assert sorted(NAMES) == sorted(public(_compiled._C))


@pytest.mark.parametrize("name", NAMES)
def test_the_signatures_are_those_of_the_extension(name):
    found = getattr(_compiled._C, name)
    assert stubbed(name) == told(found.__init__ if isinstance(found, type) else found)


@pytest.mark.skipif(not hasattr(_compiled._C, "cuda"), reason="a build without CUDA")
def test_the_launchers_are_those_of_the_extension():
    (protocol,) = (node for node in STUB.body if isinstance(node, ast.ClassDef) and node.name == "_Cuda")
    methods = [node.name for node in protocol.body if isinstance(node, ast.FunctionDef)]
    assert sorted(methods) == sorted(public(_compiled._C.cuda))
    for name in methods:
        assert stubbed(name, protocol.body) == told(getattr(_compiled._C.cuda, name))


@pytest.mark.parametrize("name", [node.name for node in STUB.body if isinstance(node, ast.ClassDef)][:-1])
def test_every_field_of_a_struct_is_filled(name):
    """One that is not would be zero."""
    text = "".join((SOURCES / file).read_text() for file in ("core/arguments.h", "backend.h"))
    lines = re.search(rf"struct {name} {{\n(.*?)\n}};", text, re.S)[1].splitlines()
    code = [line.split("//")[0].strip() for line in lines if "(" not in line.split("//")[0]]
    fields = [field.split("=")[0].split()[-1] for line in code if line for field in line.rstrip(";").split(",")]
    by_order, by_name, _ = stubbed(name)
    assert [each for each, _ in by_order + by_name] == [each for each in fields if (name, each) not in NOT_GIVEN]
