"""The solver on CUDA tensors: certified answers, those of the CPU, graphs, streams and bad input."""

import math
import random

import pytest
import torch
from problems import plain

import tacfast
from tacfast import Status

pytestmark = pytest.mark.gpu

SIZES = [(2, 3, 17), (10, 16, 333), (43, 70, 1001), (65, 129, 2049), (200, 512, 5003)]


def on_gpu(p):
    return [None if x is None else x.cuda() for x in p]


def certified(solution, tol):
    assert all(status in (Status.OPTIMAL, Status.INFEASIBLE) for status in solution.statuses)
    optimal = solution.status == Status.OPTIMAL
    for name in ("primal", "dual", "stationarity", "gap"):
        assert bool((getattr(solution.certificate, name)[optimal] <= tol).all())


@pytest.mark.parametrize("trim", [0.0, 0.3])
@pytest.mark.parametrize(("classes", "dim", "n"), SIZES)
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_agrees_with_the_cpu(classes, dim, n, dtype, tol, trim):
    p = plain(3, classes, dim, n).to(dtype)
    sol = tacfast.solve_tac(*on_gpu(p), trim=trim)
    assert sol.perturbations.is_cuda
    assert sol.gaps.is_cuda
    certified(sol, tol)
    cpu = tacfast.solve_tac(*p, trim=trim)
    torch.testing.assert_close(sol.gaps.cpu(), cpu.gaps, rtol=1e-5, atol=1e-4)
    same = tacfast.GapMatrix.from_gaps(p.W, p.b, sol.gaps.cpu()).solve()
    torch.testing.assert_close(sol.norms.cpu(), same.norms, rtol=1e-5, atol=0)
    assert torch.equal(sol.status.cpu(), same.status)


