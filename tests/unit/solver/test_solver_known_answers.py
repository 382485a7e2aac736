"""Against known solutions, other solvers, and the plain-torch reference."""

import numpy as np
import pytest
import torch
from independent import by_clarabel, by_quadprog, constraints, gap_matrix, measures, ray_residuals, uncollapsed
from problems import FAMILIES, known_solution, of_family, plain

import tacfast
from tacfast import Status
from tacfast.solver import _compiled, _reference
from tacfast.solver._contract import Problem

METHODS = ("active-set", "projected-gradient", "auto")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("classes", "dim", "n_active"), [(2, 1, 1), (5, 8, 0), (10, 16, 6), (43, 20, 20), (80, 100, 79), (200, 128, 40)]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_known_solution_and_its_active_set_are_recovered(seed, classes, dim, n_active, method):
    known = known_solution(seed, classes, dim, n_active)
    sol = tacfast.GapMatrix.from_gaps(known.W, None, known.R).solve(classes=[known.k], method=method)
    np.testing.assert_allclose(sol.perturbations[0], known.s, atol=1e-11)
    np.testing.assert_array_equal(sol.duals[0] > 0, known.duals > 0)
    np.testing.assert_allclose(sol.duals[0], known.duals, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(5))
def test_weakly_active_constraints_do_no_harm(seed, method):
    known = known_solution(seed, 20, 30, 6, weakly_active=6)
    sol = tacfast.GapMatrix.from_gaps(known.W, None, known.R).solve(classes=[known.k], method=method)
    np.testing.assert_allclose(sol.perturbations[0], known.s, atol=1e-11)
    np.testing.assert_allclose(sol.duals[0], known.duals, atol=1e-10)


@pytest.mark.parametrize("margin", [0.0, 0.7])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bias", [False, True])
def test_other_solvers_agree_on_both_forms(bias, method, margin):
    p = plain(3, classes=6, dim=10, n=15, bias=bias)
    sol = tacfast.solve_tac(*p, margin=margin, method=method)
    for k in range(6):
        c = constraints(p.W, p.b, sol.gaps, k, margin)
        collapsed = [np.delete(part, k, axis=0) for part in c]
        everything = uncollapsed(*p, k, margin)
        for A, rho in (collapsed, everything):
            np.testing.assert_allclose(by_quadprog(A, rho), sol.perturbations[k], rtol=1e-10, atol=1e-11)
            np.testing.assert_allclose(by_clarabel(A, rho), sol.perturbations[k], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_more_classes_than_dimensions(method):
    """A is rank-deficient: s is unique, λ is not."""
    p = plain(5, classes=40, dim=6, n=10)
    sol = tacfast.solve_tac(*p, method=method)
    assert {Status.OPTIMAL, Status.INFEASIBLE} >= set(sol.statuses)
    for k in range(40):
        A, rho = (np.delete(part, k, axis=0) for part in constraints(p.W, p.b, sol.gaps, k))
        if sol.statuses[k] == Status.INFEASIBLE:
            with pytest.raises(ValueError, match="inconsistent"):
                by_quadprog(A, rho)
        else:
            np.testing.assert_allclose(by_quadprog(A, rho), sol.perturbations[k], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("classes", [100, 200])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_regime(dtype, method, classes):
    """Simplex-shaped W and near-equal gaps: every constraint is active, and v-form says so in closed form."""
    generator = torch.Generator().manual_seed(classes)
    W = 3 * torch.eye(classes, classes + 10, dtype=dtype)
    R = 1 + 1e-3 * torch.rand(classes, classes, generator=generator, dtype=dtype)
    R.fill_diagonal_(0)
    sol = tacfast.GapMatrix.from_gaps(W, None, R).solve(method=method)
    assert set(sol.statuses) == {Status.OPTIMAL}
    assert ((sol.duals > 0).sum(1) == classes - 1).all()
    A, rho = (np.delete(part.double().numpy(), 7, axis=0) for part in (W[7] - W, R[7]))
    expected = np.linalg.lstsq(A, rho, rcond=None)[0]  # the shortest s with A s = rho; torch 2.11 misses it by 1e-4
    atol = 1e-7 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(sol.perturbations[7].double().numpy(), expected, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_many_classes_of_every_kind(family, dtype):
    """Every answer is certified by mathematics that does not call tacfast."""
    p = of_family(family, 5, 80, 60, 40, True)
    seen, eps = p.rounded(dtype), torch.finfo(dtype).eps
    sol = tacfast.solve_tac(*p.to(dtype))
    assert set(sol.statuses) <= {Status.OPTIMAL, Status.INFEASIBLE}
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    for k, status in enumerate(sol.statuses):
        c = constraints(seen.W, seen.b, sol.gaps.numpy(), k, eps=eps)
        if status is Status.INFEASIBLE:
            cancelled, gain = ray_residuals(c, sol.duals[k].numpy())
            assert cancelled <= tolerance
            assert gain > 0
        else:
            with np.errstate(divide="ignore"):
                found = measures(c, sol.perturbations[k].numpy(), sol.duals[k].numpy())
            assert max(found.primal, found.dual, found.stationarity, found.gap) <= tolerance


@pytest.mark.parametrize(("classes", "dim"), [(2, 3), (10, 16), (30, 12), (60, 70)])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_reference_agrees(classes, dim, margin):
    p = plain(7, classes, dim, 50).to(torch.float64)
    sol = tacfast.solve_tac(*p, margin=margin)
    head, finite = _reference.prepare_head(p.W, p.b)
    assert finite
    same_share = 4 * torch.finfo(torch.float64).eps
    problem = Problem(head, dim, same_share, sol.classes, margin, 1e-10, 4 * classes + 100)
    raw = _reference.solve_classes(problem, sol.gaps)
    assert torch.equal(raw.status, sol.status)
    feasible = sol.status == Status.OPTIMAL
    torch.testing.assert_close(raw.perturbations[feasible], sol.perturbations[feasible], rtol=1e-8, atol=1e-9)
    assert torch.equal(raw.duals[feasible] > 0, sol.duals[feasible] > 0)
    np.testing.assert_allclose(sol.gaps, gap_matrix((p.latents @ p.W.T + p.b).numpy()), atol=1e-12)


def test_any_number_of_threads_gives_the_same_bits(threads, monkeypatch):
    p = plain(3, 90, 40, 200).to(torch.float64)
    threads(1)
    expected = tacfast.solve_tac(*p)
    used = []
    original = _compiled._threads_for
    monkeypatch.setattr(_compiled, "_threads_for", lambda work: used.append(original(work)) or used[-1])
    for number, least, shared in ((2, 10**9, 1), (2, 0, 2), (5, 0, 5)):
        threads(number)
        monkeypatch.setattr(_compiled, "_WORTH_THREADS", least)
        used.clear()
        found = tacfast.solve_tac(*p)
        assert set(used) == {shared}
        for name in ("perturbations", "duals", "norms"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
