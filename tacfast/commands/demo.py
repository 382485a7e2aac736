"""``tacfast demo``: train, find, remove."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import MAX_SEED


def demo(
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of everything random; also picks the poisoned class.")
    ] = 0,
    clean: Annotated[bool, typer.Option("--clean", help="Leave the backdoor out; no class should be named.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for report.json and scores.png.")] = Path("tacfast-demo"),
) -> None:
    """Train a digit classifier with a backdoor, find it, remove it. Exit status 0 if all of that worked."""
    from .work import demo as work

    work.demo(seed, clean=clean, out=out)
