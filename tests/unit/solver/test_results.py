"""Statuses, solutions, what they can tell, and how they are stored."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from problems import plain
from safetensors.torch import save_file

import tacfast
from tacfast import Status, TacSolution


def solution(dtype=torch.float32, **changes):
    p = plain(0, classes=6, dim=10, n=30).to(dtype)
    return p, tacfast.solve_tac(*p, **changes)


def infeasible():
    W = torch.tensor([[0.0, 0], [1, 1], [1, -1], [-1, 1], [-1, -1]])
    b = torch.tensor([-1.0, 0, 0, 0, 0])
    latents = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    return (latents, W, b), tacfast.solve_tac(latents, W, b)


def test_statuses_have_sentences():
    assert [status.value for status in Status] == [0, 1, 2, 3, 4]
    assert all(len(status.sentence) > 20 for status in Status)
    assert Status(1) is Status.INFEASIBLE
    _, sol = infeasible()
    assert sol.statuses == [Status.INFEASIBLE] + [Status.OPTIMAL] * 4


def test_solutions_are_frozen():
    _, sol = solution()
    with pytest.raises(dataclasses.FrozenInstanceError):
        sol.margin = 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_everything_is_flipped_and_only_just(dtype, margin):
    p, sol = solution(dtype, margin=margin)
    assert (sol.flipped(*p) == 1).all()
    assert sol.flipped(*p).dtype == dtype
    if margin == 0:
        moved = sol.norms > 0
        assert (sol.flipped(*p, scale=0.9)[moved] < 1).all()
        predicted = (p.latents @ p.W.T + p.b).argmax(1)
        shares = torch.bincount(predicted, minlength=6) / len(predicted)
        torch.testing.assert_close(sol.flipped(*p, scale=0.0), shares.to(dtype))


def test_ties_do_not_read_as_failures():
    """The plain comparison would lose some of the samples on the boundary to rounding."""
    shares, strict = [], []
    for seed in range(20):
        p = plain(seed, classes=10, dim=40, n=50).to(torch.float32)
        sol = tacfast.solve_tac(*p)
        shares.append(sol.flipped(*p))
        strict.append(sol.flipped(*p, tie_tol=-1e-6))
    assert (torch.cat(shares) == 1).all()
    assert (torch.cat(strict) < 1).any()


def test_flipped_of_numpy_and_of_infeasible_classes():
    p = plain(0)
    shares = tacfast.solve_tac(*p).flipped(*p)
    assert isinstance(shares, np.ndarray)
    np.testing.assert_array_equal(shares, 1)
    problem, sol = infeasible()
    assert sol.flipped(*problem).isnan().tolist() == [True] + [False] * 4
    assert tacfast.solve_tac(p.latents, p.W).flipped(p.latents, p.W).tolist() == [1] * 5


def same(a, b):
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if dataclasses.is_dataclass(left):
            same(left, right)
        elif isinstance(left, torch.Tensor):
            torch.testing.assert_close(right, left, rtol=0, atol=0, equal_nan=True)
        else:
            assert left == right


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_and_load(tmp_path, dtype):
    _, sol = solution(dtype, margin=0.25, trim=0.1, classes=[4, 1])
    sol.save(tmp_path / "a.safetensors")
    same(sol, TacSolution.load(tmp_path / "a.safetensors"))
    same(sol, TacSolution.load(str(tmp_path / "a.safetensors"), device="cpu"))
    _, other = infeasible()
    other.save(str(tmp_path / "a.safetensors"))  # over an older file
    same(other, TacSolution.load(tmp_path / "a.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_numpy_solutions_are_saved_too(tmp_path):
    p = plain(0)
    sol = tacfast.solve_tac(*p)
    sol.save(tmp_path / "a")
    np.testing.assert_array_equal(TacSolution.load(tmp_path / "a").perturbations, sol.perturbations)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    _, sol = solution()
    sol.save(tmp_path / "a")
    before = (tmp_path / "a").read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        sol.save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_saved_file_is_as_readable_as_any_other(tmp_path):
    _, sol = solution()
    sol.save(tmp_path / "a")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_missing_folder_is_named(tmp_path):
    _, sol = solution()
    with pytest.raises(FileNotFoundError, match=rf"path: expected a file in an existing folder, got {tmp_path}/no/a"):
        sol.save(tmp_path / "no" / "a")


def test_the_number_of_samples_may_be_of_numpy(tmp_path):
    p, sol = solution()
    known = tacfast.GapMatrix.from_gaps(p.W, p.b, sol.gaps, n_samples=np.int64(30)).solve()
    known.save(tmp_path / "a")
    assert TacSolution.load(tmp_path / "a").n_samples == 30


def test_errors_survive_pickling():
    """As they must to come back from another process."""
    p = plain(0, classes=6).to(torch.float32)
    with pytest.raises(tacfast.SolverError) as caught:
        tacfast.solve_tac(*p, tol=1e-30)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    same(copy.solution, caught.value.solution)


def test_another_file_is_not_taken_for_a_solution(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(ValueError, match=r"path: expected a file written by TacSolution.save, got .*other"):
        TacSolution.load(tmp_path / "other")


def test_to():
    _, sol = solution()
    wide = sol.to(dtype=torch.float64)
    for name in ("perturbations", "norms", "duals", "gaps"):
        assert getattr(wide, name).dtype == torch.float64
    assert wide.status.dtype == torch.int8
    assert wide.classes.dtype == torch.int64
    assert wide.to("cpu", torch.float16).certificate.gap.dtype == torch.float64
    assert sol.to("meta").perturbations.device.type == "meta"
    p = plain(0)
    assert isinstance(tacfast.solve_tac(*p).to().norms, torch.Tensor)


def test_what_the_solution_was_solved_with():
    _, sol = solution(margin=0.5, trim=0.25, classes=[2])
    assert (sol.n_samples, sol.margin, sol.trim) == (30, 0.5, 0.25)
    assert sol.gaps.shape == (6, 6)
    assert (sol.gaps.diagonal() == 0).all()
