"""A linear head as the solver wants it."""

from __future__ import annotations

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
