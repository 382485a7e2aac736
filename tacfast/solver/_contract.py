"""What goes into a backend and comes out of it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


def prepared_size(n_classes: int, stride: int) -> int:
    """Entries of `Prepared.memory`."""
    return n_classes * (2 * stride + n_classes + 2) + 1


class Prepared:
    """What depends on W (C, d) and b alone, in float64: parts of one flat tensor, ``memory``.

    It is one tensor because a solve with ten classes takes as long as the making of a few dozen.

    Attributes
    ----------
    rows : (C, stride), W, zero-padded from d to ``stride`` columns
    centred : (C, stride), W minus its mean row, padded
    gram : (C, C), the Gram matrix of that
    bias : (C,), b, or zeros
    offset : (C,), the bias minus its mean
    longest : the largest norm of a row of W
    """

    def __init__(self, memory: Tensor, n_classes: int) -> None:
        self.memory, self.n_classes = memory, n_classes
        self._block = (memory.shape[0] - n_classes * (n_classes + 2) - 1) // 2  # entries of rows, or of centred

    @property
    def rows(self) -> Tensor:
        return self.memory[: self._block].reshape(self.n_classes, -1)

    @property
    def centred(self) -> Tensor:
        return self.memory[self._block : 2 * self._block].reshape(self.n_classes, -1)

    @property
    def gram(self) -> Tensor:
        return self.memory[2 * self._block : -2 * self.n_classes - 1].reshape(self.n_classes, -1)

    @property
    def bias(self) -> Tensor:
        return self.memory[-2 * self.n_classes - 1 : -self.n_classes - 1]

    @property
    def offset(self) -> Tensor:
        return self.memory[-self.n_classes - 1 : -1]

    @property
    def longest(self) -> float:
        return float(self.memory[-1])


class Problem(NamedTuple):
    """A head with the classes to solve for, and how.

    ``dim`` is d, ``classes`` int64 (K,). Rows of W closer than ``same_share`` of the longest are equal.
    """

    head: Prepared
    dim: int
    same_share: float
    classes: Tensor
    margin: float
    tol: float
    max_iter: int


class Raw(NamedTuple):
    """Results of a solve before they are dressed as a solution; ``certificate`` is float64 (6, K).

    ``iterations`` int32 (K,) are the steps of the active-set method that led to the results, each of which takes up a
    constraint, lets go of one, or finds that one is implied or contradicted by those that were taken up.
    """

    perturbations: Tensor
    norms: Tensor
    status: Tensor
    iterations: Tensor
    duals: Tensor
    certificate: Tensor


class RawSamples(NamedTuple):
    """Results of a per-sample solve, ``iterations`` (n, K) as in `Raw`; ``perturbations`` is empty unless asked for."""

    norms: Tensor
    status: Tensor
    iterations: Tensor
    perturbations: Tensor
    certificate: Tensor


def empty_results(classes: Tensor, dim: int, gaps: Tensor) -> Raw:
    """Room for the results of these classes."""
    count = classes.shape[0]
    return Raw(
        gaps.new_empty((count, dim)),
        gaps.new_empty(count),
        gaps.new_empty(count, dtype=torch.int8),
        gaps.new_empty(count, dtype=torch.int32),
        gaps.new_empty((count, gaps.shape[0])),
        gaps.new_empty((6, count), dtype=torch.float64),
    )


def empty_samples(rows: Tensor, classes: Tensor, depth: int, dtype: torch.dtype) -> RawSamples:
    """Room for the results of each of ``rows`` (n, ...) and class, with perturbations of ``depth`` entries.

    The certificate is that of no samples: no residual, and bounds that any sample narrows.
    """
    n, count = rows.shape[0], classes.shape[0]
    certificate = rows.new_zeros((6, count), dtype=torch.float64)
    certificate[4] = torch.inf
    return RawSamples(
        rows.new_empty((n, count), dtype=dtype),
        rows.new_empty((n, count), dtype=torch.int8),
        rows.new_empty((n, count), dtype=torch.int32),
        rows.new_empty((n, count, depth), dtype=dtype),
        certificate,
    )


class Backend(Protocol):
    """The functions of a backend: `_compiled`, or `_reference` with the same answers in plain torch."""

    def padded_dim(self, dim: int, /) -> int:
        """Row length of `Prepared.rows` for latents of ``dim`` entries."""

    def prepare_head(self, W: Tensor, bias: Tensor | None, /) -> tuple[Prepared, bool]:
        """Widen and centre the rows of W (C, d) and the bias (C,), and form the Gram matrix of the rows.

        The second result is False if any entry of W or the bias is not finite.
        """

    def update_gaps(self, gaps: Tensor, logits: Tensor, /) -> int:
        """Fold logits (n, C) into the transposed gap matrix in place; returns the index of a bad logit or -1."""

    def trimmed_gaps(self, gaps: Tensor, chunks: list[Tensor], trim: float, /) -> Tensor:
        """Order statistic instead of the maximum: see `solve_tac`. ``gaps`` is the transposed maximum."""

    def solve_classes(self, problem: Problem, gaps: Tensor, /) -> Raw:
        """Solve the QP of every class from R = ``gaps`` (C, C)."""

    def solve_samples(self, problem: Problem, logits: Tensor, return_perturbations: bool, /) -> RawSamples:
        """Solve one QP for every row of ``logits`` (n, C) and every class."""
