"""The solver in plain torch, in float64: what runs where the compiled extension is missing, and an oracle for tests.

Same interface as `_compiled`, same answers, slower. Nothing here is shared with the compiled code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import first_bad
from ._contract import Prepared, Problem, Raw, RawSamples, empty_results, empty_samples
from ._results import Status

_VIOLATION = 1e-13  # relative to |rho_j| + |a_j||s|: below this a violation is rounding
_DEPENDENT = 1e-14  # relative to the terms of a projection: below this what is left is rounding


def padded_dim(dim: int) -> int:
    """Row length of `Prepared.rows` for latents of ``dim`` entries."""
    return dim


def prepare_head(W: Tensor, bias: Tensor | None) -> tuple[Prepared, bool]:
    """Widen and centre the rows of W (C, d) and the bias (C,), and form the Gram matrix of the rows.

    The second result is False if any entry of W or the bias is not finite.
    """
    head = form_head(W, bias, W.shape[1])
    return head, first_bad(head.memory) < 0


def form_head(W: Tensor, bias: Tensor | None, stride: int) -> Prepared:
    """The prepared head, its rows padded to ``stride``; `Prepared.longest` is finite only if W and the bias are."""
    wide = torch.nn.functional.pad(W.double(), (0, stride - W.shape[1]))
    centred = wide - wide.mean(0)
    b = torch.zeros_like(wide[:, 0]) if bias is None else bias.double()
    longest = wide.norm(dim=1).max() + 0 * b.sum()
    parts = (wide, centred, centred @ centred.T, b, b - b.mean(), longest)
    return Prepared(torch.cat([part.reshape(-1) for part in parts]), len(W))


def update_gaps(gaps: Tensor, logits: Tensor) -> int:
    """Fold logits (n, C) into the transposed gap matrix in place; returns the index of a non-finite logit or -1."""
    bad = first_bad(logits)
    if bad < 0:
        for j in range(logits.shape[1]):
            torch.maximum(gaps[j], (logits[:, j : j + 1] - logits).amax(0), out=gaps[j])
    return bad


def trimmed_gaps(gaps: Tensor, chunks: list[Tensor], trim: float) -> Tensor:
    """Order statistic instead of the maximum: see `solve_tac`. ``gaps`` is the transposed maximum."""
    logits = torch.cat([chunk.to(gaps.dtype) for chunk in chunks])
    answers = logits.argmax(1)
    trimmed = gaps.clone()
    for j in set(answers.tolist()):
        own = logits[answers == j]
        trimmed[j] = (own[:, j : j + 1] - own).topk(int(trim * len(own)) + 1, dim=0).values[-1]
    return trimmed


def solve_classes(problem: Problem, gaps: Tensor) -> Raw:
    """Solve the QP of every class from R = ``gaps`` (C, C)."""
    targets = problem.classes
    rows, dtype = problem.head.rows[:, : problem.dim], gaps.dtype
    raw = empty_results(targets, problem.dim, gaps)
    raw.perturbations.fill_(torch.nan)
    raw.norms.fill_(torch.inf)
    for r, k in enumerate(targets.tolist()):
        rho, kept = _constraints(rows, problem, gaps[k].double(), k)
        status, s, duals, raw.iterations[r] = _solve_class(rows, rho, kept, k, problem.max_iter)
        raw.duals[r] = duals.to(dtype)
        if status == Status.INVALID_INPUT:
            raw.norms[r] = torch.nan
            raw.certificate[:, r] = torch.tensor([torch.nan] * 4 + [0.0, torch.inf])
        elif status == Status.INFEASIBLE:
            raw.certificate[:, r] = _certify_ray(rows, rho, kept, k, raw.duals[r])
        else:
            raw.perturbations[r] = s.to(dtype)
            raw.norms[r] = raw.perturbations[r].norm()
            certificate = certify(rows, rho, kept, k, raw.perturbations[r], raw.duals[r])
            raw.certificate[:, r] = certificate
            if bool((certificate[:4] <= problem.tol).all()):
                status = Status.OPTIMAL
            elif status == Status.OPTIMAL:
                status = Status.INACCURATE
        raw.status[r] = int(status)
    return raw


def solve_samples(problem: Problem, logits: Tensor, return_perturbations: bool) -> RawSamples:
    """Solve one QP for every row of ``logits`` (n, C) and every class."""
    depth = problem.dim if return_perturbations else 0
    raw = empty_samples(logits, problem.classes, depth, logits.dtype)
    summary = raw.certificate
    for i, row in enumerate(logits.double()):
        one = solve_classes(problem, row[None, :] - row[:, None])
        raw.norms[i], raw.status[i], raw.iterations[i] = one.norms.to(logits.dtype), one.status, one.iterations
        raw.perturbations[i] = one.perturbations[:, :depth].to(logits.dtype)
        residuals = one.certificate[:4]
        residuals[:, one.status == Status.INFEASIBLE] = 0
        summary[:4] = torch.maximum(summary[:4], residuals)
        summary[4] = torch.minimum(summary[4], one.certificate[4])
        summary[5] = torch.maximum(summary[5], one.certificate[5])
    return raw


def certify(rows: Tensor, rho: Tensor, kept: Tensor, k: int, s: Tensor, duals: Tensor) -> Tensor:
    """The six numbers of a `Certificate` for one class, float64 (6,)."""
    A, right, lam, point = (rows[k] - rows)[kept], rho[kept], duals[kept].double(), s.double()
    lengths, norm = A.norm(dim=1), point.norm()
    combined, terms = A.T @ lam, (lam.abs() * lengths).sum()
    reached, value, size = A @ point, right @ lam, right.abs() @ lam.abs()
    rounding = 4 * torch.finfo(torch.float64).eps * (rows.shape[0] + rows.shape[1])
    violation = _ratio((right - reached).clamp(min=0), right.abs() + lengths * norm)
    lowest = ((-lam).clamp(min=0) * lengths).amax() if len(lam) else terms
    gain = value - rounding * size
    lower = gain / (combined.norm() + rounding * terms) if bool(gain > 0) and bool(lowest == 0) else terms * 0
    low = reached - rounding * lengths * norm
    wanted = right > 0
    t = (right / low)[wanted].amax() if bool(wanted.any()) else terms * 0
    feasible = bool((low[wanted] > 0).all()) and bool((t * low >= right)[~wanted].all())
    return torch.stack(
        [
            violation.amax() if len(lam) else terms * 0,
            _ratio(lowest, terms),
            _ratio((point - combined).norm(), terms),
            _ratio((norm**2 - value).abs(), norm**2 + size),
            lower,
            t * norm * (1 + rounding) if feasible and bool(t.isfinite()) else torch.full_like(t, torch.inf),
        ]
    )


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a == 0, 0.0, a / b)


def _constraints(rows: Tensor, problem: Problem, gaps: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Right-hand sides of class k, and which constraints are decided by samples.

    Rows equal to w_k in their dtype are decided by the bias alone.
    """
    kept = (rows - rows[k]).norm(dim=1) > problem.same_share * problem.head.longest
    kept[k] = False
    bias = problem.head.bias
    rho = torch.where(kept, gaps + problem.margin, problem.margin - (bias[k] - bias))
    rho[k] = 0
    return rho, kept


