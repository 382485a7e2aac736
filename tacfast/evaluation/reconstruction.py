"""How well a solved shift reconstructs the trigger-activated change (TAC) of a known trigger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._shown import Shown
from ..attacks.base import Attack
from ..models.head import Head
from ..models.latents import latent_batches, split_batch
from .metrics import attacked_rows

# Share of the latents that are compared as those which change most.
TOP_SHARE = 0.1


@dataclass(frozen=True)
class Reconstruction:
    """A shift compared with the true change of the latents.

    Attributes
    ----------
    cosine : of the shift and the mean change over the attacked images
    top_overlap : share of the tenth of the latents that the trigger changes most, by mean absolute change, which the
        shift changes most, too
    """

    cosine: float
    top_overlap: float


@dataclass(frozen=True, eq=False, repr=False)
class TrueChange(Shown):
    """What a trigger does to the latents: TAC of arXiv 2511.08944.

    Attributes
    ----------
    mean : (d,), mean of φ(triggered) − φ(clean) over the attacked images
    mean_absolute : (d,), mean of its absolute value
    """

    mean: Tensor
    mean_absolute: Tensor

    def compare(self, shift: Tensor) -> Reconstruction:
        """Compare a shift (d,) with it."""
        shift = shift.double().cpu()
        top = max(1, round(TOP_SHARE * len(shift)))
        ours, true = (set(values.topk(top).indices.tolist()) for values in (shift.abs(), self.mean_absolute))
        cosine = torch.nn.functional.cosine_similarity(shift, self.mean, dim=0)
        return Reconstruction(float(cosine), len(ours & true) / top)


def true_change(model: nn.Module, head: Head, loader: Iterable[Any], attack: Attack) -> TrueChange:
    """Measure what the trigger does to the latents of the images that it is measured on.

    Parameters
    ----------
    model, head : a classifier, and its last linear layer, of d inputs
    loader : yields (images, labels) of clean images
    attack : applies the trigger

    Raises
    ------
    ValueError
        If there is no image that the attack sends to another class.
    """
    pairs = []
    for batch in loader:
        images, labels = split_batch(batch)
        assert labels is not None
        victims = attacked_rows(attack, labels)
        if victims.any():
            pairs += [images[victims], attack.trigger(images[victims])]
    if not pairs:
        raise ValueError("loader: expected images that the attack sends to another class, got none")
    with latent_batches(model, pairs, head) as batches:
        latents = [batch.latents.double().cpu() for batch in batches]
    changes = torch.cat([after - before for before, after in zip(latents[::2], latents[1::2], strict=True)])
    return TrueChange(changes.mean(0), changes.abs().mean(0))


def closed_form(head: Head, target: int) -> Tensor:
    """w_p − mean of the other rows, (d,): the baseline that needs neither samples nor a solver."""
    weight = head.weight.double().cpu()
    others = torch.arange(len(weight)) != target
    return weight[target] - weight[others].mean(0)
