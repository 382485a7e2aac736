"""The training loop: clean or under an attack, taken up again after it was killed."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F

from .._processes import Processes
from ..attacks.base import Attack, PoisonedRows, Victim, poison_batch
from ..data.images import LabelledImages
from ..data.randomness import isolated_randomness
from ..models.precision import bfloat16_autocast, native_bfloat16
from ..models.state_file import DamagedStateError, StateFile, fingerprint, named_weights
from .augment import augment
from .recipe import Recipe

_log = logging.getLogger(__name__)

# Of one-cycle: share of the training in which the learning rate rises.
WARM_UP = 0.3


class TrainingDivergedError(RuntimeError):
    """The loss was no longer finite."""


@dataclass(frozen=True)
class TrainedEpoch:
    """One pass over the training images.

    Attributes
    ----------
    epoch : 1, 2, …
    loss : mean over the images
    accuracy : share of them that was classified as labelled, poisoned labels included, before each step
    seconds : wall-clock time
    """

    epoch: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a classifier is trained on.

    Attributes
    ----------
    data : images and labels, of which only ``rows`` are used
    rows : (n,) int64
    padding, flip : see `ImageDataset`
    attack, poisoned : of a training under attack: the attack, and which of ``rows`` it poisons; else None
    """

    data: LabelledImages
    rows: Tensor
    padding: int
    flip: bool
    attack: Attack | None = None
    poisoned: PoisonedRows | None = None

    def batch(self, chosen: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Clean, augmented images and labels of the rows number ``chosen`` (b,)."""
        images, labels = self.data.batch(self.rows[chosen])
        images = augment(images, padding=self.padding, flip=self.flip)
        return images.to(device, memory_format=torch.channels_last), labels.to(device)

    def poisoned_batch(self, chosen: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and labels as a network under attack gets them.

        Without control over the training the attacker can only poison the files, which are augmented later.
        """
        assert self.attack is not None
        assert self.poisoned is not None
        rows = self.poisoned.poisoned[chosen], self.poisoned.decoys[chosen]
        if self.attack.controls_training:
            clean = self.batch(chosen, device)
            return poison_batch(self.attack, *clean, *(mask.to(device) for mask in rows))
        images, labels = poison_batch(self.attack, *self.data.batch(self.rows[chosen]), *rows)
        images = augment(images, padding=self.padding, flip=self.flip)
        return images.to(device, memory_format=torch.channels_last), labels.to(device)


def train(
    model: nn.Module,
    data: TrainingData,
    recipe: Recipe,
    *,
    clean_model: Callable[[], nn.Module] | None = None,
    resume: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[TrainedEpoch], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    group: torch.distributed.ProcessGroup | None = None,
) -> list[TrainedEpoch]:
    """Train a classifier in place, and the trigger of its attack along with it.

    Parameters
    ----------
    model : takes pixels in [0, 1]; with its initial weights, on the device where it is trained
    data : the training images, and how they are poisoned
    recipe : of the training
    clean_model : for attacks that need a clean model of this kind first, see `Victim`
    resume : path of a file that holds the state after every epoch. If it exists the training goes on from there,
        on the CPU to the very weights that it would have had without the interruption. A damaged one is not used, with
        a warning. It is left where it is at the end: delete it when the result is safe
    on_epoch : called after each epoch; may run the model in evaluation mode
    on_step : called with the number of steps that are done, of all epochs together, and their total
    group : processes that share the work, such as ``torch.distributed.group.WORLD``; None: this one alone. Each calls
        this with the same arguments, takes its part of every batch, and ends with the same weights: but for rounding
        those that one process comes to, if the model has no dropout, and no BatchNorm, which sees a part of the batch
        at a time; its running statistics are those of the first. A trigger is trained by each of them, on
        whole batches. The first alone reads and writes ``resume``

    Returns
    -------
    list[TrainedEpoch] : those before an interruption included

    Raises
    ------
    ValueError
        If there are fewer images than in a batch, or in a batch than two for each process, or the state file is of
        another training.
    OSError
        If another process of the ``group`` failed, is gone, or did not answer in time.
    TrainingDivergedError
        If the loss is no longer finite.
    """
    return _Training(model, data, recipe, clean_model, resume, Processes(group)).run(on_epoch, on_step)


class _Training:
    def __init__(
        self,
        model: nn.Module,
        data: TrainingData,
        recipe: Recipe,
        clean_model: Callable[[], nn.Module] | None,
        resume: str | os.PathLike[str] | None,
        processes: Processes,
    ) -> None:
        self._model, self._data, self._recipe, self._clean_model = model, data, recipe, clean_model
        self._processes = processes
        self._device = next(model.parameters()).device
        self._batches = len(data.rows) // recipe.batch_size
        if self._batches == 0:
            raise ValueError(
                f"data: expected at least {recipe.batch_size} images, a batch, to train on, got {len(data.rows)}"
            )
        if processes.size > 1 and recipe.batch_size < 2 * processes.size:
            raise ValueError(
                f"batch_size: expected at least {2 * processes.size}, two images for each process, "
                f"got {recipe.batch_size}"
            )
        wanted = recipe.precision == "bfloat16" or (recipe.precision == "auto" and native_bfloat16(self._device))
        self._bfloat16 = wanted
        self._optimizer = torch.optim.SGD(
            model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
        )
        self._schedule = self._make_schedule(recipe.epochs * self._batches + 1)
        self._history: list[TrainedEpoch] = []
        path = resume if processes.rank == 0 else None
        self._store = None if path is None else StateFile(path, self._identity(), "training")

    def _make_schedule(self, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        if self._recipe.schedule == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, steps)
        return torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, self._recipe.lr, total_steps=steps, pct_start=WARM_UP, cycle_momentum=False
        )

    def run(
        self, on_epoch: Callable[[TrainedEpoch], None] | None, on_step: Callable[[int, int], None] | None
    ) -> list[TrainedEpoch]:
        self._model.to(memory_format=torch.channels_last)
        with nullcontext() if self._store is None else self._store.held():
            if not self._resume():
                self._prepare_attack()
            while len(self._history) < self._recipe.epochs:
                # Every epoch draws from a seed of its own, so that no generator has to be kept.
                with isolated_randomness(self._seed_of(len(self._history) + 1)):
                    self._history.append(self._run_epoch(on_step))
                _log.info("%s", self._history[-1])
                if self._store is not None:
                    self._store.write(self._state())
                if on_epoch is not None:
                    on_epoch(self._history[-1])
        self._model.eval()
        return self._history

    def _seed_of(self, epoch: int) -> int:
        return (self._recipe.seed * 1_000_003 + epoch) % 2**63

    def _prepare_attack(self) -> None:
        attack, recipe, rows = self._data.attack, self._recipe, self._data.rows
        if attack is None:
            return

        def no_model() -> nn.Module:
            raise ValueError(f"clean_model: expected one, which {type(attack).__name__} needs")

        with isolated_randomness(self._seed_of(0)):
            attack.prepare(
                Victim(
                    loader=self._data.data.subset(rows).loader(recipe.batch_size, shuffle=True),
                    image_shape=self._data.data.image_shape,
                    num_classes=int(self._data.data.labels.max()) + 1,
                    clean_model=self._clean_model or no_model,
                )
            )

    def _run_epoch(self, on_step: Callable[[int, int], None] | None) -> TrainedEpoch:
        start, loss_sum, correct, total = time.perf_counter(), 0.0, 0, 0
        done = len(self._history) * self._batches
        self._model.train()
        for chosen in self._order():
            # The whole batch is made by every process, so that all draw the same random numbers.
            images, labels = self._next_batch(chosen, done / (self._recipe.epochs * self._batches))
            own = self._processes.share(len(labels))
            images, labels = images[own], labels[own]
            with bfloat16_autocast(self._device, enabled=self._bfloat16):
                logits = self._model(images).float()
            loss = F.cross_entropy(logits, labels) * (len(labels) / len(chosen))
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._processes.add_gradients(self._model)
            self._optimizer.step()
            self._schedule.step()
            loss_sum += float(loss.detach()) * len(chosen)
            correct += int((logits.detach().argmax(1) == labels).sum())
            total += len(labels)
            done += 1
            if on_step is not None:
                on_step(done, self._recipe.epochs * self._batches)
        sums = self._processes.totals(loss_sum, correct, total)
        mean, accuracy = sums[0] / sums[2], sums[1] / sums[2]
        if not math.isfinite(mean):
            raise TrainingDivergedError(f"training diverged: loss {mean}; lower lr (it is {self._recipe.lr:g})")
        return TrainedEpoch(len(self._history) + 1, mean, accuracy, time.perf_counter() - start)

    def _order(self) -> Iterator[Tensor]:
        size = self._recipe.batch_size
        order = torch.randperm(len(self._data.rows))[: self._batches * size]
        yield from torch.split(order, size)

    def _next_batch(self, chosen: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        attack = self._data.attack
        if attack is None:
            return self._data.batch(chosen, self._device)
        if attack.trained and self._data.poisoned is not None:
            attack.train_step(self._model, *self._data.batch(chosen, self._device), progress)
        return self._data.poisoned_batch(chosen, self._device)

    def _identity(self) -> dict[str, Any]:
        """All that the outcome depends on, as plain values."""
        data, poisoned = self._data, self._data.poisoned
        return {
            **asdict(self._recipe),
            "bfloat16": self._bfloat16,
            "padding": data.padding,
            "flip": data.flip,
            "attack": None if data.attack is None else repr(data.attack),
            "images": _digest(data.rows, data.data.labels[data.rows]),
            "poisoned images": None if poisoned is None else _digest(poisoned.poisoned, poisoned.decoys),
            "first weights": fingerprint(self._model),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "weights": dict(named_weights(self._model)),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "attack": {} if self._data.attack is None else self._data.attack.state_dict(),
            "history": [asdict(epoch) for epoch in self._history],
        }

    def _resume(self) -> bool:
        """Take up the state of an interrupted training; False if there is none that can be used."""
        state = None
        with self._processes.together():
            try:
                state = None if self._store is None else self._store.read()
            except DamagedStateError as error:  # it is overwritten after the next epoch
                warnings.warn(f"{error}; trained from the beginning", stacklevel=4)
        state = self._processes.first(state)
        if state is None:
            return False
        self._load(state)
        return True

    def _load(self, state: Mapping[str, Any]) -> None:
        ours = dict(named_weights(self._model))
        with torch.no_grad():
            for name, tensor in state["weights"].items():
                ours[name].copy_(tensor)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if self._data.attack is not None:
            self._data.attack.load_state_dict(state["attack"])
        self._history = [TrainedEpoch(**epoch) for epoch in state["history"]]


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
