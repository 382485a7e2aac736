"""``tacfast schema``: what is in the JSON of a report."""

from __future__ import annotations

import typer


def schema() -> None:
    """Print the JSON Schema of what --json writes."""
    from ..report import schema_text

    typer.echo(schema_text(), nl=False)
