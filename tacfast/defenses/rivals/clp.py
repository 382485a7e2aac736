"""Channel Lipschitzness pruning, CLP (Zheng et al. 2022, arXiv 2208.03111)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...models.head import Head
from ..held_out import HeldOut
from ..training import is_finite
from .base import Rival, Tell
from .channels import batch_norms


@dataclass(frozen=True, kw_only=True)
class ChannelLipschitzness(Rival):
    """Zero the BatchNorm channels whose Lipschitz bound stands out in their layer; no sample is looked at.

    The bound of channel k is σ_max(K_k) |γ_k| / √(var_k + ε), with K_k the kernel of its convolution as a matrix
    (channels in, positions). Those above the mean of the layer plus ``u`` standard deviations get γ = β = 0.

    A BatchNorm is taken to follow the last convolution defined before it, if that has as many channels, as in the
    published code. In a pre-activation block this is literally so for the second BatchNorm; the first one sees the sum
    of the block before, and is taken to follow the last convolution of that.

    Parameters
    ----------
    u : standard deviations above the mean; 3 as published, 5 for TinyImageNet
    """

    name: ClassVar[str] = "clp"
    u: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("u", "a finite number", is_finite(self.u))

    def treat(self, model: nn.Module, head: Head, loader: Iterable[Any], held_out: HeldOut | None, tell: Tell) -> None:
        """Prune ``model`` in place.

        Raises
        ------
        ValueError
            If no BatchNorm layer follows a convolution.
        """
        pairs = list(convolutions_before(model))
        if not pairs:
            raise ValueError(f"model: expected BatchNorm layers after convolutions, got none ({type(model).__name__})")
        with torch.no_grad():
            for convolution, norm in pairs:
                bounds = channel_bounds(convolution, norm)
                outliers = bounds > bounds.mean() + self.u * bounds.std()
                norm.weight[outliers] = 0
                norm.bias[outliers] = 0


def convolutions_before(model: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each BatchNorm with the last convolution defined before it, if that has as many channels."""
    norms, last = set(batch_norms(model).values()), None
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            last = module
        elif module in norms and last is not None and last.out_channels == module.num_features:
            yield last, module


def channel_bounds(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Lipschitz bound of each channel (channels out,) of a convolution and the BatchNorm after it."""
    assert norm.running_var is not None
    spectral = torch.linalg.matrix_norm(convolution.weight.float().flatten(2), ord=2)
    bounds: Tensor = spectral * norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    return bounds
