"""Derivatives of norms and perturbations: against autograd through other solvers, and at the edges."""

import numpy as np
import pytest
import torch
from independent import by_quadprog, constraints, gap_matrix, trimmed_gap_matrix
from problems import FEASIBLE, of_family, plain
from torch.utils._python_dispatch import TorchDispatchMode

import tacfast
from tacfast.solver import _compiled, _gradients, _operators, _stages

VARIANTS = {
    "plain": {},
    "margin": {"margin": 0.3},
    "trim": {"trim": 0.4},
    "both": {"margin": 0.1, "trim": 0.7},
    "some classes": {"classes": [4, 0]},
    "projected gradient": {"method": "projected-gradient"},
}


def leaves(p, dtype=torch.float64):
    return [None if x is None else x.requires_grad_() for x in p.to(dtype)]


def fields(tensors, **options):
    solution = tacfast.solve_tac(*tensors, raise_on_failure=False, **options)
    return solution.norms, solution.perturbations


def weighted(norms, perturbations):
    """A loss on which every entry has an influence of its own."""
    shares = torch.linspace(1, 2, norms.numel(), dtype=norms.dtype)
    more = torch.linspace(-2, 1, perturbations.numel(), dtype=norms.dtype).reshape(perturbations.shape)
    return (shares * norms).sum() + (more * perturbations).sum()


def gradients(tensors, loss=weighted, **options):
    found = torch.autograd.grad(loss(*fields(tensors, **options)), [x for x in tensors if x is not None])
    assert all(grad.dtype == x.dtype for grad, x in zip(found, (x for x in tensors if x is not None), strict=True))
    return found


def source_of(values, k, j, gap, trim):
    """The first sample with that gap; of a trimmed one, among those of class j."""
    rows = np.arange(len(values))
    if trim and (values.argmax(1) == j).any():
        rows = rows[values.argmax(1) == j]
    return rows[np.abs(values[rows, j] - values[rows, k] - gap).argmin()]


def by_quadprog_and_pinv(latents, W, b, classes, margin=0.0, trim=0.0):
    """Norms and perturbations, for torch to differentiate: quadprog says which constraints are active."""
    logits = latents @ W.T + (0 if b is None else b)
    seen = [None if x is None else x.detach().numpy() for x in (latents, W, b)]
    values = logits.detach().numpy()
    R = trimmed_gap_matrix(values, trim) if trim else gap_matrix(values)
    shifts = []
    for k in classes:
        c = constraints(*seen[1:], R, k, margin)
        slack = c.A @ by_quadprog(c.A, c.rho) - c.rho
        active = [j for j in range(len(W)) if j != k and slack[j] < 1e-9 * (1 + abs(c.rho[j]))]
        sources = [source_of(values, k, j, R[k, j], trim) for j in active]
        rho = (logits[sources, active] - logits[sources, k]) + margin
        shifts.append(torch.linalg.pinv(W[k] - W[active]) @ rho)
    s = torch.stack(shifts)
    return s.norm(dim=1), s


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_gradcheck(seed, variant, bias):
    tensors = leaves(plain(seed, 5, 6, 15, bias))
    given = [x for x in tensors if x is not None]
    assert torch.autograd.gradcheck(lambda *x: fields(x, **VARIANTS[variant]), given)


@pytest.mark.parametrize("trim", [0.0, 0.4])
@pytest.mark.parametrize("family", sorted(FEASIBLE - {"satisfied"}))
def test_against_autograd_through_other_solvers(family, trim):
    tensors = leaves(of_family(family, 3, 7, 9, 40, True))
    classes = range(len(tensors[1]))
    expected = weighted(*by_quadprog_and_pinv(*tensors, classes, margin=0.5, trim=trim))
    expected = torch.autograd.grad(expected, [x for x in tensors if x is not None])
    found = gradients(tensors, margin=0.5, trim=trim)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8 * float(other.abs().max()))


