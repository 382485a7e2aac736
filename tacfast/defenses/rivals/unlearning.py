"""Clean unlearning: gradient ascent on clean samples until the network has forgotten them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...models.head import Head, logits_of
from ..training import DivergedError, not_finite, trainable, trainable_batches, widened

# The published code of RNP means to cut gradients to this norm: an ascent has no bound of its own.
MAX_NORM = 20.0


def unlearn(
    model: nn.Module,
    head: Head,
    loader: Iterable[Any],
    *,
    epochs: int,
    lr: float,
    floor: float,
    weight_decay: float = 0.0,
) -> None:
    """Raise the cross-entropy in place, by SGD with momentum 0.9, until a batch is answered no better than ``floor``.

    Parameters
    ----------
    model, head : the network, in training mode meanwhile, and its head
    loader : clean samples in shuffled batches
    epochs : passes at most
    lr, weight_decay : of SGD
    floor : the share of a batch that is right, in training mode, at which to stop

    Raises
    ------
    DivergedError
        If a weight is no longer finite.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    never_finite = not_finite(model)
    with trainable(model):
        for inputs, labels in chain.from_iterable(trainable_batches(loader, head) for _ in range(epochs)):
            logits = logits_of(model, inputs)
            if float((logits.argmax(1) == labels).float().mean()) <= floor:
                break
            optimizer.zero_grad()
            (-F.cross_entropy(widened(logits), labels)).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
    if not_finite(model) - never_finite:
        raise DivergedError("unlearning diverged: lower unlearning_lr")
