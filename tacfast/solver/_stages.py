"""The stages of the solver, each a function of tensors that `_operators` also registers as an operator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from . import _compiled, _reference
from ._backend import backend
from ._checks import check_class_values, check_finite, describe_bad, first_bad, result_dtype
from ._contract import Prepared, Problem, Raw, RawSamples, empty_results
from ._dense import all_active_multipliers
from ._projected_gradient import predict_multipliers
from ._results import RESIDUALS, Certificate, SolverError, Status, TacSolution, with_kind

# Logits per step of the stream. On the CPU: after a matrix product torch's threads keep their cores busy for some
# milliseconds, and threads of ours would have to wait for a core: a step is so small that one thread folds it, or,
# where there is more to fold or there are more threads than these, so large that waiting does not matter.
_SMALL_STEP, _LARGE_STEP, _MOST_ROWS = 1 << 18, 1 << 23, 1 << 16
_SMALL_CLASSES, _SMALL_THREADS = 512, 4
# Multiplications up to which a product is too small for threads.
_SMALL_PRODUCT = 1 << 18


# Beyond this the squares of float64 over- or underflow, and every constraint looks alike.
_SMALLEST_ROW = 1e-140


def prepare_head_impl(W: Tensor, bias: Tensor | None) -> Tensor:
    """`Prepared.memory`; raises ValueError if an entry of W or the bias is not finite."""
    prepared, finite = backend(W.device).prepare_head(W, bias)
    if not finite and W.device.type == "cpu":
        check_finite("W", W)
        if bias is not None:
            check_finite("b", bias)
    memory: Tensor = prepared.memory
    return memory


def gaps_of_latents_impl(gaps: Tensor, latents: Tensor, head: Tensor) -> Tensor:
    """Transposed gap matrix (C, C) after latents (n, d), in the dtype of ``gaps``; ``head`` is `Prepared.memory`."""
    result = gaps.clone(memory_format=torch.contiguous_format)
    n, n_classes = latents.shape[0], gaps.shape[0]
    if backend(gaps.device) is _compiled and _compiled.fuse_gaps(result, latents, Prepared(head, n_classes)):
        return result
    chunk = chunk_rows(gaps)
    product = product_with(latents[:chunk], head, n_classes, gaps.dtype)
    for start in range(0, n, chunk):
        part = latents if n <= chunk else latents[start : start + chunk]
        logits = product(part)
        bad = backend(gaps.device).update_gaps(result, logits)
        if bad >= 0:
            raise ValueError(_explain_bad_logit(part, start, bad, n_classes))
    return result


def gaps_of_logits_impl(gaps: Tensor, logits: Tensor) -> Tensor:
    """Transposed gap matrix (C, C) after logits (n, C), in the dtype of ``gaps``."""
    result = gaps.clone(memory_format=torch.contiguous_format)
    chunk = len(logits) if logits.dtype == gaps.dtype else chunk_rows(gaps)
    for start in range(0, len(logits), chunk):
        part = logits[start : start + chunk]
        bad = backend(gaps.device).update_gaps(result, part.to(gaps.dtype))
        if bad >= 0:
            raise ValueError(f"logits: expected finite values, got {describe_bad(part, start)}")
    return result


def chunk_rows(gaps: Tensor) -> int:
    """How many rows of logits are made at a time."""
    n_classes = gaps.shape[0]
    few = n_classes <= _SMALL_CLASSES and torch.get_num_threads() <= _SMALL_THREADS
    if gaps.device.type != "cpu":
        return max(1, _LARGE_STEP // n_classes)
    return max(1, min((_SMALL_STEP if few else _LARGE_STEP) // n_classes, _MOST_ROWS))


def trimmed_gaps_impl(gaps: Tensor, logits: Sequence[Tensor], trim: float) -> Tensor:
    """Transposed trimmed gap matrix from its maximum and all logits."""
    result: Tensor = backend(gaps.device).trimmed_gaps(gaps, list(logits), trim)
    return result


def solve_classes_impl(
    W: Tensor,
    head: Tensor,
    gaps: Tensor,
    classes: Tensor,
    margin: float,
    trim: float,
    method: str,
    tol: float,
    max_iter: int,
    n_samples: int,
    raise_on_failure: bool,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Solve the QP of every class in ``classes`` from R = ``gaps``; the fields of `Raw`."""
    if gaps.device.type == "cpu":
        check_class_values(classes, gaps.shape[0])
    problem = _problem(W, head, classes, margin, tol, max_iter)
    raw = _solve(problem, gaps, method)
    worst = _worst(raw.status) if raise_on_failure or gaps.device.type == "cpu" else Status.OPTIMAL
    if worst == Status.INVALID_INPUT and gaps.device.type == "cpu":  # elsewhere the status is the answer
        check_finite("R", gaps)
    if worst > Status.INFEASIBLE and raise_on_failure:
        _fail(raw, gaps, classes, n_samples, margin, trim, kind)
    return raw.perturbations, raw.norms, raw.status, raw.iterations, raw.duals, raw.certificate


