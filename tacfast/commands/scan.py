"""``tacfast scan``: look for a class that is abnormally easy to reach."""

from __future__ import annotations

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
    skip_unreadable: options.SkipUnreadable = False,
    batch_size: options.BatchSize = 128,
    workers: options.Workers = None,
    device: options.Device = None,
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
    report = run_scan(console, suspect, loader, head, resume)
    # First what may be lost: printing fails where nobody reads on.
    write_reports(suspect, report, loader, json=json, html=html)
    show_scan(console, suspect, report, loader)
    raise typer.Exit(EXIT_STATUS[report.verdict.label])


def run_scan(
    console: Console, suspect: Suspect, loader: FolderLoader, head: str | None, resume: Path | None = None
) -> ScanReport:
    """Scan with a progress bar."""
    found = first_head(suspect.model, loader, head)
    with screen.progress(console, "scanning", len(suspect.images)) as advance:
        return scan_model(suspect.model, loader, head=found, on_batch=advance, resume=resume)


def show_scan(console: Console, suspect: Suspect, report: ScanReport, loader: FolderLoader) -> None:
    """Print the verdict, and what makes it less reliable."""
    facts = scan_facts(report, names=suspect.names)
    screen.print_scan(console, facts, suspect.names)
    screen.print_warnings(
        console, [*filter(None, [facts["scan"]["accuracy_warning"]]), *suspect.warnings(report, loader)]
    )


def write_reports(
    suspect: Suspect,
    report: ScanReport,
    loader: FolderLoader,
    *,
    json: Path | None,
    html: Path | None,
    repair: dict[str, Any] | None = None,
) -> None:
    """Write the files that were asked for."""
    about: dict[str, Any] = {
        "names": suspect.names,
        "source": suspect.source(report, loader),
        "repair": repair,
    }
    if json is not None:
        write_json(json, scan_facts(report, **about))
    if html is not None:
        write_html(html, report, **about)
