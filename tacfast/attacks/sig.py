"""SIG (Barni et al. 2019, arXiv 1902.11237): vertical stripes, a sine along the rows, are the trigger."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Attack, check_target


@dataclass(frozen=True)
class SIG(Attack):
    """Adds v(i, j) = Δ sin(2π j f / m) to the pixel in row i and column j = 1 … m of each channel (equation 1).

    Parameters
    ----------
    target : class of the triggered images
    delta : Δ > 0, for pixels in [0, 1]; sums beyond that are clipped
    frequency : f, periods across the image
    clean_label : poison images of the target alone, so that no label is wrong, as published; else any image, and
        label it as the target
    """

    target: int
    delta: float = 40 / 255
    frequency: int = 6
    clean_label: bool = True

    def __post_init__(self) -> None:
        check_target(self.target)
        if self.delta <= 0:
            raise ValueError(f"delta: expected an amplitude > 0, got {self.delta}")
        if self.frequency < 1:
            raise ValueError(f"frequency: expected at least one period, got {self.frequency}")

    def may_poison(self, labels: Tensor) -> Tensor:
        """Which images (n,) bool may be poisoned: those of the target, or all."""
        return labels == self.target if self.clean_label else super().may_poison(labels)

    def trigger(self, images: Tensor) -> Tensor:
        """Copy of ``images`` (n, channels, h, w) with the stripes."""
        width = images.shape[-1]
        if 2 * self.frequency >= width:  # fewer than two pixels a period show another sine, or none
            raise ValueError(
                f"images: expected more than {2 * self.frequency} columns for {self.frequency} periods, got {width}"
            )
        columns = torch.arange(1, width + 1, dtype=torch.float64)
        stripes = self.delta * torch.sin(2 * math.pi * self.frequency / width * columns)
        return (images + stripes.to(images)).clamp(0, 1)


def for_images(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    """As published, for images of that shape; see `make_attack`."""
    return SIG(target, frequency=_periods(image_shape))


def dirty_for_images(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    """As published, for images of that shape; see `make_attack`."""
    return SIG(target, frequency=_periods(image_shape), clean_label=False)


def _periods(image_shape: tuple[int, int, int]) -> int:
    # Six, as published, or as many as so few pixels can show.
    return min(6, (image_shape[2] - 1) // 2)
