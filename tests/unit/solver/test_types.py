"""What a type checker knows of results is what they are: mypy reads the same assertions as pytest runs."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import assert_type

import tacfast
from tacfast.solver._arrays import CudaArray

Z, W = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.eye(3, 6)
ARRAY: np.ndarray[tuple[int, int], np.dtype[np.float32]] = np.ones((40, 6), dtype=np.float32)


def test_of_tensors_come_tensors() -> None:
    solution = assert_type(tacfast.solve_tac(Z, W.numpy()), tacfast.TacSolution[Tensor])
    assert type(assert_type(solution.norms, Tensor)) is Tensor
    assert type(assert_type(solution.certificate.gap, Tensor)) is Tensor
    assert type(assert_type(solution.flipped(Z, W), Tensor)) is Tensor
    assert type(assert_type(tacfast.GapMatrix(W).update(Z).gaps, Tensor)) is Tensor


def test_of_parameters_come_tensors() -> None:
    solution = assert_type(tacfast.solve_tac(torch.nn.Parameter(Z), W), tacfast.TacSolution[Tensor])
    assert type(assert_type(solution.norms, Tensor)) is Tensor


def test_of_arrays_come_arrays_of_any_shape() -> None:
    solution = assert_type(tacfast.solve_tac(ARRAY, W), tacfast.TacSolution[np.ndarray])
    assert type(assert_type(solution.norms, np.ndarray)) is np.ndarray
    assert type(assert_type(solution.certificate.gap, np.ndarray)) is np.ndarray
    assert type(assert_type(copy.deepcopy(solution).norms, np.ndarray)) is np.ndarray
    assert type(assert_type(solution.flipped(Z, W), np.ndarray)) is np.ndarray
    assert type(assert_type(tacfast.solve_tac_per_sample(ARRAY, W).norms, np.ndarray)) is np.ndarray


def test_a_gap_matrix_has_the_kind_of_what_it_was_given() -> None:
    gaps = assert_type(tacfast.GapMatrix(W).update(ARRAY), tacfast.GapMatrix[np.ndarray])
    assert type(assert_type(gaps.gaps, np.ndarray)) is np.ndarray
    assert type(assert_type(gaps.solve().norms, np.ndarray)) is np.ndarray
    assert type(assert_type(gaps.update_logits(Z[:, :3]).solve().norms, Tensor)) is Tensor
    assert type(assert_type(gaps.merge(tacfast.GapMatrix(W).update(ARRAY)).gaps, np.ndarray)) is np.ndarray
    assert type(assert_type(tacfast.GapMatrix.from_gaps(W, None, np.zeros((3, 3))).gaps, np.ndarray)) is np.ndarray


def test_solutions_become_those_of_tensors(tmp_path: Path) -> None:
    solution = tacfast.solve_tac(ARRAY, W)
    assert type(assert_type(solution.to("cpu").norms, Tensor)) is Tensor
    solution.save(tmp_path / "solution")
    assert type(assert_type(tacfast.TacSolution.load(tmp_path / "solution").norms, Tensor)) is Tensor
    tacfast.detect(solution)  # takes those of any kind


def a_solution_without_a_kind(solution: tacfast.TacSolution) -> Tensor:
    return assert_type(solution.norms, Tensor)


def on_a_device(latents: CudaArray) -> CudaArray:
    return assert_type(tacfast.solve_tac(latents, W).norms, CudaArray)
