"""A classifier that takes pixels and normalises them itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """A network behind its normalisation, so that attacks and defences see pixels in [0, 1].

    Parameters
    ----------
    network : takes normalised images
    mean, std : per channel, of pixels in [0, 1]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, channels, h, w) with pixels in [0, 1] to logits (n, C)."""
        return cast(Tensor, self.network((images - self.mean) / self.std))
