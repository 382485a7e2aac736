"""Reconstructive neuron pruning, RNP (Li et al. 2023, arXiv 2305.14876)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ...models.head import Head
from ..held_out import cloned_weights, load_weights
from ..training import COUNT, NOT_NEGATIVE, RATE, is_finite, widened
from .base import PruningRival, Tell
from .channels import MaskedChannels, batch_norms, prune_by_masks
from .unlearning import unlearn

# Of the loss while masks are trained, in the published code.
RECOVERING_WEIGHT = 0.2


@dataclass(frozen=True, kw_only=True)
class ReconstructiveNeuronPruning(PruningRival):
    """Unlearn the clean samples, recover them by masking channels, and prune what had to be masked.

    All weights climb the cross-entropy until accuracy collapses, which leaves the channels of the backdoor at work.
    Then masks m ∈ [0, 1] on the scales of all BatchNorm channels of the unlearned network are trained, nothing else,
    to answer the clean samples again; channels with small masks are pruned in the given network.

    Settings as published, for 20 epochs of 500 samples there: at most as many to unlearn, accuracy being looked at
    after every batch rather than epoch, and for as many steps, 4 epochs of 2500 samples, to train masks, which end up
    at 0 or 1 in too many. Only the latter epochs are told of.

    Parameters
    ----------
    epochs : passes over the clean samples to train the masks
    lr : of the masks
    unlearning_epochs : passes at most, before that
    unlearning_lr, weight_decay : of the unlearning
    floor : training accuracy at which the samples count as unlearned
    """

    name: ClassVar[str] = "rnp"
    epochs: int = 4
    lr: float = 0.2
    unlearning_epochs: int = 20
    unlearning_lr: float = 0.01
    weight_decay: float = 5e-4
    floor: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_each(COUNT, "epochs", "unlearning_epochs")
        self.check_each(RATE, "lr", "unlearning_lr")
        self.check_each(NOT_NEGATIVE, "weight_decay")
        self.check("floor", "a share in [0, 1)", is_finite(self.floor) and 0 <= self.floor < 1)

    def prune(self, model: nn.Module, head: Head, loader: Iterable[Any], tell: Tell) -> Iterator[float]:
        """Find the masks, then prune ``model`` in place by their threshold."""
        batch_norms(model)  # refused now, before the work
        given = cloned_weights(model)
        unlearn(
            model,
            head,
            loader,
            epochs=self.unlearning_epochs,
            lr=self.unlearning_lr,
            floor=self.floor,
            weight_decay=self.weight_decay,
        )
        channels = MaskedChannels(model)
        load_weights(model, given)

        def step(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = channels.run(inputs)
            return RECOVERING_WEIGHT * F.cross_entropy(widened(logits), labels), logits

        yield from prune_by_masks(model, channels.fit(head, loader, self.epochs, self.lr, step, tell))
