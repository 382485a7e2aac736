"""The torch.library operators, compilation, and every path that a machine may choose: all give the same answers."""

import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from problems import plain
from torch._subclasses.fake_tensor import FakeTensorMode

import tacfast
from tacfast.solver import _compiled

P = plain(0, classes=6, dim=10, n=30).to(torch.float32)
HEAD = torch.ops.tacfast.prepare_head(P.W, P.b)
START = torch.full((6, 6), -torch.inf)
LOGITS = P.latents @ P.W.T
R = tacfast.GapMatrix(P.W, P.b).update(P.latents).gaps
CLASSES = torch.tensor([4, 0])
FOUND = tacfast.GapMatrix(P.W, P.b).update(P.latents).solve(classes=CLASSES)
SOLVED = (FOUND.perturbations, FOUND.norms, FOUND.duals, FOUND.gaps, CLASSES, 0.0)

OPERATORS = {
    "prepare_head": (P.W, P.b),
    "gaps_of_latents": (START, P.latents, HEAD),
    "gaps_of_logits": (START, LOGITS),
    "logits": (P.latents, HEAD, 6, torch.float64),
    "trimmed_gaps": (R.T.contiguous(), [LOGITS[:10], LOGITS[10:]], 0.3),
    "solve_classes": (P.W, HEAD, R, CLASSES, 0.1, 0.0, "auto", 1e-6, 100, 30, True, "torch"),
    "solve_samples": (P.latents, P.W, HEAD, CLASSES, 0.0, 1e-6, 100, True, torch.float32),
    "attach_gradients": (P.latents.clone().requires_grad_(), P.W.clone().requires_grad_(), P.b, *SOLVED),
    "pull_back": (torch.ones(2, 10), torch.ones(2), P.latents, P.W, P.b, *SOLVED, [True, True, False]),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of opcheck's own copies of the inputs
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.tacfast, name).default, OPERATORS[name])


def test_every_operator_is_checked():
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("tacfast::")}
    assert {name.split(".")[0] for name in registered} == set(OPERATORS)


