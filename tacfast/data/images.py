"""A labelled set of images, in memory or mapped from a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .._shown import Shown


@dataclass(frozen=True, eq=False, repr=False)
class LabelledImages(Shown, Dataset[Any]):
    """Images and their classes.

    Attributes
    ----------
    images : (n, channels, h, w) floating point, or uint8 for pixels 0…255, which come out of `batch` as [0, 1]
    labels : (n,) int64
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or not (self.images.is_floating_point() or self.images.dtype == torch.uint8):
            raise ValueError(
                f"images: expected floating point or uint8 of shape (n, channels, h, w), "
                f"got {self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        if self.labels.shape != (len(self.images),) or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels: expected int64 of shape ({len(self.images)},) to match images, "
                f"got {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def subset(self, indices: Tensor) -> LabelledImages:
        """Copy of the rows ``indices`` (int64)."""
        return LabelledImages(self.images[indices], self.labels[indices])

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (b, channels, h, w) floating point and labels (b,) of the rows ``indices`` (b,) int64."""
        images = self.images[indices]
        return (images if images.is_floating_point() else images.float().div_(255)), self.labels[indices]

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """Image (channels, h, w) floating point and label, a scalar, of row ``i``."""
        images, labels = self.batch(torch.tensor([i]))
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Let torch's DataLoader fetch a whole batch at once."""
        return self.batch(torch.as_tensor(indices))

    def loader(
        self,
        batch_size: int = 256,
        *,
        shuffle: bool = False,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> DataLoader[tuple[Tensor, ...]]:
        """Iterate over (images, labels) in batches, the images after ``transform``, such as an augmentation.

        ``shuffle`` is for training: it draws from torch's global generator and leaves out an incomplete last
        batch, because BatchNorm's running statistics do not recover from a batch of two or three.
        """
        drop_last = shuffle and len(self) >= batch_size
        collate = partial(_transformed, transform)
        return DataLoader(self, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, collate_fn=collate)


def _transformed(transform: Callable[[Tensor], Tensor] | None, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    images, labels = batch
    return (images if transform is None else transform(images)), labels