def fits_one_call(latents: Tensor, W: Tensor, bias: Tensor | None, method: str) -> bool:
    """Whether a problem is so small that the calls between its stages would take longer than the stages."""
    n_classes = W.shape[0]
    small = latents.numel() * n_classes <= _SMALL_PRODUCT and n_classes < _DENSE_CLASSES
    # A subclass of Tensor is left to the dispatcher, which has to see it.
    plain = type(latents) is type(W) is Tensor and (bias is None or type(bias) is Tensor)
    compiled = latents.device.type == "cpu" and backend(latents.device) is _compiled
    return small and plain and compiled and method != "projected-gradient"


def solve_at_once(
    latents: Tensor,
    W: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    margin: float,
    tol: float,
    max_iter: int,
    raise_on_failure: bool,
    kind: str,
) -> TacSolution | None:
    """The solution of what `fits_one_call`, to the same bits as by the stages; None where they say what is wrong."""
    check_class_values(classes, len(W))
    found = _compiled.solve_whole(
        latents,
        W,
        bias,
        classes,
        result_dtype(W, bias, latents),
        same_share=_same_share(W.dtype),
        shortest=_SMALLEST_ROW,
        margin=margin,
        tol=tol,
        max_iter=max_iter,
    )
    if found is None:
        return None
    raw, gaps = found
    worst = _worst(raw.status)
    if worst == Status.INVALID_INPUT:
        return None
    finish = _fail if worst > Status.INFEASIBLE and raise_on_failure else dress
    return finish(raw, gaps, classes, latents.shape[0], margin, 0.0, kind)


@functools.cache
def _same_share(dtype: torch.dtype) -> float:
    """Rows of W that are closer than this share of the longest are equal as far as their dtype can tell."""
    return 4 * torch.finfo(dtype).eps


def _problem(W: Tensor, head: Tensor, classes: Tensor, margin: float, tol: float, max_iter: int) -> Problem:
    prepared = Prepared(head, W.shape[0])
    longest = prepared.longest if W.device.type == "cpu" else 1.0
    if not _SMALLEST_ROW <= longest <= 1 / _SMALLEST_ROW and bool(W.any()):
        raise ValueError(f"W: expected rows no longer than 1e140, and some longer than 1e-140, got {W.abs().max():.1e}")
    return Problem(prepared, W.shape[1], _same_share(W.dtype), classes.contiguous(), margin, tol, max_iter)


def _solve(problem: Problem, gaps: Tensor, method: str) -> Raw:
    """On CUDA nothing here may depend on results, which would have to be waited for: the kernels find the regime."""
    if backend(gaps.device) is _reference:
        return _reference.solve_classes(problem, gaps)  # one method there, to the same answer
    if method == "projected-gradient":
        guess = predict_multipliers(problem.head.gram, gaps, problem.classes, problem.margin)
    elif method == "auto" and gaps.device.type == "cpu" and problem.classes.shape[0] >= _DENSE_CLASSES:
        raw, crowded = _probe(problem, gaps)
        if crowded <= _PROBES // 2:
            return _compiled.solve_classes(problem, gaps, out=raw, first=0 if crowded else _PROBES)
        guess = all_active_multipliers(problem.head.gram, gaps, problem.classes, problem.margin)
    else:
        return _compiled.solve_classes(problem, gaps)
    return _compiled.solve_classes(problem, gaps, guess=guess)


# Below so many classes the active-set method is faster than the question whether the regime is dense.
_DENSE_CLASSES = 64
_PROBES = 4


