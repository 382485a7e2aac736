"""The functions of `_ops` as ``torch.library`` operators with fake kernels, for ``torch.compile`` and ``torch.export``.

A plain eager call goes straight to the function: the dispatcher costs more than a small solve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _ops
from ._ext import padded_dim


def _operator(implementation: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    name = implementation.__name__.removesuffix("_impl")
    operator = torch.library.custom_op(f"tacfast::{name}", implementation, mutates_args=())
    operator.register_fake(fake)

    def call(*args: Any) -> Any:
        traced = torch.compiler.is_compiling() or any(isinstance(a, Tensor) and type(a) is not Tensor for a in args)
        return operator(*args) if traced else implementation(*args)

    return call


def _fake_prepare_head(W: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n_classes, dim = W.shape
    return (
        W.new_empty((n_classes, padded_dim(dim)), dtype=torch.float64),
        W.new_empty((n_classes, padded_dim(dim)), dtype=torch.float64),
        W.new_empty((n_classes, n_classes), dtype=torch.float64),
        W.new_empty((), dtype=torch.float64),
    )


def _fake_gaps_of_latents(gaps: Tensor, latents: Tensor, centred: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(gaps, memory_format=torch.contiguous_format)


def _fake_gaps_of_logits(gaps: Tensor, logits: Tensor) -> Tensor:
    return torch.empty_like(gaps, memory_format=torch.contiguous_format)


def _fake_trimmed_gaps(gaps: Tensor, logits: Sequence[Tensor], trim: float) -> Tensor:
    return torch.empty_like(gaps, memory_format=torch.contiguous_format)


def _fake_logits(latents: Tensor, centred: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return latents.new_empty((latents.shape[0], centred.shape[0]), dtype=dtype)


def _fake_solve_classes(
    W: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    centred: Tensor,
    gram: Tensor,
    longest: Tensor,
    gaps: Tensor,
    classes: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    count = classes.shape[0]
    return (
        gaps.new_empty((count, W.shape[1])),
        gaps.new_empty((count,)),
        gaps.new_empty((count,), dtype=torch.int8),
        gaps.new_empty((count, gaps.shape[0])),
        gaps.new_empty((6, count), dtype=torch.float64),
    )


def _fake_solve_samples(
    latents: Tensor,
    W: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    centred: Tensor,
    gram: Tensor,
    longest: Tensor,
    classes: Tensor,
    margin: float,
    tol: float,
    max_iter: int,
    return_perturbations: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, count, dim = latents.shape[0], classes.shape[0], W.shape[1] if return_perturbations else 0
    return (
        latents.new_empty((n, count), dtype=dtype),
        latents.new_empty((n, count), dtype=torch.int8),
        latents.new_empty((n, count, dim), dtype=dtype),
        latents.new_empty((6, count), dtype=torch.float64),
    )


prepare_head = _operator(_ops.prepare_head_impl, _fake_prepare_head)
gaps_of_latents = _operator(_ops.gaps_of_latents_impl, _fake_gaps_of_latents)
gaps_of_logits = _operator(_ops.gaps_of_logits_impl, _fake_gaps_of_logits)
logits = _operator(_ops.logits_impl, _fake_logits)
trimmed_gaps = _operator(_ops.trimmed_gaps_impl, _fake_trimmed_gaps)
solve_classes = _operator(_ops.solve_classes_impl, _fake_solve_classes)
solve_samples = _operator(_ops.solve_samples_impl, _fake_solve_samples)
