"""scikit-learn's handwritten digits: real images that need no download."""

from __future__ import annotations

from pathlib import Path

import torch

from .._lazy import needed
from .images import LabelledImages
from .listing import Listing


def load_digits() -> LabelledImages:
    """Load the 1797 digits of the UCI Optical Recognition test set, in ten classes.

    The images are (1797, 1, 8, 8) float32 in [0, 1].

    Raises
    ------
    ImportError
        Without the extra ``digits`` (scikit-learn, which embeds the images).
    """
    raw = needed("sklearn.datasets", "the digits need scikit-learn: pip install 'tacfast[digits]'").load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    return LabelledImages(images, torch.tensor(raw.target, dtype=torch.int64))


def list_images(root: Path) -> Listing:
    """List the digits, which come with scikit-learn and are in no folder."""
    data = load_digits()
    return Listing(
        files=(),
        labels=data.labels,
        n_train=len(data),
        shape=(1, 8, 8),
        chunks=lambda: iter([data.images]),
        class_names=tuple(map(str, range(10))),
        mean=(0.0,),
        std=(1.0,),
        padding=1,
        flip=False,
    )
