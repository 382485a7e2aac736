"""Feature Shift Tuning (FST): begin the head anew, far from the old one, so that the features have to move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.head import Head, logits_of
from ..held_out import HeldOut
from ..training import NOT_NEGATIVE, widened
from .base import Tell, train_epochs
from .fine_tuning import FineTuning


@dataclass(frozen=True, kw_only=True)
class FeatureShiftTuning(FineTuning):
    """FST (Min et al. 2023, "Towards Stable Backdoor Purification through Feature Shift Tuning").

    The head is drawn at random, and all weights are trained on cross-entropy + α ⟨w, w_orig⟩, where w and w_orig are
    the weights of the new and of the old head. After each step w is scaled to the (Frobenius) norm of w_orig, without
    which the second term has no minimum. The settings are the published ones, for 2500 images too.

    Parameters
    ----------
    alpha : α, weight of the product of the two heads
    """

    name: ClassVar[str] = "fst"
    epochs: int = 10
    weight_decay: float = 0.0
    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_each(NOT_NEGATIVE, "alpha")

    def treat(self, model: nn.Module, head: Head, loader: Iterable[Any], held_out: HeldOut | None, tell: Tell) -> None:
        """Train ``model`` with a new head in place; a head that computes its weight (spectral_norm) is refused."""
        weight: Tensor = head.module.weight
        if not isinstance(weight, nn.Parameter):
            raise ValueError(f"model: expected a head {head.name!r} whose weight is a parameter, got a computed one")
        original = weight.detach().clone()

        def rescale(*_: Any) -> None:
            with torch.no_grad():
                weight.mul_(original.norm() / weight.norm())

        head.module.reset_parameters()
        rescale()
        optimizer, schedule = self.descent(model)
        optimizer.register_step_post_hook(rescale)

        def step(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = logits_of(model, inputs)
            return F.cross_entropy(widened(logits), labels) + self.alpha * (weight * original).sum(), logits

        train_epochs(model, head, loader, self.epochs, step, optimizer=optimizer, schedule=schedule, tell=tell)
