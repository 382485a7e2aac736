"""Time the CPU gap matrix, and its trimmed form, against the same computation in torch.

python benchmarks/gap_matrix.py --classes 200 --n 100000 --threads 1 --out benchmarks/results/gap_matrix.json
"""

from __future__ import annotations

import argparse

import torch
from _common import make_problem, markdown_table, median_time, write_results

import tacfast
from tacfast.solver._custom_ops import trimmed_gaps


def obvious(logits: torch.Tensor) -> torch.Tensor:
    """R as one would write it."""
    return torch.stack([(logits - logits[:, k : k + 1]).amax(0) for k in range(logits.shape[1])])


def blocked(logits: torch.Tensor, rows: int = 2048, classes: int = 8) -> torch.Tensor:
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


def ours(logits: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """R by the library."""
    return tacfast.GapMatrix(weight, bias).update_logits(logits).gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100_000, help="samples")
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--dim", type=int, default=512, help="length of a latent")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--torch-repeats", type=int, default=1)
    parser.add_argument("--trim", type=float, nargs="*", default=[0.05, 0.5])
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    latents, weight, bias = make_problem(args.classes, args.n, args.dim)
    logits = latents @ weight.T + bias
    expected = ours(logits, weight, bias)
    for name, rival in {"obvious": obvious, "blocked": blocked}.items():
        if not torch.equal(rival(logits), expected):
            raise SystemExit(f"the {name} torch loop disagrees with tacfast")

    seconds = {"tacfast": median_time(lambda: ours(logits, weight, bias), args.repeats)}
    seconds["torch, blocked and transposed"] = median_time(lambda: blocked(logits), args.torch_repeats)
    seconds["torch, obvious"] = median_time(lambda: obvious(logits), args.torch_repeats)
    for trim in args.trim:
        gaps = expected.T.contiguous()
        seconds[f"tacfast, trim={trim} (without the gaps)"] = median_time(
            lambda trim=trim, gaps=gaps: trimmed_gaps(gaps, [logits], trim), args.repeats
        )
    rows = [
        {"method": name, "ms": 1e3 * time, "times tacfast": time / seconds["tacfast"]} for name, time in seconds.items()
    ]
    print(markdown_table(rows))
    if args.out:
        sizes = {"n": args.n, "classes": args.classes, "dim": args.dim, "threads": args.threads}
        write_results(args.out, {"benchmark": "gap_matrix", **sizes, "bit_equal": True, "results": rows})


if __name__ == "__main__":
    main()
