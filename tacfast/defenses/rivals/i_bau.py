"""I-BAU: unlearn a universal perturbation, with regard to how the perturbation answers to the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.head import Head, evaluation_mode, logits_of
from ..held_out import HeldOut
from ..training import COUNT, RATE, trainable_batches, widened
from .base import Rival, Tell, train_epochs

# Of the published code: rates of the ascent and of the map whose fixed point it is, the penalty on the squared norm,
# and the share of a batch that is perturbed while unlearning (at least one image).
ASCENT_RATE, MAP_RATE, PENALTY, SHARE = 10.0, 0.1, 0.001, 0.01


@dataclass(frozen=True, kw_only=True)
class ImplicitUnlearning(Rival):
    """I-BAU (Zeng et al. 2022, "Adversarial Unlearning of Backdoors via Implicit Hypergradient", arXiv 2110.03735).

    In each round one perturbation of all images is found that the model errs on, and the model is trained by Adam on
    batches of which a few images carry it, along the gradient that takes into account how the perturbation would
    change with the weights (`hypergradient`). BatchNorm keeps its statistics throughout. Images must be pixels in
    [0, 1]: perturbed ones are clipped to that range. The settings are those of BackdoorBench. There a pass over all
    clean samples is 10 steps in a round, in batches of 256, and 25 in the published code; so it ends after ``steps``
    here, because one costs as much as eight to ten of plain fine-tuning.

    Parameters
    ----------
    rounds : each is a pass over the clean samples for the perturbation, and then some steps for the weights
    steps : of Adam in a round, at most; fewer if the loader yields fewer batches
    lr : learning rate of Adam
    iterations : of the fixed point that the hypergradient is computed by
    """

    name: ClassVar[str] = "i-bau"
    rounds: int = 5
    steps: int = 25
    lr: float = 1e-4
    iterations: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_each(COUNT, "rounds", "steps")
        self.check_each(RATE, "lr")
        self.check_each(COUNT, "iterations")

    def treat(self, model: nn.Module, head: Head, loader: Iterable[Any], held_out: HeldOut | None, tell: Tell) -> None:
        """Unlearn in place."""
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        weights = list(model.parameters())
        perturbation, example = torch.empty(0), torch.empty(0)

        def before_epoch() -> None:
            nonlocal perturbation, example
            perturbation, example = perturb_all(model, trainable_batches(loader, head))

        def step(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            perturbed = torch.randperm(len(inputs), device=inputs.device) < max(1, round(SHARE * len(inputs)))
            mixed = torch.where(perturbed[:, None, None, None], (inputs + perturbation).clamp(0, 1), inputs)
            with evaluation_mode(model):
                logits = logits_of(model, mixed)
            return F.cross_entropy(widened(logits), labels), logits

        def update(loss: Tensor) -> None:
            with evaluation_mode(model):
                inner = weakness(model, example, perturbation)
            gradients = hypergradient(loss, inner, perturbation, weights, rate=MAP_RATE, iterations=self.iterations)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()

        train_epochs(
            model,
            head,
            FirstBatches(loader, self.steps),
            self.rounds,
            step,
            optimizer=optimizer,
            tell=tell,
            update=update,
            before_epoch=before_epoch,
        )


@dataclass(frozen=True, eq=False)
class FirstBatches:
    """So many batches of a loader in each pass."""

    loader: Iterable[Any]
    count: int

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, self.count)


def perturb_all(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Find one perturbation of all images that the model errs on, by a pass of gradient descent on `weakness`.

    Returns
    -------
    (perturbation, example)
        (1, channels, h, w), a leaf of autograd, and the first batch of inputs.
    """
    example, perturbation = None, torch.empty(0)
    with evaluation_mode(model):
        for inputs, _ in batches:
            if example is None:
                example, perturbation = inputs, torch.zeros_like(inputs[:1], requires_grad=True)
            (slope,) = torch.autograd.grad(weakness(model, inputs, perturbation), perturbation)
            with torch.no_grad():
                perturbation -= ASCENT_RATE * slope
    if example is None:
        raise ValueError("loader: expected at least one batch of two samples or more, got none")
    return perturbation, example


def weakness(model: nn.Module, inputs: Tensor, perturbation: Tensor) -> Tensor:
    """What the perturbation minimises: minus the cross-entropy to the answers without it, and a penalty on it."""
    with torch.no_grad():
        answers = logits_of(model, inputs).argmax(1)
    astray = widened(logits_of(model, (inputs + perturbation).clamp(0, 1)))
    return PENALTY * perturbation.square().sum() - F.cross_entropy(astray, answers)


def hypergradient(
    outer: Tensor, inner: Tensor, perturbation: Tensor, weights: Sequence[Tensor], *, rate: float, iterations: int
) -> list[Tensor]:
    """Gradient of an outer loss in the weights, where the perturbation is that which minimises an inner loss.

    With g, H the gradient of the outer and the Hessian of the inner loss in the perturbation δ, θ the weights and
    η the rate: ∂outer/∂θ − η (∂²inner/∂δ∂θ)ᵀ v, where v = Σ_{i<iterations} (I − ηH)^i g comes near (ηH)⁻¹ g. This is
    the implicit gradient through the fixed point of δ ← δ − η ∂inner/∂δ (arXiv 2110.03735, algorithm 1; Grazzi et
    al. 2020, arXiv 2006.16218).

    Parameters
    ----------
    outer, inner : scalars with their graphs
    perturbation : δ, a leaf of both
    weights : θ, leaves of both

    Returns
    -------
    list of Tensor
        One for each of the weights.
    """
    first, *direct = torch.autograd.grad(outer, [perturbation, *weights], materialize_grads=True)
    (slope,) = torch.autograd.grad(inner, perturbation, create_graph=True)
    v = first
    for _ in range(iterations - 1):
        (bent,) = torch.autograd.grad(slope, perturbation, v, retain_graph=True)
        v = v - rate * bent + first
    mixed = torch.autograd.grad(slope, list(weights), v, materialize_grads=True)
    return [gradient - rate * implicit for gradient, implicit in zip(direct, mixed, strict=True)]
