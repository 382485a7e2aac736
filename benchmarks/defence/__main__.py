"""``python -m benchmarks.defence``: data × architecture × attack × ratio × seed × defence, resumable."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .networks import Say
from .page import rows_in_profile, update_page
from .profiles import DEFENCES, ORACLES, PROFILES
from .running import Grid, run_local, run_ray, work
from .store import Store
from .tables import markdown_summary, write_tables

ROOT = Path(__file__).parents[2]
RESULTS, MODELS = ROOT / "benchmarks" / "results" / "defence", ROOT / "models"
# The remaining time is estimated from the cells of so many seconds.
ESTIMATE_OVER = 3600.0


def main(
    profile: Annotated[
        str, typer.Option(help=f"One of {', '.join(PROFILES)}: quick takes minutes, the last one a GPU.")
    ] = "quick",
    only: Annotated[
        str, typer.Option(metavar="TEXT", help="Networks whose name has this in it, such as gtsrb or blended-0.1.")
    ] = "",
    defences: Annotated[
        str, typer.Option(metavar="NAMES", help=f"Between commas: {', '.join((*DEFENCES, *ORACLES))}.")
    ] = ",".join(DEFENCES),
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Also FP, ANP and RNP with a threshold chosen on the test set.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine, with one thread each.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on a Ray cluster instead: its address, or 'local' to start one."),
    ] = None,
    tables: Annotated[bool, typer.Option("--tables", help="Only make the tables of the cells that are there.")] = False,
    data_root: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the data sets are; else TACFAST_DATA.")
    ] = None,
    results: Annotated[Path, typer.Option(metavar="FOLDER", help="Of the results, one JSON per cell.")] = RESULTS,
    models: Annotated[Path, typer.Option(metavar="FOLDER", help="Of the trained networks.")] = MODELS,
) -> None:
    """Train networks under attack, let every defence repair them from clean images, and measure what came of it.

    Call it again after an interruption: only what is missing is made. Exit status: 0 all cells are there, 1 some are
    not.
    """
    grid = _grid(profile, only, defences, oracle, results, models, data_root)
    console = Console()
    if not tables:
        with _bar(console, grid) as say:
            if ray is not None:
                run_ray(grid, ray, say)
            elif workers > 1:
                run_local(grid, workers, say)
            else:
                work(grid, say)
    rows = rows_in_profile(Store(results), profile, tuple(DEFENCES | ORACLES))
    about = f"Made by `python -m benchmarks.defence --profile {profile}`; what is missing has not been run."
    written = write_tables(results, profile, rows, about)
    console.print(markdown_summary(rows), markup=False, highlight=False, soft_wrap=True)
    if results == RESULTS:
        written += update_page(ROOT, Store(results))
    console.print(f"wrote {', '.join(map(str, written))}", markup=False, highlight=False, soft_wrap=True)
    if any(grid.missing(network) for network in grid.networks):
        raise typer.Exit(1)


def _grid(
    profile: str, only: str, defences: str, oracle: bool, results: Path, models: Path, data_root: Path | None
) -> Grid:
    if profile not in PROFILES:
        raise typer.BadParameter(f"expected one of {', '.join(PROFILES)}, got {profile!r}", param_hint="--profile")
    networks = tuple(network for network in PROFILES[profile].networks if only in network.name)
    if not networks:
        raise typer.BadParameter(f"expected a part of a network's name, got {only!r}", param_hint="--only")
    names = tuple(dict.fromkeys([*filter(None, defences.split(",")), *(ORACLES if oracle else ())]))
    for name in names:
        if name not in DEFENCES | ORACLES:
            known = ", ".join(DEFENCES | ORACLES)
            raise typer.BadParameter(f"expected some of {known}, got {name!r}", param_hint="--defences")
    return Grid(profile, networks, names, results.resolve(), models.resolve(), data_root and data_root.resolve())


@contextmanager
def _bar(console: Console, grid: Grid) -> Iterator[Say]:
    """Show how many cells are done and when all will be; what is said goes above."""
    columns = TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, speed_estimate_period=ESTIMATE_OVER) as bars:
        missing = sum(len(grid.missing(network)) for network in grid.networks)
        total = len(grid.networks) * len(grid.cells)
        task = bars.add_task("", total=total, completed=total - missing)

        def say(text: str, cells: int = 0) -> None:
            bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
            bars.advance(task, cells)

        yield say


if __name__ == "__main__":
    try:
        typer.run(main)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"benchmarks.defence: error: {error}", file=sys.stderr)
        sys.exit(1)
