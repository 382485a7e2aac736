"""The whole of ``solve_tac`` against the one matrix product that nobody can avoid: ``torch.mm(latents, W.T)``.

python benchmarks/whole_solve.py [--classes 200] [--n 100000] [--dim 512] [--threads ALL] [--repeats 9]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
from _common import make_problem, markdown_table, write_results

import tacfast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", default="benchmarks/results/whole_solve.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    latents, W, b = make_problem(args.classes, args.n, args.dim)
    logits = torch.empty(args.n, args.classes)  # into memory that exists already: the product alone, no page faults
    entrants = {
        "torch.mm alone": lambda: torch.mm(latents, W.T, out=logits),
        "solve_tac": lambda: tacfast.solve_tac(latents, W, b),
        "solve_tac, trim 0.5": lambda: tacfast.solve_tac(latents, W, b, trim=0.5),
    }
    samples = {name: [] for name in entrants}
    for _ in range(args.repeats + 1):  # interleaved, so that a slow spell of the machine meets everyone
        for name, run in entrants.items():
            start = time.perf_counter()
            run()
            samples[name].append(time.perf_counter() - start)
    solution = tacfast.solve_tac(latents, W, b)
    assert all(status == tacfast.Status.OPTIMAL for status in solution.statuses)
    assert float(solution.flipped(latents[:5000], W, b, scale=1 + 1e-5).min()) == 1.0

    times = {name: statistics.median(values[1:]) for name, values in samples.items()}
    rows = [
        {"what": name, "ms": seconds * 1e3, "times torch.mm": seconds / times["torch.mm alone"]}
        for name, seconds in times.items()
    ]
    print(f"n={args.n}, d={args.dim}, C={args.classes}, float32, {args.threads} thread(s)")
    print(markdown_table(rows))
    sizes = {"n": args.n, "dim": args.dim, "classes": args.classes}
    payload = {"sizes": sizes, "threads": args.threads, "repeats": args.repeats, "rows": rows}
    write_results(args.out, payload | {"versions": {"tacfast": tacfast.__version__}})


if __name__ == "__main__":
    main()
