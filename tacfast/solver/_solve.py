"""The solver in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import _checks, _operators, _stages
from ._arrays import Array, Given, hand_back, kind_of
from ._gap_matrix import GapMatrix
from ._results import Certificate, PerSampleSolution, TacSolution, with_kind


def solve_tac(
    latents: Given,
    W: Array,
    b: Array | None = None,
    *,
    classes: Sequence[int] | Array | None = None,
    margin: float = 0.0,
    trim: float = 0.0,
    method: str = "auto",
    tol: float | None = None,
    max_iter: int | None = None,
    raise_on_failure: bool = True,
) -> TacSolution[Given]:
    """Smallest shared latent shift s_k that sends all samples to class k, for every class.

    Solves  min ½‖s‖²  s.t.  (w_k − w_j)ᵀ(s + z_i) + b_k − b_j ≥ margin  for all j ≠ k and all samples i. In a
    backdoored classifier the solution for the poisoned class reconstructs the trigger-activated change (TAC), and its
    norm is abnormally small.

    Parameters
    ----------
    latents : (n, d) penultimate activations of clean samples: a tensor, a NumPy or CuPy array, or a device array of
        numba; float16 and bfloat16 are widened
    W : (C, d) weights of the last linear layer, same device, perhaps of another kind
    b : (C,) its bias; None leaves the bias out, as the paper does
    classes : target classes, a sequence or an integer tensor without duplicates; default all
    margin : m ≥ 0, in units of logits
    trim : share q in [0, 1) of each source class to leave out: R[k, j] becomes the (⌊q·n_j⌋ + 1)-th largest of
        L[i, j] − L[i, k] over the n_j samples i whose largest logit is j (the first such j), so that the shift carries
        at least a share 1 − q of them past j. With q = 0, and for a class j without samples, it is the maximum over
        all samples, which now and then is larger than that over those of class j. Keeps n × C logits.
    method : ``"active-set"``, ``"projected-gradient"`` (predicts the active sets first) or ``"auto"``; all end in the
        same active-set finish and give the same answer
    tol : bound on every residual of the certificate; default 1e-10 if the result is float64, else 1e-6
    max_iter : active-set changes per class; default 4·C + 100
    raise_on_failure : raise `SolverError` if a class ends MAX_ITER, INACCURATE or INVALID_INPUT. An infeasible class
        is an answer, not a failure.

    Returns
    -------
    TacSolution
        Of the kind of ``latents``; float64 if any input is, else float32. If ``latents`` is a tensor, and it, W or b
        requires grad, ``norms`` and ``perturbations`` carry gradients, unless one of them was made in inference mode.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, shape, device or value, each named.
    SolverError
        As described at ``raise_on_failure``.

    Notes
    -----
    Gradients are exact where the active constraints have λ > 0 and each of them is owed to one sample; elsewhere:

    - samples that are tied for a gap: all of the gradient goes to the first;
    - a constraint that holds with equality and λ = 0 takes no part;
    - a norm of 0 has the gradient 0, and so has all of a class without a solution (infeasible, INVALID_INPUT);
    - a class that ended MAX_ITER or INACCURATE has those of the active set at which it stopped.

    Second derivatives are refused with a RuntimeError. The backward pass makes the logits again, from latents, W and b
    that must not have been written to, and takes a few times as long as the solve; on CUDA it waits for the device.

    Examples
    --------
    A classifier that learns to keep the smallest of the norms from standing out::

        norms = tacfast.solve_tac(features(images), head.weight, head.bias).norms
        loss = F.cross_entropy(head(features(images)), labels) + (norms.median() / norms.min() - 1)
        loss.backward()

    References
    ----------
    Iwahana et al., "Robust Backdoor Removal by Reconstructing Trigger-Activated Changes in Latent Representation",
    arXiv 2511.08944 (there with margin 0 and without b).
    """
    trim = _checks.check_trim(trim)
    how: dict[str, Any] = {"classes": classes, "margin": margin, "method": method, "tol": tol, "max_iter": max_iter}
    solution: TacSolution[Any] | None = None
    if trim == 0 and not torch.compiler.is_compiling():
        solution = _solved_at_once(latents, W, b, raise_on_failure=raise_on_failure, **how)
    if solution is None:
        seen = GapMatrix(W, b, keep_logits=trim > 0).update(latents)
        solution = seen.solve(trim=trim, raise_on_failure=raise_on_failure, **how)
    return _with_gradients(solution, latents, W, b)


def _solved_at_once(
    latents: Array,
    W: Array,
    b: Array | None,
    *,
    classes: Sequence[int] | Array | None,
    margin: float,
    method: str,
    tol: float | None,
    max_iter: int | None,
    raise_on_failure: bool,
) -> TacSolution[Any] | None:
    """See `_stages.solve_at_once`; the arguments are those of `solve_tac`, checked here. None also if too large."""
    head = _checks.check_head(W, b)
    z = _checks.check_latents(latents, head.W)
    if not _stages.fits_one_call(z, head.W, head.b, _checks.check_method(method)):
        return None
    solution = _stages.solve_at_once(
        z,
        head.W,
        head.b,
        _checks.check_classes(classes, len(head.W), z.device),
        _checks.check_margin(margin),
        _checks.check_tol(tol, _checks.result_dtype(head.W, head.b, z)),
        _checks.check_max_iter(max_iter, len(head.W)),
        raise_on_failure,
        kind_of(latents),
    )
    hand_back(latents, W, b)
    return solution


def _with_gradients(solution: TacSolution[Any], latents: Array, W: Array, b: Array | None) -> TacSolution[Any]:
    """The solution, with norms and perturbations that depend on latents, W and b if any of these requires grad."""
    tensors = [x for x in (latents, W, b) if isinstance(x, Tensor)]
    asked = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if not (asked and isinstance(latents, Tensor)):
        return solution
    # Tensors of inference mode cannot be kept for a backward pass; compiled, there are none.
    if not torch.compiler.is_compiling() and any(x.is_inference() for x in tensors):
        return solution
    inputs = latents, _kept("W", W), None if b is None else _kept("b", b)
    hand_back(W, b)
    found = solution.perturbations, solution.norms, solution.duals, solution.gaps, solution.classes, solution.trim
    perturbations, norms = _operators.attach_gradients(*inputs, *found)
    return replace(solution, perturbations=perturbations, norms=norms)


def _kept(name: str, value: Array) -> Tensor:
    """A tensor for the backward pass: autograd notices if one is written to before that; of others this is a copy."""
    return value if isinstance(value, Tensor) else _checks.as_tensor(name, value).clone()


def solve_tac_per_sample(
    latents: Given,
    W: Array,
    b: Array | None = None,
    *,
    classes: Sequence[int] | Array | None = None,
    margin: float = 0.0,
    return_perturbations: bool = False,
    max_bytes: int = 2**31,
) -> PerSampleSolution[Given]:
    """Smallest latent shift of every single sample to every class: n·K problems.

    Parameters
    ----------
    latents, W, b, classes, margin : as of `solve_tac`
    return_perturbations : also return the shifts, (n, K, d)
    max_bytes : refuse a result larger than this

    Returns
    -------
    PerSampleSolution
        Without gradients.

    Raises
    ------
    TypeError, ValueError
        As of `solve_tac`, and if the result would take more than ``max_bytes`` bytes.
    """
    head = _checks.check_head(W, b)
    z = _checks.check_latents(latents, head.W)
    margin = _checks.check_margin(margin)
    max_bytes = _checks.check_integer("max_bytes", max_bytes, 0)
    chosen = _checks.check_classes(classes, len(head.W), z.device)
    dtype = _checks.result_dtype(head.W, head.b, z)
    width = dtype.itemsize * (1 + (z.shape[1] if return_perturbations else 0)) + 5  # of which 1 status, 4 iterations
    size = z.shape[0] * len(chosen) * width
    if size > max_bytes:
        raise ValueError(f"max_bytes: expected at least {size} for this result, got {max_bytes}")
    norms, status, iterations, perturbations, summary = _operators.solve_samples(
        z,
        head.W,
        _operators.prepare_head(head.W, head.b),
        chosen,
        margin,
        _checks.check_tol(None, dtype),
        _checks.check_max_iter(None, len(head.W)),
        return_perturbations,
        dtype,
    )
    solution = PerSampleSolution(
        norms,
        chosen,
        status,
        iterations,
        Certificate(*summary.unbind(0)),
        perturbations if return_perturbations else None,
        margin,
    )
    hand_back(latents, W, b)
    return with_kind(solution, kind_of(latents))
