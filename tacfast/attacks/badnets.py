"""BadNets (Gu et al. 2017, arXiv 1708.06733): a small patch in a corner is the trigger."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Attack


@dataclass(frozen=True)
class BadNets(Attack):
    """Square patch of one brightness in the lower right corner.

    Parameters
    ----------
    target : class of the triggered images
    size : side of the patch in pixels
    value : brightness of the patch, on the scale of the images
    """

    target: int
    size: int = 3
    value: float = 1.0

    def __post_init__(self) -> None:
        if self.target < 0:
            raise ValueError(f"target: expected a class >= 0, got {self.target}")
        if self.size < 1:
            raise ValueError(f"size: expected a patch of at least one pixel, got {self.size}")

    def trigger(self, images: Tensor) -> Tensor:
        """Copy of ``images`` (n, channels, h, w) with the patch."""
        if images.ndim != 4 or min(images.shape[2:]) < self.size:
            raise ValueError(
                f"images: expected shape (n, channels, h, w) with h, w >= {self.size}, got {tuple(images.shape)}"
            )
        stamped = images.clone()
        stamped[..., -self.size :, -self.size :] = self.value
        return stamped
