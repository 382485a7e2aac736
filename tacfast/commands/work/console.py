"""What a scan and a repair look like on a terminal."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ...models import resuming
from ...models.checkpoint import KEY
from ...report.words import class_label

STDOUT = Path("-")
# Classes that are shown, those that are the easiest to reach.
MAX_ROWS = 5


def console_for(json: Path | None, *, quiet: bool = False) -> Console:
    """Where a command prints what is for people; where JSON goes, nothing else may."""
    if quiet:
        resuming.log.setLevel(logging.WARNING)
    return Console(stderr=json == STDOUT, quiet=quiet)


@contextmanager
def progress(console: Console, text: str, total: int, *, then: str | None = None) -> Iterator[Callable[[int], None]]:
    """Show a bar; what is yielded is called with how much is done. When all is, it says what comes ``then``."""
    columns = TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task(text, total=total)
        yield lambda done: bars.update(task, completed=done, description=text if done < total else then or text)


def printer(console: Console) -> Callable[..., None]:
    """Return a print that takes names and paths as text, never as markup, and breaks lines where the terminal does."""
    return functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)


def print_scan(console: Console, facts: Mapping[str, Any], names: Mapping[int, str]) -> None:
    """Print what `tacfast.report.scan_facts` collected: verdict, reasons, the easiest classes, what was measured."""
    say, verdict, scan = printer(console), facts["verdict"], facts["scan"]
    say(f"\nVerdict: {verdict['label']}", style="bold")
    say(f"  {verdict['headline']}")
    for reason in verdict["reasons"]:
        say(f"  {reason}")
    if stability := facts["stability"]:
        say(f"  {stability['sentence']}")
    say(f"  in the bank, {facts['bank']['sentence']}")
    console.print()
    console.print(_classes_table(facts, names))
    if where := facts["source"].get(KEY):
        say(f"weights: {where} in the file (--key chooses another)")
    accuracy = "" if scan["accuracy"] is None else f", clean accuracy {100 * scan['accuracy']:.1f} %"
    timings = facts["timings"]
    say(
        f"{scan['samples']} images{accuracy}; {timings['latents']:.1f} s to run the model, {timings['solve']:.2f} s to "
        f"solve, {timings['total'] - timings['latents'] - timings['solve']:.1f} s to judge"
    )


def _classes_table(facts: Mapping[str, Any], names: Mapping[int, str]) -> Table:
    table = Table(box=None, padding=(0, 1))  # so that no word of its head is cut at 80 columns
    table.add_column("easiest classes to reach")
    for column in ("score", *(statistic["title"] for statistic in facts["statistics"]), "norm"):
        table.add_column(column, justify="right")
    for entry in sorted(facts["classes"], key=lambda entry: entry["rank"])[:MAX_ROWS]:
        scores = (entry["score"], *(found["score"] for found in entry["statistics"].values()))
        cells = (*(_number(score, ".2f") for score in scores), _number(entry["norm"], ".4g"))
        style = "bold red" if entry["named"] else ""
        table.add_row(Text(class_label(names, entry["class"])), *cells, style=style)
    return table


def _number(value: float, form: str) -> str:
    """Write a number for a terminal, which may know nothing but ASCII; "-" for NaN."""
    return "-" if math.isnan(value) else format(value, form)


def print_repair(console: Console, facts: Mapping[str, Any], names: Mapping[int, str]) -> None:
    """Print held-out clean accuracy before and after a repair, of all and of the classes that lost most."""
    before, after = facts["before"]["per_class"], facts["after"]["per_class"]
    table = Table(box=None, padding=(0, 2, 0, 2))
    table.add_column("held-out clean accuracy")
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    rows = [("all", facts["before"]["overall"], facts["after"]["overall"])]
    lost = [k for k in range(len(before)) if before[k] > after[k]]
    rows += [(class_label(names, k), before[k], after[k]) for k in sorted(lost, key=lambda k: after[k] - before[k])]
    for label, *values in rows[: 1 + MAX_ROWS]:
        table.add_row(Text(label), *(f"{100 * value:.1f} %" for value in values))
    console.print(table)


def print_attack(console: Console, attack: Mapping[str, Any] | None) -> None:
    """Print what was measured on images with the trigger, before and, if there was one, after a repair."""
    if attack is None:
        return
    figures = [attack["before"], *filter(None, [attack["after"]])]
    asr, ra = (" → ".join(f"{100 * each[name]:.1f} %" for each in figures) for name in ("asr", "ra"))
    printer(console)(
        f"attack success (ASR) {asr}, robust accuracy (RA) {ra}, on {attack['before']['images']} images with the "
        "trigger, which lie beside the checkpoint or are made as its training was attacked: no part of the verdict"
    )


def print_confirmation(console: Console, confirmation: Mapping[str, Any]) -> None:
    """Print what a second scan says of a repair."""
    say = printer(console)
    say(f"\nRepair: {confirmation['outcome']}", style="bold")
    say(f"  scanned again with the held-out images: {confirmation['label'].replace('_', ' ')}")
    for sentence in (confirmation["headline"], *confirmation["notes"]):
        say(f"  {sentence}")


def print_warnings(console: Console, sentences: Sequence[str]) -> None:
    """Print what makes the answer less reliable."""
    for sentence in sentences:
        printer(console)(f"Warning: {sentence}", style="yellow")
