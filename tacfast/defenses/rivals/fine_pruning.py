"""Fine-Pruning, FP (Liu et al. 2018, arXiv 1805.12185)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...models.head import Head
from ...models.latents import latent_batches
from ..prune import masked_columns
from ..training import is_finite
from .base import PruningRival, Tell
from .fine_tuning import FineTuning


@dataclass(frozen=True, kw_only=True)
class FinePruning(PruningRival):
    """Prune the latents that clean samples activate least, then fine-tune.

    Latents are ranked by their mean absolute value over the clean samples, which is the mean activation where a ReLU
    comes before the head, and pruned by zeroing their columns of the head's weight. Then all weights are trained as
    in `FineTuning`, those columns held at zero.

    Settings as BackdoorBench has them, its budget of a tenth of the accuracy included, which the fine-tuning is to
    win back; fewer epochs, and latents are pruned a few at a time.

    Parameters
    ----------
    max_drop : loss of clean accuracy that the pruning may cause
    share : of the latents that are pruned at each step
    epochs, lr, momentum, weight_decay : of the fine-tuning
    """

    name: ClassVar[str] = "fp"
    max_drop: float = 0.1
    share: float = 0.02
    epochs: int = 20
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("share", "a share in (0, 1]", is_finite(self.share) and 0 < self.share <= 1)
        self._fine_tuning()  # checks its settings

    def _fine_tuning(self) -> FineTuning:
        return FineTuning(epochs=self.epochs, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def prune(self, model: nn.Module, head: Head, loader: Iterable[Any], tell: Tell) -> Iterator[float]:
        """Prune ``model`` in place, the least active latents first; yields the share that is pruned."""
        order = mean_activations(model, loader, head).argsort(stable=True)
        step = max(1, round(self.share * len(order)))
        for count in range(step, len(order), step):
            with masked_columns(head, order[:count]):
                pass  # they stay zero
            yield count / len(order)

    def finish(self, model: nn.Module, head: Head, loader: Iterable[Any], tell: Tell) -> None:
        """Fine-tune ``model`` in place; what is pruned stays pruned."""
        pruned = (head.weight == 0).all(0).nonzero().flatten()
        with masked_columns(head, pruned):
            self._fine_tuning().treat(model, head, loader, None, tell)


def mean_activations(model: nn.Module, loader: Iterable[Any], head: Head) -> Tensor:
    """Mean absolute value of each latent (d,) over the samples, float64."""
    with latent_batches(model, loader, head) as batches:
        sums = [(batch.latents.double().abs().sum(0), len(batch.latents)) for batch in batches]
    if not sums:
        raise ValueError("loader: expected at least one batch, got none")
    return torch.stack([total for total, _ in sums]).sum(0) / sum(count for _, count in sums)
