"""Data sets by name: what every one of them is, and where they are found."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from .._shown import Shown
from .images import LabelledImages
from .listing import MissingDataError
from .pixel_cache import cached_pixels
from .registry import DATASETS, ROOT_VARIABLE
from .splits import Splits, split_indices


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset(Shown):
    """A whole data set, test images included.

    Attributes
    ----------
    name : as in `load_dataset`
    data : all n images and labels, uint8 pixels mapped from a file or floating point in memory
    n_train : the first so many are the official training set and the rest the official test set; n if there is none
    class_names : of the C classes
    mean, std : per channel, of pixels in [0, 1], by which networks normalise them
    padding : pixels of the random crop that its papers train with
    flip : whether they also mirror at random
    """

    name: str
    data: LabelledImages
    n_train: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    flip: bool

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.data.image_shape

    def split(self, *, clean: float = 0.05, held_out: float = 0.02, test: float = 0.25, seed: int = 0) -> Splits:
        """Split at random into training, the defender's clean and held-out images, and test images.

        Parameters
        ----------
        clean, held_out : shares of the official training set, or of all images where there is none
        test : share of all images, where there is no official test set; elsewhere that is taken whole
        seed : of the generator used here; torch's global one is not touched
        """
        official = torch.arange(self.n_train, len(self.data))
        tested = official if len(official) else test
        return split_indices(self.n_train, clean=clean, held_out=held_out, test=tested, seed=seed)


def load_dataset(name: str, root: str | os.PathLike[str] | None = None) -> ImageDataset:
    """Load a data set; its pixels are decoded once, and mapped from a file ever after.

    Parameters
    ----------
    name : one of ``DATASETS``
    root : folder that holds the data sets, or the folder of the data set itself, as it always is for ``folder``; if
        None, the environment variable ``TACFAST_DATA``, or else the current folder

    Raises
    ------
    ValueError
        For an unknown name, or a file that is damaged.
    MissingDataError
        A FileNotFoundError: says which folder was looked for, and how it must look.
    ImportError
        Without the extra that its images need.
    """
    if name not in DATASETS:
        raise ValueError(f"data: expected one of {', '.join(DATASETS)}, got {name!r}")
    given = os.environ.get(ROOT_VARIABLE, ".") if root is None else root
    listing = DATASETS[name](Path(given).expanduser().absolute())
    pixels = cached_pixels(name, listing) if listing.files else torch.cat(list(listing.chunks()))
    return ImageDataset(
        name=name,
        data=LabelledImages(pixels, listing.labels),
        n_train=listing.n_train,
        class_names=listing.class_names,
        mean=listing.mean,
        std=listing.std,
        padding=listing.padding,
        flip=listing.flip,
    )


__all__ = ["DATASETS", "ROOT_VARIABLE", "ImageDataset", "MissingDataError", "load_dataset"]
