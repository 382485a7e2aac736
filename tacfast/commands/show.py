"""``tacfast show``: what the trigger of an attack looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from ..attacks import ATTACKS, make_attack
from ..data.datasets import DATASETS, ROOT_VARIABLE, load_dataset
from ..evaluation.metrics import attacked_rows
from ..report import plot_triggers
from ..report.words import short_name
from .demo import MAX_SEED
from .screen import printer
from .suspect import check_outputs

# More would be too small to look at.
MAX_IMAGES = 16


def show(
    attack: Annotated[str, typer.Argument(metavar="ATTACK", help=f"One of {', '.join(ATTACKS)}.", show_default=False)],
    data: Annotated[str, typer.Option(help=f"Data set: one of {', '.join(DATASETS)}.")] = "digits",
    data_root: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help=f"Where the data sets are; {ROOT_VARIABLE}, else the current folder."),
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
    path = Path(f"{attack}.png") if out is None else out
    check_outputs(out=path)
    dataset = load_dataset(data, data_root)
    made = make_attack(attack, target, num_classes=dataset.num_classes, image_shape=dataset.image_shape, seed=seed)
    if made.trained:
        raise ValueError(f"attack: the trigger of {attack} is trained along with a network, and there is none to show")
    labels = dataset.data.labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rows = order[attacked_rows(made, labels)[order]][:images]
    clean, classes = dataset.data.batch(rows)
    names = dict(enumerate(dataset.class_names))
    sent = zip(classes.tolist(), made.relabel(classes).tolist(), strict=True)
    titles = [f"{short_name(names, k)}\n→ {short_name(names, goal)}" for k, goal in sent]
    plot_triggers(clean, made.trigger(clean), titles, path, headline=f"{attack} on {data}")
    printer(Console())(f"wrote {path}")
