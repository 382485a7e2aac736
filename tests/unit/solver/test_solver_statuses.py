"""How a solve ends when it does not end OPTIMAL, and the choice of classes."""

import numpy as np
import pytest
import torch
from independent import constraints, ray_residuals
from problems import plain

import tacfast
from tacfast import SolverError, Status
from tacfast.solver import _stages

METHODS = ("active-set", "projected-gradient", "auto")


def inside_hull(dtype=torch.float64):
    """Class 0 lies in the middle of the others: a square in the plane, exactly."""
    W = torch.tensor([[0, 0, 1], [1, 1, 1], [1, -1, 1], [-1, 1, 1], [-1, -1, 1]], dtype=dtype)
    latents = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=dtype) + 1
    return latents, W, torch.tensor([-1.0, 0, 0, 0, 0], dtype=dtype)


def same_rows(dtype=torch.float64):
    """Class 0 has the row of class 3, which has the larger bias."""
    p = plain(1, classes=4).to(dtype)
    p.W[0] = p.W[3]
    p.b[3] = p.b[0] + 1
    return p


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("problem", [inside_hull, same_rows])
def test_infeasible_is_an_answer_with_a_proof(problem, dtype, method):
    latents, W, b = problem(dtype)
    sol = tacfast.solve_tac(latents, W, b, method=method, raise_on_failure=True)
    assert sol.statuses[0] == Status.INFEASIBLE
    assert set(sol.statuses[1:]) == {Status.OPTIMAL}
    assert sol.norms[0] == np.inf
    assert sol.perturbations[0].isnan().all()
    c = constraints(W.numpy(), b.numpy(), sol.gaps.numpy(), 0, eps=torch.finfo(dtype).eps)
    cancelled, gain = ray_residuals(c, sol.duals[0].numpy())
    assert cancelled <= 2 * torch.finfo(dtype).eps
    assert gain > 1e-3
    assert sol.certificate.lower[0] > 1e6
    assert sol.certificate.upper[0] == np.inf


def test_same_rows_are_decided_by_the_bias_and_the_margin():
    """Never by R, in which the rounding of two equal columns may differ."""
    W = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    W[1] = W[0]
    R = np.array([[0, 1e-5, 1], [1e-5, 0, 1], [1, 1, 0]], np.float32)
    equal = tacfast.GapMatrix.from_gaps(W, np.zeros(3, np.float32), R)
    assert set(equal.solve().statuses) == {Status.OPTIMAL}
    assert (equal.solve().duals[[0, 1], [1, 0]] == 0).all()
    assert [s.name for s in equal.solve(margin=0.25).statuses] == ["INFEASIBLE", "INFEASIBLE", "OPTIMAL"]
    better = tacfast.GapMatrix.from_gaps(W, np.array([1, 0, 0], np.float32), R)
    assert [s.name for s in better.solve(margin=0.25).statuses] == ["OPTIMAL", "INFEASIBLE", "OPTIMAL"]


