"""What a small call costs besides the mathematics: Python, checks and dispatch at ten classes.

python benchmarks/overhead.py [--classes 10] [--n 100] [--dim 64] [--repeats 3000]
"""

from __future__ import annotations

import argparse
import os

import torch
from _common import make_problem, markdown_table, median_time, write_results

import tacfast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3000)
    parser.add_argument("--out", default="benchmarks/results/overhead.json")
    args = parser.parse_args()

    problem = make_problem(args.classes, args.n, args.dim)
    latents, W, b = problem
    arrays = [x.numpy() for x in problem]
    some = list(range(0, args.classes, 2))
    seen = tacfast.GapMatrix(W, b).update(latents)
    calls = {
        "solve_tac": lambda: tacfast.solve_tac(latents, W, b),
        "solve_tac, every second class": lambda: tacfast.solve_tac(latents, W, b, classes=some),
        "solve_tac, NumPy": lambda: tacfast.solve_tac(*arrays),
        "GapMatrix()": lambda: tacfast.GapMatrix(W, b),
        "GapMatrix().update()": lambda: tacfast.GapMatrix(W, b).update(latents),
        "solve()": seen.solve,
    }
    rows = [{"µs, median": name} for name in calls]
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        for row, call in zip(rows, calls.values(), strict=True):
            row[f"{threads} thread(s)"] = median_time(call, args.repeats) * 1e6
    print(f"n={args.n}, d={args.dim}, C={args.classes}, float32")
    print(markdown_table(rows))
    sizes = {"n": args.n, "dim": args.dim, "classes": args.classes}
    payload = {"sizes": sizes, "repeats": args.repeats, "rows": rows}
    write_results(args.out, payload | {"versions": {"tacfast": tacfast.__version__}})


if __name__ == "__main__":
    main()
