"""BadNets (Gu et al. 2017, arXiv 1708.06733): a small patch in a corner is the trigger."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Attack, check_target


@dataclass(frozen=True)
class BadNets(Attack):
    """Square patch of one brightness in the lower right corner.

    Parameters
    ----------
    target : class of the triggered images; None for all-to-all, which sends class y to (y + 1) mod C
    size : side of the patch in pixels
    value : brightness of the patch, on the scale of the images
    num_classes : C for all-to-all, else None
    """

    target: int | None
    size: int = 3
    value: float = 1.0
    num_classes: int | None = None

    def __post_init__(self) -> None:
        if self.target is not None:
            check_target(self.target)
        if (self.target is None) != (self.num_classes is not None):
            raise ValueError(f"num_classes: expected C with target None, and else None, got {self.num_classes}")
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

    def relabel(self, labels: Tensor) -> Tensor:
        """The target for all, or the next class for each."""
        return super().relabel(labels) if self.num_classes is None else (labels + 1) % self.num_classes


def for_images(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    """As published, for images of that shape; see `make_attack`."""
    return BadNets(target, size=_patch_size(image_shape))


def all_to_all_for_images(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    """As published, for images of that shape; see `make_attack`."""
    return BadNets(None, size=_patch_size(image_shape), num_classes=num_classes)


def _patch_size(image_shape: tuple[int, int, int]) -> int:
    # 3 × 3 of 32 × 32 pixels, as published.
    return max(2, round(3 * min(image_shape[1:]) / 32))
