"""Test problems: heads and latents of every awkward kind, and QPs built from a known solution."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch


class Problem(NamedTuple):
    latents: np.ndarray
    W: np.ndarray
    b: np.ndarray | None

    def to(self, dtype):
        """As tensors."""
        return Problem(*(None if x is None else torch.from_numpy(x).to(dtype) for x in self))

    def rounded(self, dtype):
        """As NumPy arrays of the precision that the solver sees, in float64."""
        return Problem(*(None if x is None else x.to(torch.float64).numpy() for x in self.to(dtype)))


def plain(seed=0, classes=5, dim=8, n=20, bias=True):
    rng = np.random.default_rng(seed)
    W, latents = rng.standard_normal((classes, dim)), rng.standard_normal((n, dim))
    b = rng.standard_normal(classes)
    return Problem(latents, W, b if bias else None)


def _near_hull(distance):
    def change(rng, p):
        share = rng.random(len(p.W) - 1)
        p.W[0] = share / share.sum() @ p.W[1:] + distance * rng.standard_normal(p.W.shape[1])
        return p

    return change


def _near_duplicate(distance):
    def change(rng, p):
        p.W[-1] = p.W[0] + distance * rng.standard_normal(p.W.shape[1])
        return p

    return change


def _simplex(rng, p):
    classes = len(p.W)
    W = 3 * np.eye(classes, max(classes, p.W.shape[1]))
    return Problem(0.01 * rng.standard_normal((len(p.latents), W.shape[1])), W, None)


def _low_rank(rng, p):
    classes, dim = p.W.shape
    W = rng.standard_normal((classes, min(3, dim))) @ rng.standard_normal((min(3, dim), dim))
    return p._replace(W=W.astype(np.float32).astype(np.float64))  # of low rank but for the rounding


def _scaled(W=1.0, latents=1.0):
    return lambda rng, p: Problem(latents * p.latents, W * p.W, p.b)


def _zero_row(rng, p):
    p.W[rng.integers(len(p.W))] = 0
    return p


def _satisfied(rng, p):
    bias = np.zeros(len(p.W))
    bias[0] = 1e4
    return Problem(p.latents, p.W, bias)


FAMILIES = {
    "plain": lambda rng, p: p,
    "duplicate_rows": _near_duplicate(0),
    "near_duplicate_1e-6": _near_duplicate(1e-6),
    "near_duplicate_1e-9": _near_duplicate(1e-9),
    "near_hull_1e-6": _near_hull(1e-6),
    "near_hull_1e-9": _near_hull(1e-9),
    "hull": _near_hull(0),
    "many_classes": lambda rng, p: Problem(p.latents[:, :2], p.W[:, :2], p.b),
    "low_rank": _low_rank,
    "zero_row": _zero_row,
    "tiny_W": _scaled(W=1e-6),
    "huge_W": _scaled(W=1e6),
    "tiny_latents": _scaled(latents=1e-12),
    "huge_latents": _scaled(latents=1e12),
    "satisfied": _satisfied,
    "one_sample": lambda rng, p: Problem(p.latents[:1], p.W, p.b),
    "two_classes": lambda rng, p: Problem(p.latents, p.W[:2], None if p.b is None else p.b[:2]),
    "common_offset": lambda rng, p: Problem(p.latents, p.W + 10 * rng.standard_normal(p.W.shape[1]), p.b),
    "simplex": _simplex,
    "scaled_rows": lambda rng, p: p._replace(W=p.W * 10 ** rng.uniform(-2, 2, (len(p.W), 1))),
    "integers": lambda rng, p: Problem(*(None if x is None else np.rint(x) for x in p)),
}
# Families whose rows are affinely independent and well separated where C <= d: every class is feasible.
FEASIBLE = set(FAMILIES) - {
    "duplicate_rows", "near_duplicate_1e-6", "near_duplicate_1e-9", "near_hull_1e-6", "near_hull_1e-9",
    "hull", "many_classes", "low_rank", "integers",
}  # fmt: skip


def of_family(family, seed, classes, dim, n, bias):
    """A problem of a named family; ``hull`` families take at least three classes."""
    p = plain(seed, max(classes, 3), dim, n, bias)
    return FAMILIES[family](np.random.default_rng(seed + 1), p)


class Known(NamedTuple):
    """A problem for class ``k`` with its solution."""

    W: np.ndarray
    R: np.ndarray
    k: int
    s: np.ndarray
    duals: np.ndarray


def known_solution(seed, classes, dim, n_active, weakly_active=0):
    """Choose the active set, λ > 0 on it and slacks > 0 off it; s = Aᵀλ and ρ = A s − slack follow.

    ``weakly_active`` further constraints hold with equality and have λ = 0.
    """
    rng = np.random.default_rng(seed)
    W, k = rng.standard_normal((classes, dim)), int(rng.integers(classes))
    A = W[k] - W
    others = rng.permutation(np.delete(np.arange(classes), k))
    duals = np.zeros(classes)
    duals[others[:n_active]] = rng.uniform(0.1, 1, n_active)
    s = A.T @ duals
    slack = rng.uniform(0.1, 1, classes)
    slack[others[: n_active + weakly_active]] = 0
    R = np.zeros((classes, classes))
    R[k] = A @ s - slack
    R[k, k] = 0
    return Known(W, R, k, s, duals)