@pytest.mark.parametrize("seed", range(3))
def test_slopes_of_another_solver(seed):
    """Central differences of the norms that quadprog finds, along a random direction."""
    tensors = leaves(plain(seed, 6, 10, 30))
    rng = np.random.default_rng(seed)
    direction = [rng.standard_normal(x.shape) for x in tensors]

    def norms(step):
        z, W, b = (x.detach().numpy() + step * v for x, v in zip(tensors, direction, strict=True))
        R = gap_matrix(z @ W.T + b)
        return [np.linalg.norm(by_quadprog(*constraints(W, b, R, k))) for k in range(6)]

    slopes = (np.array(norms(1e-6)) - np.array(norms(-1e-6))) / 2e-6
    for k in range(6):
        found = gradients(tensors, lambda norms, _, k=k: norms[k])
        along = sum((grad.numpy() * v).sum() for grad, v in zip(found, direction, strict=True))
        assert along == pytest.approx(slopes[k], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-4), (torch.float16, 2e-2)])
def test_narrower_dtypes(dtype, tol):
    p = plain(1, 12, 20, 300)
    found = gradients(leaves(p, dtype))
    wide = [x.detach().double().requires_grad_() for x in p.to(dtype)]
    for one, other in zip(found, gradients(wide), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tol, atol=tol * float(other.abs().max()))


def test_mixed_dtypes_and_what_needs_no_gradient():
    p = plain(2)
    latents, W, b = torch.from_numpy(p.latents).float(), torch.from_numpy(p.W), torch.from_numpy(p.b)
    expected = gradients([latents.clone().requires_grad_(), W.clone().requires_grad_(), b.clone().requires_grad_()])
    for wanted in range(3):
        tensors = [x.clone().requires_grad_(i == wanted) for i, x in enumerate((latents, W, b))]
        weighted(*fields(tensors)).backward()
        torch.testing.assert_close(tensors[wanted].grad, expected[wanted])
        assert all(x.grad is None for i, x in enumerate(tensors) if i != wanted)


def test_only_norms_and_perturbations_of_solve_tac_carry_gradients():
    layer = torch.nn.Linear(8, 5)
    latents = torch.randn(20, 8, requires_grad=True)
    solution = tacfast.solve_tac(latents, layer.weight, layer.bias)
    assert solution.norms.requires_grad
    assert solution.perturbations.requires_grad
    for name in ("duals", "gaps", "status", "classes"):
        assert not getattr(solution, name).requires_grad
    assert not solution.certificate.upper.requires_grad
    matrix = tacfast.GapMatrix(layer.weight, layer.bias).update(latents)
    assert not matrix.gaps.requires_grad
    assert not matrix.solve().norms.requires_grad
    each = tacfast.solve_tac_per_sample(latents, layer.weight, layer.bias, return_perturbations=True)
    assert not each.norms.requires_grad
    assert not each.perturbations.requires_grad


def test_nothing_changes_where_no_gradient_is_asked_for(monkeypatch):
    tensors = leaves(plain(3))
    expected = tacfast.solve_tac(*tensors)
    monkeypatch.setattr(_operators, "attach_gradients", None)
    constants = [x.detach() for x in tensors]
    for switch in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with switch:
            found = tacfast.solve_tac(*(constants if torch.is_grad_enabled() else tensors))
        assert not found.norms.requires_grad
        assert torch.equal(found.norms, expected.norms)
        assert torch.equal(found.perturbations, expected.perturbations)


def test_other_kinds_of_arrays():
    """A NumPy head is a constant, and may be overwritten; NumPy latents make NumPy results."""
    p = plain(4)
    expected = gradients(leaves(p), lambda norms, _: norms.sum())[0]
    latents, W, b = torch.from_numpy(p.latents).requires_grad_(), p.W.copy(), p.b.copy()
    norms = tacfast.solve_tac(latents, W, b).norms
    W[:], b[:] = 0, 0
    norms.sum().backward()
    torch.testing.assert_close(latents.grad, expected)
    assert isinstance(tacfast.solve_tac(p.latents, leaves(p)[1]).norms, np.ndarray)


def test_lazily_negated_views():
    p = plain(4).to(torch.float64)
    lazy = [torch.complex(torch.zeros_like(x), -x).conj().imag for x in p]
    assert all(x.is_neg() for x in lazy)
    for one, other in zip(gradients([x.requires_grad_() for x in lazy]), gradients(leaves(plain(4))), strict=True):
        torch.testing.assert_close(one, other)


