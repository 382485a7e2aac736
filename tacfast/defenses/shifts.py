"""The shifts towards the suspicious classes, as the defences of this package use them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.head import Head
from ..models.latents import latent_batches
from ..scanning import ScanReport
from ..solver import GapMatrix, Status
from .training import TrainingSettings, is_finite, is_integer


@dataclass(frozen=True, kw_only=True)
class TargetSettings(TrainingSettings):
    """Settings of the modes that train against some classes.

    Parameters
    ----------
    targets : the classes p, distinct; the report's suspicious classes if None
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


@dataclass(frozen=True, kw_only=True)
class ShiftSettings(TargetSettings):
    """Settings of the modes that train and solve for shifts.

    Parameters
    ----------
    trim : share of each source class that s_p need not move, in [0, 1)
    """

    trim: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("trim", "a share in [0, 1)", is_finite(self.trim) and 0 <= self.trim < 1)


def resolve_targets(targets: Sequence[int] | None, report: ScanReport) -> tuple[int, ...]:
    """Return the classes to repair: ``targets``, or those that the report found suspicious."""
    if targets is None:
        if not report.verdict.classes:
            raise ValueError(
                f"report: expected a suspicious class to repair, but the verdict is {report.verdict.label}; "
                "give targets= to repair classes of your choice"
            )
        return report.verdict.classes
    classes = report.head.num_classes
    for target in targets:
        if not 0 <= target < classes:
            raise ValueError(f"targets: expected classes 0 to {classes - 1}, got {target}")
    return tuple(targets)


def solve_shifts(
    model: nn.Module, loader: Iterable[Any], head: Head, targets: Sequence[int], trim: float
) -> tuple[Tensor, list[Status]]:
    """s_p of the current network for each of T targets p, (T, d), from one pass over the samples and one solve.

    In float32 or better, whatever the precision of the model. Also how each solve ended: the row is a shift only if
    that is OPTIMAL.
    """
    gaps = GapMatrix(head.weight, head.bias, keep_logits=trim > 0)
    with latent_batches(model, loader, head) as batches:
        for batch in batches:
            gaps.update(batch.latents)
    solution = gaps.solve(classes=list(targets), trim=trim, raise_on_failure=False)
    return torch.as_tensor(solution.perturbations), solution.statuses


def check_reachable(targets: Sequence[int], statuses: Sequence[Status]) -> None:
    """Raise ValueError, naming the first class without a shift, unless every solve ended well."""
    for target, status in zip(targets, statuses, strict=True):
        if status is not Status.OPTIMAL:
            raise ValueError(
                f"targets: expected classes with a shift towards them, got class {target}: {status.sentence}"
            )


def capped(shift: Tensor, cap: float) -> Tensor:
    """Shorten ``shift``, of any shape, to the norm ``cap`` if it is longer."""
    norm = float(shift.norm())
    return shift * (cap / norm) if norm > cap else shift
