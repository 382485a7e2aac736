"""WaNet (Nguyen & Tran 2021, arXiv 2102.10369): a small smooth warp of the image is the trigger."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Attack, check_images, check_target


@dataclass(frozen=True)
class WaNet(Attack):
    """Samples every image at places that one warping field moved a little (section 3 of the paper).

    The field is drawn at k × k places, scaled to a mean size of ``strength`` and interpolated. Like every coordinate
    here it is in half image sides, with −1 and 1 at the centres of the outermost pixels: ``strength`` / h is half as
    many pixels. In training, further images are warped by the field and noise and keep their label (the noise mode).

    Parameters
    ----------
    target : class of the triggered images
    image_shape : (channels, height, width)
    grid : k, at least 2
    strength : s > 0
    decoys_per_poisoned : images of the noise mode for each poisoned one
    seed : of the field
    """

    target: int
    image_shape: tuple[int, int, int]
    grid: int = 4
    strength: float = 0.5
    decoys_per_poisoned: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_target(self.target)
        if self.grid < 2:
            raise ValueError(f"grid: expected at least 2 places a side, got {self.grid}")
        if self.strength <= 0:
            raise ValueError(f"strength: expected a warp > 0, got {self.strength}")
        if self.decoys_per_poisoned < 0:
            raise ValueError(f"decoys_per_poisoned: expected at least 0, got {self.decoys_per_poisoned}")

    @cached_property
    def places(self) -> Tensor:
        """(h, w, 2) float32 in [−1, 1]: where the triggered pixels come from, the column first."""
        drawn = torch.rand(1, 2, self.grid, self.grid, generator=torch.Generator().manual_seed(self.seed)) * 2 - 1
        size = self.image_shape[1:]
        field = F.interpolate(drawn / drawn.abs().mean(), size, mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
        rows, columns = (torch.linspace(-1, 1, length) for length in size)
        still = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        return (still + self.strength * field / self._sides).clamp(-1, 1)

    @property
    def _sides(self) -> Tensor:
        return torch.tensor(self.image_shape[:0:-1])

    def trigger(self, images: Tensor) -> Tensor:
        """Copy of ``images`` (n, channels, h, w), warped."""
        check_images(images, self.image_shape)
        return _sample(images, self.places.to(images).expand(len(images), -1, -1, -1))

    def decoy(self, images: Tensor) -> Tensor:
        """Copy of ``images`` (n, channels, h, w), warped with noise on top, uniform in [−1, 1] / side for each place.

        The noise is drawn from torch's global generator, anew at every call.
        """
        check_images(images, self.image_shape)
        places = self.places.to(images)
        noise = torch.rand(len(images), *places.shape, dtype=images.dtype, device=images.device) * 2 - 1
        return _sample(images, (places + noise / self._sides.to(images)).clamp(-1, 1))


def _sample(images: Tensor, places: Tensor) -> Tensor:
    return F.grid_sample(images, places, mode="bilinear", padding_mode="zeros", align_corners=True)


def for_images(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    """As published, for images of that shape; see `make_attack`."""
    return WaNet(target, image_shape, seed=seed)
