"""``tacfast scan``: look for a class that is abnormally easy to reach."""

from __future__ import annotations

import typer
from rich.console import Console

from ..data import FolderLoader
from ..models import Head
from ..report import scan_facts, write_html, write_json
from ..scanning import ScanReport
from ..scanning import scan as scan_model
from . import options, screen
from .suspect import Suspect, check_outputs, first_head, open_loader, open_suspect


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
    json: options.Json = None,
    html: options.Html = None,
) -> None:
    """Look for a backdoor in a classifier that somebody else trained.

    Exit status: 0 nothing found, 1 error, 2 wrong usage, 3 suspicious, 4 inconclusive. Nothing found is no proof that
    there is no backdoor.
    """
    console = Console()
    check_outputs(json=json, html=html)
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
    report = run_scan(console, suspect, loader, first_head(suspect.model, loader, head))
    cautions = screen.warnings_about(report, list(loader.unreadable), suspect.images.empty_classes)
    screen.print_scan(console, report, suspect.images.class_names)
    screen.print_warnings(console, cautions)
    facts = scan_facts(report, class_names=suspect.images.class_names, warnings=cautions, **suspect.facts())
    if json is not None:
        write_json(json, facts)
    if html is not None:
        write_html(html, facts)
    raise typer.Exit(screen.EXIT_STATUS[report.verdict.label])


def run_scan(console: Console, suspect: Suspect, loader: FolderLoader, head: Head) -> ScanReport:
    """Scan with a progress bar."""
    with screen.progress(console, "scanning", len(suspect.images)) as advance:
        return scan_model(suspect.model, loader, head=head, on_batch=advance)
