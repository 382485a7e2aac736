"""Solvers of all classes at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from .direct import DUAL, REDUCED
from .forms import Answer, Answers, Array, Rival, Said, Solve, dual, reduced

# Of qpax, in its implicit form: the explicit one does not converge to that.
TOLERANCE = 1e-8


def _moreau(classes: int, dim: int, threads: int) -> Solve:
    import moreau

    words: dict[str, Said] = {"Solved": "solved", "PrimalInfeasible": "infeasible"}
    n, m = min(dim, classes - 1), classes - 1
    solver = moreau.CompiledSolver(
        n=n,
        m=m,
        P_row_offsets=np.arange(n + 1),
        P_col_indices=np.arange(n),
        A_row_offsets=np.arange(m + 1) * n,
        A_col_indices=np.tile(np.arange(n), m),
        cones=moreau.Cones(num_nonneg_cones=m),
        settings=moreau.Settings(device="cpu", batch_size=classes),
    )

    def solve(W: Array, R: Array) -> Answer:
        found, forms = Answers.like(W), list(reduced(W, R))
        solver.setup(np.ones((classes, n)), np.stack([-p.A.ravel() for p in forms]))
        result = solver.solve(np.zeros((classes, n)), np.stack([-p.rho for p in forms]))
        for p, x, status in zip(forms, result.x, solver.info.status, strict=True):
            found.add(p.back(x), words.get(status.name if hasattr(status, "name") else str(status), "gave up"))
        return found.done()

    return solve


def _qpax(classes: int, dim: int, threads: int) -> Solve:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import qpax

    n, m = min(dim, classes - 1), classes - 1
    none, nothing = jnp.zeros((0, n)), jnp.zeros(0)

    def one(A: Any, rho: Any) -> Any:
        x, *_, converged, _ = qpax.solve_qp(
            jnp.eye(n), jnp.zeros(n), none, nothing, -A, -rho, backend="i", solver_tol=TOLERANCE
        )
        return x, converged

    run = jax.jit(jax.vmap(one)).lower(jnp.zeros((classes, m, n)), jnp.zeros((classes, m))).compile()

    def solve(W: Array, R: Array) -> Answer:
        found, forms = Answers.like(W), list(reduced(W, R))
        x, converged = run(np.stack([p.A for p in forms]), np.stack([p.rho for p in forms]))
        for p, value, done in zip(forms, np.asarray(x), np.asarray(converged), strict=True):
            found.add(p.back(value), "solved" if done else "gave up")
        return found.done()

    return solve


def _qpth(classes: int, dim: int, threads: int) -> Solve:
    import torch
    from qpth.qp import QPFunction

    m = classes - 1
    run = QPFunction(verbose=-1, eps=1e-12, maxIter=50)
    nothing = torch.zeros(0, dtype=torch.float64)

    def solve(W: Array, R: Array) -> Answer:
        found, forms = Answers.like(W), list(dual(W, R))
        G, rho = (torch.from_numpy(np.stack(part)) for part in zip(*((p.G, p.rho) for p in forms), strict=True))
        minus = -torch.eye(m, dtype=torch.float64)
        x = run(G, -rho, minus, torch.zeros(m, dtype=torch.float64), nothing, nothing)
        for p, lam in zip(forms, x.numpy(), strict=True):
            found.add(p.back(lam), "solved")  # it says nothing
        return found.done()

    return solve


RIVALS = (
    Rival("Moreau", f"{REDUCED}, one batch", ("moreau",), _moreau, threads=True),
    Rival("qpax", f"{REDUCED}, implicit backend, vmapped and compiled", ("jax", "qpax"), _qpax, threads=True),
    Rival("qpth", f"{DUAL}, one batch", ("qpth",), _qpth, threads=True),
)
