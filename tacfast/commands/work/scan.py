"""Scans on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console

from ..._processes import all_processes
from ...data import FolderLoader
from ...models.resuming import telling_of
from ...report import error_facts, scan_facts, write_html, write_json
from ...report.ci import write_junit, write_sarif
from ...report.files import as_json
from ...scanning import ScanReport, forget
from ...scanning import scan_and_keep as scan_model
from ..options import SuspectOptions
from .console import STDOUT, console_for, print_attack, print_scan, print_warnings, progress
from .joined import once_written
from .loading import Suspect, check_files, first_head, open_loader, open_suspect
from .many import ERROR, ORDER, error_row, row_of, scan_many
from .triggered import Triggered

# By the label of the verdict; 1 is an error and 2 wrong usage.
EXIT_STATUS = {"nothing_found": 0, ERROR: 1, "suspicious": 3, "borderline": 4, "inconclusive": 4}


@dataclass(frozen=True)
class Scans:
    """What the scans of one call have in common; the fields are the arguments of ``tacfast scan``."""

    data: str
    given: SuspectOptions
    batch_size: int
    quick: bool
    quiet: bool
    fail_on: str
    junit: Path | None
    sarif: Path | None

    def one(self, checkpoint: Path, *, json: Path | None, html: Path | None, resume: Path | None) -> NoReturn:
        """Scan one, print and write what is found, and leave with the status of the verdict."""
        console = console_for(json, quiet=self.quiet)
        files = {"json": None if json == STDOUT else json, "html": html, "resume": resume}
        check_files(read_by([checkpoint], self.given), **files, junit=self.junit, sarif=self.sarif)
        row: dict[str, Any] = {"path": str(checkpoint)}
        try:
            with telling_of([resume] if resume else []), errors_told(checkpoint, json):
                facts, names = self._scanned(console, checkpoint, json, html, resume)
        except Exception as error:
            self._tell([row | error_row(error)])
            raise
        self._tell([row | row_of(facts) | {"seconds": facts["timings"]["total"]}])
        show_scan(console, facts, names)
        raise typer.Exit(worst_status([facts["verdict"]["label"]], self.fail_on))

    def many(self, checkpoints: Sequence[Path], out: Path) -> NoReturn:
        """Scan each, write all to the folder ``out``, and leave with the status of the worst."""
        console = console_for(None, quiet=self.quiet)
        told = {"data": self.data, "quick": self.quick, **asdict(self.given)}
        del told["workers"], told["device"]  # which change no result
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in told.items()}

        def scan_one(path: Path, json: Path, html: Path) -> dict[str, Any]:
            return self._scanned(console, path, json, html)[0]

        if (size := all_processes().size) > 1:
            raise typer.BadParameter(f"expected one process, got {size}: they share one model", param_hint="--out")
        check_files(read_by(checkpoints, self.given), junit=self.junit, sarif=self.sarif)
        rows = scan_many(console, checkpoints, out, settings, scan_one)
        self._tell(rows)
        raise typer.Exit(worst_status([row["label"] for row in rows], self.fail_on))

    def _tell(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what continuous integration reads, where that is asked for; of several processes the first does."""
        if all_processes().rank > 0:
            return
        if self.junit is not None:
            write_junit(self.junit, rows, failing(self.fail_on))
        if self.sarif is not None:
            write_sarif(self.sarif, rows)

    def _scanned(
        self, console: Console, path: Path, json: Path | None, html: Path | None, resume: Path | None = None
    ) -> tuple[dict[str, Any], Mapping[int, str]]:
        """Scan a checkpoint and write its reports; returns the facts and the names of the classes."""
        given = self.given
        suspect = open_suspect(path, self.data, given)
        loader = open_loader(
            suspect.images, self.batch_size, workers=given.workers, skip_unreadable=given.skip_unreadable
        )
        report = run_scan(console, suspect, loader, given.head, resume=resume, quick=self.quick)
        leave_unless_first(resume)
        triggered = Triggered(suspect, self.batch_size, workers=given.workers)
        about = describe(suspect, report, loader, triggered)
        facts = scan_facts(report, **about)
        # First what may be lost: printing fails where nobody reads on.
        write_reports(facts, report, json=json, html=html)
        forget_once_written(resume)
        return facts, about["names"]


def read_by(checkpoints: Sequence[Path], given: SuspectOptions) -> dict[str, Sequence[Path]]:
    """What a command reads, by the name of the argument."""
    return {"CHECKPOINT": checkpoints, "--class-names": () if given.class_names is None else (given.class_names,)}


@contextmanager
def errors_told(checkpoint: Path, json: Path | None) -> Iterator[None]:
    """Where a report as JSON is asked for, let it tell an error, too."""
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        with suppress(OSError):  # the disk may be full; the first error is what counts
            write_reports(error_facts(checkpoint, error), None, json=json, html=None)
        raise


def worst_status(labels: Sequence[str], fail_on: str) -> int:
    """Exit status of several verdicts, or errors, of which those below ``fail_on`` count as nothing."""
    counted = {*failing(fail_on), ERROR}
    return next((EXIT_STATUS[label] for label in ORDER if label in counted and label in labels), 0)


def failing(fail_on: str) -> Sequence[str]:
    """The verdicts that count if ``fail_on`` is the least that does."""
    graver = ("suspicious", "borderline", "inconclusive")
    return () if fail_on == "never" else graver[: graver.index(fail_on) + 1]


def run_scan(
    console: Console,
    suspect: Suspect,
    loader: FolderLoader,
    head: str | None,
    *,
    resume: Path | None = None,
    quick: bool = False,
) -> ScanReport:
    """Scan with a progress bar; of several processes each reads its share of the images. ``resume`` is left."""
    found, processes = first_head(suspect.model, loader, head), all_processes()
    own = loader if processes.size == 1 else loader.share(processes.rank, processes.size)
    with progress(console, "scanning", len(own.images), then="judging") as advance:
        report = scan_model(
            suspect.model, own, head=found, on_batch=advance, resume=resume, quick=quick, group=processes.group
        )
    for unreadable in processes.gather(own.unreadable):
        loader.unreadable.update(unreadable)
    return report


def leave_unless_first(resume: Path | None) -> None:
    """Nothing is left to do but for the first of several processes, whose exit status is that of all."""
    if all_processes().rank > 0:
        forget_once_written(resume)
        raise SystemExit  # no typer.Exit, which is an Exception: it would be told as an error


def forget_once_written(resume: Path | None) -> None:
    """Have each process delete its own file of a scan, as `once_written` does."""
    once_written(lambda: forget(resume, all_processes().group))


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
    """Write the files that were asked for; without a report there is no page. Of several processes the first does."""
    if all_processes().rank > 0:
        return
    if html is not None and report is not None:
        write_html(html, facts, report.perturbations)
    if json == STDOUT:  # last, so that nothing comes behind it
        typer.echo(as_json(facts), nl=False)
    elif json is not None:
        write_json(json, facts)
