"""Time on the GPU what one would use instead of tacfast: for the gap matrix R, and for the class-wise QPs.

python benchmarks/gpu_rivals.py --out rivals.json
"""

from __future__ import annotations

import torch
from _common import make_problem
from gap_matrix import blocked, obvious
from gpu_common import Clock, Rows, parser, versions
from gpu_kernels import cupy_gaps, numba_gaps
from gpu_qp_rivals import RIVALS, constraints

import tacfast

BLOCKS = [(2048, 8), (8192, 4), (8192, 16), (32768, 4)]  # rows and classes of the blocked loop: the fastest one counts


def gap_rival(clock: Clock, fn, logits: torch.Tensor, expected: torch.Tensor, sizes: dict) -> dict:
    if not torch.equal(fn(logits), expected):
        raise RuntimeError("another gap matrix than tacfast's")
    return {"sizes": sizes, "ms": clock.median_ms(lambda: fn(logits), repeats=5)}


def best_blocked(clock: Clock, logits: torch.Tensor, expected: torch.Tensor, sizes: dict) -> dict:
    rows = []
    for rows_each, classes_each in BLOCKS:
        row = gap_rival(clock, lambda x, r=rows_each, c=classes_each: blocked(x, r, c), logits, expected, sizes)
        rows.append(row | {"block": [rows_each, classes_each]})
    return min(rows, key=lambda row: row["ms"])


def gap_rivals(clock: Clock, rows: Rows, logits, W, b) -> None:
    matrix = tacfast.GapMatrix(W, b)
    expected = matrix.update_logits(logits).gaps
    sizes = {"n": len(logits), "C": len(W)}
    rows.measure("R: tacfast", lambda: {"sizes": sizes, "ms": clock.median_ms(lambda: matrix.update_logits(logits))})
    rivals = {"R: torch, obvious": obvious, "R: CuPy RawKernel": cupy_gaps, "R: numba.cuda kernel": numba_gaps}
    for name, rival in rivals.items():
        rows.measure(name, lambda rival=rival: gap_rival(clock, rival, logits, expected, sizes), may_fail=True)
    rows.measure("R: torch, blocked", lambda: best_blocked(clock, logits, expected, sizes), may_fail=True)


def qp_rivals(clock: Clock, rows: Rows, R, W, b) -> None:
    matrix = tacfast.GapMatrix.from_gaps(W, b, R)
    expected = matrix.solve(raise_on_failure=False).norms.double()
    sizes = {"C": len(W), "d": W.shape[1]}

    def ours() -> dict:
        return {"sizes": sizes, "ms": clock.median_ms(lambda: matrix.solve(raise_on_failure=False))}

    def rival(solve) -> dict:
        found, ms, facts = solve(clock, *constraints(W, R))
        off = (found.double().to(expected.device) / expected[: len(found)] - 1).abs().max()
        return {"sizes": sizes, "ms": ms, "norms_differ_by": float(off)} | facts

    rows.measure("QPs: tacfast", ours)
    for name, solve in RIVALS.items():
        rows.measure(f"QPs: {name}", lambda solve=solve: rival(solve), may_fail=True)


def add_ratios(rows: Rows) -> None:
    """Say of each rival how many times as long as tacfast it takes on the same task."""
    measured = [row for row in rows.payload["rows"] if "ms" in row]
    ours = {row["name"].split(":")[0]: row["ms"] for row in measured if row["name"].endswith(": tacfast")}
    for row in measured:
        if (task := row["name"].split(":")[0]) in ours:
            row["times_tacfast"] = row["ms"] / ours[task]
    rows.write()


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--classes", type=int, default=200)
    args = arguments.parse_args()
    packages = ("tacfast", "torch", "cupy-cuda13x", "numba", "numba-cuda", "qpth", "qpax", "jax", "moreau", "cvxpy")
    rows = Rows(args, "rivals", versions=versions(*packages, "clarabel"))
    clock = Clock(args.device, args.repeats)
    latents, W, b = (x.to(args.device) for x in make_problem(args.classes, 100_000 // args.shrink, 512 // args.shrink))
    logits = latents @ W.T + b
    gap_rivals(clock, rows, logits, W, b)
    qp_rivals(clock, rows, tacfast.GapMatrix(W, b).update(latents).gaps, W, b)
    add_ratios(rows)
    rows.finish()


if __name__ == "__main__":
    main()
