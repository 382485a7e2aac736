"""``tacfast show``: what the trigger of an attack looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from ..attacks import ATTACKS, Attack, make_attack
from ..data.datasets import DATASETS, ROOT_VARIABLE, ImageDataset, load_dataset
from ..evaluation.metrics import attacked_rows
from ..report import plot_triggers
from ..report.words import short_name
from ..training.trained import load_trained
from .console import printer
from .demo import MAX_SEED
from .loading import check_outputs

# More would be too small to look at.
MAX_IMAGES = 16


def show(
    attack: Annotated[str, typer.Argument(metavar="ATTACK", help=f"One of {', '.join(ATTACKS)}.", show_default=False)],
    data: Annotated[str, typer.Option(help=f"Data set: one of {', '.join(DATASETS)}.")] = "digits",
    data_root: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help=f"Where the data sets are; {ROOT_VARIABLE}, else the current folder."),
    ] = None,
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
    path = Path(f"{attack}.png") if out is None else out
    check_outputs(out=path)
    dataset = load_dataset(data, data_root)
    made = _untrained(attack, target, dataset, seed) if checkpoint is None else _trained(attack, checkpoint, dataset)
    labels = dataset.data.labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rows = order[attacked_rows(made, labels)[order]][:images]
    clean, classes = dataset.data.batch(rows)
    names = dict(enumerate(dataset.class_names))
    sent = zip(classes.tolist(), made.relabel(classes).tolist(), strict=True)
    titles = [f"{short_name(names, k)}\n→ {short_name(names, goal)}" for k, goal in sent]
    plot_triggers(clean, made.trigger(clean), titles, path, headline=f"{attack} on {data}")
    printer(Console())(f"wrote {path}")


def _untrained(name: str, target: int, dataset: ImageDataset, seed: int) -> Attack:
    attack = make_attack(name, target, num_classes=dataset.num_classes, image_shape=dataset.image_shape, seed=seed)
    if attack.trained:
        raise ValueError(
            f"attack: the trigger of {name} is trained along with a network; --checkpoint names one of tacfast train"
        )
    return attack


def _trained(name: str, checkpoint: Path, dataset: ImageDataset) -> Attack:
    trained = load_trained(checkpoint, dataset)
    assert trained.checkpoint.provenance is not None
    under = trained.checkpoint.provenance["plan"]["attack"]
    if trained.attack is None or under != name:
        raise ValueError(f"checkpoint: expected a network trained under {name}, got {under or 'a clean one'}")
    return trained.attack
