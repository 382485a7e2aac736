"""The BatchNorm channels of a network: found, masked while a mask is trained, and pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...models.head import Head, unwrapped
from ..held_out import cloned_weights
from .base import Tell, train_epochs

# How many steps pruning takes at most; each takes a fixed factor more channels, so that the first ones are single.
STEPS = 48


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

        @torch.no_grad()
        def cut(*_: Any) -> None:
            for mask in self.masks.values():
                mask.clamp_(0, 1)

        optimizer.register_step_post_hook(cut)
        train_epochs(self._model, head, loader, epochs, step, optimizer=optimizer, tell=tell)
        return {name: mask.detach() for name, mask in self.masks.items()}


def prune_by_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[float]:
    """Zero the scale of all channels whose mask is at most the threshold, in place, at rising thresholds.

    The published thresholds, 0 to 0.9, are for masks that were trained for long. Here they are masks that occur, of the
    smallest and on to the largest below 1, so that the order of the channels counts and not how far masks have come.

    Yields
    ------
    float
        The threshold, at which at least one channel more is pruned than before.
    """
    layers, ranked = batch_norms(model), torch.cat(list(masks.values())).sort().values
    ranks = sorted({round(len(ranked) ** (i / STEPS)) for i in range(STEPS + 1)})
    for threshold in sorted({float(ranked[rank - 1]) for rank in ranks}):
        if threshold < 1:
            with torch.no_grad():
                for name, mask in masks.items():
                    layers[name].weight[mask <= threshold] = 0
            yield threshold
