"""The dense regime on the CPU: where all C − 1 constraints are active, one Cholesky factor solves every class.

On CUDA, where nothing may wait for the question whether the regime is dense, csrc/core/dense.h does the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def all_active_multipliers(gram: Tensor, gaps: Tensor, classes: Tensor, margin: float) -> Tensor:
    """Multipliers (K, C) float64 under which every constraint of each class holds with equality.

    With v = (Σλ) e_k − λ the problem of class k is min ½vᵀMv + ρ_kᵀv, 1ᵀv = 0: the same matrix for all classes. M has
    the null vector 1, so M + α11ᵀ is factorised instead, which changes nothing where 1ᵀv = 0. They solve class k if
    none of them is negative. Where M has a further null vector (C > d + 1) there is no such solution and all are 0.
    """
    shifted = gram + gram.diagonal().mean()
    factor, info = torch.linalg.cholesky_ex(shifted)
    rho = (gaps[classes].double() + margin).scatter(1, classes[:, None], 0.0)
    if bool(info):
        return torch.zeros_like(rho)
    constant = torch.cholesky_solve(torch.ones_like(rho[:1]).T, factor)

    def solve(right: Tensor) -> Tensor:
        free = torch.cholesky_solve(right.T, factor)
        return (constant * (free.sum(0) / constant.sum()) - free).T

    v = solve(rho)
    v = v + solve(rho + v @ gram)
    return (-v).scatter(1, classes[:, None], 0.0)
