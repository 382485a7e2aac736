"""The site: it builds without a warning, and documents every public name."""

import importlib
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import tacfast

ROOT = Path(__file__).parents[2]
DIRECTIVE = re.compile(r"^::: (\S+)$(?:\n    options:\n      members: \[(.*)\])?", re.MULTILINE)
# The command line is documented by its own --help.
PRIVATE = {"tacfast.commands"}


def public():
    """Every public package and the names in its ``__all__``."""
    folders = [tacfast.__name__, *(f"tacfast.{path.parent.name}" for path in (ROOT / "tacfast").glob("*/__init__.py"))]
    packages = [importlib.import_module(name) for name in folders if name not in PRIVATE]
    return {package.__name__: package.__all__ for package in packages}


def directives():
    """What the API pages document: package → some of its names, or None for all."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    return {name: members.split(", ") if members else None for name, members in DIRECTIVE.findall(text)}


def test_every_public_package_has_its_place_on_an_api_page():
    documented = directives()
    assert set(documented) == set(public())
    assert [name for name, members in documented.items() if members is not None] == ["tacfast"]
    below = {
        id(getattr(sys.modules[name], each)) for name, names in public().items() if name != "tacfast" for each in names
    }
    assert documented["tacfast"] == [each for each in ("scan", "ScanReport") if each in tacfast.__all__]
    for name in set(tacfast.__all__) - set(documented["tacfast"]):
        assert id(getattr(tacfast, name)) in below, f"tacfast.{name} is on no API page"


def test_the_site_builds_without_a_warning_and_documents_every_public_name(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    pytest.importorskip("mkdocs_jupyter")
    site = tmp_path / "site"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    # Of every name with a docstring, and of no other, mkdocstrings makes an entry.
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    entries = {line.split(" ")[0] for line in inventory.splitlines()}
    missing = [f"{name}.{each}" for name, names in public().items() if name != "tacfast" for each in names]
    assert [name for name in missing if name not in entries] == []
    for notebook in (ROOT / "docs" / "notebooks").glob("*.py"):
        assert "data:image/png;base64" in (site / "notebooks" / notebook.stem / "index.html").read_text(
            encoding="utf-8"
        )
