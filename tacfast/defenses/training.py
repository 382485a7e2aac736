"""What the defences that train share: settings, checks of the samples, and the loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._processes import ALONE, Processes
from .._text import listed
from ..data.randomness import random_states, set_random_states
from ..models.head import Head, kept_modes, latest_call, unwrapped
from ..models.latents import split_batch
from ..models.precision import bfloat16_autocast, native_bfloat16
from ..models.state_file import StateFile, fingerprint, named_weights
from .base import EpochRecord, RepairResult, warn_caller
from .held_out import EpochChoice, load_weights

_log = logging.getLogger(__name__)

# Share of the training in which the learning rate rises; then it falls.
WARM_UP = 0.3


def is_integer(value: object) -> bool:
    """Whether it is an int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


# What is expected of a setting, in words, and whether a value is that.
COUNT = "an integer >= 1", lambda value: is_integer(value) and value >= 1
SEED = "an integer in [0, 2**63)", lambda value: is_integer(value) and 0 <= value < 2**63
RATE = "a finite learning rate > 0", lambda value: is_finite(value) and value > 0
NOT_NEGATIVE = "a finite number >= 0", lambda value: is_finite(value) and value >= 0
BELOW_ONE = "a number in [0, 1)", lambda value: is_finite(value) and 0 <= value < 1
SHARE = "a share in [0, 1]", lambda value: is_finite(value) and 0 <= value <= 1