def everything(latents, W, b):
    sol = tacfast.solve_tac(latents, W, b, margin=0.1, raise_on_failure=False)
    some = tacfast.solve_tac(latents, W, b, trim=0.2, classes=[3, 1], raise_on_failure=False)
    each = tacfast.solve_tac_per_sample(latents, W, b, return_perturbations=True)
    return sol.perturbations * 2, sol.certificate.upper, some.duals, each.norms.sum(0), each.perturbations


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("default")  # the compilers' own
def test_compiled_in_one_graph(backend):
    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, backend=backend)
    for found, expected in zip(compiled(*P), everything(*P), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_with_another_margin(dynamic):
    """From the second value on, a float is a symbol of the graph."""

    def norms(latents, W, b, margin, trim):
        return tacfast.solve_tac(latents, W, b, margin=margin, trim=trim, tol=2e-6, raise_on_failure=False).norms

    torch._dynamo.reset()
    compiled = torch.compile(norms, fullgraph=True, backend="eager", dynamic=dynamic)
    for margin, trim in ((0.1, 0.0), (0.2, 0.0), (0.3, 0.1), (0.4, 0.2)):
        torch.testing.assert_close(compiled(*P, margin, trim), norms(*P, margin, trim))


def test_fake_tensors_have_the_right_shapes():
    with FakeTensorMode() as mode:
        found = everything(*(mode.from_tensor(x) for x in P))
    for fake, real in zip(found, everything(*P), strict=True):
        assert fake.shape == real.shape
        assert fake.dtype == real.dtype


def test_compiled_code_names_bad_values_too():
    torch._dynamo.reset()
    compiled = torch.compile(tacfast.solve_tac, fullgraph=True, backend="eager")
    broken = P.latents.clone()
    broken[3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"latents: expected finite values, got nan at index \(3, 2\)"):
        compiled(broken, P.W, P.b)


# ---- other paths, each in a process of its own ---------------------------------------------------------------

SCRIPT = """
import json, sys, warnings
if "missing" in sys.argv:
    sys.modules["tacfast._C"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import tacfast
    tacfast.solve_tac  # until it is asked for, nothing is imported
import numpy as np
from tacfast.solver._compiled import build_info
rng = np.random.default_rng(0)
out = {"info": build_info(), "warnings": [(w.category.__name__, str(w.message)) for w in caught]}
for classes, dim, n in ((3, 2, 5), (9, 4, 60), (24, 30, 200)):
    W, b, latents = (rng.standard_normal(shape) for shape in ((classes, dim), classes, (n, dim)))
    W[2] = W[0]
    logits = (rng.standard_normal((n, classes)) * 3).astype(np.float32)
    one = tacfast.solve_tac(latents, W, b, margin=0.25, raise_on_failure=False)
    cut = tacfast.solve_tac(latents, W, b, trim=0.4, raise_on_failure=False)
    each = tacfast.solve_tac_per_sample(latents[:8], W, b, return_perturbations=True)
    exact = tacfast.GapMatrix(W, keep_logits=True).update_logits(logits)
    out[str(classes)] = {
        "close": [x.ravel().tolist() for x in (
            one.perturbations, one.norms, one.gaps, one.certificate.lower, cut.perturbations, cut.gaps,
            each.norms, each.perturbations)],
        "equal": [x.ravel().tolist() for x in (
            one.status, each.status, exact.gaps, exact.solve(trim=0.3, raise_on_failure=False).gaps)],
        "worst": [float(np.nanmax(x)) for s in (one, cut) for x in (
            s.certificate.primal, s.certificate.stationarity, s.certificate.gap)],
        "upper": one.certificate.upper.tolist(),
    }
print(json.dumps(out))
"""


def run(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=os.environ | environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def usual():
    return run()


def agree(found, usual):
    for classes in ("3", "9", "24"):
        for one, other in zip(found[classes]["close"], usual[classes]["close"], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
        assert found[classes]["equal"] == usual[classes]["equal"]
        assert max(found[classes]["worst"]) <= 1e-10
        np.testing.assert_allclose(found[classes]["upper"], usual[classes]["upper"], rtol=1e-9)


def test_without_the_extension_one_warning_and_the_same_answers(usual):
    found = run("missing")
    assert [kind for kind, _ in found["warnings"]] == ["RuntimeWarning"]
    assert "the compiled extension is missing" in found["warnings"][0][1]
    assert found["info"] == {}
    assert usual["warnings"] == []
    agree(found, usual)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="x86 only")
@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
def test_narrower_instruction_sets(instructions, usual):
    found = run(TACFAST_ISA=instructions)
    names = ["baseline", "avx2", "avx512"]
    assert names.index(found["info"]["cpu_instruction_set"]) <= names.index(instructions)
    agree(found, usual)


def test_build_info():
    assert _compiled.build_info()["cpu_instruction_set"] in ("baseline", "avx2", "avx512")


def test_an_unknown_way_to_the_gaps_is_named(monkeypatch):
    monkeypatch.setenv("TACFAST_CUDA_GAPS", "quick")
    with pytest.raises(ValueError, match="TACFAST_CUDA_GAPS: expected 'split', 'fused' or 'plain', got 'quick'"):
        _compiled._gap_kernel()


@pytest.mark.parametrize("stage", ["trim", "solve", "per sample"])
def test_the_plain_torch_path_in_this_process(stage, monkeypatch):
    """The same as above where coverage sees it."""
    p = plain(5, classes=7, dim=5, n=12).to(torch.float64)
    p.W[3] = p.W[1]
    p.W[0] = 0.5 * p.W[2] + 0.5 * p.W[4]

    def solve():
        if stage == "per sample":
            each = tacfast.solve_tac_per_sample(*p, return_perturbations=True)
            return each, [each.norms, each.perturbations, each.certificate.upper]
        sol = tacfast.solve_tac(*p, trim=0.4 if stage == "trim" else 0.0, raise_on_failure=False)
        return sol, [sol.perturbations, sol.norms, sol.gaps, sol.certificate.upper]

    compiled, expected = solve()
    monkeypatch.setattr(_compiled, "_C", None)
    plain_torch, found = solve()
    assert torch.equal(plain_torch.status, compiled.status)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, equal_nan=True)


def test_the_plain_torch_path_fails_as_the_compiled_one(monkeypatch):
    p = plain(2, classes=12, dim=20).to(torch.float64)
    monkeypatch.setattr(_compiled, "_C", None)
    stopped = tacfast.solve_tac(*p, max_iter=1, raise_on_failure=False)
    assert tacfast.Status.MAX_ITER in stopped.statuses
    assert tacfast.Status.INACCURATE in tacfast.solve_tac(*p, tol=1e-300, raise_on_failure=False).statuses
    gaps = 1.7e308 * (1 - torch.eye(12, dtype=torch.float64))
    overflown = tacfast.GapMatrix.from_gaps(p.W, None, gaps).solve(margin=1e308, raise_on_failure=False)
    assert set(overflown.statuses) == {tacfast.Status.INVALID_INPUT}
    p.latents[1, 1] = torch.inf
    with pytest.raises(ValueError, match=r"latents: expected finite values, got inf at index \(1, 1\)"):
        tacfast.solve_tac(*p)


def test_it_is_exported_for_any_number_of_samples():
    """Nothing may depend on whether a problem is small."""

    class Norms(torch.nn.Module):
        def forward(self, latents, W):
            return tacfast.solve_tac(latents, W, raise_on_failure=False).norms

    latents, W, _ = plain(3, 5, 8, 30).to(torch.float32)
    samples = torch.export.Dim("samples", min=2, max=100_000)
    exported = torch.export.export(Norms(), (latents, W), dynamic_shapes={"latents": {0: samples}, "W": None}).module()
    for n in (7, 40_000):
        others = torch.randn(n, 8, generator=torch.Generator().manual_seed(n))
        torch.testing.assert_close(exported(others, W), Norms()(others, W))
