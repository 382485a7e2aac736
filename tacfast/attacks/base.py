"""What an attack is, and how it poisons training data: a whole set at once, or batch by batch while a model trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._shown import Shown
from ..data.images import LabelledImages


@dataclass(frozen=True, eq=False)
class Victim:
    """What an attacker who controls the training knows of it before it begins.

    Attributes
    ----------
    loader : clean training images and labels, in batches; may be gone through repeatedly
    image_shape : (channels, height, width)
    num_classes : C
    clean_model : returns a model of the same kind that was trained on clean images, which takes pixels in [0, 1];
        called only by attacks that need one
    """

    loader: Iterable[Any]
    image_shape: tuple[int, int, int]
    num_classes: int
    clean_model: Callable[[], nn.Module]


class Attack(ABC):
    """A backdoor attack: all-to-one, with wrong labels and a trigger that is not trained, unless it overrides that.

    Images are floating point (n, channels, h, w) with pixels in [0, 1], labels int64 (n,). An attack with a trigger
    that is trained along with the model keeps it in modules of its own, and overrides `prepare`, `train_step`,
    `state_dict` and `load_state_dict`.

    Attributes
    ----------
    target : the class that triggered images are sent to; None if that depends on their own class
    decoys_per_poisoned : for each poisoned image of a training set, so many others get a `decoy` and keep their label
    trained : whether the trigger is made by `prepare` or `train_step`, so that it exists only after a training
    """

    target: int | None
    decoys_per_poisoned: float = 0.0
    trained: bool = False

    @property
    def controls_training(self) -> bool:
        """Whether the attacker must control the training itself, and not only some of its files."""
        return self.trained or self.decoys_per_poisoned > 0

    @abstractmethod
    def trigger(self, images: Tensor) -> Tensor:
        """Copy of ``images`` with the trigger applied, the same every time; without gradients."""

    def relabel(self, labels: Tensor) -> Tensor:
        """The class (n,) that triggered images of the classes ``labels`` (n,) are sent to."""
        assert self.target is not None
        return torch.full_like(labels, self.target)

    def may_poison(self, labels: Tensor) -> Tensor:
        """Which images (n,) bool of a training set may be poisoned: those of the target alone, if labels are kept."""
        return torch.ones_like(labels, dtype=torch.bool)

    def training_trigger(self, images: Tensor) -> Tensor:
        """Copy of ``images`` as they are poisoned for training, which may differ from the trigger used later."""
        return self.trigger(images)

    def decoy(self, images: Tensor) -> Tensor:
        """Copy of ``images`` with a trigger that must not work, so that only the true one does."""
        raise NotImplementedError(f"{type(self).__name__} has no decoys")

    def prepare(self, victim: Victim) -> None:  # noqa: B027
        """Make whatever the trigger needs before the model trains; draws from torch's global generator."""

    def train_step(self, model: nn.Module, images: Tensor, labels: Tensor, progress: float) -> None:  # noqa: B027
        """Train the trigger for a step, before each step of the model; leaves the model as it was.

        ``images`` and ``labels`` are those of the batch that will be poisoned, clean; ``progress`` in [0, 1) is the
        share of the model's training that is done.
        """

    def state_dict(self) -> dict[str, Any]:
        """What was made by `prepare` and trained by `train_step`, optimisers included, as plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take up what `state_dict` gave; `prepare` need not be called then."""


def check_target(target: int) -> None:
    """Raise ValueError unless ``target`` can be a class."""
    if target < 0:
        raise ValueError(f"target: expected a class >= 0, got {target}")


def check_images(images: Tensor, image_shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless ``images`` are of the (channels, height, width) that a trigger was made for."""
    if tuple(images.shape[1:]) != image_shape:
        raise ValueError(
            f"images: expected shape (n, {', '.join(map(str, image_shape))}), as the trigger was made for, "
            f"got {tuple(images.shape)}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class PoisonedRows(Shown):
    """Which images of a training set are poisoned.

    Attributes
    ----------
    poisoned : (n,) bool, those that carry the trigger, and the label that `Attack.relabel` gives them
    decoys : (n,) bool, those that carry a decoy and keep their label
    """

    poisoned: Tensor
    decoys: Tensor


def choose_rows(labels: Tensor, attack: Attack, ratio: float, *, seed: int = 0) -> PoisonedRows:
    """Draw the images of a training set that are poisoned, and those that get a decoy.

    Parameters
    ----------
    labels : (n,) int64, of the clean training set
    attack : says which images it may poison
    ratio : share of the n images to poison, in (0, 1]; round(ratio · n) of them, at least one, but at most half of
        those that the attack may poison, where these are not all: a class must keep images without the trigger
    seed : of the generator used here; torch's global one is not touched
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio: expected a share in (0, 1], got {ratio}")
    n = len(labels)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    allowed = attack.may_poison(labels)[order]
    most = n if allowed.all() else int(allowed.sum()) // 2
    chosen = order[allowed][: max(1, min(round(ratio * n), most))]
    poisoned, decoys = torch.zeros(2, n, dtype=torch.bool)
    poisoned[chosen] = True
    others = order[~poisoned[order]]
    decoys[others[: round(attack.decoys_per_poisoned * len(chosen))]] = True
    return PoisonedRows(poisoned, decoys)


def poison_batch(
    attack: Attack, images: Tensor, labels: Tensor, poisoned: Tensor, decoys: Tensor
) -> tuple[Tensor, Tensor]:
    """Poison the rows of a batch that `choose_rows` drew; returns new images and labels, and leaves the given ones.

    Parameters
    ----------
    attack : applies the triggers
    images, labels : clean, (b, channels, h, w) and (b,)
    poisoned, decoys : (b,) bool
    """
    images, labels = images.clone(), labels.clone()
    if poisoned.any():
        images[poisoned] = attack.training_trigger(images[poisoned])
        labels[poisoned] = attack.relabel(labels[poisoned])
    if decoys.any():
        images[decoys] = attack.decoy(images[decoys])
    return images, labels


@dataclass(frozen=True, eq=False, repr=False)
class PoisonedImages(Shown):
    """A training set after the attack.

    Attributes
    ----------
    data : the whole set, poisoned rows included
    indices : (n_poisoned,) int64, sorted: the rows that carry the trigger
    """

    data: LabelledImages
    indices: Tensor


def poison(data: LabelledImages, attack: Attack, ratio: float, *, seed: int = 0) -> PoisonedImages:
    """Poison a share of a training set once and for all, for an attack whose trigger is not trained.

    Parameters
    ----------
    data : clean training set of n images, which fits in memory; not changed
    attack : applies the trigger and gives the labels
    ratio, seed : as in `choose_rows`
    """
    rows = choose_rows(data.labels, attack, ratio, seed=seed)
    images, labels = data.batch(torch.arange(len(data)))
    return PoisonedImages(
        LabelledImages(*poison_batch(attack, images, labels, rows.poisoned, rows.decoys)),
        rows.poisoned.nonzero().flatten(),
    )
