"""Pictures of triggers."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from ...attacks import Attack, make_attack
from ...data.datasets import ImageDataset, load_dataset
from ...evaluation.metrics import attacked_rows
from ...report import plot_triggers
from ...report.words import short_name
from ...training.trained import load_trained
from .console import printer
from .loading import check_outputs


def show(
    attack: str,
    data: str,
    *,
    data_root: Path | None,
    checkpoint: Path | None,
    target: int,
    seed: int,
    images: int,
    path: Path,
) -> None:
    """Draw so many images of a data set with the trigger of an attack to ``path``."""
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
