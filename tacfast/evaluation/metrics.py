"""Clean accuracy, attack success rate, robust accuracy, and how effective a defence was."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.base import Attack
from ..models.head import evaluation_mode, logits_of
from ..models.latents import split_batch


@dataclass(frozen=True)
class Metrics:
    """How well a model classifies, and how well an attack on it works; all shares in [0, 1].

    Attributes
    ----------
    acc : clean test accuracy
    asr : attack success rate: triggered images of the other classes that are classified as the attacker wants
    ra : robust accuracy: the same images classified as their true class
    """

    acc: float
    asr: float
    ra: float


def evaluate(model: nn.Module, loader: Iterable[Any], attack: Attack | None) -> Metrics:
    """Measure a model on a test set, with and without the trigger.

    The model runs in evaluation mode without gradients and is left as it was.

    Parameters
    ----------
    model : maps images to logits (n, C)
    loader : yields (images, labels) of the clean test set, labels integers of shape (n,)
    attack : its trigger is applied to every image that it sends to another class than its own; None to measure clean
        accuracy alone, so that the other figures are NaN

    Raises
    ------
    TypeError, ValueError
        If the loader yields nothing, or no labels, or only images of the target class.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    correct = total = hits = recovered = attacked = 0
    with evaluation_mode(model), torch.no_grad():
        for batch in loader:
            images, labels = split_batch(batch)
            if labels is None:
                raise ValueError("loader: expected (images, labels), got batches without labels")
            images, labels = images.to(device), labels.to(device)
            correct += int((logits_of(model, images).argmax(1) == labels).sum())
            total += len(labels)
            if attack is not None and (victims := attacked_rows(attack, labels)).any():
                truth = labels[victims]
                answers = logits_of(model, attack.trigger(images[victims])).argmax(1)
                hits += int((answers == attack.relabel(truth)).sum())
                recovered += int((answers == truth).sum())
                attacked += int(victims.sum())
    if total == 0:
        raise ValueError("loader: expected at least one batch, got none")
    if attack is None:
        return Metrics(acc=correct / total, asr=math.nan, ra=math.nan)
    if attacked == 0:
        raise ValueError(f"loader: expected images of other classes than the target {attack.target}, got none")
    return Metrics(acc=correct / total, asr=hits / attacked, ra=recovered / attacked)


def attacked_rows(attack: Attack, labels: Tensor) -> Tensor:
    """Which images (n,) bool the attack is measured on: those that it sends to another class than their own."""
    return attack.relabel(labels) != labels


def defense_effectiveness(before: Metrics, after: Metrics) -> float:
    """Rate a defence: DER = (max(0, ΔASR) − max(0, ΔACC) + 1) / 2, in [0, 1]; Δ is before − after."""
    return (max(0.0, before.asr - after.asr) - max(0.0, before.acc - after.acc) + 1) / 2
