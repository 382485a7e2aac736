"""The shifts towards the suspicious classes, as the defences of this package use them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._processes import ALONE, Processes
from ..models.head import Head
from ..models.latents import latent_batches, own_parts
from ..models.tally import gathered
from ..solver import GapMatrix, Status
from .targeted import TargetSettings
from .training import is_finite


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


def solve_shifts(
    model: nn.Module,
    loader: Iterable[Any],
    head: Head,
    targets: Sequence[int],
    trim: float,
    processes: Processes = ALONE,
) -> tuple[Tensor, list[Status]]:
    """s_p of the current network for each of T targets p, (T, d), from one pass over the samples and one solve.

    In float32 or better, whatever the precision of the model. Also how each solve ended: the row is a shift only if
    that is OPTIMAL. Of several processes each runs the model on its part of every batch.
    """
    gaps = GapMatrix(head.weight, head.bias, keep_logits=trim > 0)
    with latent_batches(model, own_parts(loader, processes), head) as batches:
        for batch in batches:
            gaps.update(batch.latents)
    gaps = gathered(gaps, head.device, processes)
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
