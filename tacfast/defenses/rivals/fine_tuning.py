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
from ..training import is_finite, is_integer, widened
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
        self.check("epochs", "an integer >= 1", is_integer(self.epochs) and self.epochs >= 1)
        self.check("lr", "a finite learning rate > 0", is_finite(self.lr) and self.lr > 0)
        self.check("momentum", "a number in [0, 1)", is_finite(self.momentum) and 0 <= self.momentum < 1)
        self.check("weight_decay", "a finite number >= 0", is_finite(self.weight_decay) and self.weight_decay >= 0)

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
