"""What a defence is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

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
    shift_solved : whether that is s_p of the network of this epoch; False if the class could not be reached any
        more or the solver failed, so that the shift of the epoch before served on
    """

    epoch: int
    loss: float
    accuracy: float
    shift_norm: float
    shift_solved: bool


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


# A way to remove a backdoor from a model, given clean samples only: (model, loader, report) → result, such as
# `tacfast.repair` with its settings bound by functools.partial.
Defense: TypeAlias = Callable[[nn.Module, Iterable[Any], ScanReport], RepairResult]
