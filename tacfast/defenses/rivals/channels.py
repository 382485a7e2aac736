"""The BatchNorm channels of a network: found, masked while a mask is trained, and pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...models.head import Head, unwrapped
from ..selection import cloned_weights
from .base import Tell, train_epochs

# Masks at which to prune, in the published code of ANP and RNP; each step takes all channels up to one of them.
THRESHOLDS = tuple(i / 20 for i in range(19))


def batch_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The BatchNorm2d layers with scale, shift and running statistics, by name.

    Raises
    ------
    ValueError
        If there is none, as in a ViT or a ConvNeXt.
    """
    found = {
        name: module
        for name, module in unwrapped(model)[0].named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.affine and module.running_var is not None
    }
    if not found:
        raise ValueError(
            f"model: expected BatchNorm layers with weights and statistics, got none ({type(model).__name__})"
        )
    return found


class MaskedChannels:
    """A network run with other scales and shifts of its BatchNorm channels than it has; it is never changed.

    As in the published code of ANP and RNP a mask is multiplied with the scale γ alone, so that a pruned channel is
    the constant β. Statistics that a pass in training mode gathers are dropped.

    Parameters
    ----------
    model : with BatchNorm layers, see `batch_norms`
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = unwrapped(model)[0]
        self._frozen = cloned_weights(self._model)
        layers = batch_norms(model)
        self.masks = {name: torch.ones_like(layer.weight).requires_grad_() for name, layer in layers.items()}

    def run(self, inputs: Tensor, noise: Mapping[str, tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Logits (n, C) with scales (m + δ) γ and shifts (1 + ξ) β; ``noise`` holds δ, ξ per layer, 0 without it."""
        changed = dict(self._frozen)
        for name, mask in self.masks.items():
            scale, shift = f"{name}.weight", f"{name}.bias"
            on_scale, on_shift = (0.0, 0.0) if noise is None else noise[name]
            changed[scale] = self._frozen[scale] * (mask + on_scale)
            changed[shift] = self._frozen[shift] * (1 + on_shift)
        logits: Tensor = functional_call(self._model, changed, (inputs,))
        return logits

    def fit(
        self,
        head: Head,
        loader: Iterable[Any],
        epochs: int,
        lr: float,
        step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        tell: Tell,
    ) -> dict[str, Tensor]:
        """Train the masks alone, by SGD with momentum 0.9 and cut to [0, 1] after each step; returns them detached."""
        optimizer = torch.optim.SGD(self.masks.values(), lr=lr, momentum=0.9)

        def update(loss: Tensor) -> None:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                for mask in self.masks.values():
                    mask.clamp_(0, 1)

        train_epochs(self._model, head, loader, epochs, step, optimizer=optimizer, tell=tell, update=update)
        return {name: mask.detach() for name, mask in self.masks.items()}


def prune_by_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[float]:
    """Zero the scale of all channels whose mask is at most the threshold, in place, at rising thresholds.

    Yields
    ------
    float
        Each of `THRESHOLDS` that prunes a channel more than the one before.
    """
    layers, before = batch_norms(model), 0
    for threshold in THRESHOLDS:
        below = {name: mask <= threshold for name, mask in masks.items()}
        count = sum(int(channels.sum()) for channels in below.values())
        if count > before:
            before = count
            with torch.no_grad():
                for name, channels in below.items():
                    layers[name].weight[channels] = 0
            yield threshold
