"""One QP per sample and class."""

import numpy as np
import pytest
import torch
from problems import of_family, plain

import tacfast
from tacfast import Status


@pytest.mark.parametrize("family", ["plain", "many_classes", "duplicate_rows", "near_hull_1e-6", "hull", "simplex"])
@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_sample_is_solved_as_on_its_own(family, margin, dtype):
    p = of_family(family, 3, 8, 12, 9, True).to(dtype)
    each = tacfast.solve_tac_per_sample(*p, margin=margin, return_perturbations=True)
    tol = {"rtol": 1e-8, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    for i, row in enumerate(p.latents):
        alone = tacfast.solve_tac(row[None], p.W, p.b, margin=margin)
        assert torch.equal(each.status[i], alone.status)
        if dtype == torch.float64 or "near" not in family:
            torch.testing.assert_close(each.norms[i], alone.norms, **tol)
            torch.testing.assert_close(each.perturbations[i], alone.perturbations, equal_nan=True, **tol)
        lengths = each.perturbations[i].norm(dim=1).nan_to_num(torch.inf, torch.inf)
        torch.testing.assert_close(lengths, each.norms[i])
    residuals = torch.stack([getattr(each.certificate, name) for name in ("primal", "dual", "stationarity", "gap")])
    assert (residuals <= (1e-10 if dtype == torch.float64 else 1e-6)).all()
    finite = each.norms.isfinite()
    shortest = torch.where(finite, each.norms, torch.inf).amin(0).double()
    longest = torch.where(finite, each.norms, 0).amax(0).double()
    slack = 1 + 4 * torch.finfo(dtype).eps
    assert (each.certificate.lower <= shortest * slack).all()
    assert (each.certificate.upper * slack >= longest).all()


@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("classes", [2, 5, 12, 40])
def test_one_active_constraint_has_a_closed_form(classes, margin):
    """The nearest point of the farthest half-space is the answer where it lies in all others too, and only there."""
    p = plain(4, classes=classes, dim=30, n=150).to(torch.float64)
    each = tacfast.solve_tac_per_sample(*p, margin=margin, return_perturbations=True)
    logits = p.latents @ p.W.T + p.b
    alone = 0
    for k in range(classes):
        others = [j for j in range(classes) if j != k]
        A, rho = p.W[k] - p.W[others], logits[:, others] - logits[:, [k]] + margin
        distance, farthest = (rho / A.norm(dim=1)).max(1)
        point = (distance / A.norm(dim=1)[farthest])[:, None] * A[farthest]
        slack = (point @ A.T - rho).amin(1)
        needed, holds = distance > 0, slack >= -1e-9
        alone += int((needed & holds).sum())
        torch.testing.assert_close(each.norms[needed & holds, k], distance[needed & holds], rtol=1e-12, atol=0)
        torch.testing.assert_close(each.perturbations[needed & holds, k], point[needed & holds], rtol=1e-9, atol=1e-9)
        assert (each.norms[needed & ~holds, k] > distance[needed & ~holds]).all()
    assert alone > 150 * classes // 15


def test_samples_of_the_class_need_no_shift():
    p = plain(1, classes=6, n=50)
    each = tacfast.solve_tac_per_sample(*p)
    predicted = (p.latents @ p.W.T + p.b).argmax(1)
    np.testing.assert_array_equal(each.norms == 0, predicted[:, None] == np.arange(6))
    assert each.perturbations is None
    assert set(each.status.ravel()) == {Status.OPTIMAL}


def test_many_samples_on_any_number_of_threads(threads):
    p = plain(2, classes=20, dim=16, n=3000).to(torch.float32)
    threads(1)
    one = tacfast.solve_tac_per_sample(*p, return_perturbations=True, classes=[7, 2, 11])
    threads(3)
    three = tacfast.solve_tac_per_sample(*p, return_perturbations=True, classes=[7, 2, 11])
    torch.testing.assert_close(one.norms, three.norms, rtol=1e-5, atol=1e-5)
    assert (one.status == 0).all()
    logits = (p.latents[:, None] + three.perturbations) @ p.W.T + p.b
    own = logits.gather(2, three.classes.expand(len(p.latents), -1)[..., None])[..., 0]
    assert (logits.amax(2) - own <= 1e-4).all()


@pytest.mark.parametrize(("return_perturbations", "size"), [(False, 20 * 5 * 13), (True, 20 * 5 * (13 + 8 * 8))])
def test_a_result_larger_than_allowed_is_refused(return_perturbations, size):
    p = plain(n=20, classes=5, dim=8)
    arguments = {"return_perturbations": return_perturbations}
    tacfast.solve_tac_per_sample(*p, max_bytes=size, **arguments)
    with pytest.raises(ValueError, match=f"max_bytes: expected at least {size} for this result, got {size - 1}"):
        tacfast.solve_tac_per_sample(*p, max_bytes=size - 1, **arguments)


def test_infeasible_classes():
    """A class inside the hull of the others, and one with the row of a better class."""
    W = torch.tensor([[0.0, 0], [1, 1], [1, -1], [-1, 1], [-1, -1], [1, 1]], dtype=torch.float64)
    b = torch.tensor([-1.0, 0, 0, 0, 0, -1], dtype=torch.float64)
    latents = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    each = tacfast.solve_tac_per_sample(latents, W, b, return_perturbations=True)
    assert (each.status[:, [0, 5]] == Status.INFEASIBLE).all()
    assert each.norms[:, [0, 5]].isinf().all()
    assert each.perturbations[:, [0, 5]].isnan().all()
    assert (each.status[:, 1:5] == Status.OPTIMAL).all()
    for name in ("primal", "dual", "stationarity", "gap"):
        assert (getattr(each.certificate, name) <= 1e-10).all(), name
    assert each.certificate.upper[[0, 5]].isinf().all()
