"""Input-aware dynamic backdoor (Nguyen & Tran 2020, arXiv 2010.08138): every image has a trigger of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.randomness import isolated_randomness
from .base import Attack, Victim, check_target
from .generators import AnySize, descend, halvings, in_chunks, logits_of, move

# Of the optimisers and the losses, as published.
BETAS = (0.5, 0.9)
EPSILON = 1e-7
# Share of the poisoned and of the crossed images in a batch, by which the published loss weighs them.
SHARE = 0.1
# So many images of a batch train the patterns, the published share of the published batch of 128, and the masks.
ROWS = 12
MASK_ROWS = 64


class Generator(nn.Sequential):
    """Encoder and decoder of the paper: ``depth`` halvings with two convolutions before each, and as many doublings.

    Maps images (n, channels, h, w), with h and w multiples of 2^depth, to (n, channels_out, h, w) in (0, 1).
    """

    def __init__(self, channels: int, channels_out: int, depth: int, width: int) -> None:
        widths = [width << level for level in range(depth)]
        layers: list[nn.Module] = []
        before = channels
        for each in widths:
            layers += [*_convolution(before, each), nn.ReLU(), *_convolution(each, each), nn.ReLU(), nn.MaxPool2d(2)]
            before = each
        layers += [*_convolution(before, before), nn.ReLU()]
        for after in [*reversed(widths[:-1]), channels_out]:
            layers += [nn.Upsample(scale_factor=2, mode="bilinear"), *_convolution(before, before), nn.ReLU()]
            layers += [*_convolution(before, after), nn.ReLU()]
            before = after
        super().__init__(*layers[:-1], nn.Tanh())

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, h, w) to (n, channels_out, h, w)."""
        made: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return made / 2 + 0.5


def _convolution(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, 3, 1, 1), nn.BatchNorm2d(channels_out, momentum=0.05)]


def _distances(values: Tensor) -> Tensor:
    """Root mean square difference (n,) between each of ``values`` (n, ...) and its neighbour; smooth where it is 0."""
    differences = (values - values.roll(1, 0)).flatten(1)
    distances: Tensor = torch.linalg.vector_norm(differences, dim=1) / math.sqrt(differences.shape[1])
    return distances


def diversity_loss(images: Tensor, made: Tensor) -> Tensor:
    """How alike is what was made for different images: their distances by those of what was made (eq. 5), averaged.

    ``images`` and ``made`` are (n, ·, h, w) in [0, 1], n >= 2; each image is compared with the one before it.
    """
    return (_distances(images) / (_distances(made) + EPSILON)).mean()


