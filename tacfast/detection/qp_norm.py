"""The norm of the smallest latent shift that sends all samples to a class (arXiv 2511.08944)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..solver import Status, TacSolution
from .statistic import Evidence


@dataclass(frozen=True, kw_only=True)
class QpNorm:
    """log ‖s_k‖₂ of the class-wise QP.

    Parameters
    ----------
    trim : share of each source class that need not be moved, as in `tacfast.solve_tac`
    """

    name: ClassVar[str] = "qp"
    title: ClassVar[str] = "smallest shift of the latents"
    needs_inputs: ClassVar[bool] = False
    by_nature: ClassVar[bool] = False

    trim: float = 0.1

    def values(self, evidence: Evidence) -> Tensor:
        """(C,) float64: +inf where no shift leads, −inf where none is needed, NaN where the solver failed."""
        return log_norms(evidence.solution(self.trim))


def log_norms(solution: TacSolution) -> Tensor:
    """Logs of the norms (C,) float64; NaN for the classes that were not solved."""
    solution = solution.to("cpu")
    values = torch.full((len(solution.gaps),), torch.nan, dtype=torch.float64)
    solved = torch.tensor(
        [status in (Status.OPTIMAL, Status.INFEASIBLE) for status in solution.statuses], dtype=torch.bool
    )
    values[solution.classes[solved]] = solution.norms.detach().double().log()[solved]
    return values
