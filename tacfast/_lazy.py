"""What is imported only when it is asked for: torch takes a second, which help and wrong usage need not wait for."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, MutableMapping
from importlib import import_module
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def lazily(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package (PEP 562).

    Its names are those that its ``__init__.py`` imports where ``TYPE_CHECKING`` holds, so that type checkers and this
    read the same lines, and those of its modules.
    """
    module = sys.modules[package]
    tree = ast.parse(inspect.getsource(module))
    guarded = [node for part in tree.body if isinstance(part, ast.If) for node in ast.walk(part)]
    imports = [node for node in guarded if isinstance(node, ast.ImportFrom)]
    places = {alias.name: "." * node.level + str(node.module) for node in imports for alias in node.names}
    parts = {each.name for each in pkgutil.iter_modules(module.__path__) if not each.name.startswith("_")}

    def get(name: str) -> Any:
        if name in parts:
            return import_module(f"{package}.{name}")
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(places[name], package), name)
        setattr(module, name, value)  # so that it is looked up once
        return value

    def names() -> list[str]:
        return sorted({*places, *parts, *(name for name in vars(module) if name.startswith("__"))})

    return get, names


def needed(module: str, otherwise: str) -> Any:
    """An optional module; where it is missing, ImportError says ``otherwise``."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(otherwise) from error


class Registry(MutableMapping[str, T], Generic[T]):
    """Things by name, of which the names are known without an import.

    Parameters
    ----------
    package : that the places are in
    places : name → ``"module.attribute"``; what is added later is the thing itself
    """

    def __init__(self, package: str, places: dict[str, str]) -> None:
        self._package = package
        self._found: dict[str, Any] = dict.fromkeys(places)
        self._places = places

    def __repr__(self) -> str:
        return f"Registry({', '.join(self._found)})"

    def __getitem__(self, name: str) -> T:
        if self._found[name] is None:
            module, _, attribute = self._places[name].rpartition(".")
            self._found[name] = getattr(import_module(f".{module}", self._package), attribute)
        found: T = self._found[name]
        return found

    def __setitem__(self, name: str, value: T) -> None:
        self._found[name] = value

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
