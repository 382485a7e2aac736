"""What a scan looks like on a terminal."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..scanning import ScanReport

# Exit status of a scan, by its verdict; 1 is an error and 2 wrong usage.
EXIT_STATUS = {"nothing_found": 0, "suspicious": 3, "inconclusive": 4}
# Classes with the smallest norms that are shown.
MAX_ROWS = 5
# A classifier below this on clean images is rarely one that is used, and often one that is fed wrongly.
MIN_PLAUSIBLE_ACCURACY = 0.5


@contextmanager
def progress(console: Console, text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar; what is yielded is called with how much is done."""
    columns = TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task(text, total=total)
        yield lambda done: bars.update(task, completed=done)


def printer(console: Console) -> Callable[..., None]:
    """Return a print that takes names and paths as text, never as markup, and breaks lines where the terminal does."""
    return functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)


def name_class(k: int, names: Sequence[str] | None) -> str:
    """A class by its number and, where it has one of its own, its name."""
    return f"{k} ({names[k]})" if names is not None and names[k] != str(k) else str(k)


def print_scan(console: Console, report: ScanReport, names: Sequence[str] | None) -> None:
    """Print verdict, reasons, the classes that are easiest to reach, and what was measured on the way."""
    say, verdict = printer(console), report.verdict
    flagged = ", ".join(name_class(k, names) for k in verdict.classes)
    say(f"\nVerdict: {verdict.label}" + (f", class {flagged}" if flagged else ""), style="bold")
    for reason in verdict.reasons:
        say(f"  {reason}")
    console.print(_norms_table(report, names))
    if report.accuracy is not None:
        say(f"clean accuracy {100 * report.accuracy:.1f} % of {report.solution.n_samples} images")
    seconds = report.timings
    say(f"{seconds['latents']:.1f} s to run the model, {seconds['solve']:.2f} s to solve and judge")


def _norms_table(report: ScanReport, names: Sequence[str] | None) -> Table:
    verdict = report.verdict
    table = Table(box=None, padding=(0, 2), title_justify="left")
    table.add_column("easiest classes to reach")
    for column in ("norm", "of median", "index"):
        table.add_column(column, justify="right")
    for k in sorted(verdict.norms, key=lambda k: verdict.norms[k])[:MAX_ROWS]:
        norm = verdict.norms[k]
        share = norm / verdict.median if math.isfinite(norm) and verdict.median > 0 else math.nan
        cells = (f"{norm:.4g}", f"{share:.3f}", f"{verdict.index[k]:.2f}")
        style = "bold red" if k in verdict.classes else ""
        table.add_row(Text(name_class(k, names)), *cells, style=style)
    return table


def warnings_about(report: ScanReport, unreadable: Sequence[str], empty: Sequence[str]) -> list[str]:
    """Sentences on what makes the answer less reliable."""
    found = []
    if report.accuracy is not None and report.accuracy < MIN_PLAUSIBLE_ACCURACY:
        found.append(
            f"clean accuracy is only {100 * report.accuracy:.1f} %: is the normalisation, the image size or the order "
            "of the classes another one than in training?"
        )
    if unreadable:
        found.append(f"{len(unreadable)} images could not be read and were left out, the first: {unreadable[0]}")
    if empty:
        more = f" and {len(empty) - MAX_ROWS} more" if len(empty) > MAX_ROWS else ""
        found.append(f"there are no images of class {', '.join(empty[:MAX_ROWS])}{more}")
    return found


def print_warnings(console: Console, sentences: Sequence[str]) -> None:
    """Print what makes the answer less reliable."""
    for sentence in sentences:
        printer(console)(f"Warning: {sentence}", style="yellow")
