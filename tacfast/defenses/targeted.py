"""What the defences share that train against the suspicious classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

import torch
import torch.distributed
from torch import nn

from .._processes import Processes
from ..data.randomness import isolated_randomness
from ..models.head import Head
from ..scanning import ScanReport
from .base import EpochRecord, RepairResult, scanned_copy
from .held_out import EpochChoice, HeldOut
from .training import Objective, Training, TrainingSettings, is_finite, is_integer


@dataclass(frozen=True, kw_only=True)
class TargetSettings(TrainingSettings):
    """Settings of the modes that train against some classes.

    Parameters
    ----------
    targets : the classes p, distinct; ``report.verdict.aims`` if None
    """

    targets: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.targets
        sound = isinstance(given, (tuple, list)) and bool(given) and all(map(is_integer, given))
        self.check("targets", "one or more classes in a tuple, or None", given is None or sound)
        if given is not None:
            self.check("targets", "distinct classes", len(set(given)) == len(given))
            object.__setattr__(self, "targets", tuple(given))


def resolve_targets(targets: Sequence[int] | None, report: ScanReport) -> tuple[int, ...]:
    """Return the classes to repair: ``targets``, or those that the verdict is about, see `Verdict.aims`."""
    if targets is None:
        if not report.verdict.aims:
            raise ValueError(
                f"report: expected a suspicious class to repair, but the verdict is {report.verdict.label}; "
                "give targets= to repair classes of your choice, or harden=True in mode 'auto' to train against all"
            )
        return report.verdict.aims
    classes = report.head.num_classes
    for target in targets:
        if not 0 <= target < classes:
            raise ValueError(f"targets: expected classes 0 to {classes - 1}, got {target}")
    return tuple(targets)


@dataclass(frozen=True, kw_only=True)
class TargetedRepair(TargetSettings, ABC):
    """A mode that trains a copy of the model, chooses an epoch, and is told apart by what it minimises.

    Parameters
    ----------
    blend : how far the result lies on the straight line of the weights from the suspect to the trained network, in
        (0, 1]: most of what a training unlearns is gone before its end, most of its cost is not (Wortsman et al. 2022,
        arXiv 2109.01903)
    """

    name: ClassVar[str]
    blend: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("blend", "a share in (0, 1]", is_finite(self.blend) and 0 < self.blend <= 1)

    @abstractmethod
    def objective(
        self, model: nn.Module, head: Head, loader: Iterable[Any], targets: tuple[int, ...], processes: Processes
    ) -> Objective:
        """What is minimised, given the copy, its head, the clean samples, the classes, and who shares the work."""

    def resolve(self, report: ScanReport) -> tuple[int, ...]:
        """The classes to train against; raises ValueError if there is none, or one that the head does not have."""
        return resolve_targets(self.targets, report)

    def repair(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        report: ScanReport,
        *,
        held_out: Iterable[Any] | None = None,
        on_epoch: Callable[[EpochRecord], None] | None = None,
        resume: str | PathLike[str] | None = None,
        group: torch.distributed.ProcessGroup | None = None,
    ) -> RepairResult:
        """Return a repaired copy of ``model``; see `tacfast.repair`."""
        targets, processes = self.resolve(report), Processes(group)
        # Not in inference mode: that also turns gradients on where the caller is under no_grad.
        with isolated_randomness(self.seed, loader), torch.inference_mode(False):
            repaired, head = scanned_copy(model, report)
            measured = None if held_out is None else HeldOut(held_out, head, self.seed, processes)
            choice = EpochChoice(repaired, measured, self.max_drop, first=self.first_choice, blend=self.blend)
            objective = self.objective(repaired, head, loader, targets, processes)
            training = Training(repaired, head, loader, self, objective, choice, processes)
            training.run(on_epoch, resume)
        return training.result(self.name, targets, blend=choice.share if choice.epoch else 0.0)
