"""Latents of a really trained network: scikit-learn's handwritten digits."""

import numpy as np
import pytest
import torch
from independent import by_clarabel, by_quadprog, constraints, gap_matrix, measures

import tacfast
from tacfast import Status

datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    digits = datasets.load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    body = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32), torch.nn.ReLU())
    layer = torch.nn.Linear(32, 10)
    optimizer = torch.optim.Adam([*body.parameters(), *layer.parameters()], lr=1e-2)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(layer(body(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    latents = body(images)
    assert (layer(latents).argmax(1) == labels).float().mean() > 0.98
    return latents, layer.weight, layer.bias


@pytest.mark.parametrize("margin", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solved_certified_and_flipping_every_sample(trained, dtype, margin):
    problem = [x.detach().to(dtype) for x in trained]
    sol = tacfast.solve_tac(*problem, margin=margin)
    assert set(sol.statuses) == {Status.OPTIMAL}
    assert (sol.flipped(*problem) == 1).all()
    latents, W, b = (x.double().numpy() for x in problem)
    exact = gap_matrix(latents @ W.T + b)
    np.testing.assert_allclose(sol.gaps, exact, rtol=1e-5, atol=1e-5)
    tol = 1e-10 if dtype == torch.float64 else 1e-6
    for k in range(10):
        c = constraints(W, b, sol.gaps.numpy(), k, margin, torch.finfo(dtype).eps)
        assert max(measures(c, sol.perturbations[k].numpy(), sol.duals[k].numpy())[:4]) <= tol
        A, rho = (np.delete(part, k, axis=0) for part in c)
        for expected in (by_quadprog(A, rho), by_clarabel(A, rho)):
            np.testing.assert_allclose(sol.perturbations[k], expected, atol=1e-4 * np.linalg.norm(expected))


def test_trimming_shortens_and_per_sample_is_shorter_still(trained):
    problem = [x.detach() for x in trained]
    full, cut = tacfast.solve_tac(*problem), tacfast.solve_tac(*problem, trim=0.1)
    each = tacfast.solve_tac_per_sample(*problem)
    assert (cut.norms < full.norms).all()
    assert (each.norms.amax(0) <= full.norms * (1 + 1e-6)).all()
    assert (each.status == Status.OPTIMAL).all()
    assert (cut.flipped(*problem) < 1).any()
