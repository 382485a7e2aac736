"""The commands of the command line; imported only where Typer and Rich are installed."""

from __future__ import annotations

import typer

from . import demo, info, repair, scan, show, train

__all__ = ["app"]

app = typer.Typer(
    name="tacfast",
    help="Find and remove backdoors in image classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (scan.scan, repair.repair, train.train, show.show, demo.demo, info.info):
    app.command()(command)
