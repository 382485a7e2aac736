"""``tacfast train``: a classifier, plain or under an attack."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..attacks.registry import ATTACKS
from ..data.registry import DATASETS
from ..training.recipe import PRECISIONS, SCHEDULES, Recipe
from . import options
from .options import MAX_SEED

image_option, attack_option, recipe_option = (
    partial(typer.Option, rich_help_panel=panel) for panel in ("The images", "The attack", "The training")
)


def train(
    out: Annotated[
        Path,
        options.result_option(
            metavar="FILE",
            help="The weights, .safetensors; a .json beside it says what they are. An interrupted training goes on "
            "from FILE.state, that of the clean network for trojannn from a .clean.state; both are deleted at the end.",
            show_default=False,
        ),
    ],
    data: Annotated[str, image_option(help=f"One of {', '.join(DATASETS)}.")] = "digits",
    data_root: options.DataRoot = None,
    clean: Annotated[float, image_option(help="Share of the training images kept for the defender.")] = 0.05,
    held_out: Annotated[float, image_option(help="Share kept for the defender to measure on.")] = 0.02,
    arch: options.Arch = "preactresnet18",
    arch_args: options.ArchArgs = None,
    attack: Annotated[
        str | None,
        attack_option(help=f"One of {', '.join(ATTACKS)}; none if not given."),
    ] = None,
    target: Annotated[int, attack_option(help="The poisoned class.")] = 0,
    ratio: Annotated[float, attack_option(help="Share of the images that are poisoned.")] = 0.1,
    clean_model: Annotated[
        Path | None,
        attack_option(
            metavar="FILE",
            help="For trojannn: a clean network of tacfast train on these data. Without it one is trained first.",
        ),
    ] = None,
    epochs: Annotated[int, recipe_option(min=1, help="Passes over the images.")] = Recipe.epochs,
    batch_size: Annotated[int, recipe_option(min=2, help="Images per step.")] = Recipe.batch_size,
    lr: Annotated[float, recipe_option(help="Peak learning rate.")] = Recipe.lr,
    schedule: Annotated[str, recipe_option(help=f"One of {', '.join(SCHEDULES)}.")] = Recipe.schedule,
    weight_decay: Annotated[float, recipe_option(help="Of SGD.")] = Recipe.weight_decay,
    precision: Annotated[
        str,
        recipe_option(help=f"One of {', '.join(PRECISIONS)}; auto is bfloat16 where the processor computes in it."),
    ] = Recipe.precision,
    seed: Annotated[int, recipe_option(min=0, max=MAX_SEED, help="Of everything random.")] = Recipe.seed,
    half: Annotated[bool, options.result_option("--half", help="Write the weights in half precision.")] = False,
    device: options.Device = None,
) -> None:
    """Train a classifier, clean or with a backdoor. Killed and called again, it goes on after the last whole epoch."""
    for option, value, known in (
        ("--data", data, DATASETS),
        ("--attack", attack, ATTACKS),
        ("--schedule", schedule, SCHEDULES),
        ("--precision", precision, PRECISIONS),
    ):
        options.check_choice(option, value, known)
    if out.suffix != ".safetensors":
        raise typer.BadParameter(f"expected a name that ends in .safetensors, got {out}", param_hint="--out")
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
