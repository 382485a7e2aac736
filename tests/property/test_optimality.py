"""The optimality conditions of every returned solution, evaluated independently, on problems of every family."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from independent import constraints, measures, ray_residuals
from problems import FAMILIES, FEASIBLE, of_family

import tacfast
from tacfast import Status

METHODS = ("active-set", "projected-gradient", "auto")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}
RESIDUALS = ("primal", "dual", "stationarity", "gap")

sizes = st.tuples(st.integers(2, 12), st.integers(1, 14), st.sampled_from([1, 2, 30]))


def check_class(sol, r, problem, tol, eps):
    """One class of a solution against the definitions."""
    k, duals = int(sol.classes[r]), sol.duals[r].numpy()
    c = constraints(problem.W, problem.b, sol.gaps.numpy(), k, sol.margin, eps)
    assert (duals >= 0).all()
    assert duals[k] == 0
    if sol.statuses[r] == Status.INFEASIBLE:
        assert sol.norms[r] == np.inf
        assert sol.perturbations[r].isnan().all()
        cancelled, gain = ray_residuals(c, duals)
        assert cancelled <= tol
        assert gain > 0
        return
    assert sol.statuses[r] == Status.OPTIMAL
    assert torch.equal(sol.norms[r], sol.norms[r].abs())
    assert float(sol.norms[r]) == pytest.approx(float(sol.perturbations[r].double().norm()), rel=4 * eps)
    found = measures(c, sol.perturbations[r].numpy(), duals)
    for name in RESIDUALS:
        assert getattr(found, name) <= tol, name
        assert getattr(found, name) == pytest.approx(float(getattr(sol.certificate, name)[r]), rel=1e-4, abs=1e-11)
    assert sol.certificate.lower[r] <= sol.certificate.upper[r]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@given(seed=st.integers(0, 2**32), size=sizes, bias=st.booleans(), margin=st.sampled_from([0.0, 0.5]))
@example(seed=0, size=(2, 2, 1), bias=False, margin=0.0)  # once INACCURATE 1e-9 from the hull
@example(seed=3, size=(5, 4, 1), bias=False, margin=0.0)
def test_every_returned_class_is_proven(family, dtype, seed, size, bias, margin):
    classes, dim, n = size
    problem = of_family(family, seed, classes, dim, n, bias)
    given_tensors, seen = problem.to(dtype), problem.rounded(dtype)
    norms = []
    for method in METHODS:
        sol = tacfast.solve_tac(*given_tensors, margin=margin, method=method)
        for r in range(len(seen.W)):
            check_class(sol, r, seen, TOLERANCE[dtype], torch.finfo(dtype).eps)
        if family in FEASIBLE and len(seen.W) <= seen.W.shape[1]:
            assert set(sol.statuses) == {Status.OPTIMAL}
        norms.append(sol.norms)
    for other in norms[1:]:
        torch.testing.assert_close(other, norms[0])


@given(seed=st.integers(0, 2**32), size=sizes, margin=st.sampled_from([0.0, 0.25]))
def test_no_constraint_of_any_sample_is_violated(seed, size, margin):
    """Without the collapse to R: the shift is tried on every sample."""
    p = of_family("plain", seed, *size, True)
    sol = tacfast.solve_tac(*p, margin=margin)
    for k in np.flatnonzero(sol.status == Status.OPTIMAL):
        logits = (p.latents + sol.perturbations[k]) @ p.W.T + p.b
        lead = logits[:, k : k + 1] - np.delete(logits, k, axis=1) - margin
        assert lead.min() >= -1e-9 * (1 + np.abs(logits).max())


@given(seed=st.integers(0, 2**32), size=sizes)
def test_a_margin_lengthens_every_shift(seed, size):
    """The margin goes to every constraint but the own class's: with it on the diagonal it would cancel."""
    p = of_family("plain", seed, *size, True)
    without, with_margin = (tacfast.solve_tac(*p, margin=m) for m in (0.0, 1.0))
    solved = (without.norms > 0) & (with_margin.status == 0)
    assert (with_margin.norms[solved] > without.norms[solved]).all()
