"""Gradients on CUDA tensors are those on the CPU, eager and compiled."""

import pytest
import torch
from problems import plain

import tacfast

pytestmark = pytest.mark.gpu


def loss(latents, W, b, trim):
    solution = tacfast.solve_tac(latents, W, b, margin=0.1, trim=trim, raise_on_failure=False)
    return solution.norms.log().sum() + (solution.perturbations**3).sum()


def gradients(function, p, trim, device):
    tensors = [x.to(device).requires_grad_() for x in p]
    return [grad.cpu() for grad in torch.autograd.grad(function(*tensors, trim), tensors)]


@pytest.mark.parametrize("trim", [0.0, 0.3])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-7), (torch.float32, 1e-3)])
@pytest.mark.parametrize(("classes", "dim", "n"), [(2, 3, 17), (10, 16, 333), (43, 70, 1001)])
def test_agree_with_the_cpu(classes, dim, n, dtype, tol, trim):
    p = plain(3, classes, dim, n).to(dtype)
    for found, expected in zip(gradients(loss, p, trim, "cuda"), gradients(loss, p, trim, "cpu"), strict=True):
        torch.testing.assert_close(found, expected, rtol=tol, atol=tol * float(expected.abs().max()))


def test_fused_gaps(monkeypatch):
    monkeypatch.setenv("TACFAST_CUDA_GAPS", "fused")
    p = plain(3, 43, 70, 1001).to(torch.float64)
    for found, expected in zip(gradients(loss, p, 0.0, "cuda"), gradients(loss, p, 0.0, "cpu"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7 * float(expected.abs().max()))


@pytest.mark.filterwarnings("default")  # the compilers' own
def test_compiled_in_one_graph():
    p = plain(3, 10, 16, 333).to(torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for found, expected in zip(gradients(compiled, p, 0.0, "cuda"), gradients(loss, p, 0.0, "cuda"), strict=True):
        torch.testing.assert_close(found, expected)
