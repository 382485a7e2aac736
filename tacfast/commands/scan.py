"""``tacfast scan``: look for a class that is abnormally easy to reach."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .options import SuspectOptions, gathered


class FailOn(str, Enum):
    """Verdicts that ``--fail-on`` takes, from the least that is told by the exit status."""

    inconclusive = "inconclusive"
    borderline = "borderline"
    suspicious = "suspicious"
    never = "never"


@gathered
def scan(
    checkpoints: options.Checkpoints,
    data: options.Data,
    given: SuspectOptions,
    batch_size: options.BatchSize = 128,
    quick: options.Quick = False,
    quiet: options.Quiet = False,
    resume: Annotated[
        Path | None,
        options.run_option(
            metavar="FILE", help="Keep the state of the scan here, and go on from it after an interruption."
        ),
    ] = None,
    json: options.Json = None,
    html: options.Html = None,
    fail_on: Annotated[
        FailOn,
        options.result_option(
            help="The least verdict whose exit status is not 0, for continuous integration; never tells errors alone."
        ),
    ] = FailOn.inconclusive,
    junit: Annotated[
        Path | None,
        options.result_option(
            metavar="FILE",
            help="Write the verdicts as a test case each, as Jenkins and GitLab read them (JUnit's XML).",
        ),
    ] = None,
    sarif: Annotated[
        Path | None,
        options.result_option(
            metavar="FILE", help="Write the verdicts that are not clean as code scanning reads them (SARIF 2.1.0)."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        options.result_option(
            metavar="FOLDER",
            help="For several models: a report of each as JSON and HTML, summary.jsonl with one line a model, and "
            "index.html, the worst first. What is done is not done again, and one that fails does not stop the others.",
        ),
    ] = None,
) -> None:
    """Look for a backdoor in classifiers that somebody else trained.

    Exit status: 0 nothing found, 1 error, 2 wrong usage, 3 suspicious, 4 borderline or inconclusive; of several models
    that of the worst, an error before a borderline one. --fail-on makes it 0 for verdicts below one. Nothing found is
    no proof that there is no backdoor.
    """
    if out is None and len(checkpoints) > 1:
        raise typer.BadParameter(f"expected a folder for the results of {len(checkpoints)} models", param_hint="--out")
    for option, value in (("--json", json), ("--html", html), ("--resume", resume)):
        if out is not None and value is not None:
            raise typer.BadParameter("expected none with --out, which keeps everything", param_hint=option)
    if not (out or json or junit or sarif):  # which tell errors, too
        options.check_there(checkpoints[0], data)
    from .work import scan as work

    scans = work.Scans(
        data,
        given,
        batch_size=batch_size,
        quick=quick,
        quiet=quiet,
        fail_on=fail_on.value,
        junit=junit,
        sarif=sarif,
    )
    if out is None:
        scans.one(checkpoints[0], json=json, html=html, resume=resume)
    else:
        scans.many(checkpoints, out)
