"""``tacfast schema``: what is in the JSON of a report."""

from __future__ import annotations

import typer

from ..report import schema_text


def schema() -> None:
    """Print the JSON Schema of what --json writes."""
    typer.echo(schema_text(), nl=False)
