"""The gap matrix as a user would write it in an afternoon, as a CuPy RawKernel and as a numba.cuda kernel.

Both are the same: a block takes a tile of pairs of classes and a slab of rows, one thread for each pair, with the
logits of the two groups of classes in shared memory; a reduction over the slabs follows.
"""

from __future__ import annotations

import functools

import torch

TILE = 16  # classes along each side of a block; rows in shared memory at a time
SLABS = 32

SOURCE = r"""
extern "C" __global__ void gaps(const float* logits, int n, int classes, int slab_rows, float* partial) {
    __shared__ float left[16][16], right[16][17];
    const int x = threadIdx.x, y = threadIdx.y;
    const int k0 = blockIdx.y * 16, j0 = blockIdx.x * 16;
    const int begin = blockIdx.z * slab_rows, end = min(n, begin + slab_rows);
    float most = __int_as_float(0xff800000);  // minus infinity
    for (int base = begin; base < end; base += 16) {
        const int row = base + y;
        left[y][x] = row < end && k0 + x < classes ? logits[(long long)row * classes + k0 + x] : 0.0f;
        right[y][x] = row < end && j0 + x < classes ? logits[(long long)row * classes + j0 + x] : 0.0f;
        __syncthreads();
        const int rows = min(16, end - base);
        for (int r = 0; r < rows; ++r) most = fmaxf(most, right[r][x] - left[r][y]);
        __syncthreads();
    }
    if (k0 + y < classes && j0 + x < classes)
        partial[((long long)blockIdx.z * classes + k0 + y) * classes + j0 + x] = most;
}
"""


def grid_of(n: int, classes: int) -> tuple[tuple[int, int, int], int]:
    """Return the grid and the rows of a slab."""
    tiles = -(-classes // TILE)
    return (tiles, tiles, SLABS), -(-n // SLABS)


@functools.cache
def cupy_kernel():
    import cupy

    return cupy.RawKernel(SOURCE, "gaps")


def cupy_gaps(logits: torch.Tensor) -> torch.Tensor:
    """R by CuPy; the tensors are shared, not copied."""
    import cupy

    n, classes = logits.shape
    grid, slab_rows = grid_of(n, classes)
    partial = cupy.empty((SLABS, classes, classes), dtype=cupy.float32)
    arguments = (cupy.asarray(logits), cupy.int32(n), cupy.int32(classes), cupy.int32(slab_rows), partial)
    cupy_kernel()(grid, (TILE, TILE), arguments)
    return torch.as_tensor(partial.max(axis=0), device=logits.device)


@functools.cache
def numba_kernel():
    import math

    from numba import cuda, float32

    @cuda.jit
    def gaps(logits, slab_rows, partial):
        left = cuda.shared.array((16, 16), float32)
        right = cuda.shared.array((16, 17), float32)
        n, classes = logits.shape
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        k0, j0 = cuda.blockIdx.y * 16, cuda.blockIdx.x * 16
        begin = cuda.blockIdx.z * slab_rows
        end = min(n, begin + slab_rows)
        most = float32(-math.inf)
        for base in range(begin, end, 16):
            row = base + y
            left[y, x] = logits[row, k0 + x] if row < end and k0 + x < classes else float32(0)
            right[y, x] = logits[row, j0 + x] if row < end and j0 + x < classes else float32(0)
            cuda.syncthreads()
            for r in range(min(16, end - base)):
                most = max(most, right[r, x] - left[r, y])
            cuda.syncthreads()
        if k0 + y < classes and j0 + x < classes:
            partial[cuda.blockIdx.z, k0 + y, j0 + x] = most

    return gaps


def numba_gaps(logits: torch.Tensor) -> torch.Tensor:
    """R by numba; the reduction over the slabs is torch's."""
    from numba import cuda

    n, classes = logits.shape
    grid, slab_rows = grid_of(n, classes)
    partial = torch.empty(SLABS, classes, classes, device=logits.device)
    numba_kernel()[grid, (TILE, TILE)](cuda.as_cuda_array(logits), slab_rows, cuda.as_cuda_array(partial))
    return partial.amax(0)
