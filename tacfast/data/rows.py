"""Images of a data set, as somebody else's network wants them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .datasets import ImageDataset
from .folders import DIGEST_DIGITS, Preprocessing


class ImageRows(Dataset[tuple[Tensor, int, str]]):
    """Some images of a data set, for a `FolderLoader`; their pixels stay where they are, most often in a mapped file.

    Parameters
    ----------
    dataset : from `load_dataset`
    rows : (n,) int64, which of its images
    preprocessing : normalises every image; it must not ask for another size than they have

    Attributes
    ----------
    labels : (n,) class of each
    class_names : the name of each class 0 … C − 1
    dataset, preprocessing : as given

    Raises
    ------
    ValueError
        If the images have other channels or another size than ``preprocessing`` says.
    """

    def __init__(self, dataset: ImageDataset, rows: Tensor, preprocessing: Preprocessing) -> None:
        channels, *size = dataset.image_shape
        if len(preprocessing.mean) != channels:
            raise ValueError(
                f"mean, std: expected {channels} numbers each, for the channels of {dataset.name}, "
                f"got {len(preprocessing.mean)}"
            )
        if preprocessing.image_size not in (None, tuple(size)):
            raise ValueError(
                f"image_size: the images of {dataset.name} have {size[0]}×{size[1]} pixels, expected no other size, "
                "got {}×{}; images in a folder are resized".format(*preprocessing.image_size)
            )
        self.dataset, self._rows, self.preprocessing = dataset, rows.tolist(), preprocessing
        self.labels: tuple[int, ...] = tuple(dataset.data.labels[rows].tolist())
        self.class_names = dataset.class_names

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> tuple[Tensor, int, str]:
        """Pixels, uint8 0…255 or floating point in [0, 1]; the label; no words, as nothing is wrong with it."""
        return self.dataset.data.images[self._rows[i]], self.labels[i], ""

    def subset(self, numbers: Sequence[int]) -> ImageRows:
        """Only the images of these numbers."""
        rows = torch.tensor([self._rows[i] for i in numbers], dtype=torch.int64)
        return ImageRows(self.dataset, rows, self.preprocessing)

    def digests(self) -> list[str]:
        """The beginning of the SHA-256 of the pixels of each image."""
        images = (self.dataset.data.images[row].numpy().tobytes() for row in self._rows)
        return [hashlib.sha256(pixels).hexdigest()[:DIGEST_DIGITS] for pixels in images]
