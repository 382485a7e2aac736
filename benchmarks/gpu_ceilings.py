"""What the device can do at best: copying, float32 matrix products, and subtract/max/min in registers alone.

python benchmarks/gpu_ceilings.py --out ceilings.json
"""

from __future__ import annotations

import torch
from gpu_common import Clock, Rows, parser

# One subtraction serves both signs of a pair of classes: one running maximum and one minimum. Each thread keeps 8 x 8
# pairs, as a tile of the gap matrix would; a few additions keep the compiler from doing all steps at once.
PAIRS_KERNEL = r"""
extern "C" __global__ void __launch_bounds__(256) fold_pairs(float* out, int steps, float step) {
    float a[8], b[8], most[64], least[64];
    for (int i = 0; i < 8; ++i) {
        a[i] = threadIdx.x * 0.25f + i;
        b[i] = blockIdx.x * 0.5f - i;
    }
    for (int i = 0; i < 64; ++i) {
        most[i] = -1e30f;
        least[i] = 1e30f;
    }
    for (int s = 0; s < steps; ++s) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            a[i] += step;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float difference = a[i] - b[j];
                most[8 * i + j] = fmaxf(most[8 * i + j], difference);
                least[8 * i + j] = fminf(least[8 * i + j], difference);
            }
        }
    }
    float sum = 0;
    for (int i = 0; i < 64; ++i) sum += most[i] - least[i];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
"""
THREADS, TILE = 256, 64


def copy(clock: Clock, device: str, shrink: int) -> dict:
    source = torch.ones(2**28 // shrink, device=device)
    target = torch.empty_like(source)
    ms = clock.median_ms(lambda: target.copy_(source))
    moved = 2 * source.numel() * source.element_size()  # read and written
    return {"bytes": moved, "ms": ms, "GB/s": moved / ms / 1e6}


def product(clock: Clock, device: str, rows: int, inner: int, columns: int) -> dict:
    torch.set_float32_matmul_precision("highest")  # no TF32
    left, right = torch.randn(rows, inner, device=device), torch.randn(columns, inner, device=device)
    out = torch.empty(rows, columns, device=device)
    ms = clock.median_ms(lambda: torch.mm(left, right.T, out=out))
    operations = 2 * rows * inner * columns
    return {"sizes": [rows, inner, columns], "ms": ms, "operations/s": 1e3 * operations / ms}


def pairs(clock: Clock, steps: int = 2000) -> dict:
    import cupy

    kernel = cupy.RawKernel(PAIRS_KERNEL, "fold_pairs")
    blocks = 16 * torch.cuda.get_device_properties(0).multi_processor_count
    out = cupy.empty(blocks * THREADS, dtype=cupy.float32)
    arguments = (out, cupy.int32(steps), cupy.float32(0.125))
    ms = clock.median_ms(lambda: kernel((blocks,), (THREADS,), arguments))
    folded = blocks * THREADS * TILE * steps  # subtractions
    return {
        "registers": kernel.num_regs,
        "local_bytes": kernel.local_size_bytes,  # must be 0: else this is no loop in registers
        "ms": ms,
        "operations/s": 1e3 * 3 * folded / ms,
        "pairs/s": 1e3 * 2 * folded / ms,  # ordered pairs, as the gap matrix counts them
    }


def main() -> None:
    args = parser(__doc__.splitlines()[0]).parse_args()
    clock, rows, device, shrink = Clock(args.device, args.repeats), Rows(args, "ceilings"), args.device, args.shrink
    rows.measure("copy", lambda: copy(clock, device, shrink))
    rows.measure("product", lambda: product(clock, device, 8192 // shrink, 8192 // shrink, 8192 // shrink))
    rows.measure("product, C=200", lambda: product(clock, device, 100_000 // shrink, 512, 200))
    rows.measure("product, C=1000", lambda: product(clock, device, 50_000 // shrink, 2048, 1000))
    rows.measure("pairs", lambda: pairs(clock))
    rows.finish()


if __name__ == "__main__":
    main()
