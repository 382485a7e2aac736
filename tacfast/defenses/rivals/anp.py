"""Adversarial neuron pruning, ANP (Wu & Wang 2021, arXiv 2110.14430)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.head import Head
from ..training import COUNT, NOT_NEGATIVE, RATE, SHARE, widened
from .base import PruningRival, Tell
from .channels import MaskedChannels, prune_by_masks

Noise = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class AdversarialNeuronPruning(PruningRival):
    """Prune the channels that a small adversarial change of the weights needs most.

    Masks m ∈ [0, 1] on the scales of all BatchNorm channels minimise
    α CE(m γ, β) + (1 − α) max CE((m + δ) γ, (1 + ξ) β), the maximum over |δ|, |ξ| ≤ ε found by one signed step from a
    random start. The channels with the smallest masks are pruned. BatchNorm runs on the statistics of the batch
    meanwhile, and the running statistics stay those of the given network.

    Published are 2000 batches of 128. Here the epochs are few, three passes over each batch being slow on a CPU.

    Parameters
    ----------
    epochs : passes over the clean samples
    lr : of the masks
    eps : ε, the largest relative change
    alpha : α, the weight of the loss without noise
    """

    name: ClassVar[str] = "anp"
    epochs: int = 10
    lr: float = 0.2
    eps: float = 0.4
    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_each(COUNT, "epochs")
        self.check_each(RATE, "lr")
        self.check_each(NOT_NEGATIVE, "eps")
        self.check_each(SHARE, "alpha")

    def prune(self, model: nn.Module, head: Head, loader: Iterable[Any], tell: Tell) -> Iterator[float]:
        """Train the masks, then prune ``model`` in place by their threshold."""
        channels = MaskedChannels(model)

        def step(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            noisy = channels.run(inputs, self._worst_noise(channels, inputs, labels))
            logits = channels.run(inputs)
            natural, robust = (F.cross_entropy(widened(out), labels) for out in (logits, noisy))
            return self.alpha * natural + (1 - self.alpha) * robust, logits

        yield from prune_by_masks(model, channels.fit(head, loader, self.epochs, self.lr, step, tell))

    def _worst_noise(self, channels: MaskedChannels, inputs: Tensor, labels: Tensor) -> Noise:
        """One signed step of ascent from a random start, of the size ε and kept within ε."""
        start = {
            name: tuple(torch.empty_like(mask).uniform_(-self.eps, self.eps).requires_grad_() for _ in range(2))
            for name, mask in channels.masks.items()
        }
        flat = [each for pair in start.values() for each in pair]
        loss = F.cross_entropy(widened(channels.run(inputs, {k: (a, b) for k, (a, b) in start.items()})), labels)
        gradients = torch.autograd.grad(loss, flat)
        moved = iter(
            (each.detach() + self.eps * gradient.sign()).clamp(-self.eps, self.eps)
            for each, gradient in zip(flat, gradients, strict=True)
        )
        return {name: (next(moved), next(moved)) for name in start}
