"""How small a warp, the same for all images, sends them to a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .lock_step import LockStep


@dataclass(frozen=True, eq=False)
class Warp:
    """Samples every image at places that a coarse smooth field moved.

    Parameters
    ----------
    size : (h, w) of the images
    grid : places a side at which the field is free
    like : of the type and device of the images
    """

    size: tuple[int, int]
    grid: int
    like: Tensor

    def start(self, count: int) -> Tensor:
        """Parameters (count, 2, grid, grid): moves, in pixels, whose root mean square over the image is their norm."""
        return torch.zeros(count, 2, self.grid, self.grid, dtype=self.like.dtype, device=self.like.device)

    def apply(self, inputs: Tensor, parameters: Tensor) -> Tensor:
        """Images warped by their row of ``parameters``."""
        moves = F.interpolate(parameters * self.grid, self.size, mode="bicubic", align_corners=True)
        sides = torch.tensor(self.size[::-1], dtype=inputs.dtype, device=inputs.device)
        rows, columns = (torch.linspace(-1, 1, side, dtype=inputs.dtype, device=inputs.device) for side in self.size)
        still = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        places = still + 2 * moves.permute(0, 2, 3, 1) / (sides - 1)
        return F.grid_sample(inputs, places, mode="bilinear", padding_mode="border", align_corners=True)


@dataclass(frozen=True, kw_only=True)
class UniversalWarp(LockStep):
    """Mean log-loss of a universal coarse warp as it grows towards every class in lock-step (for attacks like WaNet).

    Parameters
    ----------
    batch, steps : as in `LockStep`
    grid : places a side at which the warp is free
    first, last : root mean square of the moves at the first and the last step, as a share of the side of an image
    """

    name: ClassVar[str] = "warp"
    title: ClassVar[str] = "smallest warp of the image"

    grid: int = 4
    first: float = 0.003
    last: float = 0.12

    def distortion(self, inputs: Tensor) -> tuple[Warp, float]:
        """A warp, and the side of an image."""
        if inputs.ndim != 4:
            raise ValueError(f"evidence: expected images (n, channels, h, w), got shape {tuple(inputs.shape)}")
        size = (int(inputs.shape[-2]), int(inputs.shape[-1]))
        return Warp(size, self.grid, inputs[:0]), sum(size) / 2
