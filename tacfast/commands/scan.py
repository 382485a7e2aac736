"""``tacfast scan``: look for a class that is abnormally easy to reach."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..data import FolderLoader
from ..report import scan_facts, write_html, write_json
from ..scanning import ScanReport
from ..scanning import scan as scan_model
from . import options, screen
from .suspect import Suspect, check_files, first_head, open_loader, open_suspect
from .triggered import Triggered

# By the label of the verdict; 1 is an error and 2 wrong usage.
EXIT_STATUS = {"nothing_found": 0, "suspicious": 3, "borderline": 4, "inconclusive": 4}


def scan(
    checkpoint: options.Checkpoint,
    data: options.Data,
    arch: options.Arch = None,
    num_classes: options.NumClasses = None,
    arch_args: options.ArchArgs = None,
    head: options.Head = None,
    mean: options.Mean = None,
    std: options.Std = None,
    image_size: options.ImageSize = None,
    class_names: options.ClassNames = None,
    data_root: options.DataRoot = None,
    split: options.Split = None,
    skip_unreadable: options.SkipUnreadable = False,
    batch_size: options.BatchSize = 128,
    workers: options.Workers = None,
    device: options.Device = None,
    quick: options.Quick = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep the state of the scan here, and go on from it after an interruption.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    json: options.Json = None,
    html: options.Html = None,
) -> None:
    """Look for a backdoor in a classifier that somebody else trained.

    Exit status: 0 nothing found, 1 error, 2 wrong usage, 3 suspicious, 4 borderline or inconclusive. Nothing found is
    no proof that there is no backdoor.
    """
    console = Console()
    check_files(checkpoint, class_names, json=json, html=html, resume=resume)
    suspect = open_suspect(
        checkpoint,
        data,
        data_root=data_root,
        split=split,
        arch=arch,
        arch_args=arch_args,
        num_classes=num_classes,
        mean=mean,
        std=std,
        image_size=image_size,
        class_names=class_names,
        device=device,
    )
    loader = open_loader(suspect.images, batch_size, workers=workers, skip_unreadable=skip_unreadable)
    report = run_scan(console, suspect, loader, head, resume=resume, quick=quick)
    about = describe(suspect, report, loader, Triggered(suspect, batch_size, workers=workers))
    facts = scan_facts(report, **about)
    # First what may be lost: printing fails where nobody reads on.
    write_reports(facts, report, json=json, html=html)
    show_scan(console, facts, about["names"])
    raise typer.Exit(EXIT_STATUS[report.verdict.label])


def run_scan(
    console: Console,
    suspect: Suspect,
    loader: FolderLoader,
    head: str | None,
    *,
    resume: Path | None = None,
    quick: bool = False,
    task: str = "scanning",
) -> ScanReport:
    """Scan with a progress bar."""
    found = first_head(suspect.model, loader, head)
    with screen.progress(console, task, len(suspect.images), then="judging") as advance:
        return scan_model(suspect.model, loader, head=found, on_batch=advance, resume=resume, quick=quick)


def describe(suspect: Suspect, report: ScanReport, loader: FolderLoader, triggered: Triggered) -> dict[str, Any]:
    """Measure the attack where that can be done, and collect what `tacfast.report.scan_facts` takes beside a report."""
    before = triggered.measure(suspect.model)
    return {
        "names": suspect.names,
        "source": suspect.source(report, loader),
        "attack": None if before is None else {"before": before, "after": None},
        "warnings": [*suspect.warnings(report, loader), *triggered.warnings],
    }


def show_scan(console: Console, facts: dict[str, Any], names: Mapping[int, str]) -> None:
    """Print the verdict, and what makes it less reliable."""
    screen.print_scan(console, facts, names)
    screen.print_attack(console, facts["attack"])
    screen.print_warnings(console, [*filter(None, [facts["scan"]["accuracy_warning"]]), *facts["warnings"]])


def write_reports(facts: dict[str, Any], report: ScanReport, *, json: Path | None, html: Path | None) -> None:
    """Write the files that were asked for."""
    if json is not None:
        write_json(json, facts)
    if html is not None:
        write_html(html, facts, report.perturbations)
