"""Random crops and mirror images, a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def random_crop(images: Tensor, padding: int = 1) -> Tensor:
    """Shift each image (n, channels, h, w) by up to ``padding`` pixels either way, filling with zeros."""
    n, _, h, w = images.shape
    rows, columns = torch.randint(0, 2 * padding + 1, (2, n, 1))
    windows = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    picked = windows[
        torch.arange(n)[:, None, None],
        (rows + torch.arange(h))[:, :, None],
        (columns + torch.arange(w))[:, None, :],
    ]
    return picked.permute(0, 3, 1, 2)


def random_flip(images: Tensor) -> Tensor:
    """Mirror half of the images (n, channels, h, w), drawn at random, left to right."""
    mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
    return torch.where(mirrored, images.flip(-1), images)


def augment(images: Tensor, *, padding: int, flip: bool) -> Tensor:
    """Crop at random, and mirror at random if ``flip``; draws from torch's global generator on the CPU."""
    cropped = random_crop(images, padding)
    return random_flip(cropped) if flip else cropped
