"""scikit-learn's handwritten digits: real images that need no download."""

from __future__ import annotations

import torch

from .images import LabelledImages


def load_digits() -> LabelledImages:
    """Load the 1797 digits of the UCI Optical Recognition test set, in ten classes.

    The images are (1797, 1, 8, 8) float32 in [0, 1].

    Raises
    ------
    ImportError
        Without the extra ``digits`` (scikit-learn, which embeds the images).
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError("the digits need scikit-learn: pip install 'tacfast[digits]'") from error
    raw = load()
    images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    return LabelledImages(images, torch.tensor(raw.target, dtype=torch.int64))
