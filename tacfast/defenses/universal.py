"""Unlearn a perturbation of the pixels, the same for all images, that leads to the suspicious class."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..detection.lock_step import climb, growing, is_reached, scaled
from ..detection.universal import Additive, differ, spread_of
from ..models.head import Head, evaluation_mode
from .shifts import capped
from .targeted import TargetedRepair
from .training import Objective, is_finite, trainable_batches, widened

# The perturbation is first looked for on so many samples.
SAMPLES = 500
# It grows between these shares of the spread of the inputs, in so many steps with so many samples each.
SMALLEST, LARGEST, STEPS, BATCH = 0.02, 0.6, 24, 32
# Length of its steps while the network is trained, as a share of the radius.
STEP = 0.2


@dataclass(frozen=True, kw_only=True)
class UniversalRepair(TargetedRepair):
    """Teach the model to withstand a universal perturbation towards the suspicious class p, which learns along.

    Minimises CE(f(x), y) + ``lam`` · CE(f(x + δ), y) + ``distill`` · T² KL(suspect ‖ f)(x) with T = 2. δ takes a
    normalised gradient step towards p for each step of the network, as in universal adversarial training (Shafahi et
    al. 2020, arXiv 1811.11304), and stays within a radius. It reaches triggers that no shift of the latents stands for,
    and keeps the right answers on triggered images, which shifts do not.

    Parameters
    ----------
    epochs, lr : twenty at a rate that networks with BatchNorm survive
    lam : weight λ of the perturbed term
    distill : weight of the distance to what the suspect says of clean samples
    radius : largest norm of δ over the spread of the inputs, their mean distance from their mean; None for
        ``slack`` times the one that sends four in five samples to p in the suspect
    slack : how much larger than that triggers may be
    """

    name: ClassVar[str] = "universal"
    epochs: int = 20
    lr: float = 0.01
    lam: float = 1.0
    distill: float = 1.0
    radius: float | None = None
    slack: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lam", "distill"):
            value = getattr(self, name)
            self.check(name, "a finite weight >= 0", is_finite(value) and value >= 0)
        radius = self.radius
        self.check("radius", "a finite share > 0, or None", radius is None or (is_finite(radius) and radius > 0))
        self.check("slack", "a finite factor > 0", is_finite(self.slack) and self.slack > 0)

    def objective(self, model: nn.Module, head: Head, loader: Iterable[Any], targets: tuple[int, ...]) -> Objective:
        """See `TargetedRepair.objective`."""
        return PerturbedLoss(model, head, loader, targets, self)


class PerturbedLoss(Objective):
    """Cross-entropy on clean and on perturbed samples, and the distance to the suspect on clean ones.

    Parameters
    ----------
    model, head : as they are trained; the suspect is a copy of what they are now
    loader : what perturbations are first looked for on
    targets : classes, one after the other
    settings : weights and radius
    """

    def __init__(
        self, model: nn.Module, head: Head, loader: Iterable[Any], targets: Sequence[int], settings: UniversalRepair
    ) -> None:
        self._model, self._targets, self._settings = model, tuple(targets), settings
        self._suspect = copy.deepcopy(model).eval().requires_grad_(False)
        inputs = _some_inputs(loader, head)
        self._additive = Additive.of(inputs)
        self._steps = 0
        self._answers: Tensor | None = None
        spread = spread_of(inputs)
        if not differ(inputs):
            raise ValueError("loader: expected inputs that differ, got the same again and again")
        sizes = growing(SMALLEST * spread, LARGEST * spread, STEPS)
        found = climb(
            inputs,
            lambda x: widened(self._suspect(x)),
            self._additive,
            sizes,
            batch=BATCH,
            classes=torch.tensor(self._targets),
            enough=1.0,
        )
        if settings.radius is None:
            self._radii = [settings.slack * _size_that_leads(sizes, reached) for reached in found.reached.T]
        else:
            self._radii = [settings.radius * spread] * len(self._targets)
        self._perturbations = torch.stack(
            [capped(each, radius) for each, radius in zip(found.distortions.to(head.device), self._radii, strict=True)]
        )

    def batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The inputs, and behind them the same perturbed, after a step of the perturbation whose turn it is."""
        turn = self._steps % len(self._targets)
        self._steps += 1
        self._advance(turn, inputs, labels)
        with torch.no_grad():
            self._answers = widened(self._suspect(inputs))
        return torch.cat([inputs, self._additive.apply(inputs, self._perturbations[turn])])

    def loss(self, latents: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Of logits (2n, C) of `batch` and labels (n,)."""
        clean, perturbed = widened(logits).chunk(2)
        assert self._answers is not None
        distance = F.kl_div(
            (clean / 2).log_softmax(1), (self._answers / 2).log_softmax(1), reduction="batchmean", log_target=True
        )
        settings = self._settings
        return (
            F.cross_entropy(clean, labels)
            + settings.lam * F.cross_entropy(perturbed, labels)
            + settings.distill * 4 * distance
        )

    def _advance(self, turn: int, inputs: Tensor, labels: Tensor) -> None:
        target, radius = self._targets[turn], self._radii[turn]
        others = inputs[labels != target]
        if len(others) == 0:
            return
        given = self._perturbations[turn].clone().requires_grad_()
        with evaluation_mode(self._model), torch.enable_grad():
            logits = widened(self._model(self._additive.apply(others, given)))
            loss = F.cross_entropy(logits, torch.full((len(others),), target, device=logits.device))
            (gradient,) = torch.autograd.grad(loss, given)
        moved = given.detach() - STEP * radius * scaled(gradient[None], 1.0)[0]
        self._perturbations[turn] = capped(moved, radius)

    def identity(self) -> dict[str, Any]:
        """The targets: those of the report where the settings name none."""
        return {"targets": self._targets}

    def state_dict(self) -> dict[str, Any]:
        """The perturbations with their radii, and whose turn it is."""
        return {"perturbations": self._perturbations, "radii": self._radii, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._perturbations = state["perturbations"].to(self._perturbations.device)
        self._radii, self._steps = state["radii"], state["steps"]


def _some_inputs(loader: Iterable[Any], head: Head) -> Tensor:
    """Up to ``SAMPLES`` inputs, evenly over a pass: the samples may be sorted by class."""
    total = sum(len(inputs) for inputs, _ in trainable_batches(loader, head))
    if total == 0:
        raise ValueError("loader: expected at least one batch of two samples or more, got none")
    step, found, seen = -(-total // SAMPLES), [], 0
    for inputs, _ in trainable_batches(loader, head):
        found.append(inputs[-seen % step :: step].detach())
        seen += len(inputs)
    return torch.cat(found)


def _size_that_leads(sizes: Sequence[float], reached: Tensor) -> float:
    """The first size from which on the class is reached, as `climb` sees it; the last that was tried if none is."""
    leading = is_reached(reached[:-1], reached[1:]).nonzero().flatten().tolist()
    return sizes[leading[0] + 1 if leading else len(reached) - 1]
