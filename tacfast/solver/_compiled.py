"""The compiled extension as a `Backend`; the only module that imports it.

Tensors come in checked; all memory, workspaces included, is allocated here, by torch.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor

from . import _reference
from ._contract import Prepared, Problem, Raw, RawSamples, empty_results, empty_samples, prepared_size

_LATENT_SCALARS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
# Work, as classes × classes × dimensions, that is worth threads: some ten milliseconds. Torch's threads keep their
# cores busy for a few of them after whatever torch has computed before, and ours would wait.
_WORTH_THREADS = 100_000_000
CROWDED = 5  # status of a class that was given up because its active set outgrew max_active

try:
    from tacfast import _C
except ImportError as error:
    _C = None  # type: ignore[assignment]
    warnings.warn(
        f"tacfast: the compiled extension is missing ({error}); solving in plain torch, which gives the same answers "
        "much more slowly. Reinstalling tacfast with a C++17 compiler at hand builds it.",
        RuntimeWarning,
        stacklevel=2,
    )


def covers(device: torch.device) -> bool:
    """Whether there is compiled code for tensors of a device."""
    return _C is not None and (device.type == "cpu" or (device.type == "cuda" and hasattr(_C, "cuda")))


def build_info() -> dict[str, Any]:
    """How the extension was built, and what it finds here; empty if it is missing."""
    return _C.build_info() if _C is not None else {}


def padded_dim(dim: int) -> int:
    """See `Backend.padded_dim`."""
    return _C.padded_dim(dim)


def prepare_head(W: Tensor, bias: Tensor | None) -> tuple[Prepared, bool]:
    """See `Backend.prepare_head`. On CUDA, nothing waits to know whether all is finite: the solve will tell."""
    weight = _unit_columns(_wide(W))
    n_classes, dim = weight.shape
    if W.device.type == "cuda":
        return _reference.form_head(weight, bias, padded_dim(dim)), True
    memory = torch.empty(prepared_size(n_classes, padded_dim(dim)), dtype=torch.float64, device=W.device)
    head = Prepared(memory, n_classes)
    wide_bias = None if bias is None else bias.double().contiguous()
    args = _C.HeadPreparation(
        scalar=_scalar(weight),
        W=weight.data_ptr(),
        classes=n_classes,
        dim=dim,
        row_stride=weight.stride(0),
        bias=0 if wide_bias is None else wide_bias.data_ptr(),
        memory=memory.data_ptr(),
        threads=_threads_for(n_classes * n_classes * dim),
    )
    return head, _C.prepare_head(args)


def solve_whole(
    latents: Tensor,
    W: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    dtype: torch.dtype,
    *,
    same_share: float,
    shortest: float,
    margin: float,
    tol: float,
    max_iter: int,
) -> tuple[Raw, Tensor] | None:
    """All stages of a small problem on the CPU in one call: the raw results and R (C, C).

    None, and no results, where W, the bias or a logit is not finite, or the longest row of W shorter than ``shortest``
    or longer than its inverse.
    """
    weight, z = _unit_columns(_wide(W)), _unit_columns(latents.to(dtype))
    (n_classes, dim), n = weight.shape, z.shape[0]
    wide_bias = None if bias is None else bias.double().contiguous()
    gaps = torch.empty((n_classes, n_classes), dtype=dtype, device=z.device)
    raw = empty_results(classes, dim, gaps)
    # In their order, not by name as elsewhere: that would take 4 % of the smallest solves.
    args = _C.WholeSolve(
        _scalar(z),
        z.data_ptr(),
        n,
        z.stride(0),
        _scalar(weight),
        weight.data_ptr(),
        weight.stride(0),
        0 if wide_bias is None else wide_bias.data_ptr(),
        n_classes,
        dim,
        same_share,
        shortest,
        classes.data_ptr(),
        classes.shape[0],
        margin,
        tol,
        max_iter,
        gaps.data_ptr(),
        raw.perturbations.data_ptr(),
        raw.norms.data_ptr(),
        raw.status.data_ptr(),
        raw.iterations.data_ptr(),
        raw.duals.data_ptr(),
        raw.certificate.data_ptr(),
    )
    workspace = _workspace(_C.whole_workspace_bytes(args), z.device)
    return (raw, gaps) if _C.solve_whole(args, workspace.data_ptr()) else None


def small_logits(latents: Tensor, head: Prepared, dtype: torch.dtype) -> Tensor:
    """Logits as of `_stages.logits_impl`, on the calling thread alone.

    Torch splits even a product of 5 × 5 over its threads, and on a busy machine waits milliseconds for one of them.
    """
    z = _unit_columns(latents.to(dtype))
    n, dim = z.shape
    logits = torch.empty((n, head.n_classes), dtype=dtype, device=z.device)
    workspace = _workspace(8 * n * (padded_dim(dim) + head.n_classes), z.device)
    args = _C.LogitProduct(
        scalar=_scalar(z),
        head=_head(head, dim, 0.0),
        latents=z.data_ptr(),
        n=n,
        row_stride=z.stride(0),
        logits=logits.data_ptr(),
        workspace=workspace.data_ptr(),
    )
    _C.multiply_logits(args)
    return logits


def update_gaps(gaps: Tensor, logits: Tensor) -> int:
    """See `Backend.update_gaps`. On CUDA, a logit that is not finite makes gaps NaN instead."""
    values = _unit_columns(logits)
    n, n_classes = values.shape
    scalar, device = _scalar(values), gaps.device
    sizes = (scalar, n, n_classes)
    workspace = _workspace(_side(device).gap_workspace_bytes(*sizes, *_threads(device)), device)
    plain = device.type == "cuda" and _gap_kernel() == "plain"
    args = _C.GapUpdate(
        scalar=scalar,
        logits=values.data_ptr(),
        n=n,
        classes=n_classes,
        row_stride=values.stride(0),
        gaps=gaps.data_ptr(),
        workspace=workspace.data_ptr(),
        threads=torch.get_num_threads(),
    )
    bad = _run("update_gaps_plain" if plain else "update_gaps", device, args)
    return -1 if bad is None else int(bad)


def _gap_kernel() -> str:
    """What makes the gaps on CUDA, by TACFAST_CUDA_GAPS: as TACFAST_ISA, for tests, benchmarks and a fault in one."""
    name = os.environ.get("TACFAST_CUDA_GAPS", "split")
    if name not in ("split", "fused", "plain"):
        raise ValueError(f"TACFAST_CUDA_GAPS: expected 'split', 'fused' or 'plain', got {name!r}")
    return name


def fuse_gaps(gaps: Tensor, latents: Tensor, head: Prepared) -> bool:
    """Fold latents (n, d) into ``gaps`` without storing their logits; returns whether it was done.

    That is where TACFAST_CUDA_GAPS asks for it and there are not too many classes.
    """
    device = gaps.device
    if device.type != "cuda" or _gap_kernel() != "fused":
        return False
    values = _unit_columns(latents.double() if gaps.dtype == torch.float64 else latents)
    scalar, n_classes = _scalar(gaps), len(gaps)
    size = _C.cuda.fused_workspace_bytes(scalar, n_classes)
    if size == 0:
        return False
    weights, offset = head.centred.to(gaps.dtype), head.offset.to(gaps.dtype)
    workspace = _workspace(size, device)
    args = _C.FusedGaps(
        scalar=scalar,
        latent_scalar=_LATENT_SCALARS[values.dtype],
        latents=values.data_ptr(),
        n=values.shape[0],
        dim=values.shape[1],
        row_stride=values.stride(0),
        weights=weights.data_ptr(),
        weight_stride=weights.stride(0),
        offset=offset.data_ptr(),
        classes=n_classes,
        gaps=gaps.data_ptr(),
        workspace=workspace.data_ptr(),
    )
    _run("update_gaps_fused", device, args)
    return True


def trimmed_gaps(gaps: Tensor, chunks: list[Tensor], trim: float) -> Tensor:
    """See `Backend.trimmed_gaps`."""
    values = [_unit_columns(chunk.to(gaps.dtype)) for chunk in chunks]
    device = gaps.device
    rows = torch.cat([_row_addresses(chunk) for chunk in values])
    trimmed = gaps.clone(memory_format=torch.contiguous_format)
    sizes = (_scalar(gaps), len(rows), len(gaps))
    workspace = _workspace(_side(device).trim_workspace_bytes(*sizes), device)
    args = _C.TrimmedGaps(
        scalar=sizes[0],
        rows=rows.data_ptr(),
        n=len(rows),
        classes=len(gaps),
        trim=trim,
        gaps=trimmed.data_ptr(),
        workspace=workspace.data_ptr(),
        threads=torch.get_num_threads(),
    )
    _run("trimmed_gaps", device, args)
    return trimmed


def solve_classes(
    problem: Problem,
    gaps: Tensor,
    *,
    out: Raw | None = None,
    first: int = 0,
    last: int | None = None,
    max_active: int | None = None,
    guess: Tensor | None = None,
) -> Raw:
    """See `Backend.solve_classes`.

    Of the classes, only those at [``first``, ``last``) are solved for; ``out`` receives the results. ``guess`` (K, C)
    float64 are multipliers to try as they are, and to take the first active set from; what fails from there is solved
    without. A class whose active set outgrows ``max_active`` is given up with status CROWDED.
    """
    n_classes, count, device = gaps.shape[0], problem.classes.shape[0], gaps.device
    threads = _threads_for(count * n_classes * problem.dim)
    raw = empty_results(problem.classes, problem.dim, gaps) if out is None else out
    teams = threads if device.type == "cpu" else count
    workspace = _workspace(_side(device).solve_workspace_bytes(n_classes, problem.dim, teams), device)
    args = _C.ClassSolve(
        scalar=_scalar(gaps),
        head=_head(problem.head, problem.dim, problem.same_share),
        gaps=gaps.data_ptr(),
        gap_stride_k=gaps.stride(0),
        gap_stride_j=gaps.stride(1),
        targets=problem.classes.data_ptr(),
        count=count,
        first=first,
        last=count if last is None else last,
        margin=problem.margin,
        tol=problem.tol,
        max_iter=problem.max_iter,
        max_active=n_classes if max_active is None else max_active,
        guess=0 if guess is None else guess.data_ptr(),
        perturbations=raw.perturbations.data_ptr(),
        norms=raw.norms.data_ptr(),
        status=raw.status.data_ptr(),
        iterations=raw.iterations.data_ptr(),
        duals=raw.duals.data_ptr(),
        certificate=raw.certificate.data_ptr(),
        workspace=workspace.data_ptr(),
        threads=threads,
    )
    _run("solve_classes", device, args)
    return raw


def solve_samples(problem: Problem, logits: Tensor, return_perturbations: bool) -> RawSamples:
    """See `Backend.solve_samples`."""
    values = logits.contiguous()
    (n, n_classes), count, dim = values.shape, len(problem.classes), problem.dim
    threads, device = torch.get_num_threads(), values.device
    raw = empty_samples(values, problem.classes, dim if return_perturbations else 0, values.dtype)
    teams = (count, threads) if device.type == "cpu" else (n, count)
    workspace = _workspace(_side(device).sample_workspace_bytes(n_classes, dim, *teams), device)
    args = _C.SampleSolve(
        scalar=_scalar(values),
        head=_head(problem.head, dim, problem.same_share),
        logits=values.data_ptr(),
        n=n,
        targets=problem.classes.data_ptr(),
        count=count,
        margin=problem.margin,
        tol=problem.tol,
        max_iter=problem.max_iter,
        norms=raw.norms.data_ptr(),
        status=raw.status.data_ptr(),
        iterations=raw.iterations.data_ptr(),
        perturbations=raw.perturbations.data_ptr() if return_perturbations else 0,
        certificate=raw.certificate.data_ptr(),
        workspace=workspace.data_ptr(),
        threads=threads,
    )
    _run("solve_samples", device, args)
    return raw


def _head(head: Prepared, dim: int, same_share: float) -> _C.PreparedHead:
    return _C.PreparedHead(memory=head.memory.data_ptr(), classes=head.n_classes, dim=dim, same_share=same_share)


def _scalar(tensor: Tensor) -> int:
    return 1 if tensor.dtype == torch.float64 else 0


def _wide(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _unit_columns(matrix: Tensor) -> Tensor:
    """The matrix itself if its rows are contiguous, else a copy of which they are."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _workspace(size: int, device: torch.device) -> Tensor:
    """Scratch memory; torch aligns it to 64 bytes."""
    return torch.empty(size, dtype=torch.uint8, device=device)


def _row_addresses(matrix: Tensor) -> Tensor:
    step = matrix.stride(0) * matrix.element_size()
    return matrix.data_ptr() + torch.arange(len(matrix), device=matrix.device) * step


def _side(device: torch.device) -> Any:
    """The functions for a device."""
    return _C if device.type == "cpu" else _C.cuda


def _threads(device: torch.device) -> tuple[int, ...]:
    """What the size of a workspace depends on beside the sizes of the problem."""
    return (torch.get_num_threads(),) if device.type == "cpu" else ()


def _threads_for(work: int) -> int:
    """How many threads to share so much work of the class-wise QPs among."""
    return torch.get_num_threads() if work >= _WORTH_THREADS else 1


def _run(name: str, device: torch.device, args: Any) -> Any:
    """Run on the calling thread, or put on the current stream of the device."""
    if device.type == "cpu":
        return getattr(_C, name)(args)
    return getattr(_C.cuda, name)(args, device.index, torch.cuda.current_stream(device).cuda_stream)