def _solve_class(rows: Tensor, rho: Tensor, kept: Tensor, k: int, max_iter: int) -> tuple[Status, Tensor, Tensor, int]:
    """Status, s (d,), multipliers (C,) and iterations of one class."""
    duals = torch.zeros_like(rho)
    s = torch.zeros_like(rows[k])
    if not bool(rho.isfinite().all()):
        return Status.INVALID_INPUT, s, duals, 0
    clash = (~kept & (rho > 0)).nonzero()
    if len(clash):
        duals[clash[0]] = 1
        return Status.INFEASIBLE, s, duals, 0
    status, s, duals[kept], iterations = _dual_active_set((rows[k] - rows)[kept], rho[kept], max_iter)
    return status, s, duals, iterations


def _certify_ray(rows: Tensor, rho: Tensor, kept: Tensor, k: int, ray: Tensor) -> Tensor:
    lam, A = ray.double(), (rows[k] - rows) * kept[:, None]
    lengths, combined = A.norm(dim=1), A.T @ lam
    terms, rounding = lengths @ lam, 4 * torch.finfo(torch.float64).eps * sum(rows.shape)
    gain = rho @ lam - rounding * (rho.abs() @ lam)
    reach = gain.clamp(min=0) / (combined.norm() + rounding * terms)
    nan = torch.full_like(terms, torch.nan)
    return torch.stack([nan, terms * 0, _ratio(combined.norm(), terms), nan, reach, nan.new_tensor(torch.inf)])


