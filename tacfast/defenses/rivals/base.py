"""What the rival defences share: the frame around them, a training loop, and the choice of a threshold."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...data.randomness import isolated_randomness
from ...models.head import Head
from ...scanning import ScanReport
from ..base import EpochRecord, RepairResult, scanned_copy
from ..held_out import HeldOut, cloned_weights, fewest_correct, load_weights
from ..training import SEED, SHARE, DivergedError, Settings, not_finite, trainable, trainable_batches, widened

_log = logging.getLogger(__name__)

Tell = Callable[[EpochRecord], None]


@dataclass(frozen=True, kw_only=True)
class Rival(Settings, ABC):
    """A published defence: one dataclass of settings per file, whose `treat` changes a copy of the model.

    Parameters
    ----------
    seed : of torch, NumPy, Python's ``random`` and the loader's generators; all are left as they were
    """

    name: ClassVar[str]
    seed: int = 0

    def __post_init__(self) -> None:
        self.check_each(SEED, "seed")

    @abstractmethod
    def treat(
        self, model: nn.Module, head: Head, loader: Iterable[Any], held_out: HeldOut | None, tell: Tell
    ) -> tuple[int, ...] | None:
        """Repair ``model`` in place; return the classes that the defence itself found, if it looks for any.

        Parameters
        ----------
        model, head : a copy of the suspect, in its training mode, and the last linear layer of that copy
        loader : clean samples, (inputs, labels) in shuffled batches
        held_out : clean samples to choose thresholds by; None if there are none
        tell : called with an `EpochRecord` after each epoch
        """

    def repair(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        report: ScanReport,
        *,
        held_out: Iterable[Any] | None = None,
        on_epoch: Tell | None = None,
        resume: str | PathLike[str] | None = None,
    ) -> RepairResult:
        """Return a repaired copy of ``model``; see `tacfast.repair`. What the report found is not used.

        Raises
        ------
        ValueError
            Also if ``resume`` is given: these defences do not go on after an interruption.
        """
        if resume is not None:
            raise ValueError(f"resume: expected None, mode {self.name!r} cannot go on from a file")
        start, history = time.perf_counter(), list[EpochRecord]()

        def tell(record: EpochRecord) -> None:
            history.append(record)
            _log.info("epoch %d: loss %.4g, accuracy %.4f", record.epoch, record.loss, record.accuracy)
            if on_epoch is not None:
                on_epoch(record)

        with self._working_copy(model, loader, report) as (copied, head):
            measured = None if held_out is None else HeldOut(held_out, head, self.seed)
            before = None if measured is None else measured.measure(copied)
            targets = self.treat(copied, head, loader, measured, tell)
            after = None if measured is None else measured.measure(copied)
        return RepairResult(
            model=copied,
            history=tuple(history),
            seconds=time.perf_counter() - start,
            mode=self.name,
            epoch=len(history),
            before=before,
            after=after,
            targets=targets or (),
            settings=asdict(self),
        )

    @contextmanager
    def _working_copy(
        self, model: nn.Module, loader: Iterable[Any], report: ScanReport
    ) -> Iterator[tuple[nn.Module, Head]]:
        # Not in inference mode, also where the caller is: everything here may be trained.
        with isolated_randomness(self.seed, loader), torch.inference_mode(False), torch.enable_grad():
            yield scanned_copy(model, report)


class PruningStep(NamedTuple):
    """A model at one threshold.

    Attributes
    ----------
    threshold : how far it is pruned
    model : one and the same at all steps, pruned further and further, so copy what is to stay
    finish : does what comes after the pruning, to whatever weights are in ``model`` by then
    """

    threshold: float
    model: nn.Module
    finish: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class PruningRival(Rival):
    """A defence that prunes more and more, up to a threshold that is chosen on held-out clean samples.

    Published code often chooses it by the attack success on the test set. Here it is the furthest step at which
    held-out clean accuracy is within ``max_drop``; without held-out samples the samples of the loader take their
    place. `steps` lets an evaluation look at all of them.

    Parameters
    ----------
    max_drop : loss of clean accuracy that is allowed, a share of the samples
    """

    max_drop: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_each(SHARE, "max_drop")

    @abstractmethod
    def prune(self, model: nn.Module, head: Head, loader: Iterable[Any], tell: Tell) -> Iterator[float]:
        """Prune ``model`` in place, further at each step, and yield the threshold of each step."""

    def finish(self, model: nn.Module, head: Head, loader: Iterable[Any], tell: Tell) -> None:
        """Do in place what comes after the pruning: nothing, unless a defence overrides it."""

    def treat(self, model: nn.Module, head: Head, loader: Iterable[Any], held_out: HeldOut | None, tell: Tell) -> None:
        """Prune to the furthest step that clean accuracy allows; the model may be left as it is."""
        measured = held_out or HeldOut(loader, head, self.seed)
        before, best = measured.measure(model), cloned_weights(model)
        enough = fewest_correct(before, self.max_drop)
        for _ in self.prune(model, head, loader, tell):
            if sum(measured.measure(model).correct) >= enough:
                best = cloned_weights(model)
        load_weights(model, best)
        self.finish(model, head, loader, tell)

    def steps(self, model: nn.Module, loader: Iterable[Any], report: ScanReport) -> Iterator[PruningStep]:
        """Go through all thresholds, for the oracle of an evaluation that knows the test set."""
        with self._working_copy(model, loader, report) as (copied, head):

            def finish() -> None:
                self.finish(copied, head, loader, lambda record: None)

            for threshold in self.prune(copied, head, loader, lambda record: None):
                yield PruningStep(threshold, copied, finish)


def train_epochs(
    model: nn.Module,
    head: Head,
    loader: Iterable[Any],
    epochs: int,
    step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    *,
    optimizer: torch.optim.Optimizer,
    tell: Tell,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    update: Callable[[Tensor], None] | None = None,
    before_epoch: Callable[[], None] | None = None,
) -> None:
    """Train in place for some epochs, in training mode.

    Parameters
    ----------
    model, head : the model, left in its training mode, and its head
    loader : clean samples in shuffled batches
    epochs : passes over them
    step : returns the loss, a scalar, and the logits (n, C) of a batch (inputs, labels)
    optimizer, schedule : stepped once a batch, and once an epoch
    tell : called after each epoch
    update : does what follows from the loss instead of a plain backward pass and step of the optimizer
    before_epoch : called before each epoch

    Raises
    ------
    DivergedError
        If the loss or a weight is no longer finite after an epoch.
    """

    def plain(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    never_finite = not_finite(model)
    with trainable(model):
        for epoch in range(1, epochs + 1):
            loss_sum, correct, total = 0.0, 0, 0
            if before_epoch is not None:
                before_epoch()
            for inputs, labels in trainable_batches(loader, head):
                loss, logits = step(inputs, labels)
                (update or plain)(widened(loss))
                loss_sum += float(loss.detach()) * len(labels)
                correct += int((logits.detach().argmax(1) == labels).sum())
                total += len(labels)
            if schedule is not None:
                schedule.step()
            if not_finite(model) - never_finite or loss_sum != loss_sum:
                raise DivergedError(f"repair diverged in epoch {epoch}: lower lr")
            tell(EpochRecord(epoch, loss_sum / total, correct / total))
