"""Shared Adversarial Unlearning (SAU): unlearn the adversarial examples that the suspect and its copy share."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.head import Head, evaluation_mode, logits_of
from ..held_out import HeldOut
from ..training import COUNT, NOT_NEGATIVE, RATE, is_finite, widened
from .base import Rival, Tell, train_epochs


@dataclass(frozen=True, kw_only=True)
class SharedAdversarialUnlearning(Rival):
    """SAU (Wei et al. 2023, arXiv 2307.10562).

    Each batch is perturbed until the model and the suspect err alike on it (`shared_adversaries`). Then a step of
    Adam is taken on the cross-entropy of the clean batch and −log(1 − p), where p is the probability that the model
    gives to the wrong class that the suspect sees in a perturbed image. BatchNorm keeps its statistics throughout.
    Images must be pixels in [0, 1]: perturbed ones are clipped to that range.

    The settings are those of the authors' code in BackdoorBench, but for the epochs, 100 there, in batches of 256:
    one in batches of 32 makes eight times the steps, and costs up to ten times one of plain fine-tuning.

    Parameters
    ----------
    epochs : passes over the clean samples
    lr : first learning rate of Adam, which follows a cosine to zero
    radius : largest change of a pixel; also the size of a step of the perturbation
    steps : of the perturbation
    adversarial_weight : of the term that drives both networks to err, beside the one that makes them err alike
    """

    name: ClassVar[str] = "sau"
    epochs: int = 3
    lr: float = 1e-4
    radius: float = 0.2
    steps: int = 5
    adversarial_weight: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_each(COUNT, "epochs")
        self.check_each(RATE, "lr")
        self.check("radius", "a change of pixels in (0, 1]", is_finite(self.radius) and 0 < self.radius <= 1)
        self.check_each(COUNT, "steps")
        self.check_each(NOT_NEGATIVE, "adversarial_weight")

    def treat(self, model: nn.Module, head: Head, loader: Iterable[Any], held_out: HeldOut | None, tell: Tell) -> None:
        """Unlearn in place; the accuracies that are told are those of the clean images in evaluation mode."""
        suspect = copy.deepcopy(model).eval()
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)

        def step(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            with evaluation_mode(model):
                perturbed = shared_adversaries(
                    model, suspect, inputs, radius=self.radius, steps=self.steps, weight=self.adversarial_weight
                )
                with torch.no_grad():
                    usual, wrong = (logits_of(suspect, x).argmax(1) for x in (inputs, perturbed))
                logits, astray = widened(logits_of(model, torch.cat([inputs, perturbed]))).chunk(2)
            fooled = (wrong != usual) & (wrong != labels)
            return F.cross_entropy(logits, labels) + avoid(astray[fooled], wrong[fooled]) / len(labels), logits

        train_epochs(model, head, loader, self.epochs, step, optimizer=optimizer, schedule=schedule, tell=tell)


def avoid(logits: Tensor, classes: Tensor) -> Tensor:
    """Sum of −log(1 − p) over samples, p the probability of a class for each: logits (n, C), classes (n,)."""
    others = torch.full_like(logits, 0).scatter(1, classes[:, None], -torch.inf)
    return -(logits.log_softmax(1) + others).logsumexp(1).sum()


def shared_adversaries(
    model: nn.Module, suspect: nn.Module, inputs: Tensor, *, radius: float, steps: int, weight: float
) -> Tensor:
    """Perturb images within an L∞ ball and [0, 1] until two networks take them for the same other class.

    The loss of arXiv 2307.10562, eq. 9, falls by steps of the sign of its gradient, as long as the ball is wide: the
    Jensen–Shannon divergence of the two answers, and −``weight``/2 times the cross-entropies of each network that
    still answers as without the perturbation. An image that both take for the same other class stays as it is.

    Parameters
    ----------
    model, suspect : the networks, in evaluation mode
    inputs : (n, channels, h, w), pixels in [0, 1]
    radius, steps, weight : as in `SharedAdversarialUnlearning`

    Returns
    -------
    Tensor
        (n, channels, h, w); starts from inputs + ``radius``.
    """
    networks = (model, suspect)
    with torch.no_grad():
        usual = [network(inputs).argmax(1) for network in networks]
    perturbed, rows = (inputs + radius).clamp(0, 1), torch.arange(len(inputs), device=inputs.device)
    for _ in range(steps):
        now = perturbed[rows].requires_grad_()
        logits = [widened(network(now)) for network in networks]
        answers = [each.argmax(1) for each in logits]
        fooled = [answer != before[rows] for answer, before in zip(answers, usual, strict=True)]
        shared = fooled[0] & fooled[1] & (answers[0] == answers[1])
        loss = divergence(*logits)[~shared].sum()
        for each, before, done in zip(logits, usual, fooled, strict=True):
            loss = loss - weight / 2 * F.cross_entropy(each[~done], before[rows][~done], reduction="sum")
        (slope,) = torch.autograd.grad(loss, now)
        ball = inputs[rows] - radius, inputs[rows] + radius
        perturbed[rows] = (now.detach() - radius * slope.sign()).clamp(*ball).clamp(0, 1)
        rows = rows[~shared]
        if len(rows) == 0:
            break
    return perturbed


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen–Shannon divergences (n,), in nats, of the distributions that two sets of logits (n, C) stand for."""
    logs = torch.stack([first.log_softmax(1), second.log_softmax(1)])
    middle = logs.logsumexp(0) - math.log(2)
    return (logs.exp() * (logs - middle)).sum(2).mean(0)
