"""A labelled set of images that fits in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and their classes.

    Attributes
    ----------
    images : (n, channels, h, w) floating point
    labels : (n,) int64
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or not self.images.is_floating_point():
            raise ValueError(
                f"images: expected floating point of shape (n, channels, h, w), "
                f"got {self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        if self.labels.shape != (len(self.images),) or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels: expected int64 of shape ({len(self.images)},) to match images, "
                f"got {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> LabelledImages:
        """Copy of the rows ``indices`` (int64)."""
        return LabelledImages(self.images[indices], self.labels[indices])

    def loader(self, batch_size: int = 256, *, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
        """Iterate over (images, labels) in batches.

        ``shuffle`` is for training: it draws from torch's global generator and leaves out an incomplete last
        batch, because BatchNorm's running statistics do not recover from a batch of two or three.
        """
        drop_last = shuffle and len(self) >= batch_size
        return DataLoader(
            TensorDataset(self.images, self.labels),
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
        )
