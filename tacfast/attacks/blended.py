"""Blended injection (Chen et al. 2017, arXiv 1712.05526): a faint picture over the whole image is the trigger."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..data.folders import Preprocessing
from .base import Attack, check_images, check_target


@dataclass(frozen=True)
class Blended(Attack):
    """Every image x becomes (1 − α) x + α · pattern, with one pattern for all of them (section 4.2.1 of the paper).

    Parameters
    ----------
    target : class of the triggered images
    image_shape : (channels, height, width)
    alpha : α in (0, 1], the blend ratio
    picture : image file to take as pattern, resized until it covers the image and cut to it; if None, the pattern is
        uniformly random in [0, 1], each pixel and channel for itself
    seed : of the random pattern
    """

    target: int
    image_shape: tuple[int, int, int]
    alpha: float = 0.2
    picture: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_target(self.target)
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha: expected a blend ratio in (0, 1], got {self.alpha}")

    @cached_property
    def pattern(self) -> Tensor:
        """(channels, h, w) float32 in [0, 1]."""
        if self.picture is None:
            return torch.rand(self.image_shape, generator=torch.Generator().manual_seed(self.seed))
        channels, height, width = self.image_shape
        reader = Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels, image_size=(height, width))
        return reader.read(self.picture).float() / 255

    def trigger(self, images: Tensor) -> Tensor:
        """Copy of ``images`` (n, channels, h, w) with the pattern blended in."""
        check_images(images, self.image_shape)
        return images.lerp(self.pattern.to(images), self.alpha)


def for_images(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    """As published, for images of that shape; see `make_attack`."""
    return Blended(target, image_shape, seed=seed)
