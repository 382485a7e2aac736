"""All class-wise QPs from a given gap matrix: tacfast against DAQP, quadprog and SciPy's NNLS on the same problems.

Every repetition solves for another gap matrix (another sample of the latents), so nothing can be remembered. Building
the problem from W and R counts for everyone. DAQP is given the primal form it takes (H the identity, A the C − 1
rows) and, as a second entrant, the dual in the Gram matrix; the answers are compared on s.

    python benchmarks/class_qps.py [--classes 200] [--dim 512] [--threads 1] [--repeats 15] [--rival-repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
import time

import daqp
import numpy as np
import quadprog
import scipy
import torch
from _common import make_problem, markdown_table, write_results
from scipy.optimize import nnls

import tacfast


def constraints(W, R, k):
    keep = np.arange(len(W)) != k
    return (W[k] - W)[keep], R[k][keep]


def solve_daqp_primal(W, R):
    d = W.shape[1]
    H, f = np.eye(d), np.zeros(d)
    out = np.empty_like(W)
    for k in range(len(W)):
        A, rho = constraints(W, R, k)
        sense = np.zeros(len(rho), dtype=np.int32)
        out[k], _, flag, _ = daqp.solve(H, f, A, np.full(len(rho), 1e30), rho, sense)
        assert flag == 1, flag
    return out


def solve_daqp_dual(W, R):
    out = np.empty_like(W)
    for k in range(len(W)):
        A, rho = constraints(W, R, k)
        m = len(rho)
        lam, _, flag, _ = daqp.solve(
            A @ A.T, -rho, np.zeros((0, m)), np.full(m, 1e30), np.zeros(m), np.zeros(m, dtype=np.int32)
        )
        assert flag == 1, flag
        out[k] = A.T @ lam
    return out


def solve_quadprog(W, R):
    d = W.shape[1]
    H, f = np.eye(d), np.zeros(d)
    out = np.empty_like(W)
    for k in range(len(W)):
        A, rho = constraints(W, R, k)
        out[k] = quadprog.solve_qp(H, f, A.T, rho)[0]
    return out


def solve_nnls(W, R):
    out = np.empty_like(W)
    for k in range(len(W)):
        A, rho = constraints(W, R, k)
        upper = np.linalg.cholesky(A @ A.T).T
        lam, _ = nnls(upper, np.linalg.solve(upper.T, rho))
        out[k] = A.T @ lam
    return out


RIVALS = {
    "DAQP, primal form": solve_daqp_primal,
    "DAQP, dual form": solve_daqp_dual,
    "quadprog": solve_quadprog,
    "SciPy NNLS": solve_nnls,
}


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--rival-repeats", type=int, default=3)
    parser.add_argument("--out", default="benchmarks/results/class_qps.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    latents, W, b = make_problem(args.classes, args.samples, args.dim, dtype=torch.float64)
    order = torch.Generator().manual_seed(1)
    gaps = []
    for _ in range(args.repeats + 1):
        rows = torch.randperm(args.samples, generator=order)[: args.samples // 2]
        gaps.append(tacfast.GapMatrix(W, b).update(latents[rows]).gaps)

    times, answers = {}, []
    for dtype in (torch.float64, torch.float32):
        samples = []
        for R in gaps:
            w, bias, r = W.to(dtype), b.to(dtype), R.to(dtype)
            seconds, solution = timed(lambda: tacfast.GapMatrix.from_gaps(w, bias, r).solve())  # noqa: B023
            samples.append(seconds)
            if dtype == torch.float64:
                answers.append(solution.perturbations.numpy())
                active = float((solution.duals > 0).sum(1).double().mean())
                certificate = max(float(getattr(solution.certificate, f).max()) for f in ("primal", "gap"))
        times[f"tacfast, {str(dtype).removeprefix('torch.')}"] = statistics.median(samples[1:])

    errors = dict.fromkeys(times, 0.0)
    for name, rival in RIVALS.items():
        samples = []
        for R, answer in list(zip(gaps, answers, strict=True))[: args.rival_repeats + 1]:
            seconds, s = timed(rival, W.numpy(), R.numpy())
            samples.append(seconds)
            errors[name] = float((np.linalg.norm(s - answer, axis=1) / np.linalg.norm(answer, axis=1)).max())
            assert errors[name] < 1e-4, (name, errors[name])
        times[name] = statistics.median(samples[1:])

    ours = times["tacfast, float64"]
    rows = [
        {
            "solver": name,
            "ms": seconds * 1e3,
            "times tacfast float64": seconds / ours,
            "max relative difference of s": errors[name],
        }
        for name, seconds in times.items()
    ]
    print(f"C={args.classes}, d={args.dim}, {args.threads} thread(s), mean active constraints {active:.1f}")
    print(markdown_table(rows))
    versions = {"numpy": np.__version__, "scipy": scipy.__version__, "tacfast": tacfast.__version__}
    write_results(
        args.out,
        {
            "sizes": {"classes": args.classes, "dim": args.dim, "samples": args.samples // 2, "active": active},
            "threads": args.threads,
            "repeats": {"tacfast": args.repeats, "rivals": args.rival_repeats},
            "versions": versions,
            "worst_certificate": certificate,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
