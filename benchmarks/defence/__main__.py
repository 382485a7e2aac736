"""``python -m benchmarks.defence``: attacks × defences, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .profiles import DEFENCES, PROFILES
from .running import Grid, run_local, work

RESULTS = Path(__file__).parents[1] / "results" / "defence"
MODELS = Path(__file__).parents[2] / "models"


def main(
    profile: Annotated[str, typer.Option(help=f"One of {', '.join(PROFILES)}.")] = "quick",
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with one thread.")] = 1,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets; else TACFAST_DATA.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of the results, one JSON per cell.")] = RESULTS,
    models: Annotated[Path, typer.Option(help="Folder of the trained networks.")] = MODELS,
) -> None:
    """Run a grid of data × architecture × attack × ratio × seed × defence."""
    grid = Grid(profile, PROFILES[profile].networks, tuple(DEFENCES), results, models, data_root)
    if workers == 1:
        work(grid, print)
    else:
        run_local(grid, workers, print)


if __name__ == "__main__":
    typer.run(main)
