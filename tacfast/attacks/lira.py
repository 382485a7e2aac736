"""LIRA (Doan et al. 2021, ICCV): noise within a small bound, which a generator learns along with the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.randomness import isolated_randomness
from .base import Attack, check_target
from .generators import AnySize, descend, halvings, in_chunks, logits_of, move

# At most so many images of a batch train the generator, to keep a step cheap.
ROWS = 32
# Share of the training in which generator and model learn together (stage one).
JOINT = 0.5


class Autoencoder(nn.Sequential):
    """Autoencoder of the paper: ``depth`` convolutions that halve the image, as many transposed ones that double it.

    Maps images (n, channels, h, w), with h and w multiples of 2^depth, to noise of the same shape in (−1, 1).
    """

    def __init__(self, channels: int, depth: int) -> None:
        widths = [channels, *(16 << level for level in range(depth))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        for before, after in pairwise(widths[:0:-1]):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.ConvTranspose2d(widths[1], channels, 4, 2, 1), nn.Tanh())


@dataclass(eq=False)
class LIRA(Attack):
    """x' = clip(x + ε · T(x)) with an autoencoder T that ends in a tanh.

    In stage one T and the model learn in turns; then T stays as it is, and the model goes on learning its triggers.

    Parameters
    ----------
    target : class of the triggered images
    image_shape : (channels, height, width)
    seed : of the first weights of the generator
    epsilon : bound of the change of a pixel; 0.1 as in the commands that the authors published with their code. The
        0.01 of later comparisons is for normalised pixels, at most 0.003 of these, which rounding to 8 bits undoes
    lr : learning rate of the generator; 1e-4 is published, for trainings that are many times longer
    """

    target: int
    image_shape: tuple[int, int, int]
    seed: int = 0
    epsilon: float = 0.1
    lr: float = 1e-3
    noise: nn.Module = field(init=False, repr=False)
    optimizer: torch.optim.Optimizer = field(init=False, repr=False)

    trained = True

    def __post_init__(self) -> None:
        check_target(self.target)
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon: expected a bound in (0, 1], got {self.epsilon}")
        depth = halvings(self.image_shape, smallest=2, most=4)
        with isolated_randomness(self.seed):
            self.noise = AnySize(Autoencoder(self.image_shape[0], depth), 2**depth).eval()
        self.optimizer = torch.optim.Adam(self.noise.parameters(), self.lr)

    def train_step(self, model: nn.Module, images: Tensor, labels: Tensor, progress: float) -> None:
        """Take a step of the generator on a few of the images, in stage one."""
        if progress >= JOINT or len(images) < 2:  # its BatchNorm needs two
            return
        images, labels = images[:ROWS].float(), labels[:ROWS]
        move(self.noise, self.optimizer, images.device)
        self.noise.train()
        triggered = self._apply(images, images)
        self.noise.eval()
        descend(F.cross_entropy(logits_of(model, triggered), self.relabel(labels)), self.optimizer)

    def _apply(self, images: Tensor, sources: Tensor) -> Tensor:
        noise: Tensor = self.noise(sources)
        return (images + self.epsilon * noise).clamp(0, 1)

    def trigger(self, images: Tensor) -> Tensor:
        """Copy of ``images`` (n, channels, h, w), each with its noise."""
        return in_chunks(self._apply, images, images, self.noise, self.image_shape[0])

    def state_dict(self) -> dict[str, Any]:
        """Weights of the generator, and the state of its optimiser."""
        return {"noise": self.noise.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up."""
        self.noise.load_state_dict(state["noise"])
        self.optimizer.load_state_dict(state["optimizer"])


def for_images(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    """As published, for images of that shape; see `make_attack`."""
    return LIRA(target, image_shape, seed)