def _dual_active_set(A: Tensor, rho: Tensor, max_iter: int) -> tuple[Status, Tensor, Tensor, int]:
    """Goldfarb and Idnani (1983) for min ½‖s‖², A s ≥ rho, with a fresh QR factorisation at every step.

    The results are those of `_solve_class`, of these constraints.
    """
    lengths = A.norm(dim=1)
    lam, s = torch.zeros_like(rho), torch.zeros_like(A[0]) if len(A) else A.new_zeros(A.shape[1])
    active: list[int] = []
    implied: list[int] = []
    iterations = 0
    while True:
        score = (rho - A @ s) / lengths - _VIOLATION * (rho.abs() / lengths + s.norm())
        score[active + implied] = 0
        if len(A) == 0 or bool(score.max() <= 0):
            s, polished = _equalities(A[active], rho[active])
            lam[active] = polished.clamp(min=0)
            return Status.OPTIMAL, s, lam, iterations
        p = int(score.argmax())
        while True:
            if iterations >= max_iter:
                return Status.MAX_ITER, s, lam.clamp(min=0), iterations
            iterations += 1
            coef, normal = project(A[active], A[p])
            terms = lengths[p] + coef.abs() @ lengths[active]
            dependent = bool(normal.norm() <= _DEPENDENT * terms)
            steps = torch.where(coef * lengths[active] > 1e-13 * lengths[p], lam[active] / coef, torch.inf)
            to_zero = float(steps.min()) if len(active) else torch.inf
            to_equality = torch.inf if dependent else float((rho[p] - A[p] @ s) / (normal @ normal))
            if dependent and to_zero == torch.inf:
                gain = float(rho[p] - coef @ rho[active])
                if gain <= 1e-12 * float(rho[p].abs() + coef.abs() @ rho[active].abs()):
                    implied.append(p)
                    break
                ray = torch.zeros_like(lam)
                ray[active], ray[p] = (-coef).clamp(min=0), 1.0
                return Status.INFEASIBLE, s, ray, iterations
            step = min(to_equality, to_zero)
            lam[active] -= step * coef
            lam[p] += step
            if not dependent:
                s = s + step * normal
            if to_equality <= to_zero:
                active.append(p)
                break
            gone = active.pop(int(steps.argmin()))
            lam[gone] = 0


def project(basis: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of ``a`` in the rows of ``basis``, and what is left of it."""
    if len(basis) == 0:
        return a.new_zeros(0), a
    Q, R = torch.linalg.qr(basis.T)
    inside = Q.T @ a
    left = a - Q @ inside
    again = Q.T @ left
    coef = torch.linalg.solve_triangular(R, (inside + again)[:, None], upper=True)[:, 0]
    return coef, left - Q @ again


def _equalities(A: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """The shortest s with A s = rho, and its multipliers."""
    if len(A) == 0:
        return A.new_zeros(A.shape[1]), rho
    Q, R = torch.linalg.qr(A.T)
    y = torch.linalg.solve_triangular(R.T, rho[:, None], upper=False)
    return (Q @ y)[:, 0], torch.linalg.solve_triangular(R, y, upper=True)[:, 0]