class Settings:
    """Settings of a way to repair, fields of a frozen dataclass that its ``__post_init__`` checks."""

    def check(self, name: str, expected: str, holds: bool) -> None:
        """Raise ValueError, naming the setting, what was expected and what came, unless that ``holds``."""
        if not holds:
            raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def check_each(self, rule: tuple[str, Callable[[Any], bool]], *names: str) -> None:
        """The same for each of these settings, of a rule that says what is expected and whether a value is that."""
        for name in names:
            self.check(name, rule[0], rule[1](getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """Settings of SGD with momentum and a one-cycle rate, and of the choice of an epoch; every such mode has them.

    Parameters
    ----------
    epochs : passes over the clean samples
    lr : peak learning rate
    momentum, weight_decay : of SGD
    max_drop : loss of held-out accuracy that is allowed, a share of the held-out samples; None for the lower
        end of Wilson's interval, see `fewest_correct`
    seed : of torch, NumPy, Python's ``random`` and the loader's generators; all are left as they were
    max_norm : longer gradients, of all weights together, are shortened to this; None for none

    Attributes
    ----------
    rates : learning rates for whoever gives none, to be tried until clean accuracy is kept: higher ones remove more of
        a backdoor, and which one a network survives differs by a factor of a hundred
    """

    rates: ClassVar[tuple[float, ...]] = (0.1, 0.03, 0.01, 0.003)
    epochs: int = 60
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    max_drop: float | None = None
    seed: int = 0
    max_norm: float | None = None

    def __post_init__(self) -> None:
        self.check_each(COUNT, "epochs")
        self.check_each(RATE, "lr")
        self.check_each(BELOW_ONE, "momentum")
        self.check_each(NOT_NEGATIVE, "weight_decay")
        drop = self.max_drop
        self.check("max_drop", "a share in [0, 1], or None", drop is None or (is_finite(drop) and 0 <= drop <= 1))
        self.check_each(SEED, "seed")
        norm = self.max_norm
        self.check("max_norm", "a finite norm > 0, or None", norm is None or (is_finite(norm) and norm > 0))

    @property
    def first_choice(self) -> int:
        """The first epoch whose learning rate falls."""
        return math.floor(WARM_UP * self.epochs) + 1


class Objective:
    """What a training minimises: cross-entropy on the clean samples, unless a mode overrides it.

    Of several processes each has one, for its own part of every batch; the means of the losses over the samples are
    what all of them minimise.
    """

    def start_epoch(self) -> None:
        """Called before each epoch; may run the model, but not change it."""

    def batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """What runs through the model for a batch, given before each step: its inputs, and more behind them."""
        return inputs

    def loss(self, latents: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of one step, a scalar.

        Parameters
        ----------
        latents, logits : (m, d), (m, C), what went into the head and what came out for all m samples of the `batch`
        labels : (n,) of those that the loader gave
        """
        return F.cross_entropy(widened(logits), labels)

    def notes(self) -> dict[str, Any]:
        """Fields of the `EpochRecord` that only this objective knows."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What it depends on beside the settings, plain values by name, to know a saved state again."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What it remembers from epoch to epoch, as plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""


def widened(tensor: Tensor) -> Tensor:
    """In float32, if it is narrower: a loss is never computed in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def mixed_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Compute in bfloat16 where a GPU does so natively (compute capability 8.0 and up), else as the model does.

    No float16 on older GPUs: it would need loss scaling, one more thing to tune, save and get wrong.
    """
    return bfloat16_autocast(device, enabled=device.type == "cuda" and native_bfloat16(device))


def trainable_batches(loader: Iterable[Any], head: Head) -> Iterator[tuple[Tensor, Tensor]]:
    """Labelled batches of two samples or more on the device of the head: BatchNorm cannot train on one."""
    for batch in loader:
        inputs, labels = split_batch(batch, head.num_classes)
        if labels is None:
            raise ValueError("loader: repair needs labels, expected batches (inputs, labels), got inputs alone")
        if len(labels) > 1:
            # The layout of the inputs alone decides that of every convolution after them, and the weights keep theirs.
            fast = head.device.type == "cuda" and inputs.ndim == 4
            layout = torch.channels_last if fast else torch.preserve_format
            yield inputs.to(head.device, memory_format=layout), labels.to(head.device)


def count_batches(loader: Iterable[Any], head: Head, processes: Processes = ALONE) -> int:
    """Count the batches, and so check every label before any training; warn of classes without samples.

    Every process needs two samples of every batch.
    """
    count, seen = 0, torch.zeros(head.num_classes, dtype=torch.int64)
    for _, labels in trainable_batches(loader, head):
        count += 1
        if processes.size > 1 and len(labels) < 2 * processes.size:
            raise ValueError(
                f"loader: expected batches of at least {2 * processes.size} samples, two for each process, got one of "
                f"{len(labels)}"
            )
        seen += torch.bincount(labels.cpu(), minlength=head.num_classes)
    if count == 0:
        raise ValueError("loader: expected at least one batch of two samples or more, got none")
    missing = (seen == 0).nonzero().flatten().tolist()
    if missing:
        warn_caller(
            f"loader: expected samples of every class, got none of {listed(missing)}: a repair may unlearn them"
        )
    return count


@contextmanager
def trainable(model: nn.Module) -> Iterator[None]:
    """Training mode and gradients for every weight, also those that were frozen; all as before on leaving."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    with kept_modes(model):
        model.train().requires_grad_(True)
        try:
            yield
        finally:
            model.zero_grad(set_to_none=True)
            for parameter in frozen:
                parameter.requires_grad_(False)


def not_finite(model: nn.Module) -> set[str]:
    """Names of the parameters and buffers that hold a NaN or an infinity, as a mask of −inf does from the start."""
    return {name for name, tensor in named_weights(model) if not bool(tensor.isfinite().all())}


class DivergedError(RuntimeError):
    """A loss or a weight was no longer finite after an epoch."""


class Training:
    """A training in place, that goes on from a file after it was killed.

    Parameters
    ----------
    model, head : what is trained
    loader : clean samples, counted (and gone through) at once
    settings : of the optimiser and its rate
    objective : what is minimised
    choice : told of every epoch; its weights are those of the model in the end
    processes : that share the work; the first alone reads and writes the file
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        loader: Iterable[Any],
        settings: TrainingSettings,
        objective: Objective,
        choice: EpochChoice,
        processes: Processes = ALONE,
    ) -> None:
        self._model, self._head, self._loader, self._settings = model, head, loader, settings
        self._objective, self._choice, self._processes = objective, choice, processes
        self._batches = count_batches(loader, head, processes)
        self._optimizer = torch.optim.SGD(
            model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer,
            settings.lr,
            total_steps=settings.epochs * self._batches + 1,
            pct_start=WARM_UP,
            cycle_momentum=False,
        )
        self._never_finite = not_finite(model)
        self._start, self._earlier = time.perf_counter(), 0.0
        self.history: list[EpochRecord] = []

    @property
    def seconds(self) -> float:
        """Wall-clock time since the beginning, that before an interruption included."""
        return self._earlier + time.perf_counter() - self._start

    def result(
        self, mode: str, targets: tuple[int, ...], *, blend: float = 1.0, pruned: tuple[int, ...] = ()
    ) -> RepairResult:
        """What came of it, for a mode of that name."""
        choice = self._choice
        return RepairResult(
            model=self._model,
            history=tuple(self.history),
            seconds=self.seconds,
            mode=mode,
            epoch=choice.epoch,
            rolled_back=choice.epoch == 0 and not pruned,
            before=choice.before,
            after=choice.after,
            asked=choice.asked,
            first=self._settings.first_choice,
            blend=blend,
            targets=targets,
            pruned=pruned,
            settings=asdict(self._settings),
        )

    def run(
        self, on_epoch: Callable[[EpochRecord], None] | None = None, resume: str | PathLike[str] | None = None
    ) -> None:
        """Train for all epochs that are left. What ``on_epoch`` draws at random does not change the outcome.

        The state file is left, at the end and when it fails: whoever has brought the result to safety deletes it.

        Raises
        ------
        DivergedError
            If the loss or a weight is no longer finite after an epoch.
        """
        with self._processes.together():
            path = resume if self._processes.rank == 0 else None
            store = None if path is None else StateFile(path, self._identity())
        with nullcontext() if store is None else store.held(), trainable(self._model):
            with self._processes.together():
                state = None if store is None else store.read()
            if (state := self._processes.first(state)) is not None:
                self._load(state)
            while len(self.history) < self._settings.epochs:
                record = self._run_epoch()
                randomness = random_states(self._loader)
                if store is not None:
                    store.write(self._state() | {"randomness": randomness})
                if on_epoch is not None:
                    on_epoch(record)
                    set_random_states(randomness, self._loader)
        self._choice.apply()

    def _run_epoch(self) -> EpochRecord:
        epoch = len(self.history) + 1
        self._draw_alike()
        self._objective.start_epoch()
        loss, accuracy = self._pass()
        if not math.isfinite(loss) or not_finite(self._model) - self._never_finite:
            lr = self._settings.lr
            raise DivergedError(f"repair diverged in epoch {epoch}: loss {loss:g}; lower lr (it is {lr:g})")
        held_out = self._choice.consider(epoch)
        self.history.append(EpochRecord(epoch, loss, accuracy, held_out, **self._objective.notes()))
        _log.info("epoch %d: loss %.4g, accuracy %.4f", epoch, loss, accuracy)
        return self.history[-1]

    def _draw_alike(self) -> None:
        """Let every process be given the same batches, whatever the others have drawn."""
        if self._processes.size > 1:
            own = random_states(self._loader)
            set_random_states(self._processes.first(own) | {"cuda": own["cuda"]}, self._loader)

    def _pass(self) -> tuple[float, float]:
        """One pass over the loader; mean loss and training accuracy."""
        loss_sum, correct, total = 0.0, 0, 0
        run, _ = unwrapped(self._model)
        with latest_call([self._head]) as calls:
            for inputs, labels in trainable_batches(self._loader, self._head):
                size, own = len(labels), self._processes.share(len(labels))
                inputs, labels = inputs[own], labels[own]
                with mixed_precision(self._head.device):
                    batch = self._objective.batch(inputs, labels)
                    calls.clear()
                    run(batch)
                # Not the model's output: in training mode some models return more than the logits.
                _, latents, logits = calls[0]
                loss = self._objective.loss(latents, logits, labels) * (len(labels) / size)
                self._optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._processes.add_gradients(self._model)
                if self._settings.max_norm is not None:
                    nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.max_norm)
                self._optimizer.step()
                # A loader may yield more batches than were counted: they are trained on at the final, tiny rate.
                if self._schedule.last_epoch < self._schedule.total_steps - 1:
                    self._schedule.step()
                loss_sum += float(loss.detach()) * size
                correct += int((logits.detach()[: len(labels)].argmax(1) == labels).sum())
                total += len(labels)
        sums = self._processes.totals(loss_sum, correct, total)
        return sums[0] / sums[2], sums[1] / sums[2]

    def _identity(self) -> dict[str, Any]:
        """All that the outcome depends on and that can be told before the training, as plain values."""
        before = self._choice.before
        return {
            "mode": type(self._settings).__name__,
            **asdict(self._settings),
            **self._objective.identity(),
            "held-out samples per class": None if before is None else before.total,
            "batches per epoch": self._batches,
            "weights": fingerprint(self._model),
        }

    def _state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, but for the generators, as plain values and tensors."""
        choice = self._choice.state_dict()
        # Then they are stored once.
        chosen_now = self._choice.epoch == len(self.history) and choice["weights"] and not self._choice.blends
        return {
            "weights": choice["weights"] if chosen_now else dict(named_weights(self._model)),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "objective": self._objective.state_dict(),
            "choice": choice,
            "history": [asdict(record) for record in self.history],
            "seconds": self.seconds,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        try:
            load_weights(self._model, state["weights"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])
            self._objective.load_state_dict(state["objective"])
            self._choice.load_state_dict(state["choice"])
            self.history = [EpochRecord(**record) for record in state["history"]]
            self._earlier = state["seconds"]
            set_random_states(state["randomness"], self._loader)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            # Such as the generators of another number of GPUs, or of another kind of loader.
            raise ValueError(f"resume: expected a state that fits this loader and machine: {error}") from error
