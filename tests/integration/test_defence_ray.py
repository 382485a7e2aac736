"""The grid on a Ray cluster of two workers on this machine: the same cells, the same files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("sklearn")
pytest.importorskip("typer")

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(folder, *arguments):
    """Exit status and standard error of a grid of one clean network and two defences."""
    command = [sys.executable, "-m", "benchmarks.defence", "--profile", "quick", "--only", "clean"]
    places = ["--results", str(folder / "results"), "--models", str(folder / "models")]
    found = subprocess.run(
        [*command, "--defences", "clp,ft", *places, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return found.returncode, found.stderr


def figures(folder):
    """Every cell without what depends on the moment."""
    cells = {path.name: json.loads(path.read_text()) for path in (folder / "results").glob("*/*.json")}
    for cell in cells.values():
        for name in ("seconds", "sha256", "machine", "made", "scan"):
            cell.pop(name, None)
    return cells


def test_ray_makes_the_cells_that_one_process_makes(tmp_path):
    for name, arguments in (("ray", ("--ray", "local")), ("alone", ())):
        (tmp_path / name).mkdir()
        status, errors = run(tmp_path / name, *arguments)
        assert status == 0, errors
    found = figures(tmp_path / "ray")
    assert set(found) == {"network.json", "clp.json", "ft.json"}
    assert found == figures(tmp_path / "alone")
    # Nothing is missing any more.
    assert run(tmp_path / "ray", "--ray", "local")[0] == 0