@pytest.mark.parametrize("classes", [1, 2, 9, 40, 41, 131, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["split", "plain"])
def test_gaps_of_logits_have_the_bits_of_the_cpu(classes, dtype, kernel, monkeypatch):
    monkeypatch.setenv("TACFAST_CUDA_GAPS", kernel)
    W = torch.randn(max(classes, 2), 3, dtype=dtype)
    wide = torch.randn(777, len(W) + 3, dtype=dtype)
    cpu = tacfast.GapMatrix(W).update_logits(wide[:, : len(W)])
    gpu = tacfast.GapMatrix(W.cuda())
    for part in wide.cuda()[:, : len(W)].split([1, 300, 476]):  # strided rows
        gpu.update_logits(part)
    assert torch.equal(gpu.gaps.cpu(), cpu.gaps)


RANDOM = random.Random(3)
SHAPES = [(256, 64, 1000), (257, 5, 300)]  # the most classes that are fused in float32, and one more
SHAPES += [(RANDOM.randint(2, 240), RANDOM.randint(1, 700), RANDOM.randint(1, 3000)) for _ in range(5)]


@pytest.mark.parametrize("kernel", ["split", "fused", "plain"])
@pytest.mark.parametrize(("classes", "dim", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_way_to_the_gaps_is_certified(classes, dim, n, dtype, kernel, monkeypatch):
    monkeypatch.setenv("TACFAST_CUDA_GAPS", kernel)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    p = plain(4, classes, dim, n).to(wide)
    latents = torch.cat([p.latents, torch.full((n, n % 5), math.nan)], 1).to(dtype)  # strided rows
    sol = tacfast.solve_tac(latents.cuda()[:, :dim], p.W.cuda(), p.b.cuda())
    certified(sol, 1e-10 if dtype == torch.float64 else 1e-6)
    exact = tacfast.GapMatrix(p.W.double(), p.b.double()).update(latents[:, :dim].double()).gaps
    rounding = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(sol.gaps.cpu().double(), exact, rtol=rounding, atol=rounding * float(exact.abs().max()))


def test_fused_gaps_update_and_replay(monkeypatch):
    monkeypatch.setenv("TACFAST_CUDA_GAPS", "fused")
    latents, W, b = on_gpu(plain(1, 43, 30, 777).to(torch.float32))
    whole = tacfast.GapMatrix(W, b).update(latents).gaps
    parts = tacfast.GapMatrix(W, b)
    for part in latents.split([1, 300, 476]):
        parts.update(part)
    assert torch.equal(parts.gaps, whole)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tacfast.GapMatrix(W, b).update(latents).gaps
    latents.mul_(2)
    graph.replay()
    assert torch.equal(captured, tacfast.GapMatrix(W, b).update(latents).gaps)
    latents[5, 3] = math.inf
    graph.replay()
    assert bool(captured.isnan().all())


@pytest.mark.parametrize("trim", [0.05, 0.5, 0.97])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("classes", "n"), [(2, 100), (10, 2047), (33, 2048), (64, 3001), (65, 3001), (1025, 50)])
def test_trimmed_gaps_have_the_bits_of_the_cpu(classes, n, ties, trim):
    W, logits = torch.randn(classes, 2), torch.randn(n, classes)
    logits = logits.round() if ties else logits  # of the largest logits too
    both = [
        tacfast.GapMatrix(w, keep_logits=True).update_logits(rows)
        for w, rows in ((W, logits), (W.cuda(), logits.cuda()))
    ]
    cpu, gpu = (matrix.solve(trim=trim, raise_on_failure=False, classes=[0]).gaps.cpu() for matrix in both)
    assert torch.equal(cpu, gpu)


@pytest.mark.parametrize(("classes", "dim", "n"), [(2, 3, 50), (10, 16, 501), (43, 70, 130)])
def test_per_sample(classes, dim, n):
    p = plain(5, classes, dim, n).to(torch.float64)
    gpu = tacfast.solve_tac_per_sample(*on_gpu(p), return_perturbations=True)
    cpu = tacfast.solve_tac_per_sample(*p, return_perturbations=True)
    assert torch.equal(gpu.status.cpu(), cpu.status)
    torch.testing.assert_close(gpu.norms.cpu(), cpu.norms, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gpu.perturbations.cpu(), cpu.perturbations, rtol=1e-6, atol=1e-8, equal_nan=True)


def test_a_graph_replays_with_new_data():
    p = plain(1, 10, 16, 500).to(torch.float32)
    latents, W, b = on_gpu(p)
    with torch.cuda.stream(torch.cuda.Stream()):
        tacfast.solve_tac(latents, W, b, raise_on_failure=False)  # warm-up, as every capture needs
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sol = tacfast.solve_tac(latents, W, b, raise_on_failure=False)
    for scale in (1.0, 2.5):
        latents.copy_(p.latents * scale)
        graph.replay()
        expected = tacfast.solve_tac(p.latents * scale, p.W, p.b)
        torch.testing.assert_close(sol.norms.cpu(), expected.norms, rtol=1e-4, atol=0)
        assert bool((sol.status == Status.OPTIMAL).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dense_regime_in_a_graph(dtype):
    """Simplex-shaped W: near-equal gaps make every constraint active; then a replay in which few are."""
    classes = 200
    W = 3 * torch.eye(classes, classes + 10, dtype=dtype)
    dense = 1 + 1e-3 * torch.rand(classes, classes, dtype=dtype)
    sparse = torch.where(torch.rand(classes, classes) < 0.05, dense, -torch.ones((), dtype=dtype))
    for R in (dense, sparse):
        R.fill_diagonal_(0)
    gaps = dense.cuda()
    on_device = W.cuda()
    tacfast.GapMatrix.from_gaps(on_device, None, gaps).solve(raise_on_failure=False)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sol = tacfast.GapMatrix.from_gaps(on_device, None, gaps).solve(raise_on_failure=False)
    for R in (dense, sparse, dense):
        gaps.copy_(R)
        graph.replay()
        certified(sol, 1e-10 if dtype == torch.float64 else 1e-6)
        cpu = tacfast.GapMatrix.from_gaps(W, None, R).solve()
        assert torch.equal((sol.duals > 0).cpu(), cpu.duals > 0)
        torch.testing.assert_close(sol.norms.cpu(), cpu.norms, rtol=1e-5, atol=0)


def test_what_a_graph_cannot_hold_is_named():
    latents, W, b = on_gpu(plain(1, 5, 6, 50).to(torch.float32))
    tacfast.solve_tac(latents, W, b)
    torch.cuda.synchronize()
    for wrong, name in (({}, "raise_on_failure"), ({"classes": [1], "raise_on_failure": False}, "classes")):
        with pytest.raises(ValueError, match=f"{name}: expected"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            tacfast.solve_tac(latents, W, b, **wrong)


@pytest.mark.filterwarnings("default")  # torch's compiler has warnings of its own
def test_compiles_into_one_graph():
    latents, W, b = on_gpu(plain(1, 10, 16, 500).to(torch.float32))

    def norms(z):
        return tacfast.solve_tac(z, W, b, raise_on_failure=False).norms * 2

    torch.testing.assert_close(torch.compile(norms, fullgraph=True)(latents), norms(latents))


def test_the_current_stream_is_used():
    latents, W, b = on_gpu(plain(1, 10, 16, 500).to(torch.float32))
    expected = tacfast.solve_tac(latents, W, b).norms
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late = latents + 0  # only there once the stream has woken
        sol = tacfast.solve_tac(late, W, b, raise_on_failure=False)
    stream.synchronize()
    assert torch.equal(sol.norms, expected)


@pytest.mark.parametrize("what", ["latents", "W", "b"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_a_status(what, value):
    tensors = dict(zip(("latents", "W", "b"), on_gpu(plain(1, 5, 6, 50).to(torch.float32)), strict=True))
    tensors[what].view(-1)[3] = value
    sol = tacfast.solve_tac(**tensors, raise_on_failure=False)
    assert bool((sol.status == Status.INVALID_INPUT).all())
    with pytest.raises(tacfast.SolverError):
        tacfast.solve_tac(**tensors)


@pytest.mark.parametrize("method", ["auto", "active-set", "projected-gradient"])
def test_what_is_no_class_is_an_error_or_a_status(method):
    latents, W, b = on_gpu(plain(1, 5, 6, 50).to(torch.float32))
    for wrong, expected in (
        ([5], r"classes: expected values in \[0, 5\)"),
        ([1, 1], "classes: expected no duplicates"),
    ):
        with pytest.raises(ValueError, match=expected):
            tacfast.solve_tac(latents, W, b, classes=wrong, method=method)
    on_device = torch.tensor([5, 0, -1], device="cuda")
    sol = tacfast.solve_tac(latents, W, b, classes=on_device, method=method, raise_on_failure=False)
    assert sol.statuses == [Status.INVALID_INPUT, Status.OPTIMAL, Status.INVALID_INPUT]


def test_two_devices_are_an_error():
    latents, W, b = plain(1, 5, 6, 50).to(torch.float32)
    with pytest.raises(ValueError, match=r"latents: expected .*cuda"):
        tacfast.solve_tac(latents, W.cuda(), b.cuda())


def test_out_of_memory_leaves_the_device_usable():
    latents, W, b = on_gpu(plain(1, 5, 6, 50).to(torch.float32))
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    certified(tacfast.solve_tac(latents, W, b), 1e-6)
