"""What a defence is given and what it returns."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Protocol

from torch import nn

from .._shown import Shown
from ..models.head import Head, head_named
from ..scanning import ScanReport
from ..solver import GapMatrix
from .confirmation import Confirmation


@dataclass(frozen=True, repr=False)
class Accuracy(Shown):
    """How many of some labelled samples a model classifies as labelled, per class of the labels.

    Attributes
    ----------
    correct : (C,) counts
    total : (C,) counts
    """

    correct: tuple[int, ...]
    total: tuple[int, ...]

    @property
    def overall(self) -> float:
        """Share of all samples, in [0, 1]."""
        return sum(self.correct) / sum(self.total)

    @property
    def per_class(self) -> tuple[float, ...]:
        """Share of each class, (C,); NaN for a class without samples."""
        return tuple(right / n if n else math.nan for right, n in zip(self.correct, self.total, strict=True))

    def _title(self) -> str:
        return f"{sum(self.correct)} of {sum(self.total)} samples"


@dataclass(frozen=True, repr=False)
class EpochRecord(Shown):
    """One epoch of a repair.

    Attributes
    ----------
    epoch : 1, 2, …
    loss : mean training loss over the samples of the epoch
    accuracy : share of these samples that were classified as labelled, in training mode, before each step
    held_out : accuracy on the held-out samples after the epoch; None without them
    shift_norms : ‖s_p‖ used in this epoch, after the cap, per class p that is repaired; empty in other modes
    stale_shifts : those of these classes that could not be reached any more or that the solver failed for, so that
        the shift of the epoch before served on
    """

    epoch: int
    loss: float
    accuracy: float
    held_out: float | None = None
    shift_norms: Mapping[int, float] = field(default_factory=dict)
    stale_shifts: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class RepairResult(Shown):
    """A repaired copy of a model.

    Attributes
    ----------
    model : the new model, in the training mode of the given one
    history : one record per epoch of training
    seconds : wall-clock time of the repair, that before an interruption included
    mode : the name of the mode, as `tacfast.repair` knows it; empty for a defence that is none of them
    epoch : the epoch of training that ``model`` is of: the last one without held-out samples, else the one that they
        chose; 0 if none was good enough, or there was none
    rolled_back : whether ``model`` is but a copy of the given one, because no epoch was good enough
    before, after : accuracy on the held-out samples of the given model and of ``model``; None without such samples
    asked : accuracy on the held-out samples that was good enough; None without such samples, or where nothing was asked
    first : the first epoch that could be chosen by them; 0 where none could
    blend : how far ``model`` lies on the line of the weights from the given one to the trained one, in [0, 1]
    targets : the classes whose shortcut was removed, in the order given
    pruned : the latents, numbers below d, that the head of ``model`` ignores now
    settings : the fields of the mode's class, by name
    confirmation : what a second scan says, of the held-out samples; None without them, and where no class was aimed at
        or nothing came of it
    """

    model: nn.Module
    history: tuple[EpochRecord, ...]
    seconds: float
    mode: str = ""
    epoch: int = 0
    rolled_back: bool = False
    before: Accuracy | None = None
    after: Accuracy | None = None
    asked: float | None = None
    first: int = 0
    blend: float = 1.0
    targets: tuple[int, ...] = ()
    pruned: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    confirmation: Confirmation | None = None

    @property
    def best(self) -> float | None:
        """Highest accuracy on the held-out samples after an epoch that could be chosen by them; None without one."""
        measured = [record.held_out for record in self.history if record.epoch >= self.first]
        return max((value for value in measured if value is not None), default=None)

    def _title(self) -> str:
        outcome = "" if self.confirmation is None else f", {self.confirmation.outcome}"
        return ("rolled back" if self.rolled_back else f"epoch {self.epoch} of {len(self.history)}") + outcome

    def _rows(self) -> list[tuple[str, object]]:
        # Of many classes and settings some are left out; that of the history the title says.
        return [(name, value) for name, value in super()._rows() if name != "history"]


class Defense(Protocol):
    """Any way to remove a backdoor from a model, given clean samples only, as `tacfast.evaluation` tests it.

    Such as `tacfast.repair` with its settings bound by functools.partial, or a function of one's own. ``held_out`` is
    passed only by who holds samples out: a function that never needs any may do without the parameter.
    """

    def __call__(
        self, model: nn.Module, loader: Iterable[Any], report: ScanReport, *, held_out: Iterable[Any] = ...
    ) -> RepairResult:
        """Return a repaired copy of ``model``."""
        ...


class Mode(Protocol):
    """A defence that `tacfast.repair` knows by name: one frozen dataclass of settings per file.

    Fields are settings that ``__init__`` checks; ``repair`` gets what differs from call to call. It must leave
    ``model`` and the random state of the caller as they were; `scanned_copy` gives the copy to work on, `fine_tune`
    of training.py brings held-out choice, mixed precision and resuming along.
    """

    def repair(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        report: ScanReport,
        *,
        held_out: Iterable[Any] | None = None,
        on_epoch: Callable[[EpochRecord], None] | None = None,
        resume: str | PathLike[str] | None = None,
    ) -> RepairResult:
        """Return a repaired copy of ``model``; the arguments are those of `tacfast.repair`."""
        ...


def scanned_copy(model: nn.Module, report: ScanReport) -> tuple[nn.Module, Head]:
    """Copy a model, and find the layer in the copy that has the place of the scanned head; check that it is the same.

    Raises
    ------
    ValueError
        If the report is not of this model.
    """
    copied, name = copy.deepcopy(model), report.head.name
    head = head_named(copied, name)
    if head is None:
        raise ValueError(
            f"model: expected the scanned model, whose head is {name!r}, {report.head.module}; "
            "got one without a linear layer of that name"
        )
    if GapMatrix(head.weight, head.bias).fingerprint != report.fingerprint:
        raise ValueError(
            f"model: expected the scanned model, got one whose head {name!r} has other weights than were scanned"
        )
    return copied, head


def warn_caller(message: str) -> None:
    """Issue a UserWarning in the name of the line outside of the package that led here."""
    package, frame, level = __name__.partition(".")[0], sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
