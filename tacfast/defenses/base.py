"""The interface of a defence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from ..scanning import ScanReport


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a repair.

    Attributes
    ----------
    epoch : 1, 2, …
    loss : mean training loss over the samples of the epoch
    accuracy : share of these samples that were classified as labelled, in training mode, before each step
    shift_norm : ‖s_p‖ used in this epoch, after the cap
    """

    epoch: int
    loss: float
    accuracy: float
    shift_norm: float


@dataclass(frozen=True, eq=False)
class RepairResult:
    """A repaired copy of a model.

    Attributes
    ----------
    model : the new model, in the training mode of the given one
    history : one record per epoch
    seconds : wall-clock time of the repair
    """

    model: nn.Module
    history: tuple[EpochRecord, ...]
    seconds: float


class Defense(Protocol):
    """A way to remove a backdoor from a model, given clean samples only."""

    def repair(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        report: ScanReport,
        *,
        on_epoch: Callable[[EpochRecord], None] | None = None,
    ) -> RepairResult:
        """Return a repaired copy of ``model``, which stays untouched; see `tacfast.repair`."""
        ...
