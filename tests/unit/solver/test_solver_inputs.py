"""Kinds, dtypes and layouts of the inputs, and what comes back for them."""

import itertools

import numpy as np
import pytest
import torch
from problems import plain

import tacfast

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FIELDS = ("perturbations", "norms", "duals", "gaps")


def solutions(latents, W, b):
    yield tacfast.solve_tac(latents, W, b)
    yield tacfast.solve_tac(latents, W, b, trim=0.3)
    yield tacfast.solve_tac_per_sample(latents, W, b, return_perturbations=True)


def floats(solution):
    return [getattr(solution, name) for name in FIELDS if hasattr(solution, name)]


@pytest.mark.parametrize(("latents", "weight", "bias"), list(itertools.product(FLOATS, FLOATS, (None, *FLOATS[::3]))))
def test_every_mix_of_dtypes(latents, weight, bias):
    p = plain(0, n=12)
    z, W = torch.from_numpy(p.latents).to(latents), torch.from_numpy(p.W).to(weight)
    b = None if bias is None else torch.from_numpy(p.b).to(bias)
    widest = torch.float64 if torch.float64 in (latents, weight, bias) else torch.float32
    wide = [None if x is None else x.double() for x in (z, W, b)]
    for found, expected in zip(solutions(z, W, b), solutions(*wide), strict=True):
        for value, reference in zip(floats(found), floats(expected), strict=True):
            assert value.dtype == widest
            assert value.device == z.device
            torch.testing.assert_close(value.double(), reference, rtol=1e-4, atol=1e-4)
        assert found.certificate.gap.dtype == torch.float64
        assert found.status.dtype == torch.int8
        assert found.classes.dtype == torch.int64


