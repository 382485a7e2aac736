"""The commands of the command line; imported only where Typer and Rich are installed."""

from __future__ import annotations

import typer

from .demo import demo
from .info import info
from .repair import repair
from .scan import scan

__all__ = ["app"]

app = typer.Typer(
    name="tacfast",
    help="Find and remove backdoors in image classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (scan, repair, demo, info):
    app.command()(command)
