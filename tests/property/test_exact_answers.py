"""Against exact rational arithmetic: statuses, solutions, and bounds that bracket the true norm always."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from independent import constraints, exact_solution, exact_square, gap_matrix, square_norm
from problems import of_family

import tacfast
from tacfast import Status

METHODS = ("active-set", "projected-gradient", "auto")
DTYPES = (torch.float64, torch.float32)


@st.composite
def integer_problems(draw):
    """Small integers: parallel, equal and opposite rows, points of the hull and ties, all without rounding."""
    classes, dim, n = draw(st.integers(2, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    entries = st.integers(-2, 2).map(float)
    W, latents = draw(arrays(float, (classes, dim), elements=entries)), draw(arrays(float, (n, dim), elements=entries))
    return latents, W, draw(st.none() | arrays(float, classes, elements=entries))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=100)
@given(problem=integer_problems(), margin=st.sampled_from([0.0, 0.5]), method=st.sampled_from(METHODS))
def test_integer_problems(dtype, problem, margin, method):
    latents, W, b = problem
    tensors = [None if x is None else torch.from_numpy(x).to(dtype) for x in problem]
    # Logits, not latents: R is then exact, and so are the many ties.
    logits = latents @ W.T + (0 if b is None else b)
    matrix = tacfast.GapMatrix(*tensors[1:]).update_logits(torch.from_numpy(logits).to(dtype))
    sol = matrix.solve(margin=margin, method=method)
    R = gap_matrix(logits)
    np.testing.assert_array_equal(sol.gaps.numpy(), R)
    for k, status in enumerate(sol.statuses):
        exact = exact_solution(constraints(W, b, R, k, margin))
        assert status == (Status.INFEASIBLE if exact is None else Status.OPTIMAL)
        if exact is not None:
            s = np.array([float(x) for x in exact])
            tol = 1e-9 if dtype == torch.float64 else 1e-4
            np.testing.assert_allclose(sol.perturbations[k].numpy(), s, atol=tol * (1 + np.abs(s).max()))


NARROW = ("plain", "near_hull_1e-6", "near_hull_1e-9", "near_duplicate_1e-6", "near_duplicate_1e-9", "scaled_rows",
          "common_offset", "huge_latents", "tiny_W")  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", NARROW)
@given(
    seed=st.integers(0, 2**32),
    size=st.tuples(st.integers(2, 5), st.integers(1, 4), st.integers(1, 9)),
    margin=st.sampled_from([0.0, 0.5]),
    method=st.sampled_from(METHODS),
    max_iter=st.sampled_from([None, 1, 2, 3]),
)
@example(seed=0, size=(2, 1, 5), margin=0.5, method="projected-gradient", max_iter=1)  # once an upper bound of NaN
def test_bounds_bracket_the_true_norm(family, dtype, seed, size, margin, method, max_iter):
    """Also of what is returned before the active set has settled."""
    problem = of_family(family, seed, *size, True)
    seen = problem.rounded(dtype)
    sol = tacfast.solve_tac(*problem.to(dtype), margin=margin, method=method, max_iter=max_iter, raise_on_failure=False)
    for k in range(len(seen.W)):
        c = constraints(seen.W, seen.b, sol.gaps.numpy(), k, margin, torch.finfo(dtype).eps)
        exact = exact_solution(c)
        lower, upper = (exact_square(float(x[k])) for x in (sol.certificate.lower, sol.certificate.upper))
        if exact is None:
            assert upper is None
        else:
            assert upper is None or square_norm(exact) <= upper
            assert lower is not None
            assert sol.status[k] != Status.INFEASIBLE
            assert lower <= square_norm(exact)