LAYOUTS = {
    "transposed": lambda x: x.T.copy().T,
    "every second row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "every third column": lambda x: np.repeat(x, 3, axis=-1)[..., ::3],
    "a corner": lambda x: np.pad(x, 2)[tuple(slice(2, -2) for _ in x.shape)],
    "reversed": lambda x: x[::-1].copy()[::-1],
    "reversed columns": lambda x: x[..., ::-1].copy()[..., ::-1],
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "unaligned": lambda x: np.frombuffer(b"?" + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    "packed fields": lambda x: np.rec.fromarrays([x, np.zeros(x.shape, "i1")], names="x,pad")["x"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_layouts_of_numpy_arrays(layout, dtype):
    p = [x.astype(dtype) for x in plain(1, n=12)]
    changed = [LAYOUTS[layout](x) for x in p]
    for found, expected in zip(solutions(*changed), solutions(*p), strict=True):
        for value, reference in zip(floats(found), floats(expected), strict=True):
            assert isinstance(value, np.ndarray)
            np.testing.assert_allclose(value, reference, rtol=1e-4, atol=1e-5)
    logits = (p[0] @ p[1].T).astype(np.float32)
    R = tacfast.GapMatrix(p[1]).update_logits(logits).gaps
    np.testing.assert_array_equal(tacfast.GapMatrix(p[1]).update_logits(LAYOUTS[layout](logits)).gaps, R)
    known = tacfast.GapMatrix.from_gaps(p[1], None, LAYOUTS[layout](R))
    np.testing.assert_array_equal(known.gaps, R)


@pytest.mark.parametrize("dtype", FLOATS)
def test_views_of_tensors(dtype):
    p = plain(1, n=12).to(dtype)
    views = [p.latents.T.contiguous().T, p.W.repeat_interleave(2, 1)[:, ::2], p.b.repeat_interleave(3)[::3]]
    assert not any(view.is_contiguous() for view in views)
    for found, expected in zip(solutions(*views), solutions(*p), strict=True):
        for value, reference in zip(floats(found), floats(expected), strict=True):
            torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-5)
    expanded = p.latents[:1].expand(5, -1)
    assert torch.equal(tacfast.solve_tac(expanded, p.W).status, tacfast.solve_tac(expanded[:1], p.W).status)


def test_lazily_negated_tensors():
    p = plain(1, n=12).to(torch.float32)
    for found, expected in zip(solutions(*map(torch._neg_view, p)), solutions(*(-x for x in p)), strict=True):
        for value, reference in zip(floats(found), floats(expected), strict=True):
            assert torch.equal(value, reference)


def test_read_only_arrays_are_taken_without_a_warning_and_stay_as_they_are():
    p = plain(2)
    for x in p:
        x.flags.writeable = False
    copies = [x.copy() for x in p]
    list(solutions(*p))
    for x, copy in zip(p, copies, strict=True):
        np.testing.assert_array_equal(x, copy)


@pytest.mark.parametrize("dtype", FLOATS)
def test_inputs_are_never_modified(dtype):
    p = plain(2).to(dtype)
    copies = [x.clone() for x in p]
    list(solutions(*p))
    R = tacfast.solve_tac(*p).gaps
    copy = R.clone()
    tacfast.GapMatrix.from_gaps(p.W, p.b, R).update(p.latents).solve(margin=1.0)
    assert torch.equal(R, copy)
    for x, before in zip(p, copies, strict=True):
        assert torch.equal(x, before)


def test_results_follow_the_kind_of_the_latents():
    p = plain(2)
    tensors = p.to(torch.float64)
    for solution in solutions(p.latents, tensors.W, tensors.b):
        assert all(isinstance(value, np.ndarray) for value in floats(solution))
        assert isinstance(solution.certificate.gap, np.ndarray)
        assert isinstance(solution.status, np.ndarray)
    for solution in solutions(tensors.latents, p.W, p.b):
        assert all(isinstance(value, torch.Tensor) for value in floats(solution))


@pytest.mark.parametrize("switch", ["older", "newer"])
def test_reduced_precision_settings_do_not_reach_the_logits(switch):
    p = plain(4, classes=20, dim=256, n=200).to(torch.float32)
    expected = tacfast.GapMatrix(p.W, p.b).update(p.latents).gaps
    backend = torch.backends.mkldnn.matmul
    try:
        if switch == "older":
            torch.set_float32_matmul_precision("medium")
        else:
            backend.fp32_precision = "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = tacfast.GapMatrix(p.W, p.b).update(p.latents).gaps
    finally:
        backend.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
    assert found.dtype == torch.float32
    exact = p.latents.double() @ p.W.double().T + p.b.double()
    exact = torch.stack([(exact - exact[:, k : k + 1]).amax(0) for k in range(20)])
    for gaps in (found, expected):
        torch.testing.assert_close(gaps.double(), exact, rtol=0, atol=5e-5)


def test_under_inference_mode_and_no_grad():
    p = plain(4).to(torch.float32)
    with torch.inference_mode():
        inside = tacfast.solve_tac(*p).norms
    assert torch.equal(inside, tacfast.solve_tac(*p).norms)


def test_a_default_dtype_or_device_does_not_leak_in():
    p = plain(4).to(torch.float32)
    expected = tacfast.solve_tac(*p).norms
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(tacfast.solve_tac(*p).norms, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_is_transposed_is_named():
    latents, W, b = torch.randn(50, 16), torch.randn(5, 16), torch.randn(5)
    with pytest.raises(ValueError, match=r"^W: expected shape \(5, d\).* got \(16, 5\): give W\.T\?"):
        tacfast.solve_tac(latents, W.T, b)
    with pytest.raises(ValueError, match=r"^W: expected shape \(C, 16\).*: give W\.T\?"):
        tacfast.solve_tac(latents, W.T)
    with pytest.raises(ValueError, match=r"^latents: expected shape \(n, 16\).*: give latents\.T\?"):
        tacfast.solve_tac(latents.T, W, b)
    with pytest.raises(ValueError, match=r"^W: .* got \(5, 16\)$"):
        tacfast.solve_tac(latents[:, :7], W, b)
