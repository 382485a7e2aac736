"""Accelerated projected gradient on the dual, for all classes at once: predicts which constraints are active."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_POWER_ITERATIONS = 12
_MOST_ITERATIONS = 400


def predict_multipliers(gram: Tensor, gaps: Tensor, classes: Tensor, margin: float) -> Tensor:
    """Approximate multipliers λ ≥ 0 (K, C) of every class; their support predicts the active sets.

    FISTA (Beck and Teboulle 2009) with adaptive restart (O'Donoghue and Candès 2015) on
    max ρᵀλ − ½λᵀGλ, λ ≥ 0, in the variables λ_j‖a_j‖, whose Hessian has a unit diagonal. With
    v = (Σλ) e_k − λ, every iteration costs one product V M for all classes together.

    Parameters
    ----------
    gram : (C, C) float64, M
    gaps : (C, C), R
    classes : (K,) int64
    margin : added to R

    Returns
    -------
    (K, C) float64, zero at the own class and where the iteration ended at the bound.
    """
    n_classes = len(gram)
    classes = classes.clamp(0, n_classes - 1)  # what is no class fails later, by its status and not by an assertion
    own = torch.nn.functional.one_hot(classes, n_classes).to(torch.bool)
    rho = (gaps[classes].double() + margin).masked_fill(own, 0.0)
    diagonal = gram.diagonal()
    lengths2 = (diagonal[classes, None] + diagonal - 2 * gram[classes]).clamp(min=0)
    scale = torch.where(own | (lengths2 == 0), 0.0, lengths2.rsqrt())  # λ_j = y_j · scale_j

    def hessian(y: Tensor) -> Tensor:
        lam = y * scale
        image = (own * lam.sum(1, keepdim=True) - lam) @ gram
        return (image.gather(1, classes[:, None]) - image) * scale

    step = 1 / (1.1 * _largest_eigenvalue(hessian, scale))
    target = rho * scale
    y = torch.zeros_like(target)
    ahead, momentum = y, torch.ones_like(step)
    for _ in range(min(20 + 2 * n_classes, _MOST_ITERATIONS)):
        after = (ahead + step * (target - hessian(ahead))).clamp(min=0)
        overshot = ((ahead - after) * (after - y)).sum(1, keepdim=True) > 0
        momentum = torch.where(overshot, 1.0, momentum)
        following = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        ahead = after + (momentum - 1) / following * (after - y)
        y, momentum = after, following
    return y * scale


def _largest_eigenvalue(hessian: Callable[[Tensor], Tensor], scale: Tensor) -> Tensor:
    """Per class (K, 1), by power iteration; at least 1, the diagonal."""
    x = (scale > 0).double()
    for _ in range(_POWER_ITERATIONS):
        x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-300)
        x = hessian(x)
    largest: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return largest.clamp(min=1.0)
