"""FT-SAM: fine-tune towards flat minima, which shrinks the weights of the neurons that a backdoor uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ...models.head import Head, logits_of
from ..held_out import HeldOut
from ..training import NOT_NEGATIVE, is_finite, widened
from .base import Tell, train_epochs
from .fine_tuning import FineTuning


@dataclass(frozen=True, kw_only=True)
class SharpnessAwareTuning(FineTuning):
    """FT-SAM (Zhu et al. 2023, arXiv 2304.11823): fine-tuning whose gradient is taken at the worst weights nearby.

    The settings are those of BackdoorBench but for the epochs, 100 there: ten in batches of 32 are nearly as many
    steps as 100 in batches of 256. A step costs two of plain fine-tuning.

    Parameters
    ----------
    rho : ρ, radius of the neighbourhood, see `climb`; BackdoorBench takes 8 for GTSRB and TinyImageNet
    label_smoothing : share of each label that is spread over all classes
    """

    name: ClassVar[str] = "ft-sam"
    epochs: int = 10
    rho: float = 2.0
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_each(NOT_NEGATIVE, "rho")
        smooth = is_finite(self.label_smoothing) and 0 <= self.label_smoothing < 1
        self.check("label_smoothing", "a share in [0, 1)", smooth)

    def treat(self, model: nn.Module, head: Head, loader: Iterable[Any], held_out: HeldOut | None, tell: Tell) -> None:
        """Fine-tune ``model`` in place; the losses that are told are those of the worst weights."""
        optimizer, schedule = self.descent(model)
        weights = dict(model.named_parameters())

        def criterion(logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(widened(logits), labels, label_smoothing=self.label_smoothing)

        def step(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = logits_of(model, inputs)
            gradients = torch.autograd.grad(criterion(logits, labels), list(weights.values()), materialize_grads=True)
            # On copies of the buffers, or the statistics of BatchNorm would become those of the worst weights.
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            worst = functional_call(model, climb(weights, gradients, self.rho) | buffers, (inputs,))
            return criterion(worst, labels), logits

        train_epochs(model, head, loader, self.epochs, step, optimizer=optimizer, schedule=schedule, tell=tell)


def climb(weights: Mapping[str, Tensor], gradients: Sequence[Tensor], rho: float) -> dict[str, Tensor]:
    """Go from the weights to where a linearised loss is largest: adaptive SAM (arXiv 2102.11600, η = 0).

    Parameters
    ----------
    weights : θ by name
    gradients : g, that of the loss for each of them
    rho : ρ, bound of ‖e / θ‖ for the step e

    Returns
    -------
    dict of Tensor
        θ + ρ θ² g / ‖θ g‖ by name, where products are elementwise and the norm is over all weights together. To
        autograd the step is a constant.
    """
    with torch.no_grad():
        parts = [(weight * gradient).norm() for weight, gradient in zip(weights.values(), gradients, strict=True)]
        scale = rho / (torch.stack(parts).norm() + 1e-12)
        steps = [scale * weight**2 * gradient for weight, gradient in zip(weights.values(), gradients, strict=True)]
    return {name: weight + step for (name, weight), step in zip(weights.items(), steps, strict=True)}
