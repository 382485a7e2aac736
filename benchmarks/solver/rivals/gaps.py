"""Other ways from logits (n, C) to the gap matrix (C, C)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Gaps = Callable[[Tensor], Tensor]


def obvious(logits: Tensor) -> Tensor:
    """As one would write it in torch."""
    return torch.stack([(logits - logits[:, k : k + 1]).amax(0) for k in range(logits.shape[1])])


def blocked(logits: Tensor, rows: int = 2048, classes: int = 8) -> Tensor:
    """The fastest torch loop we found: temporaries that stay in the cache, reductions along rows of the transpose."""
    total = logits.shape[1]
    result = logits.new_full((total, total), -torch.inf)
    buffer = logits.new_empty(classes, total, rows)
    for part in logits.split(rows):
        part = part.T.contiguous()
        for k in range(0, total, classes):
            few = part[k : k + classes]
            difference = torch.sub(part, few[:, None], out=buffer[: len(few), :, : part.shape[1]])
            block = result[k : k + classes]
            torch.maximum(block, difference.amax(2), out=block)
    return result


def numpy_loop(logits: Tensor) -> Tensor:
    """As one would write it in NumPy, with the samples along rows."""
    columns = np.ascontiguousarray(logits.numpy().T)
    return torch.from_numpy(np.stack([(columns - column).max(1) for column in columns]))


def numba_loop(threads: int) -> Gaps:
    """As one would write it, compiled, parallel over classes."""
    import numba

    numba.set_num_threads(threads)

    @numba.njit(parallel=True, fastmath={"nnan", "nsz"}, error_model="numpy")
    def fold(logits: np.ndarray, result: np.ndarray) -> None:
        n, classes = logits.shape
        for k in numba.prange(classes):
            for i in range(n):
                own = logits[i, k]
                for j in range(classes):
                    result[k, j] = max(result[k, j], logits[i, j] - own)

    def run(logits: Tensor) -> Tensor:
        result = np.full((logits.shape[1],) * 2, -np.inf, dtype=np.float32)
        fold(logits.numpy(), result)
        return torch.from_numpy(result)

    run(torch.zeros(2, 2))  # compiled for C-ordered float32
    return run


RIVALS: dict[str, tuple[str, Callable[[int], Gaps]]] = {
    "torch, obvious": ("torch", lambda threads: obvious),
    "torch, blocked and transposed": ("torch", lambda threads: blocked),
    "NumPy": ("numpy", lambda threads: numpy_loop),
    "numba, parallel": ("numba", numba_loop),
}
