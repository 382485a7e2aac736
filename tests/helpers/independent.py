"""The mathematics of DESIGN.md §1 once more, in NumPy and in exact rational arithmetic. It does not call tacfast."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import NamedTuple

import clarabel
import numpy as np
import quadprog
import scipy.sparse

EPS = np.finfo(np.float64).eps


class Constraints(NamedTuple):
    """a_jᵀs ≥ ρ_j for every class j; ``A[j]`` and ``rho[j]`` are 0 for the target itself."""

    A: np.ndarray
    rho: np.ndarray


class Measures(NamedTuple):
    primal: float
    dual: float
    stationarity: float
    gap: float
    lower: float
    upper: float


def gap_matrix(logits):
    """R[k, j] = max_i (L[i, j] − L[i, k]), as written, in the dtype of the logits."""
    classes = logits.shape[1]
    return np.array(
        [[(logits[:, j] - logits[:, k]).max() for j in range(classes)] for k in range(classes)],
        dtype=logits.dtype,
    )


def trimmed_gap_matrix(logits, trim):
    """The (⌊q·n_j⌋ + 1)-th largest over the samples of class j instead of the maximum, by sorting."""
    answers, gaps = logits.argmax(1), gap_matrix(logits)
    for j in np.unique(answers):
        own = logits[answers == j]
        ascending = np.sort(own[:, j : j + 1] - own, axis=0)
        gaps[:, j] = ascending[len(own) - 1 - int(np.floor(trim * len(own)))]
    return gaps + 0  # no -0


def constraints(W, b, R, k, margin=0.0, eps=EPS):
    """The constraints of class k. Rows equal to w_k in a dtype of this ``eps`` are decided by the bias alone."""
    A = W[k].astype(np.float64) - W.astype(np.float64)
    offset = np.zeros(len(W)) if b is None else b[k].astype(np.float64) - b.astype(np.float64)
    equal = np.linalg.norm(A, axis=1) <= 4 * eps * np.linalg.norm(W.astype(np.float64), axis=1).max()
    rho = np.where(equal, margin - offset, R[k].astype(np.float64) + margin)
    rho[k] = 0
    A[equal] = 0
    return Constraints(A, rho)


def measures(c, s, duals):
    """The four residuals and the two bounds of DESIGN.md §1 for a point s and multipliers; 0/0 = 0."""
    s, lam = s.astype(np.float64), duals.astype(np.float64)
    lengths, norm = np.linalg.norm(c.A, axis=1), np.linalg.norm(s)
    terms, combined, reached = np.abs(lam) @ lengths, c.A.T @ lam, c.A @ s
    kept = lengths > 0
    violation = np.maximum(c.rho - reached, 0)[kept]
    size = (np.abs(c.rho) + lengths * norm)[kept]
    positive = kept & (c.rho > 0)
    t = np.max(c.rho[positive] / reached[positive]) if positive.any() else 0.0
    valid = (reached[positive] > 0).all() and (t * reached >= c.rho)[kept & ~positive].all()
    return Measures(
        primal=np.max(ratio(violation, size), initial=0.0),
        dual=float(ratio(np.max(np.maximum(-lam, 0) * lengths), terms)),
        stationarity=float(ratio(np.linalg.norm(s - combined), terms)),
        gap=float(ratio(abs(s @ s - c.rho @ lam), s @ s + np.abs(c.rho) @ np.abs(lam))),
        lower=float(max(ratio(c.rho @ lam, np.linalg.norm(combined)), 0)),
        upper=float(t * norm) if valid else np.inf,
    )


def ratio(a, b):
    return np.divide(a, b, out=np.zeros(np.shape(a)), where=np.asarray(a) != 0)


def ray_residuals(c, ray):
    """‖Aᵀλ‖ / Σ|λ_l|‖a_l‖ and ρᵀλ / |ρ|ᵀ|λ|: 0 and positive prove that no s satisfies the constraints."""
    lam = ray.astype(np.float64)
    terms = np.abs(lam) @ np.linalg.norm(c.A, axis=1)
    return float(ratio(np.linalg.norm(c.A.T @ lam), terms)), float(c.rho @ lam / (np.abs(c.rho) @ lam))


# ---- other people's solvers ---------------------------------------------------------------------------------


def by_quadprog(A, rho):
    """The shortest s with A s ≥ rho; raises ValueError if there is none."""
    return quadprog.solve_qp(np.eye(A.shape[1]), np.zeros(A.shape[1]), A.T.copy(), rho.copy())[0]


def by_clarabel(A, rho):
    dim = A.shape[1]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    solver = clarabel.DefaultSolver(
        scipy.sparse.eye(dim, format="csc"),
        np.zeros(dim),
        scipy.sparse.csc_matrix(-A),
        -rho,
        [clarabel.NonnegativeConeT(len(rho))],
        settings,
    )
    return np.array(solver.solve().x)


def uncollapsed(latents, W, b, k, margin=0.0):
    """All n(C − 1) constraints of class k, as the paper writes them."""
    others = np.arange(len(W)) != k
    A = (W[k] - W)[others]
    offset = 0.0 if b is None else (b[k] - b)[others]
    rho = margin - latents @ A.T - offset
    return np.tile(A, (len(latents), 1)), rho.ravel()


# ---- exact ---------------------------------------------------------------------------------------------------


def exact_solution(c):
    """The shortest s with A s ≥ rho in rational arithmetic, by trying every active set; None if there is none."""
    A = [[Fraction(float(x)) for x in row] for row in c.A]
    rho = [Fraction(float(x)) for x in c.rho]
    dim = len(A[0])
    gram = [[_dot(x, y) for y in A] for x in A]
    candidates = [j for j, row in enumerate(A) if any(row)]
    for size in range(min(len(candidates), dim) + 1):
        for active in itertools.combinations(candidates, size):
            lam = _solve([[gram[i][j] for j in active] for i in active], [rho[i] for i in active])
            if lam is None or any(x < 0 for x in lam):
                continue
            s = [sum((x * A[j][t] for x, j in zip(lam, active, strict=True)), Fraction(0)) for t in range(dim)]
            if all(_dot(row, s) >= right for row, right in zip(A, rho, strict=True)):
                return s
    return None


def _dot(x, y):
    return sum((a * b for a, b in zip(x, y, strict=True)), Fraction(0))


def _solve(matrix, right):
    """Gaussian elimination; None if the matrix is singular."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for i in range(size):
        pivot = next((r for r in range(i, size) if rows[r][i]), None)
        if pivot is None:
            return None
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for r in range(size):
            if r != i and rows[r][i]:
                rows[r] = [x - rows[r][i] * y for x, y in zip(rows[r], rows[i], strict=True)]
    return [row[-1] for row in rows]


def exact_square(x):
    """x² of a float, exactly; None for +inf."""
    return None if np.isinf(x) else Fraction(float(x)) ** 2


def square_norm(s):
    return _dot(s, s)
