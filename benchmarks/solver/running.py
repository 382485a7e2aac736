"""Run cells, each in a process of its own that may take its time or break, and keep what came of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tacfast._files import write_atomically

from .._common import machine
from .plan import cells
from .races import Cell, versions

ROOT = Path(__file__).parents[2]
# Variables by which libraries choose how many threads to use.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def run_all(
    folder: Path, only: str, budget: float, limit: float, on_progress: Callable[[int, int, str], None]
) -> list[str]:
    """Measure the cells whose name has ``only`` in it and that are not in ``folder`` yet.

    Returns what was left out, to be measured once it is installed: entrants, and the modules that they lack.
    """
    todo = [cell for cell in dict.fromkeys(cells()) if only in cell.name and not file_of(folder, cell).exists()]
    left_out: dict[str, None] = {}
    for number, cell in enumerate(todo):
        on_progress(number, len(todo), cell.name)
        if missing := cell.missing():
            left_out[f"{cell.entrant} (needs {', '.join(missing)})"] = None
            continue
        folder.mkdir(parents=True, exist_ok=True)
        found = {"race": cell.race, "problem": cell.source.name, "entrant": cell.entrant, "threads": cell.threads}
        found |= _in_a_process(cell, budget, limit)
        write_atomically(file_of(folder, cell), (json.dumps(found, indent=1) + "\n").encode())
    on_progress(len(todo), len(todo), "")
    return list(left_out)


def file_of(folder: Path, cell: Cell) -> Path:
    """Where the cell is kept."""
    return folder / f"{cell.name}.json"


def read_all(folder: Path) -> list[dict[str, Any]]:
    """The cells that are kept and still belong to the suite, in its order, whatever number of threads they are of."""
    order = {key: place for place, key in enumerate(dict.fromkeys(_key(cell.name) for cell in cells()))}
    files = [file for file in folder.glob("*.json") if _key(file.stem) in order]
    files.sort(key=lambda file: (order[_key(file.stem)], int(file.stem.rpartition("--")[2])))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _key(name: str) -> str:
    """The name of a cell without the number of threads."""
    return name.rpartition("--")[0]


def _measure_here(name: str, budget: float) -> dict[str, Any]:
    cell = next((cell for cell in cells() if cell.name == name), None)
    if cell is None:
        raise LookupError(f"cell: expected one of the suite, got {name!r}")
    return {**cell.measure(budget), "versions": versions(cell), "machine": machine()}


def _in_a_process(cell: Cell, budget: float, limit: float) -> dict[str, Any]:
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(cell.threads))
    command = [sys.executable, "-m", "benchmarks.solver.running", cell.name, str(budget)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer within {limit:g} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"failed": lines[-1][:300]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    print(json.dumps(_measure_here(sys.argv[1], float(sys.argv[2]))))