@dataclass(eq=False)
class InputAware(Attack):
    """A pattern generator and a mask generator make the trigger of an image from the image itself.

    The triggered image is x + (pattern(x) − x) · mask(x). `prepare` trains the mask generator alone, to be sparse
    and diverse; it is then fixed. The pattern generator is trained with the model, so that an image with its own
    trigger goes to the target, that one with the trigger of another image (a decoy) stays in its class, and that
    patterns differ as images do. The published number of halvings, three of 32 and two of 28 pixels, follows the size.

    Parameters
    ----------
    target : class of the triggered images
    image_shape : (channels, height, width)
    seed : of the first weights of both generators
    mask_density : share of the pixels that a mask may cover free of charge
    diversity : λ_div, the weight of `diversity_loss`
    sparsity : λ_norm, the weight of what a mask covers beyond that
    lr : first learning rate of both generators, which falls as published: the patterns' by tens at 1/3, 1/2, 2/3
        and 5/6 of the training, the masks' at 2/5 and 4/5 of theirs
    mask_steps : of the mask generator; 25 epochs are published, but the masks settle much earlier
    width : channels of the generators' first layers; 32 for CIFAR-10 and 16 for MNIST are published
    """

    target: int
    image_shape: tuple[int, int, int]
    seed: int = 0
    mask_density: float = 0.032
    diversity: float = 1.0
    sparsity: float = 100.0
    lr: float = 0.01
    mask_steps: int = 400
    width: int = 16
    patterns: nn.Module = field(init=False, repr=False)
    masks: nn.Module = field(init=False, repr=False)
    optimizer: torch.optim.Optimizer = field(init=False, repr=False)

    decoys_per_poisoned = 1.0
    trained = True

    def __post_init__(self) -> None:
        check_target(self.target)
        if not 0 < self.mask_density < 1:
            raise ValueError(f"mask_density: expected a share in (0, 1), got {self.mask_density}")
        channels, depth = self.image_shape[0], halvings(self.image_shape, smallest=4, most=3)
        with isolated_randomness(self.seed):
            self.patterns, self.masks = (
                AnySize(Generator(channels, made, depth, self.width), 2**depth).eval() for made in (channels, 1)
            )
        self.optimizer = torch.optim.Adam(self.patterns.parameters(), self.lr, BETAS)

    def prepare(self, victim: Victim) -> None:
        """Train the mask generator on clean images."""
        optimizer = torch.optim.Adam(self.masks.parameters(), self.lr, BETAS)
        milestones = [self.mask_steps * 2 // 5, self.mask_steps * 4 // 5]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
        self.masks.train()
        for images, *_ in islice(chain.from_iterable(repeat(victim.loader)), self.mask_steps):
            move(self.masks, optimizer, images.device)
            some = images[:MASK_ROWS].float()
            masks = self._masks_of(some)
            covered = F.relu(masks - self.mask_density).mean()
            descend(self.sparsity * covered + self.diversity * diversity_loss(some, masks), optimizer)
            schedule.step()
        self.masks.eval()

    def _masks_of(self, images: Tensor) -> Tensor:
        """Masks (n, 1, h, w), nearly all zeros and ones."""
        made: Tensor = self.masks(images)
        return (20 * made - 10).tanh() / 2 + 0.5

    def train_step(self, model: nn.Module, images: Tensor, labels: Tensor, progress: float) -> None:
        """Take a step of the pattern generator on a few of the images."""
        images, labels = images[:ROWS].float(), labels[:ROWS]
        if len(images) < 2:
            return  # no other image to differ from
        move(self.patterns, self.optimizer, images.device)
        move(self.masks, None, images.device)
        drops = sum(progress >= milestone for milestone in (1 / 3, 1 / 2, 2 / 3, 5 / 6))
        self.optimizer.param_groups[0]["lr"] = self.lr * 0.1**drops
        self.patterns.train()
        patterns = self.patterns(images)
        self.patterns.eval()
        with torch.no_grad():
            masks = self._masks_of(images)
        own = images + (patterns - images) * masks
        crossed = images + (patterns.roll(1, 0) - images) * masks.roll(1, 0)
        logits = logits_of(model, torch.cat([own, crossed]))
        wrong = F.cross_entropy(logits, torch.cat([self.relabel(labels), labels]))
        # The mean is over both halves, each of which the published loss weighs by its share of the batch.
        descend(2 * SHARE * wrong + self.diversity * diversity_loss(images, patterns), self.optimizer)

    def _apply(self, images: Tensor, sources: Tensor) -> Tensor:
        patterns: Tensor = self.patterns(sources)
        return images + (patterns - images) * self._masks_of(sources)

    def trigger(self, images: Tensor) -> Tensor:
        """Copy of ``images`` (n, channels, h, w), each with its own trigger."""
        return self._applied(images, images)

    def decoy(self, images: Tensor) -> Tensor:
        """Copy of ``images`` (n, channels, h, w), each with the trigger of the one before; of one, a clean copy."""
        return self._applied(images, images.roll(1, 0)) if len(images) > 1 else images.clone()

    def _applied(self, images: Tensor, sources: Tensor) -> Tensor:
        return in_chunks(self._apply, images, sources, self.patterns, self.image_shape[0])

    def state_dict(self) -> dict[str, Any]:
        """Weights of both generators, and the state of the optimiser."""
        return {
            "patterns": self.patterns.state_dict(),
            "masks": self.masks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up."""
        self.patterns.load_state_dict(state["patterns"])
        self.masks.load_state_dict(state["masks"])
        self.optimizer.load_state_dict(state["optimizer"])


def for_images(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    """As published, for images of that shape; see `make_attack`."""
    # The published share, and in smaller images as many pixels as it is of MNIST's, but at most a quarter of them.
    share = min(0.25, 0.032 * max(1, 28**2 / math.prod(image_shape[1:])))
    return InputAware(target, image_shape, seed, mask_density=share)
