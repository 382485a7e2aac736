"""Solvers that one would hand the class-wise QPs to: min 1/2 |s|^2 subject to A s >= rho, all classes in one batch.

Each takes a clock and the constraints in float64, and returns the norms of the first classes, the milliseconds for all
classes, and facts for the record. What is not timed: building A, compiling, and setting up structures.
"""

from __future__ import annotations

import torch
from gpu_common import Clock

REPEATS = 3
CVXPY_CLASSES = 5  # timed one by one; a class costs about as much as any other


def constraints(W: torch.Tensor, R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (C, C - 1, d) and rho (C, C - 1): the leads over the other classes."""
    C = len(W)
    others = ~torch.eye(C, dtype=torch.bool, device=W.device)
    rows = W.double()
    return (rows[:, None] - rows[None])[others].view(C, C - 1, -1), R.double()[others].view(C, C - 1)


def qpth(clock: Clock, A: torch.Tensor, rho: torch.Tensor):
    from qpth.qp import QPFunction

    C, _, d = A.shape
    Q, p, none = torch.eye(d).to(A).expand(C, d, d), A.new_zeros(C, d), A.new_zeros(0)

    def solve():
        return QPFunction(verbose=-1, check_Q_spd=False)(Q, p, -A, -rho, none, none)

    return solve().norm(dim=1), clock.median_ms(solve, REPEATS), {"precision": "float64"}


def qpax(clock: Clock, A: torch.Tensor, rho: torch.Tensor):
    import jax
    import qpax as solver

    jax.config.update("jax_enable_x64", True)
    d = A.shape[2]
    G, h = jax.numpy.asarray(-A.cpu().numpy()), jax.numpy.asarray(-rho.cpu().numpy())
    Q, q = jax.numpy.eye(d), jax.numpy.zeros(d)
    no_rows, no_values = jax.numpy.zeros((0, d)), jax.numpy.zeros(0)
    batched = jax.jit(jax.vmap(lambda g, x: solver.solve_qp(Q, q, no_rows, no_values, g, x)[0]))

    def solve():
        return batched(G, h).block_until_ready()

    norms = torch.from_numpy(jax.device_get(jax.numpy.linalg.norm(solve(), axis=1)).copy())
    return norms, clock.wall_ms(solve, REPEATS), {"precision": "float64", "backend": jax.default_backend()}


def moreau(clock: Clock, A: torch.Tensor, rho: torch.Tensor):
    import moreau as solver

    C, m, d = A.shape
    device = "cuda" if clock.cuda else "cpu"
    compiled = solver.CompiledSolver(
        n=d,
        m=m,
        P_row_offsets=list(range(d + 1)),
        P_col_indices=list(range(d)),
        A_row_offsets=[d * row for row in range(m + 1)],
        A_col_indices=list(range(d)) * m,
        cones=solver.Cones(num_nonneg_cones=m),
        settings=solver.Settings(batch_size=C, device=device),
    )
    compiled.setup(torch.ones(C, d).double().numpy(), (-A).reshape(C, -1).cpu().numpy())
    q, b = torch.zeros(C, d).double().numpy(), (-rho).cpu().numpy()

    def solve():
        return torch.as_tensor(compiled.solve(q, b).x)

    return solve().norm(dim=1), clock.wall_ms(solve, REPEATS), {"precision": "float64", "backend": device}


def clarabel(clock: Clock, A: torch.Tensor, rho: torch.Tensor):
    import cvxpy as cp

    C, _m, d = A.shape
    matrix, right = A[:CVXPY_CLASSES].cpu().numpy(), rho[:CVXPY_CLASSES].cpu().numpy()

    def solve():
        points = []
        for a, r in zip(matrix, right, strict=True):
            s = cp.Variable(d)
            cp.Problem(cp.Minimize(0.5 * cp.sum_squares(s)), [a @ s >= r]).solve(solver=cp.CLARABEL)
            points.append(torch.from_numpy(s.value))
        return torch.stack(points)

    norms = solve().norm(dim=1)
    ms = clock.wall_ms(solve, 1) * C / len(matrix)
    facts = {"precision": "float64", "backend": "cpu", "classes_timed": len(matrix), "scaled_to_classes": C}
    return norms, ms, facts


RIVALS = {
    "qpth": qpth,
    "qpax (JAX)": qpax,
    "Moreau": moreau,
    "cvxpy + Clarabel, the collapsed form": clarabel,
}
