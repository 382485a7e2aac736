"""Whether a repair removed a backdoor or only hid it: how soon a few poisoned images bring it back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attacks.base import Attack
from ..data.images import LabelledImages
from ..data.randomness import isolated_randomness
from ..models.head import kept_modes
from .metrics import attacked_rows, evaluate

COUNTS = (5, 50, 500)
STEPS, HALF_BATCH, LR = 20, 16, 0.01


@dataclass(frozen=True)
class Relearned:
    """The backdoor after fine-tuning on some poisoned images.

    Attributes
    ----------
    poisoned_images : how many there were
    asr : attack success rate afterwards
    acc : clean accuracy afterwards
    """

    poisoned_images: int
    asr: float
    acc: float


def relearn(
    model: nn.Module,
    clean: LabelledImages,
    poisoned: LabelledImages,
    test: LabelledImages,
    attack: Attack,
    *,
    counts: Sequence[int] = COUNTS,
    seed: int = 0,
) -> list[Relearned]:
    """Fine-tune copies of a repaired model on clean images and ever more poisoned ones, and measure the attack.

    20 steps of SGD at a learning rate of 0.01 and momentum 0.9, each on 16 clean and 16 poisoned images; a network that
    never had the backdoor says what such a training teaches anew. After Zhu et al. 2024 (arXiv 2410.09838).

    Parameters
    ----------
    model : the repaired one; not changed
    clean : clean images of the training set
    poisoned : other images of it, which the attacker poisons; the first 5, 50 and 500 of those
        that it sends to another class, or all there are
    test : images to measure on
    attack : gives triggers and labels
    counts : how many poisoned images
    seed : of the order
    """
    usable = attacked_rows(attack, poisoned.labels).nonzero().flatten()
    if len(usable) == 0:
        raise ValueError("poisoned: expected images that the attack sends to another class, got none")
    found = []
    for count in counts:
        chosen = poisoned.subset(usable[:count])
        with isolated_randomness(seed):
            again = _fine_tuned(model, clean, chosen, attack)
        metrics = evaluate(again, test.loader(), attack)
        found.append(Relearned(len(chosen), metrics.asr, metrics.acc))
    return found


def _fine_tuned(model: nn.Module, clean: LabelledImages, poisoned: LabelledImages, attack: Attack) -> nn.Module:
    again = copy.deepcopy(model).requires_grad_(True)
    device = next(again.parameters()).device
    optimizer = torch.optim.SGD(again.parameters(), LR, momentum=0.9)
    with kept_modes(again), torch.enable_grad():
        again.train()
        for _ in range(STEPS):
            images, labels = _mixed_batch(clean, poisoned, attack)
            loss = F.cross_entropy(again(images.to(device)).float(), labels.to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return again


def _mixed_batch(clean: LabelledImages, poisoned: LabelledImages, attack: Attack) -> tuple[Tensor, Tensor]:
    """16 clean and 16 triggered images, drawn with replacement."""
    kept = clean.batch(torch.randint(len(clean), (HALF_BATCH,)))
    images, labels = poisoned.batch(torch.randint(len(poisoned), (HALF_BATCH,)))
    triggered = attack.trigger(images), attack.relabel(labels)
    return torch.cat([kept[0], triggered[0]]), torch.cat([kept[1], triggered[1]])