@pytest.mark.parametrize("distance", [1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("seed", range(5))
def test_near_duplicate_rows_in_float32_are_not_called_infeasible(distance, seed):
    """The rows differ by more than their type's resolution, so the true problem has a solution."""
    p = plain(seed, classes=6, dim=12).to(torch.float32)
    p.W[5] = p.W[0] + distance * torch.randn(12, generator=torch.Generator().manual_seed(seed))
    assert set(tacfast.solve_tac(*p).statuses) == {Status.OPTIMAL}


@pytest.mark.parametrize("method", METHODS)
def test_running_out_of_iterations(method):
    p = plain(2, classes=30, dim=40).to(torch.float64)
    with pytest.raises(SolverError, match=r"classes failed.*MAX_ITER \(stopped at max_iter.*raise_on_failure") as error:
        tacfast.GapMatrix.from_gaps(p.W, None, 1 - torch.eye(30)).solve(max_iter=1, method="active-set")
    solution = error.value.solution
    assert Status.MAX_ITER in solution.statuses
    assert solution.perturbations.shape == (30, 40)
    assert solution.certificate.primal.isfinite().all()
    quiet = tacfast.solve_tac(*p, max_iter=1, method=method, raise_on_failure=False)
    assert set(quiet.statuses) <= {Status.MAX_ITER, Status.OPTIMAL}
    optimal = quiet.status == Status.OPTIMAL
    torch.testing.assert_close(quiet.norms[optimal], tacfast.solve_tac(*p).norms[optimal])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bad_guess_costs_no_answer(dtype, monkeypatch):
    """Of many constraints that are not active, each of which takes an iteration to let go of."""

    def guess(gram, gaps, classes, margin):
        return torch.ones(len(classes), len(gram), dtype=torch.float64).scatter(1, classes[:, None], 0.0)

    monkeypatch.setattr(_stages, "predict_multipliers", guess)
    p = plain(0, classes=24, dim=12, n=60).to(dtype)
    plainly, guessed = (
        tacfast.solve_tac(*p, method=method, max_iter=12, raise_on_failure=False)
        for method in ("active-set", "projected-gradient")
    )
    assert set(plainly.statuses) == {Status.OPTIMAL}
    assert torch.equal(guessed.status, plainly.status)
    for name in ("norms", "perturbations", "duals"):
        torch.testing.assert_close(getattr(guessed, name), getattr(plainly, name))
    for name in ("primal", "dual", "stationarity", "gap"):
        assert (getattr(guessed.certificate, name) <= 1e-6).all()
    torch.testing.assert_close(guessed.certificate.lower, plainly.certificate.lower)


def test_a_tolerance_out_of_reach():
    p = plain(2, classes=10).to(torch.float32)
    with pytest.raises(SolverError, match=r"INACCURATE.*certificate misses the tolerance") as error:
        tacfast.solve_tac(*p, tol=1e-30)
    assert set(error.value.solution.statuses) <= {Status.INACCURATE, Status.OPTIMAL}
    torch.testing.assert_close(error.value.solution.norms, tacfast.solve_tac(*p).norms)


def test_gaps_that_overflow_with_the_margin_are_invalid_input():
    """R itself is finite, so only the right-hand side shows it."""
    p = plain(0, classes=3)
    R = np.full((3, 3), 1.7e308)
    np.fill_diagonal(R, 0)
    matrix = tacfast.GapMatrix.from_gaps(p.W, None, R)
    sol = matrix.solve(margin=1e308, raise_on_failure=False)
    assert set(sol.statuses) == {Status.INVALID_INPUT}
    assert np.isnan(sol.norms).all()
    with pytest.raises(SolverError, match="INVALID_INPUT") as error:
        matrix.solve(margin=1e308)
    assert isinstance(error.value.solution.norms, np.ndarray)  # of the kind of R, as if returned


READ_ONLY = np.array([2, 0])
READ_ONLY.flags.writeable = False
CLASSES = [
    [3], (4, 0), range(2), [np.int64(2), 4], READ_ONLY, torch.tensor([1, 3]), torch.tensor([1, 3], dtype=torch.uint16),
    np.array([2, 1], np.uint8), np.array([4, 2], np.uint16), np.arange(5)[::-1],
]  # fmt: skip


@pytest.mark.parametrize("classes", CLASSES, ids=repr)
def test_a_selection_of_classes(classes):
    p = plain(4, classes=5)
    everything, some = tacfast.solve_tac(*p), tacfast.solve_tac(*p, classes=classes)
    chosen = np.asarray(classes)
    np.testing.assert_array_equal(some.classes, chosen)
    np.testing.assert_array_equal(some.perturbations, everything.perturbations[chosen])
    np.testing.assert_array_equal(some.duals, everything.duals[chosen])


def test_no_classes_give_an_empty_result():
    p = plain(4, classes=5, dim=7).to(torch.float32)
    sol = tacfast.solve_tac(*p, classes=[])
    assert sol.perturbations.shape == (0, 7)
    assert sol.duals.shape == (0, 5)
    assert sol.certificate.gap.shape == (0,)
    assert sol.statuses == []
    each = tacfast.solve_tac_per_sample(*p, classes=[], return_perturbations=True)
    assert each.norms.shape == (20, 0)
    assert each.perturbations.shape == (20, 0, 7)


@pytest.mark.parametrize("scale", [1e-170, 1e-145, 1e145, 1e200])
def test_weights_whose_squares_float64_cannot_hold_are_refused(scale):
    p = plain(0).to(torch.float64)
    for solve in (tacfast.solve_tac, tacfast.solve_tac_per_sample):
        with pytest.raises(ValueError, match="W: expected rows no longer than 1e140"):
            solve(p.latents, p.W * scale, p.b)


def test_a_norm_that_overflows_its_type_is_not_optimal():
    p = plain(0).to(torch.float32)
    solution = tacfast.solve_tac(p.latents, p.W * 1e-20, p.b * 1e20, raise_on_failure=False)
    each = tacfast.solve_tac_per_sample(p.latents, p.W * 1e-20, p.b * 1e20)
    for found in (solution, each):
        optimal = found.status == Status.OPTIMAL
        assert not optimal.all()
        assert found.norms[optimal].isfinite().all()