def _probe(problem: Problem, gaps: Tensor) -> tuple[Raw, int]:
    """Solve the first few classes; how many of them have large active sets tells whether most classes have."""
    raw = empty_results(problem.classes, problem.dim, gaps)
    _compiled.solve_classes(problem, gaps, out=raw, last=_PROBES, max_active=len(gaps) // 2)
    return raw, raw.status[:_PROBES].tolist().count(_compiled.CROWDED)


def solve_samples_impl(
    latents: Tensor,
    W: Tensor,
    head: Tensor,
    classes: Tensor,
    margin: float,
    tol: float,
    max_iter: int,
    return_perturbations: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One QP per latent and class; the fields of `RawSamples`."""
    logits = logits_impl(latents, head, len(W), dtype)
    if logits.device.type == "cpu":
        check_class_values(classes, len(W))
        if (bad := first_bad(logits)) >= 0:
            raise ValueError(_explain_bad_logit(latents, 0, bad, len(W)))
    problem = _problem(W, head, classes, margin, tol, max_iter)
    raw: RawSamples = backend(logits.device).solve_samples(problem, logits, return_perturbations)
    return raw.norms, raw.status, raw.iterations, raw.perturbations, raw.certificate


def logits_impl(latents: Tensor, head: Tensor, n_classes: int, dtype: torch.dtype) -> Tensor:
    """Logits (n, C) up to a constant per sample, in true ``dtype`` arithmetic whatever precision the user allows.

    They are those of W and b minus their means, which changes no difference of logits but removes what they share, and
    with it most of the rounding where W has a common offset.
    """
    return product_with(latents, head, n_classes, dtype)(latents)


def product_with(latents: Tensor, head: Tensor, n_classes: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What gives `logits_impl` of these latents, and of others of which there are no more."""
    prepared = Prepared(head, n_classes)
    small = latents.device.type == "cpu" and latents.numel() * n_classes <= _SMALL_PRODUCT
    if small and backend(latents.device) is _compiled:
        return lambda part: _compiled.small_logits(part, prepared, dtype)
    # Reduced-precision float32 products (TF32, bfloat16) cost 5e-4 in s and more: multiply in float64 instead.
    narrowed = dtype == torch.float32 and _products_are_narrowed(latents.device.type)
    inner = torch.float64 if narrowed else dtype
    weight, offset = prepared.centred[:, : latents.shape[1]].to(inner).T, prepared.offset.to(inner)

    def multiply(part: Tensor) -> Tensor:
        with torch.autocast(part.device.type, enabled=False):
            return torch.addmm(offset, part.to(inner), weight).to(dtype)

    return multiply


def _products_are_narrowed(kind: str) -> bool:
    """Whether the user allows torch less than float32 in products of float32 tensors.

    The newer switch of a backend shows the older ones too, which raise where the newer one was used.
    """
    side = torch.backends.cuda if kind == "cuda" else torch.backends.mkldnn
    return side.matmul.fp32_precision not in ("ieee", "none")


def dress(
    raw: Raw, gaps: Tensor, classes: Tensor, n_samples: int, margin: float, trim: float, kind: str
) -> TacSolution[Any]:
    """The solution around the raw results, its arrays of that kind."""
    solution: TacSolution[Any] = TacSolution(
        raw.perturbations,
        raw.norms,
        classes,
        raw.status,
        raw.iterations,
        raw.duals,
        gaps,
        Certificate(*raw.certificate.unbind(0)),
        n_samples,
        margin,
        trim,
    )
    return with_kind(solution, kind)


def _worst(status: Tensor) -> int:
    """The worst status of any class (K,), in the order of `Status`."""
    return max(status.tolist(), default=Status.OPTIMAL)


def _fail(raw: Raw, gaps: Tensor, classes: Tensor, n_samples: int, margin: float, trim: float, kind: str) -> NoReturn:
    """Raise the SolverError of what `dress` makes of the results, some class of which has failed."""
    solution = dress(raw, gaps, classes, n_samples, margin, trim, "torch")
    failed = [r for r, status in enumerate(solution.statuses) if status > Status.INFEASIBLE]
    first = failed[0]
    status = solution.statuses[first]
    residuals = ", ".join(f"{name} {float(getattr(solution.certificate, name)[first]):.1e}" for name in RESIDUALS)
    raise SolverError(
        f"{len(failed)} of {len(solution.classes)} classes failed; the first is class {int(solution.classes[first])}: "
        f"{status.name} ({status.sentence}); residuals: {residuals}. The exception's .solution holds the results; "
        "raise_on_failure=False returns them instead.",
        with_kind(solution, kind),
    )


def _explain_bad_logit(latents: Tensor, first_row: int, bad: int, n_classes: int) -> str:
    if first_bad(latents) >= 0:
        return f"latents: expected finite values, got {describe_bad(latents, first_row)}"
    row, k = divmod(bad, n_classes)
    return f"latents: expected finite logits, got an overflow for sample {first_row + row} and class {k}"
