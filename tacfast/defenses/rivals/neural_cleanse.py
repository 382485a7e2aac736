"""Neural Cleanse (NC): find the class that a small patch sends all images to, and unlearn that patch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.head import Head, evaluation_mode, logits_of
from ..held_out import HeldOut
from ..training import COUNT, NOT_NEGATIVE, is_finite, is_integer, trainable_batches, widened
from .base import Tell, train_epochs
from .fine_tuning import FineTuning

# Of BackdoorBench: the share of images that a trigger has to flip, the first weight of its norm, and how fast that
# weight grows (doubles in five rounds) or falls; a round was a pass over the clean samples, and is a step here.
FLIPPED, FIRST_COST, GROWTH, DECAY = 0.98, 1e-3, 2 ** (1 / 5), 2 ** (-1.5 / 5)
MASK_RATE, MASK_BETAS = 0.1, (0.5, 0.9)
# Of more classes than this all are searched for a share of the steps, and only so many to the end: a fifth of these has
# the smallest masks so far, and the others are spread evenly over the rest.
MANY, BRIEF = 50, 0.25
# Images in a step, and steps that the share is measured over.
BATCH, WINDOW = 32, 4
# Steps without a mask smaller by one per cent after which a search ends.
PATIENCE = 30


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(FineTuning):
    """NC (Wang et al. 2019, "Neural Cleanse", IEEE S&P), which names the class by itself.

    For each class a trigger is sought (`reverse_trigger`), and the classes are named whose mask is smaller than those
    of the others, by more than ``min_index`` times 1.4826 · the median absolute deviation. Then the model is fine-tuned
    with some of the images of each batch carrying one of the triggers of these classes, under their true labels; if no
    class is named it stays as it is. Images must be pixels in [0, 1].

    The settings are those of BackdoorBench, scaled down: there a search is up to 80 passes over all clean samples (in
    batches of 256), which is hours for 43 classes on a CPU, and fine-tuning takes 100 epochs. Of more than 50 classes
    all are searched briefly, and only 50 to the end, among which the named ones are: the ten with the smallest masks
    and 40 others to compare them with.

    Parameters
    ----------
    samples : clean samples that triggers are sought on, at most
    steps : of each search, at most, a batch of 32 of these samples each
    min_index : anomaly index above which a class is named
    stamped : share of the images that carry a trigger during fine-tuning
    """

    name: ClassVar[str] = "nc"
    epochs: int = 10
    samples: int = 500
    steps: int = 150
    min_index: float = 2.0
    stamped: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("samples", "an integer >= 2", is_integer(self.samples) and self.samples >= 2)
        self.check_each(COUNT, "steps")
        self.check_each(NOT_NEGATIVE, "min_index")
        self.check("stamped", "a share in (0, 1]", is_finite(self.stamped) and 0 < self.stamped <= 1)

    def treat(
        self, model: nn.Module, head: Head, loader: Iterable[Any], held_out: HeldOut | None, tell: Tell
    ) -> tuple[int, ...]:
        """Unlearn in place the triggers of the classes that are returned."""
        triggers = self.search(model, head, loader)
        named = outliers({k: trigger.norm for k, trigger in triggers.items()}, self.min_index)
        if named:
            self._unlearn([triggers[k] for k in named], model, head, loader, tell)
        return named

    def search(self, model: nn.Module, head: Head, loader: Iterable[Any]) -> dict[int, Trigger]:
        """Find the triggers by class; the model is left as it was."""
        pool = torch.cat(list(_some(trainable_batches(loader, head), self.samples)))[: self.samples]
        # The same for all classes, so that their masks can be compared.
        batches = [pool[torch.randint(len(pool), (BATCH,), device=pool.device)] for _ in range(self.steps)]
        classes: Sequence[int] = range(head.num_classes)
        with evaluation_mode(model):
            if len(classes) > MANY:
                brief = batches[: max(1, round(BRIEF * self.steps))]
                rough = {k: reverse_trigger(model, brief, k).norm for k in classes}
                classes = spread(sorted(classes, key=rough.__getitem__))
            return {target: reverse_trigger(model, batches, target) for target in classes}

    def _unlearn(self, triggers: Sequence[Trigger], model: nn.Module, head: Head, loader: Any, tell: Tell) -> None:
        optimizer, schedule = self.descent(model)

        def step(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            mixed = inputs.clone()
            rows = torch.randperm(len(inputs), device=inputs.device)[: max(1, round(self.stamped * len(inputs)))]
            for trigger, share in zip(triggers, rows.tensor_split(len(triggers)), strict=True):
                mixed[share] = trigger.stamp(inputs[share])
            logits = logits_of(model, mixed)
            return F.cross_entropy(widened(logits), labels), logits

        train_epochs(model, head, loader, self.epochs, step, optimizer=optimizer, schedule=schedule, tell=tell)


@dataclass(frozen=True, eq=False)
class Trigger:
    """A patch, perhaps translucent.

    Attributes
    ----------
    mask : (1, 1, h, w) in [0, 1], how opaque it is
    pattern : (1, channels, h, w) in [0, 1]
    """

    mask: Tensor
    pattern: Tensor

    @property
    def norm(self) -> float:
        """L1 norm of the mask, in pixels."""
        return float(self.mask.sum())

    def stamp(self, images: Tensor) -> Tensor:
        """Copy of images (n, channels, h, w) with the patch."""
        return torch.lerp(images, self.pattern, self.mask)


def reverse_trigger(model: nn.Module, batches: Sequence[Tensor], target: int) -> Trigger:
    """Find the smallest patch that sends images to a class.

    Adam on the cross-entropy to the class plus a weight times the L1 norm of the mask; the weight grows while the last
    few batches are flipped, and falls otherwise.

    Parameters
    ----------
    model : in evaluation mode
    batches : of images (n, channels, h, w), pixels in [0, 1]; one for each step
    target : the class

    Returns
    -------
    Trigger
        The smallest of those that flip the images; the whole image, opaque, if none does.
    """
    images = batches[0]
    raw_mask, raw_pattern = torch.ones_like(images[:1, :1]), torch.ones_like(images[:1])
    optimizer = torch.optim.Adam([raw_mask.requires_grad_(), raw_pattern.requires_grad_()], MASK_RATE, MASK_BETAS)
    best = Trigger(torch.ones_like(images[:1, :1]), torch.full_like(images[:1], 0.5))
    cost, improved, shares = FIRST_COST, math.inf, deque[float](maxlen=WINDOW)
    for number, images in enumerate(batches):
        mask, pattern = (raw_mask.tanh() + 1) / 2, (raw_pattern.tanh() + 1) / 2
        logits = widened(logits_of(model, Trigger(mask, pattern).stamp(images)))
        labels = torch.full((len(images),), target, device=images.device)
        loss = F.cross_entropy(logits, labels) + cost * mask.sum()
        for raw, slope in zip(parts := (raw_mask, raw_pattern), torch.autograd.grad(loss, parts), strict=True):
            raw.grad = slope
        optimizer.step()
        shares.append(float((logits.argmax(1) == target).float().mean()))
        flips = len(shares) == WINDOW and sum(shares) / WINDOW >= FLIPPED
        now = Trigger(mask.detach(), pattern.detach())
        if flips and now.norm < best.norm:
            if now.norm < 0.99 * best.norm:
                improved = number
            best = now
        if number - improved > PATIENCE:
            break
        cost *= GROWTH if flips else DECAY
    return best


def spread(ranking: Sequence[int]) -> list[int]:
    """Take ``MANY`` of a longer ranking: the first fifth of them from its top, the others evenly from the rest."""
    top, rest = ranking[: MANY // 5], ranking[MANY // 5 :]
    count = MANY - len(top)
    return [*top, *(rest[i * len(rest) // count] for i in range(count))]


def outliers(norms: Mapping[int, float], min_index: float) -> tuple[int, ...]:
    """Classes whose norm is below the median by more than ``min_index`` · 1.4826 · MAD, smallest first."""
    values = torch.tensor(list(norms.values()), dtype=torch.float64)
    below = values.quantile(0.5) - values
    far = below > min_index * 1.4826 * below.abs().quantile(0.5)
    named = [k for k, is_far in zip(norms, far.tolist(), strict=True) if is_far]
    return tuple(sorted(named, key=norms.__getitem__))


def _some(batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Iterable[Tensor]:
    """Inputs of as many batches as ``count`` samples take."""
    for inputs, _ in batches:
        yield inputs
        count -= len(inputs)
        if count <= 0:
            return
