"""Fine-tuning (FT): train all weights on the clean samples, the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.head import Head, logits_of
from ..held_out import HeldOut
from ..training import BELOW_ONE, COUNT, NOT_NEGATIVE, RATE, widened
from .base import Rival, Tell, train_epochs


@dataclass(frozen=True, kw_only=True)
class FineTuning(Rival):
    """SGD with momentum on cross-entropy, the learning rate following a cosine to zero.

    Parameters
    ----------
    epochs : passes over the clean samples
    lr : first learning rate
    momentum, weight_decay : of SGD
    """

    name: ClassVar[str] = "ft"
    epochs: int = 20
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_each(COUNT, "epochs")
        self.check_each(RATE, "lr")
        self.check_each(BELOW_ONE, "momentum")
        self.check_each(NOT_NEGATIVE, "weight_decay")

    def descent(self, model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Give SGD over all weights, and the cosine of its learning rate."""
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)

    def treat(
        self, model: nn.Module, head: Head, loader: Iterable[Any], held_out: HeldOut | None, tell: Tell
    ) -> tuple[int, ...] | None:
        """Fine-tune ``model`` in place."""
        optimizer, schedule = self.descent(model)

        def step(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = logits_of(model, inputs)
            return F.cross_entropy(widened(logits), labels), logits

        train_epochs(model, head, loader, self.epochs, step, optimizer=optimizer, schedule=schedule, tell=tell)
        return None
