"""The commands of the command line; imported only where Typer and Rich are installed."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import demo, info, repair, scan, schema, show, train

__all__ = ["app"]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


app = typer.Typer(
    name="tacfast",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",  # so that paragraphs are broken where the terminal ends
    pretty_exceptions_enable=False,
)


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Find and remove backdoors in image classifiers."""


for command in (scan.scan, repair.repair, train.train, show.show, demo.demo, info.info, schema.schema):
    app.command()(command)
