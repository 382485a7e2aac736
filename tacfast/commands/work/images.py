"""The images that --data names: of a folder, or of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import typer

from ..._text import listed
from ...data import ImageFolder, ImageRows, Preprocessing, find_images
from ...data.datasets import DATASETS, ImageDataset, load_dataset
from ...data.splits import some_of
from ...models import Checkpoint
from ...training.trained import splits_of
from ..options import SPLITS


@dataclass(frozen=True, eq=False)
class Images:
    """The images for a model.

    Attributes
    ----------
    listed : the images
    source : where they are from, in words
    trained : how many of them trained the model, as far as its file says
    """

    listed: ImageFolder | ImageRows
    source: str
    trained: int = 0


def open_images(
    checkpoint: Checkpoint, data: str, root: Path | None, split: str | None, most: int | None = None
) -> Images:
    """List the images of a folder, or some of a data set.

    Parameters
    ----------
    checkpoint : complete: its normalisation, size of images and classes are those of the images
    data : a name in ``DATASETS``, which goes before a folder in the current one that is called so; or else a folder
    root : where the data sets are, as in `load_dataset`
    split : one of ``SPLITS``; None for the default
    most : so many of them are taken at random, always the same; all if None

    Raises
    ------
    typer.BadParameter
        If ``root`` or ``split`` is given along with a folder, or is no split, or none that this data set has.
    OSError, ValueError
        Naming the argument that is wrong.
    """
    assert checkpoint.mean is not None
    assert checkpoint.std is not None
    preprocessing = Preprocessing(checkpoint.mean, checkpoint.std, checkpoint.image_size)
    if data in DATASETS:
        return _of_dataset(checkpoint, load_dataset(data, root), split, preprocessing, most)
    for option, value in (("--data-root", root), ("--split", split)):
        if value is not None:
            raise typer.BadParameter(f"expected a data set by name for --data, got {data}", param_hint=option)
    found = _in_folder(checkpoint, Path(data), preprocessing)
    return Images(found if most is None else found.subset(_some(len(found), most).tolist()), data)


def _some(n: int, most: int) -> torch.Tensor:
    return some_of(n, most).sort().values


def _in_folder(checkpoint: Checkpoint, folder: Path, preprocessing: Preprocessing) -> ImageFolder:
    assert checkpoint.num_classes is not None
    try:
        return find_images(folder, preprocessing, checkpoint.num_classes, class_names=checkpoint.class_names)
    except ValueError as error:
        own = (checkpoint.provenance or {}).get("data")
        if own not in DATASETS:
            raise
        raise ValueError(f"{error}; the model was trained on {own}, and --data {own} takes its images") from error


def _of_dataset(
    checkpoint: Checkpoint, dataset: ImageDataset, split: str | None, preprocessing: Preprocessing, most: int | None
) -> Images:
    if checkpoint.num_classes != dataset.num_classes:
        raise ValueError(
            f"data: expected images of the model's {checkpoint.num_classes} classes, "
            f"got {dataset.name} with {dataset.num_classes}"
        )
    names = checkpoint.class_names
    if names is not None and names != dataset.class_names:
        raise ValueError(
            f"class_names: expected those of {dataset.name} in its order ({listed(dataset.class_names)}), "
            f"got {listed(names)}"
        )
    splits = splits_of(checkpoint, dataset)
    everything = torch.arange(len(dataset.data))
    if splits is None:
        train, test = everything.tensor_split([dataset.n_train])
        known = {"test": test, "train": train, "all": everything}
    else:
        shares = (splits.clean, splits.held_out, splits.test, splits.train, everything)
        known = dict(zip(SPLITS, shares, strict=True))
    known = {name: rows for name, rows in known.items() if len(rows)}
    chosen = split or ("test" if splits is None else "clean")
    if chosen not in known:
        raise typer.BadParameter(
            f"expected one of {', '.join(known)}, which {dataset.name} has for this model, got {chosen}",
            param_hint="--split",
        )
    rows = known[chosen]
    rows = rows if most is None else rows[_some(len(rows), most)]
    trained = 0 if splits is None else int(torch.isin(rows, splits.train).sum())
    return Images(ImageRows(dataset, rows, preprocessing), f"{dataset.name}, {chosen}", trained)
