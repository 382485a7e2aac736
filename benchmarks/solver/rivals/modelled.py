"""The QPs as one writes them in cvxpy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from .direct import REDUCED
from .forms import Answer, Answers, Array, Rival, Said, Solve, primal, reduced

WORDS: dict[str, Said] = {"optimal": "solved", "infeasible": "infeasible"}
TIGHT: dict[str, dict[str, Any]] = {
    "CLARABEL": {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10},
    "OSQP": {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iter": 20_000},
    "SCS": {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 20_000},
}


def _solved(problem: Any, x: Any, solver: str) -> tuple[Array | None, Said]:
    import cvxpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of inaccurate answers, which are counted
        try:
            problem.solve(solver=solver, warm_start=False, **TIGHT[solver])
        except cvxpy.SolverError:
            return None, "gave up"
    return x.value, WORDS.get(problem.status, "gave up")


def _rebuilt(solver: str) -> Callable[[int, int, int], Solve]:
    def make(classes: int, dim: int, threads: int) -> Solve:
        import cvxpy as cp

        def solve(W: Array, R: Array) -> Answer:
            found = Answers.like(W)
            for p in primal(W, R):
                x = cp.Variable(dim)
                value, said = _solved(cp.Problem(cp.Minimize(cp.sum_squares(x) / 2), [p.A @ x >= p.rho]), x, solver)
                found.add(value, said)
            return found.done()

        return solve

    return make


def _with_parameters(classes: int, dim: int) -> tuple[Any, Any, Any, Any]:
    """The problem in the span of the rows, its variable, and the parameters A and rho."""
    import cvxpy as cp

    n, m = min(dim, classes - 1), classes - 1
    x, A, rho = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m)
    return cp.Problem(cp.Minimize(cp.sum_squares(x) / 2), [A @ x >= rho]), x, A, rho


def _parametrised(solver: str) -> Callable[[int, int, int], Solve]:
    def make(classes: int, dim: int, threads: int) -> Solve:
        problem, x, A, rho = _with_parameters(classes, dim)
        problem.get_problem_data(solver)  # compiled, once for all

        def solve(W: Array, R: Array) -> Answer:
            found = Answers.like(W)
            for p in reduced(W, R):
                A.value, rho.value = p.A, p.rho
                value, said = _solved(problem, x, solver)
                found.add(None if value is None else p.back(value), said)
            return found.done()

        return solve

    return make


def _layer(classes: int, dim: int, threads: int) -> Solve:
    import cvxpy as cp
    import torch
    from cvxpylayers.torch import CvxpyLayer

    problem, x, A, rho = _with_parameters(classes, dim)
    layer = CvxpyLayer(problem, parameters=[A, rho], variables=[x], solver_args=TIGHT["SCS"])

    def solve(W: Array, R: Array) -> Answer:
        found, forms = Answers.like(W), list(reduced(W, R))
        parts = (torch.from_numpy(np.stack(part)) for part in zip(*((p.A, p.rho) for p in forms), strict=True))
        try:
            with torch.no_grad():
                (answers,) = layer(*parts)
        except cp.SolverError:  # one class without an answer and there is none of any
            return Answer(found.s, ["gave up"] * classes)
        for p, value in zip(forms, answers.numpy(), strict=True):
            found.add(p.back(value), "solved")
        return found.done()

    return solve


REBUILT = "collapsed, primal, d variables, written down anew"
RIVALS = (
    *(Rival(f"cvxpy + {name}", REBUILT, ("cvxpy",), _rebuilt(name.upper())) for name in ("Clarabel", "OSQP", "SCS")),
    *(
        Rival(f"cvxpy DPP + {name}", f"{REDUCED}, parameters", ("cvxpy",), _parametrised(name.upper()))
        for name in ("Clarabel", "OSQP", "SCS")
    ),
    Rival("cvxpylayers", f"{REDUCED}, one batch", ("cvxpy", "cvxpylayers"), _layer, threads=True),
)
