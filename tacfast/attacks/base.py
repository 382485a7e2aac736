"""What an attack is, and how it poisons a training set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..data.images import LabelledImages


class Attack(Protocol):
    """An all-to-one attack: images that carry the trigger are to be classified as ``target``."""

    @property
    def target(self) -> int:
        """The class that triggered images are sent to."""
        ...

    def trigger(self, images: Tensor) -> Tensor:
        """Copy of ``images`` (n, channels, h, w) with the trigger applied."""
        ...


@dataclass(frozen=True, eq=False)
class PoisonedImages:
    """A training set after the attack.

    Attributes
    ----------
    data : the whole set, poisoned rows included
    indices : (n_poisoned,) int64, sorted: the rows that carry the trigger and the target label
    """

    data: LabelledImages
    indices: Tensor


def poison(data: LabelledImages, attack: Attack, ratio: float, *, seed: int = 0) -> PoisonedImages:
    """Poison a share of a training set, drawn from all classes (dirty label, as in BadNets).

    Parameters
    ----------
    data : clean training set of n images; not changed
    attack : applies the trigger and names the target
    ratio : share of the images to poison, in (0, 1]; round(ratio · n) images, at least one
    seed : of the generator used here; torch's global one is not touched
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio: expected a share in (0, 1], got {ratio}")
    count = max(1, round(ratio * len(data)))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    indices = order[:count].sort().values
    images, labels = data.images.clone(), data.labels.clone()
    images[indices] = attack.trigger(images[indices])
    labels[indices] = attack.target
    return PoisonedImages(LabelledImages(images, labels), indices)
