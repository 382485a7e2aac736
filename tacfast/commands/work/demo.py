"""The demo on a terminal."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ...demo import PLOT_FILE, REPORT_FILE, DemoResult, prepare_folder, run_demo, write_demo
from ...report import before_after_table
from .console import printer

STAGES = {"train": "training the model", "scan": "scanning it", "repair": "repairing it"}


def demo(seed: int, *, clean: bool, out: Path) -> None:
    """Run the demo with a bar for each stage; status 1 unless all of it worked."""
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


def _print_result(console: Console, result: DemoResult, out: Path) -> None:
    verdict = result.report.verdict
    truth = "no class" if result.poisoned_class is None else f"class {result.poisoned_class}"
    found = f", class {result.found_class}" if result.found_class is not None else ""
    say = printer(console)
    say(f"\nVerdict: {verdict.label}{found} (poisoned: {truth})", style="bold")
    for reason in verdict.reasons:
        say(f"  {reason}")
    say()
    console.print(before_after_table(result.before, result.after))
    say(f"{result.seconds:.1f} s; wrote {out / REPORT_FILE} and {out / PLOT_FILE}")
