"""``tacfast show``: what the trigger of an attack looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..attacks.registry import ATTACKS
from ..data.registry import DATASETS
from . import options
from .options import MAX_SEED

# More would be too small to look at.
MAX_IMAGES = 16


def show(
    attack: Annotated[str, typer.Argument(metavar="ATTACK", help=f"One of {', '.join(ATTACKS)}.", show_default=False)],
    data: Annotated[str, typer.Option(help=f"Data set: one of {', '.join(DATASETS)}.")] = "digits",
    data_root: options.DataRoot = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Network of tacfast train on these data, under this attack: its target and its trigger are shown. "
            "Needed where the trigger is trained.",
        ),
    ] = None,
    target: Annotated[int, typer.Option(help="Class that triggered images are sent to.")] = 0,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of what is random in the trigger, and of the choice of images.")
    ] = 0,
    images: Annotated[int, typer.Option(min=1, max=MAX_IMAGES, help="How many images.")] = 8,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The picture, a PNG; ATTACK.png if not given.")
    ] = None,
) -> None:
    """Draw images without and with the trigger of an attack, and ten times the difference."""
    from .work import show as work

    path = Path(f"{attack}.png") if out is None else out
    work.show(
        attack, data, data_root=data_root, checkpoint=checkpoint, target=target, seed=seed, images=images, path=path
    )
