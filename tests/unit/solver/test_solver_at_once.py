"""A small problem goes through one call of the compiled code, to the same bits as through the stages."""

import dataclasses

import pytest
import torch
from problems import FAMILIES, of_family

from tacfast import GapMatrix, SolverError, solve_tac
from tacfast.solver import _compiled, _stages

DTYPES = (torch.float16, torch.float32, torch.float64)


@pytest.fixture
def calls(monkeypatch):
    """How many problems were solved in one call."""
    seen = []
    original = _compiled.solve_whole

    def counted(*args, **kwargs):
        found = original(*args, **kwargs)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(_compiled, "solve_whole", counted)
    return seen


def same(a, b):
    """Whether all fields have the same bits, NaN included."""
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if dataclasses.is_dataclass(x):
            if not same(x, y):
                return False
        elif isinstance(x, torch.Tensor):
            if x.dtype != y.dtype or not torch.equal(x.nan_to_num(nan=-7), y.nan_to_num(nan=-7)):
                return False
        elif x != y:
            return False
    return True


def outcome(solve):
    """The solution, or what the error says: of some families float16 holds no finite problem."""
    try:
        return solve()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bits_are_those_of_the_stages(calls, family, dtype):
    for seed, (classes, dim, n) in enumerate([(2, 1, 1), (5, 8, 20), (9, 3, 40), (40, 50, 30)]):
        z, W, b = of_family(family, seed, classes, dim, n, bool(seed % 2)).to(dtype)
        how = {"margin": 0.25 * seed, "raise_on_failure": False, "classes": None if seed < 2 else [1, 0]}
        expected = outcome(lambda: GapMatrix(W, b).update(z).solve(**how))  # noqa: B023
        found = outcome(lambda: solve_tac(z, W, b, **how))  # noqa: B023
        assert found == expected if isinstance(expected, str) else same(found, expected)
    assert calls
    assert all(calls) or dtype != torch.float64
    assert any(calls) or dtype == torch.float16


def test_rows_need_not_be_contiguous(calls):
    z, W, b = of_family("plain", 3, 6, 8, 30, True).to(torch.float32)
    wide = torch.zeros(30, 16), torch.zeros(6, 16), torch.zeros(12)
    for room, value in zip(wide, (z, W), strict=False):
        room[:, ::2] = value
    wide[2][::2] = b
    assert same(solve_tac(wide[0][:, ::2], wide[1][:, ::2], wide[2][::2]), solve_tac(z, W, b))
    for room, value in zip(wide, (z, W), strict=False):
        room[:, :8] = value
    assert same(solve_tac(wide[0][:, :8], wide[1][:, :8], b), solve_tac(z, W, b))
    assert same(solve_tac(z.T.contiguous().T, W, b), solve_tac(z, W, b))
    assert calls == [True] * 6


def test_what_is_large_trimmed_or_of_another_method_goes_through_the_stages(calls):
    z, W, b = of_family("plain", 0, 8, 32, 1024, True).to(torch.float32)
    assert z.numel() * len(W) == _stages._SMALL_PRODUCT
    solve_tac(z, W, b)
    assert calls == [True]
    solve_tac(torch.cat([z, z[:1]]), W, b)
    solve_tac(z, W, b, trim=0.1)
    solve_tac(z, W, b, method="projected-gradient")
    many, heads, _ = of_family("plain", 0, 64, 16, 8, False).to(torch.float32)
    solve_tac(many, heads, raise_on_failure=False)
    assert calls == [True]


@pytest.mark.parametrize("name", ["latents", "W", "b"])
def test_what_is_not_finite_is_named_as_by_the_stages(calls, name):
    arguments = dict(zip(("latents", "W", "b"), of_family("plain", 1, 5, 8, 20, True).to(torch.float32), strict=True))
    arguments[name] = arguments[name].clone()
    arguments[name].view(-1)[3] = torch.nan
    with pytest.raises(ValueError, match=rf"^{name}: expected finite values, got nan at index"):
        solve_tac(**arguments)
    assert calls == [False]


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_rows_that_are_too_short_or_too_long_are_refused_as_by_the_stages(calls, scale):
    z, W, b = of_family("plain", 1, 5, 8, 20, True).to(torch.float64)
    with pytest.raises(ValueError, match=r"^W: expected rows no longer than 1e140"):
        solve_tac(z, W * scale, b)
    assert calls == [False]


def test_a_failure_is_raised_with_the_solution(calls):
    z, W, b = of_family("plain", 1, 5, 8, 20, True).to(torch.float32)
    with pytest.raises(SolverError, match="MAX_ITER") as caught:
        solve_tac(z, W, b, max_iter=1)
    assert calls == [True]
    assert same(caught.value.solution, solve_tac(z, W, b, max_iter=1, raise_on_failure=False))


def test_a_subclass_of_tensor_is_left_to_the_dispatcher(calls):
    class Marked(torch.Tensor):
        pass

    z, W, b = of_family("plain", 1, 5, 8, 20, True).to(torch.float32)
    solve_tac(z.as_subclass(Marked), W, b)
    assert not calls
