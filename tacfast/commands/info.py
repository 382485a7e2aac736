"""``tacfast info``: what is installed, and what it runs on."""

from __future__ import annotations

from typing import Annotated

import typer


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Show versions, the code path in use, and the CUDA devices that can be used."""
    from .work import info as work

    work.info(as_json)
