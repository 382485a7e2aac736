"""``tacfast scan``: look for a class that is abnormally easy to reach."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..data import FolderLoader
from ..models import resuming
from ..report import error_facts, scan_facts, write_html, write_json
from ..report.files import as_json
from ..scanning import ScanReport
from ..scanning import scan_and_keep as scan_model
from . import options
from .console import print_attack, print_scan, print_warnings, progress
from .loading import Suspect, check_files, first_head, open_loader, open_suspect
from .many import ERROR, ORDER, scan_many
from .triggered import Triggered

STDOUT = Path("-")
# By the label of the verdict; 1 is an error and 2 wrong usage.
EXIT_STATUS = {"nothing_found": 0, ERROR: 1, "suspicious": 3, "borderline": 4, "inconclusive": 4}


class FailOn(str, Enum):
    """Verdicts that ``--fail-on`` takes, from the least that is told by the exit status."""

    inconclusive = "inconclusive"
    borderline = "borderline"
    suspicious = "suspicious"
    never = "never"


def scan(
    checkpoints: options.Checkpoints,
    data: options.Data,
    key: options.Key = None,
    strip_prefix: options.StripPrefix = None,
    arch: options.Arch = None,
    num_classes: options.NumClasses = None,
    arch_args: options.ArchArgs = None,
    head: options.Head = None,
    preset: options.Preset = None,
    mean: options.Mean = None,
    std: options.Std = None,
    image_size: options.ImageSize = None,
    class_names: options.ClassNames = None,
    data_root: options.DataRoot = None,
    split: options.Split = None,
    max_images: options.MaxImages = None,
    skip_unreadable: options.SkipUnreadable = False,
    batch_size: options.BatchSize = 128,
    workers: options.Workers = None,
    device: options.Device = None,
    quick: options.Quick = False,
    quiet: options.Quiet = False,
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
    fail_on: Annotated[
        FailOn,
        typer.Option(
            help="The least verdict whose exit status is not 0, for continuous integration; never tells errors alone.",
            rich_help_panel=options.RESULT,
        ),
    ] = FailOn.inconclusive,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For several models: a report of each as JSON and HTML, summary.jsonl with one line a model, and "
            "index.html, the worst first. What is done is not done again, and one that fails does not stop the others.",
            rich_help_panel=options.RESULT,
        ),
    ] = None,
) -> None:
    """Look for a backdoor in classifiers that somebody else trained.

    Exit status: 0 nothing found, 1 error, 2 wrong usage, 3 suspicious, 4 borderline or inconclusive; of several models
    that of the worst, an error before a borderline one. --fail-on makes it 0 for verdicts below one. Nothing found is
    no proof that there is no backdoor.
    """
    to_stdout = json == STDOUT
    console = Console(stderr=to_stdout, quiet=quiet)  # where JSON goes, nothing else may
    if quiet:
        resuming.log.setLevel(logging.WARNING)
    given: dict[str, Any] = {
        "data_root": data_root,
        "split": split,
        "max_images": max_images,
        "key": key,
        "strip_prefix": strip_prefix,
        "arch": arch,
        "arch_args": arch_args,
        "num_classes": num_classes,
        "preset": preset,
        "mean": mean,
        "std": std,
        "image_size": image_size,
        "class_names": class_names,
    }

    def scan_one(
        path: Path, json: Path | None, html: Path | None, resume: Path | None = None
    ) -> tuple[dict[str, Any], Mapping[int, str]]:
        suspect = open_suspect(path, data, device=device, **given)
        loader = open_loader(suspect.images, batch_size, workers=workers, skip_unreadable=skip_unreadable)
        report = run_scan(console, suspect, loader, head, resume=resume, quick=quick)
        about = describe(suspect, report, loader, Triggered(suspect, batch_size, workers=workers))
        facts = scan_facts(report, **about)
        # First what may be lost: printing fails where nobody reads on.
        write_reports(facts, report, json=json, html=html)
        if resume is not None:
            resume.unlink(missing_ok=True)
        return facts, about["names"]

    if out is not None:
        for option, value in (("--json", json), ("--html", html), ("--resume", resume)):
            if value is not None:
                raise typer.BadParameter("expected none with --out, which keeps everything", param_hint=option)
        settings = {"data": data, "head": head, "quick": quick, "skip_unreadable": skip_unreadable}
        settings |= {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        rows = scan_many(console, checkpoints, out, settings, lambda path, json, html: scan_one(path, json, html)[0])
        raise typer.Exit(worst_status([row["label"] for row in rows], fail_on))
    if len(checkpoints) > 1:
        raise typer.BadParameter(f"expected a folder for the results of {len(checkpoints)} models", param_hint="--out")
    (checkpoint,) = checkpoints
    check_files(checkpoint, class_names, json=None if to_stdout else json, html=html, resume=resume)
    try:
        facts, names = scan_one(checkpoint, json, html, resume)
    except Exception as error:
        with suppress(OSError):  # the disk may be full; the first error is what counts
            write_reports(error_facts(checkpoint, error), None, json=json, html=None)
        raise
    show_scan(console, facts, names)
    raise typer.Exit(worst_status([facts["verdict"]["label"]], fail_on))


def worst_status(labels: Sequence[str], fail_on: FailOn) -> int:
    """Exit status of several verdicts, or errors, of which those below ``fail_on`` count as nothing."""
    graver = ("never", "suspicious", "borderline", "inconclusive")
    counted = graver[: graver.index(fail_on.value) + 1]
    return next((EXIT_STATUS[label] for label in ORDER if label in (*counted, ERROR) and label in labels), 0)


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
    """Scan with a progress bar; the file ``resume`` is left until the report is written."""
    found = first_head(suspect.model, loader, head)
    with progress(console, task, len(suspect.images), then="judging") as advance:
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
    print_scan(console, facts, names)
    print_attack(console, facts["attack"])
    print_warnings(console, [*filter(None, [facts["scan"]["accuracy_warning"]]), *facts["warnings"]])


def write_reports(facts: dict[str, Any], report: ScanReport | None, *, json: Path | None, html: Path | None) -> None:
    """Write the files that were asked for; without a report there is no page."""
    if html is not None and report is not None:
        write_html(html, facts, report.perturbations)
    if json == STDOUT:  # last, so that nothing comes behind it
        typer.echo(as_json(facts), nl=False)
    elif json is not None:
        write_json(json, facts)