def test_what_was_solved_must_not_change_before_backward():
    latents, W, b = leaves(plain(4))
    loss = tacfast.solve_tac(latents, W, b).norms.sum()
    with torch.no_grad():
        W += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_solution_with_gradients_is_as_useful_as_one_without(tmp_path):
    latents, W, b = leaves(plain(5, 8, 10, 100))
    solution = tacfast.solve_tac(latents, W, b, trim=0.5)
    without = tacfast.solve_tac(latents.detach(), W.detach(), b.detach(), trim=0.5)
    assert tacfast.detect(solution) == tacfast.detect(without)
    assert torch.equal(solution.flipped(latents, W, b), without.flipped(latents, W, b))
    assert not solution.flipped(latents, W, b).requires_grad
    solution.save(tmp_path / "solution.safetensors")
    assert torch.equal(tacfast.TacSolution.load(tmp_path / "solution.safetensors").norms, without.norms)
    assert solution.to(dtype=torch.float32).norms.requires_grad


# ---- edges -----------------------------------------------------------------------------------------------------


def test_an_infeasible_class_has_no_gradient():
    p = plain(6, 5, 8, 20)
    p.W[2] = 0.5 * p.W[0] + 0.5 * p.W[1]
    tensors = leaves(p)
    norms, shifts = fields(tensors)
    assert norms[2] == torch.inf
    assert shifts[2].isnan().all()
    found = torch.autograd.grad(norms.sum() + (shifts**2).sum(), tensors)  # of which NaN comes in for class 2
    others = gradients(tensors, lambda norms, s: norms.sum() + (s**2).sum(), classes=[0, 1, 3, 4])
    for one, other in zip(found, others, strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one, other)


def test_no_shift_no_gradient():
    """Where every sample is in class 1 already, the norm of class 1 is 0 and so is its subgradient."""
    p = plain(7)
    p.b[1] = 1e3
    norms, shifts = fields(tensors := leaves(p))
    assert norms[1] == 0
    for loss in (norms[1], shifts[1].sum()):
        for grad in torch.autograd.grad(loss, tensors, retain_graph=True):
            assert not grad.any()
    for grad in gradients(tensors, classes=[1]):
        assert not grad.any()


@pytest.mark.parametrize("chunk", [1 << 30, 1])
def test_ties_go_to_the_first_sample(chunk, monkeypatch):
    monkeypatch.setattr(_stages, "_SMALL_STEP", chunk)
    p = plain(8, 5, 8, 20)
    twice = p._replace(latents=np.repeat(p.latents, 2, axis=0))
    once = gradients(leaves(p))
    found = gradients(leaves(twice))
    torch.testing.assert_close(found[0][::2], once[0])
    assert not found[0][1::2].any()
    for one, other in zip(found[1:], once[1:], strict=True):
        torch.testing.assert_close(one, other)


def test_a_tie_gives_a_subgradient():
    """R is a maximum, and convex in the logits, and so is the square of the norm, whose slopes bound it from below."""
    W = 2 * torch.eye(4, dtype=torch.float64)
    logits = torch.zeros(3, 4, dtype=torch.float64)  # all samples, and the gaps of all classes, are tied

    def square(b):
        return tacfast.solve_tac(logits, W, b, margin=1.0).norms[2] ** 2

    b = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(square(b), b)
    assert slope.abs().max() > 0
    for direction in torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)):
        assert square(0.1 * direction) >= square(b.detach()) + 0.1 * slope @ direction - 1e-12


