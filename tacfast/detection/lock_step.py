"""Universal distortions of the samples towards every class at once, all allowed the same size at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .statistic import Evidence

# A loss below this counts as this: that of a class which is reached would go on to fall for ever.
FLOOR = 1e-3
# The same samples always.
SEED = 0
# Length of a gradient step, as a share of the budget.
STEP = 0.4
# Share of the samples, over two steps, that must be sent to a class for it to be reached.
REACHED = 0.8
# With so many classes the spread of the others is known well enough: on GTSRB's networks of the bank half of the
# samples tell the backdoored from the clean ones as well, and the time grows with the number of classes.
MANY = 40


class Distortion(Protocol):
    """A way to change all samples alike, by parameters whose Euclidean norm says how much."""

    def start(self, count: int) -> Tensor:
        """Parameters (count, ...) that change nothing."""
        ...

    def run(self, classify: Callable[[Tensor], Tensor], inputs: Tensor, parameters: Tensor) -> Tensor:
        """Logits (n, C) of inputs (n, ...) that are distorted each by its row of ``parameters`` (n, ...)."""
        ...


@dataclass(frozen=True, eq=False)
class Climb:
    """How the classes were reached.

    Attributes
    ----------
    losses : (T, K) float64, mean cross-entropy towards each class on a batch, at each of the steps that were made
    reached : (T, K) share of the batch that the model sent there
    distortions : (K, ...) parameters after the last step, which nobody has looked at
    passes : samples that went through the model and back
    """

    losses: Tensor
    reached: Tensor
    distortions: Tensor
    passes: int

    @property
    def effort(self) -> Tensor:
        """(K,) float64, `effort_of` the losses."""
        return effort_of(self.losses)


def growing(first: float, last: float, steps: int) -> list[float]:
    """So many sizes from the first to the last, each the same multiple of the one before."""
    return [first * (last / first) ** (t / max(1, steps - 1)) for t in range(steps)]


def effort_of(losses: Tensor) -> Tensor:
    """Mean over the steps of the log of the losses (T, K): small for a class that little change is enough to reach."""
    return losses.double().clamp_min(FLOOR).log().mean(0)


def climb(
    inputs: Tensor,
    classify: Callable[[Tensor], Tensor],
    distortion: Distortion,
    budgets: Sequence[float],
    *,
    batch: int,
    classes: Tensor | None = None,
    enough: float = 0.5,
    together: int = Evidence.together,
) -> Climb:
    """Let a distortion per class grow step by step, each a normalised gradient step on the loss towards its class.

    The classes share their samples, those of a class left out where that is the aim, so that what differs between them
    is how easy they are to reach. It ends early when so many of the classes are reached: further out all are.

    Parameters
    ----------
    inputs : (n, ...) samples, drawn from in an order that is always the same
    classify : from such inputs to logits (n, C), as of `Evidence`
    distortion : how samples are changed
    budgets : the norm of the distortion at each step
    batch : samples per class and step; half as many where all are aimed at and they are at least ``MANY``
    classes : (K,) int64 to aim at; all if None
    enough : share of the classes that must be reached for it to end
    together : samples that go through the model at once, at most, of as many classes as that makes
    """
    with torch.no_grad():
        logits = torch.cat([classify(part) for part in torch.split(inputs, together)])
    answers = logits.argmax(1)
    if classes is None:
        classes = torch.arange(logits.shape[1])
        batch = batch if len(classes) < MANY else (batch + 1) // 2
    generator = torch.Generator().manual_seed(SEED)
    parameters = distortion.start(len(classes))
    losses, reached, passes = [], [], 0
    for budget in budgets:
        order = torch.randperm(len(inputs), generator=generator).to(answers.device)
        parameters = scaled(parameters, budget)
        found = []
        for some in torch.split(torch.arange(len(classes)), max(1, together // batch)):
            rows = torch.stack([_others(order, answers, int(k), batch) for k in classes[some]])
            moved, loss, share = _towards(classify, inputs, rows, distortion, parameters[some], classes[some])
            parameters[some] -= STEP * budget * moved  # in place: of many classes they are large
            found.append((loss, share))
            passes += rows.numel()
        losses.append(torch.cat([loss for loss, _ in found]))
        reached.append(torch.cat([share for _, share in found]))
        if len(reached) > 1 and is_reached(*reached[-2:]).double().mean() >= enough:
            break
    return Climb(torch.stack(losses), torch.stack(reached), parameters.cpu(), passes)


def is_reached(before: Tensor, now: Tensor) -> Tensor:
    """Whether classes count as reached, by the shares of the samples that two steps sent there."""
    return (before + now) / 2 >= REACHED


def _others(order: Tensor, answers: Tensor, k: int, batch: int) -> Tensor:
    """The first samples that are not of class k, again from the front where there are too few."""
    others = order[answers[order] != k]
    others = others if len(others) else order
    return others[torch.arange(batch, device=others.device) % len(others)]


def _towards(
    classify: Callable[[Tensor], Tensor],
    inputs: Tensor,
    rows: Tensor,
    distortion: Distortion,
    parameters: Tensor,
    classes: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Direction of steepest descent of unit length per class, the loss, and the share that is sent there."""
    count, batch = rows.shape
    wanted = classes.to(rows.device).repeat_interleave(batch)
    with torch.enable_grad():
        given = parameters.detach().requires_grad_()
        logits = distortion.run(classify, inputs[rows.flatten()], given.repeat_interleave(batch, 0)).float()
        loss = F.cross_entropy(logits, wanted, reduction="none").view(count, batch).mean(1)
        (gradient,) = torch.autograd.grad(loss.sum(), given)
    share = (logits.argmax(1) == wanted).view(count, batch).float().mean(1)
    return scaled(gradient, 1.0), loss.detach().cpu().double(), share.cpu().double()


def scaled(parameters: Tensor, norm: float) -> Tensor:
    """Each row scaled to that Euclidean norm; zeros stay zeros."""
    norms = parameters.flatten(1).norm(dim=1).view(-1, *[1] * (parameters.ndim - 1))
    factors = norm / norms.clamp_min(torch.finfo(parameters.dtype).tiny)
    scaled: Tensor = parameters * factors.where(factors.isfinite(), 0.0)  # of next to nothing it overflows
    return scaled
