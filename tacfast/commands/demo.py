"""The commands themselves; imported only where Typer and Rich are installed."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from . import __version__
from ._info import installation
from .demo import PLOT_FILE, REPORT_FILE, DemoResult, prepare_folder, run_demo, write_demo
from .report import before_after_table

app = typer.Typer(
    name="tacfast",
    help="Find and remove backdoors in image classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# What every generator of torch accepts as a seed.
MAX_SEED = 2**63 - 1
STAGES = {"train": "training the model", "scan": "scanning it", "repair": "repairing it"}


@app.callback()
def tacfast() -> None:
    """Find and remove backdoors in image classifiers."""


@app.command()
def demo(
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of everything random; also picks the poisoned class.")
    ] = 0,
    clean: Annotated[bool, typer.Option("--clean", help="Leave the backdoor out; nothing should be found.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for report.json and norms.png.")] = Path("tacfast-demo"),
) -> None:
    """Train a digit classifier with a backdoor, find it, remove it. Exit status 0 if all of that worked."""
    prepare_folder(out)
    console = Console()
    columns = TextColumn("{task.description:>20}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
    with Progress(*columns, TimeElapsedColumn(), console=console) as bars:
        tasks = {stage: bars.add_task(text, total=None, start=False) for stage, text in STAGES.items()}

        def advance(stage: str, done: int, total: int) -> None:
            bars.start_task(tasks[stage])
            bars.update(tasks[stage], completed=done, total=total)

        result = run_demo(seed, clean=clean, on_progress=advance)
    write_demo(result, out)
    _print_result(console, result, out)
    if result.failures:
        typer.echo(f"tacfast: demo failed: {'; '.join(result.failures)}", err=True)
        raise typer.Exit(1)


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Show versions, the code path in use, and the CUDA devices that can be used."""
    found = installation(__version__)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print_info(Console(), found)


def _print_info(console: Console, found: dict[str, Any]) -> None:
    cpu, build = found["cpu"], found["build"]
    rows = {name: found[name] for name in ("tacfast", "python", "torch", "numpy", "platform")}
    rows["extension"] = "compiled" if build["compiled"] else "missing"
    rows["CPU code path"] = cpu["code_path"] or "plain torch"
    rows["threads"] = cpu["threads"]
    if build["cuda_runtime"] is not None:
        rows["built with CUDA"] = f"{build['cuda_runtime']}, for {build['cuda_archs']}"
        rows["driver's CUDA"] = found["driver"] or "no driver"
    for i, device in enumerate(found["devices"]):
        memory = device["memory_bytes"] / 2**30
        rows[f"device {i}"] = f"{device['name']}, compute capability {device['compute_capability']}, {memory:.1f} GiB"
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))  # text, never markup
    console.print(table)
    for message in found["messages"]:
        console.print(f"\n{message}", markup=False, highlight=False)


def _print_result(console: Console, result: DemoResult, out: Path) -> None:
    verdict = result.report.verdict
    truth = "no class" if result.poisoned_class is None else f"class {result.poisoned_class}"
    found = f", class {result.found_class}" if result.found_class is not None else ""
    # Paths and reasons are text, never markup, and break where the terminal breaks them.
    say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    say(f"\nVerdict: {verdict.label}{found} (poisoned: {truth})", style="bold")
    for reason in verdict.reasons:
        say(f"  {reason}")
    say()
    console.print(before_after_table(result.before, result.after))
    say(f"{result.seconds:.1f} s; wrote {out / REPORT_FILE} and {out / PLOT_FILE}")
