"""``tacfast train``: a classifier, plain or under an attack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..attacks.registry import ATTACKS
from ..data.registry import DATASETS, ROOT_VARIABLE
from ..training.recipe import PRECISIONS, SCHEDULES, Recipe
from . import options
from .options import MAX_SEED

DATA, MODEL, ATTACK, RECIPE = "The data", "The network", "The attack", "The training"


def train(
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The weights, .safetensors; a .json beside it says what they are, and FILE.state, from which an "
            "interrupted training goes on, is deleted at the end.",
            rich_help_panel=options.RESULT,
            show_default=False,
        ),
    ],
    data: Annotated[str, typer.Option(help=f"One of {', '.join(DATASETS)}.", rich_help_panel=DATA)] = "digits",
    data_root: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help=f"Where the data sets are; {ROOT_VARIABLE}, else the current folder.",
            rich_help_panel=DATA,
        ),
    ] = None,
    clean: Annotated[
        float, typer.Option(help="Share of the training images kept for the defender.", rich_help_panel=DATA)
    ] = 0.05,
    held_out: Annotated[
        float, typer.Option(help="Share kept for the defender to measure on.", rich_help_panel=DATA)
    ] = 0.02,
    arch: options.Arch = "preactresnet18",
    arch_args: options.ArchArgs = None,
    attack: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(ATTACKS)}; none if not given.", rich_help_panel=ATTACK),
    ] = None,
    target: Annotated[int, typer.Option(help="The poisoned class.", rich_help_panel=ATTACK)] = 0,
    ratio: Annotated[float, typer.Option(help="Share of the images that are poisoned.", rich_help_panel=ATTACK)] = 0.1,
    clean_model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For trojannn: a clean network of tacfast train on these data. Without it one is trained first.",
            rich_help_panel=ATTACK,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.", rich_help_panel=RECIPE)] = Recipe.epochs,
    batch_size: Annotated[
        int, typer.Option(min=2, help="Images per step.", rich_help_panel=RECIPE)
    ] = Recipe.batch_size,
    lr: Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=RECIPE)] = Recipe.lr,
    schedule: Annotated[
        str, typer.Option(help=f"One of {', '.join(SCHEDULES)}.", rich_help_panel=RECIPE)
    ] = Recipe.schedule,
    weight_decay: Annotated[float, typer.Option(help="Of SGD.", rich_help_panel=RECIPE)] = Recipe.weight_decay,
    precision: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(PRECISIONS)}; auto is bfloat16 where the processor computes in it.",
            rich_help_panel=RECIPE,
        ),
    ] = Recipe.precision,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of everything random.", rich_help_panel=RECIPE)
    ] = Recipe.seed,
    half: Annotated[
        bool, typer.Option("--half", help="Write the weights in half precision.", rich_help_panel=options.RESULT)
    ] = False,
    device: options.Device = None,
) -> None:
    """Train a classifier, clean or with a backdoor. Killed and called again, it goes on after the last whole epoch."""
    from ..training.trained import Plan
    from .work import train as work

    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        schedule=schedule,  # type: ignore[arg-type]  # Recipe checks it
        weight_decay=weight_decay,
        precision=precision,  # type: ignore[arg-type]
        seed=seed,
    )
    plan = Plan(
        data=data,
        arch=arch or "preactresnet18",
        arch_args=arch_args or {},
        recipe=recipe,
        attack=attack,
        ratio=ratio,
        target=target,
        clean=clean,
        held_out=held_out,
    )
    work.train(plan, out, data_root=data_root, clean_model=clean_model, half=half, device=device)