def test_a_constraint_that_merely_touches_has_no_part():
    """With λ = 0 and equality, there are two slopes; that of the constraint's not being there is taken."""
    W = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    b = torch.tensor([-1.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    solution = tacfast.solve_tac(torch.zeros(1, 2, dtype=torch.float64), W, b, classes=[0])  # s₀ ≥ 1, s₁ ≥ 0
    torch.testing.assert_close(solution.perturbations.detach(), torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    (slope,) = torch.autograd.grad(solution.perturbations.sum(), b)
    torch.testing.assert_close(slope, torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float64))


def test_second_derivatives_are_refused():
    tensors = leaves(plain(9))
    norms, shifts = fields(tensors)
    for loss in (norms.sum(), (shifts**2).sum()):
        first = torch.autograd.grad(loss, tensors, create_graph=True)
        assert all(grad.isfinite().all() for grad in first)
        with pytest.raises(RuntimeError, match="latents, W, b: expected first derivatives of solve_tac only"):
            torch.autograd.grad(sum((grad**2).sum() for grad in first), tensors)


# ---- compiled, and in pieces -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("default")  # the compilers' own
def test_compiled_in_one_graph(backend):
    tensors = leaves(plain(0, 6, 10, 30), torch.float32)

    def loss(latents, W, b, trim):
        return weighted(*fields((latents, W, b), trim=trim, margin=0.1))

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for trim in (0.0, 0.3):
        found = torch.autograd.grad(compiled(*tensors, trim), tensors)
        for one, other in zip(found, torch.autograd.grad(loss(*tensors, trim), tensors), strict=True):
            torch.testing.assert_close(one, other)


def test_without_the_extension(monkeypatch):
    tensors = leaves(plain(5, 7, 9, 40))
    compiled = gradients(tensors, trim=0.3)
    monkeypatch.setattr(_compiled, "_C", None)
    for one, other in zip(gradients(tensors, trim=0.3), compiled, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("trim", [0.0, 0.3])
def test_chunks_change_nothing(trim, dtype, monkeypatch):
    tensors = leaves(plain(1, 9, 12, 200), dtype)
    whole = gradients(tensors, trim=trim)
    monkeypatch.setattr(_stages, "_SMALL_STEP", 7 * 9)
    monkeypatch.setitem(_gradients._BLOCK, "cpu", 100)
    for one, other in zip(gradients(tensors, trim=trim), whole, strict=True):
        torch.testing.assert_close(one, other)


class Largest(TorchDispatchMode):
    """The most entries of any tensor that an operation makes."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and x.layout == torch.strided:
                self.entries = max(self.entries, x.numel())
        return out


@pytest.mark.parametrize("trim", [0.0, 0.3])
def test_memory_of_the_backward_pass(trim):
    n, dim, classes = 10_000, 20, 40
    latents, W, b = plain(2, classes, dim, n).to(torch.float32)
    solution = tacfast.solve_tac(latents, W, b, trim=trim)
    known = (solution.perturbations, solution.norms, solution.duals, solution.gaps, solution.classes, trim)
    with Largest() as largest:
        _gradients.pull_back_impl(
            torch.ones(classes, dim), torch.ones(classes), latents, W, b, *known, [True, True, True]
        )
    assert largest.entries <= n * classes  # the logits; n·C·K would be 40 times that


def test_with_trim_the_gradient_goes_to_a_sample_of_the_class():
    """Another class has the very same difference, first: R does not depend on it."""
    logits = torch.eye(4, dtype=torch.float64).repeat_interleave(3, 0) / 2
    logits[8] = torch.tensor([1.0, 3.0, 3.2, 0.0])  # of class 2, with L1 − L0 = 2
    logits[4] = torch.tensor([1.0, 3.0, 0.0, 0.0])  # of class 1
    logits[3] = torch.tensor([0.0, 6.0, 0.0, 0.0])
    logits[5] = torch.tensor([2.0, 3.0, 0.0, 0.0])
    latents = torch.cat([logits[8:9], logits[:8], logits[9:]]).requires_grad_()
    solution = tacfast.solve_tac(latents, torch.eye(4, dtype=torch.float64), trim=0.34, classes=[0])
    assert float(solution.gaps[0, 1]) == 2.0
    (gradient,) = torch.autograd.grad(solution.norms.sum(), latents)
    assert float(gradient[0].abs().sum()) == 0.0
    assert float(gradient[5].abs().sum()) > 0.0


def test_what_was_made_in_inference_mode_has_no_gradients():
    p = plain(0, 5, 6, 15)
    z, W, b = (None if x is None else x.detach() for x in leaves(p))
    with torch.inference_mode():
        made = z.clone()
    weight = torch.nn.Parameter(W)
    solution = tacfast.solve_tac(made, weight, b)
    assert not solution.norms.requires_grad
    assert torch.equal(solution.norms, tacfast.solve_tac(z, weight, b).norms.detach())
