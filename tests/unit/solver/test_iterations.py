"""How many steps each solve took, where that is known without solving."""

import numpy as np
import pytest
import torch
from problems import known_solution, plain

import tacfast
from tacfast import Status
from tacfast.solver import _compiled

METHODS = ("active-set", "projected-gradient", "auto")


@pytest.fixture(params=["compiled", "plain torch"], autouse=True)
def backend(request, monkeypatch):
    if request.param == "plain torch":
        monkeypatch.setattr(_compiled, "_C", None)
    return request.param


def orthogonal(classes=9, n=6, seed=0):
    """Towards class 0 the constraints are z_ij + s_j · length_j ≥ 0, which do not see one another: latents and W."""
    rng = np.random.default_rng(seed)
    W = np.zeros((classes, classes - 1))
    W[1:] = -np.diag(rng.uniform(0.5, 2, classes - 1))
    return rng.standard_normal((n, classes - 1)) + 1, W


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(5))
def test_each_violated_constraint_is_taken_up_once(seed, dtype):
    latents, W = (x.astype(dtype) for x in orthogonal(seed=seed))
    at_once, staged = tacfast.solve_tac(latents, W), tacfast.GapMatrix(W).update(latents).solve(classes=[3, 0])
    violated = (latents.min(0) < 0).sum()
    assert violated > 0
    assert at_once.iterations[0] == staged.iterations[1] == violated
    assert at_once.iterations.dtype == np.int32
    assert at_once.iterations.shape == (9,)
    each = tacfast.solve_tac_per_sample(latents, W, classes=[3, 0])
    np.testing.assert_array_equal(each.iterations[:, 1], (latents < 0).sum(1))
    assert each.iterations.dtype == np.int32
    assert each.iterations.shape == (6, 2)


def test_there_is_nothing_to_do_where_nothing_is_violated_or_a_row_decides():
    p = plain(1, classes=4, n=50)
    p.W[3], p.b[3] = p.W[0], p.b[0] - 1  # always behind class 0
    p.b[1] += 1e3  # wins everywhere
    for found in (tacfast.solve_tac(*p), tacfast.solve_tac_per_sample(*p)):
        assert (found.iterations[..., 1] == 0).all()
        assert (found.iterations[..., 3] == 0).all()
        assert (found.status[..., 3] == Status.INFEASIBLE).all()
        assert (found.iterations[..., 0] > 0).all()


def test_a_contradiction_takes_a_step():
    """Class 1 lies between the two others on a line, so one constraint is taken up and the other contradicts it."""
    W, b = np.array([[-1.0], [0], [1]]), np.array([0.0, -1, 0])
    found = tacfast.solve_tac(np.zeros((1, 1)), W, b)
    assert found.statuses == [Status.OPTIMAL, Status.INFEASIBLE, Status.OPTIMAL]
    assert found.iterations.tolist() == [0, 2, 0]


def test_constraints_that_are_let_go_count_too():
    """What is active was taken up once more than it was let go."""
    p = plain(5, classes=40, dim=12, n=10)
    found = tacfast.solve_tac(*p)
    spare = (found.iterations - (found.duals > 0).sum(1))[found.status == Status.OPTIMAL]
    assert len(spare) > 20
    assert (spare >= 0).all()
    assert (spare % 2 == 0).all()
    assert spare.any()


@pytest.mark.parametrize("most", [1, 2, 3])
def test_max_iter_is_a_limit_of_them(most):
    latents, W = orthogonal()
    found = tacfast.solve_tac(latents, W, classes=[0], max_iter=most, raise_on_failure=False)
    assert (latents.min(0) < 0).sum() > most
    assert found.statuses == [Status.MAX_ITER]
    assert found.iterations.tolist() == [most]


def test_a_right_prediction_leaves_nothing_to_do(backend):
    if backend != "compiled":
        pytest.skip("plain torch predicts nothing")
    classes = 100  # all constraints active in every class: "auto" solves for all multipliers at once
    R = 1 + 1e-3 * np.random.default_rng(0).random((classes, classes))
    np.fill_diagonal(R, 0)
    dense = tacfast.GapMatrix.from_gaps(3 * np.eye(classes), None, R)
    assert (dense.solve().iterations == 0).all()
    assert (dense.solve(method="active-set").iterations == classes - 1).all()


def test_the_backends_take_the_same_steps(backend, monkeypatch):
    p = plain(7, classes=20, dim=30, n=50)
    found = tacfast.solve_tac(*p).iterations
    monkeypatch.setattr(_compiled, "_C", None)
    np.testing.assert_array_equal(tacfast.solve_tac(*p).iterations, found)


@pytest.mark.parametrize("method", METHODS)
def test_no_fewer_than_the_active_constraints_of_a_known_solution(method):
    known = known_solution(0, 43, 20, 20)
    found = tacfast.GapMatrix.from_gaps(known.W, None, known.R).solve(classes=[known.k], method=method)
    assert found.iterations[0] >= (20 if method != "projected-gradient" else 0)


def test_they_are_told():
    latents, W = orthogonal()
    found = tacfast.solve_tac(latents, W)
    assert f"iterations      {found.iterations.min()} to {found.iterations.max()}, median" in repr(found)
    assert [row["iterations"] for row in found.to_dict()["classes"]] == found.iterations.tolist()
    each = tacfast.solve_tac_per_sample(torch.from_numpy(latents), torch.from_numpy(W))
    assert "0 to" in repr(each)
    assert f"to {int(each.iterations.max())}, median" in repr(each)
    assert "iterations      none" in repr(tacfast.solve_tac(latents, W, classes=[]))
