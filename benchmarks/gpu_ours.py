"""Time tacfast on device tensors, and set it in relation to what the device can do at best.

python benchmarks/gpu_ours.py --ceilings ceilings.json --out ours.json
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Callable

import torch
from _common import make_problem
from gpu_common import Clock, Rows, parser, versions

import tacfast


@functools.cache
def problem(classes: int, n: int, d: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(x.to(device) for x in make_problem(classes, n, d))


def read_ceilings(path: str | None) -> dict[str, float]:
    """Return bytes/s, operations/s and pairs/s, as far as they have been measured."""
    rows = {}
    if path and pathlib.Path(path).exists():
        rows = {row["name"]: row for row in json.loads(pathlib.Path(path).read_text())["rows"]}
    found = {
        "bytes": 1e9 * rows.get("copy", {}).get("GB/s", 0.0),
        "operations": rows.get("product", {}).get("operations/s", 0.0),
        "pairs": rows.get("pairs", {}).get("pairs/s", 0.0),
    }
    return {name: value for name, value in found.items() if value > 0}


def add_rates(row: dict, work: dict[str, float], ceilings: dict[str, float]) -> dict:
    """Add what was achieved and the floor: the arithmetic of product and pairs in turn, or the traffic if that is more.

    `work` counts bytes that must move, operations of the product and ordered pairs (i, k, j), all without pruning.
    """
    seconds = row["ms"] / 1e3
    row |= {"work": work, "GB/s": work["bytes"] / seconds / 1e9}
    row["operations/s"] = (work["operations"] + 1.5 * work["pairs"]) / seconds  # 3 operations for the 2 signs of a pair
    if work["pairs"]:
        row["pairs/s"] = work["pairs"] / seconds
    needed = [name for name, amount in work.items() if amount]
    if all(name in ceilings for name in needed):
        arithmetic = sum(work[name] / ceilings[name] for name in ("operations", "pairs") if work[name])
        row["floor_ms"] = 1e3 * max(work["bytes"] / ceilings["bytes"], arithmetic)
        row["times_floor"] = row["ms"] / row["floor_ms"]
    return row


def timed(clock: Clock, fn: Callable[[], object]) -> dict:
    """Time a call as it is and, on the device, captured in a graph."""
    row = {"ms": clock.median_ms(fn)}
    if clock.cuda:
        try:
            row["graph_ms"] = clock.graph_ms(fn)
        except RuntimeError as error:
            row["graph_note"] = str(error)[:500]
    return row


def quality(solution: tacfast.TacSolution) -> dict:
    """Say whether the timed call solved its problems; raises if it did not."""
    statuses = solution.status.tolist()
    if any(status > tacfast.Status.INFEASIBLE for status in statuses):
        raise RuntimeError(f"unsolved classes: statuses {sorted(set(statuses))}")
    certificate = solution.certificate
    residuals = (certificate.primal, certificate.dual, certificate.stationarity, certificate.gap)
    finite = [float(x[x.isfinite()].max()) for x in residuals if x.isfinite().any()]
    return {"worst_residual": max(finite), "infeasible": statuses.count(tacfast.Status.INFEASIBLE)}


def whole(clock: Clock, args, ceilings, classes: int, n: int, d: int, trim: float = 0.0) -> dict:
    latents, W, b = problem(classes, n, d, args.device)

    def solve():
        return tacfast.solve_tac(latents, W, b, trim=trim, raise_on_failure=False)

    row = {"sizes": {"n": n, "d": d, "C": classes, "trim": trim}} | quality(solve()) | timed(clock, solve)
    if trim:
        return row
    work = {"bytes": 4.0 * n * d, "operations": 2.0 * n * d * classes, "pairs": 1.0 * n * classes * (classes - 1)}
    return add_rates(row, work, ceilings)


def gaps(clock: Clock, args, ceilings, classes: int, n: int, d: int) -> dict:
    latents, W, b = problem(classes, n, d, args.device)
    logits = latents @ W.T + b
    matrix = tacfast.GapMatrix(W, b)
    row = {"sizes": {"n": n, "C": classes}, "ms": clock.median_ms(lambda: matrix.update_logits(logits))}
    work = {"bytes": 4.0 * n * classes, "operations": 0.0, "pairs": 1.0 * n * classes * (classes - 1)}
    return add_rates(row, work, ceilings)


def gaps_of_latents(clock: Clock, args, ceilings, kernel: str, classes: int, sizes: tuple[int, int, int]) -> dict:
    """From latents to gaps by one of the ways that TACFAST_CUDA_GAPS names, for the first few classes of a problem."""
    latents, W, b = problem(*sizes, args.device)
    n, d = latents.shape
    matrix = tacfast.GapMatrix(W[:classes], b[:classes])
    os.environ["TACFAST_CUDA_GAPS"] = kernel
    try:
        row = {"sizes": {"n": n, "d": d, "C": classes}, "kernel": kernel}
        row["ms"] = clock.median_ms(lambda: matrix.update(latents))
    finally:
        del os.environ["TACFAST_CUDA_GAPS"]
    work = {"bytes": 4.0 * n * d, "operations": 2.0 * n * d * classes, "pairs": 1.0 * n * classes * (classes - 1)}
    return add_rates(row, work, ceilings)


def class_qps(clock: Clock, args, classes: int, n: int, d: int) -> dict:
    latents, W, b = problem(classes, n, d, args.device)
    R = tacfast.GapMatrix(W, b).update(latents).gaps
    matrix = tacfast.GapMatrix.from_gaps(W, b, R)

    def solve():
        return matrix.solve(raise_on_failure=False)

    row = {"sizes": {"C": classes, "d": d}} | quality(solve()) | timed(clock, solve)
    return row | {"QPs/s": 1e3 * classes / row["ms"]}


def samples(clock: Clock, args, classes: int, n: int, d: int) -> dict:
    latents, W, b = problem(classes, n, d, args.device)
    latents = latents[:n]

    def solve():
        return tacfast.solve_tac_per_sample(latents, W, b)

    solution = solve()
    if bool((solution.status > tacfast.Status.INFEASIBLE).any()):
        raise RuntimeError("unsolved samples")
    row = {"sizes": {"n": n, "d": d, "C": classes}} | timed(clock, solve)
    return row | {"QPs/s": 1e3 * n * classes / row["ms"]}


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--ceilings", help="JSON of gpu_ceilings.py, for the floors")
    args = arguments.parse_args()
    clock, ceilings, s = Clock(args.device, args.repeats), read_ceilings(args.ceilings), args.shrink
    rows = Rows(args, "ours", versions=versions("tacfast", "torch", "numpy"), ceilings=ceilings)
    few, many = (200, 100_000 // s, 512), (1000, 50_000 // s, 2048)
    rows.measure("whole solve_tac, C=200", lambda: whole(clock, args, ceilings, *few))
    rows.measure("max-plus stage, C=200", lambda: gaps(clock, args, ceilings, *few))
    for classes in (10, 43, 100, 200):
        for kernel in ("split", "fused", "plain"):
            way = functools.partial(gaps_of_latents, clock, args, ceilings, kernel, classes, few)
            rows.measure(f"latents to gaps, C={classes}, {kernel}", way)
    rows.measure("class QPs, C=200", lambda: class_qps(clock, args, *few))
    rows.measure("whole solve_tac, C=10", lambda: whole(clock, args, ceilings, 10, 2500 // s, 512))
    rows.measure("per-sample QPs, C=10", lambda: samples(clock, args, 10, 200_000 // s, 512))
    rows.measure("per-sample QPs, C=200", lambda: samples(clock, args, 200, 20_000 // s, 512))
    rows.measure("whole solve_tac, C=1000", lambda: whole(clock, args, ceilings, *many))
    rows.measure("max-plus stage, C=1000", lambda: gaps(clock, args, ceilings, *many))
    rows.measure("class QPs, C=1000", lambda: class_qps(clock, args, *many))
    rows.measure("whole solve_tac, C=200, trim 0.5", lambda: whole(clock, args, ceilings, *few, trim=0.5))
    rows.finish()


if __name__ == "__main__":
    main()
