"""The functions of `_ops` as ``torch.library`` operators with fake kernels, for ``torch.compile`` and ``torch.export``.

A plain eager call goes straight to the function: the dispatcher costs more than a small solve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _ops, _reference
from ._ext import backend, padded_dim
from ._prepared import prepared_size

# The types of arguments that no dispatcher needs to see: no subclass of Tensor among them.
_PLAIN = {Tensor, type(None), list, torch.dtype, int, float, bool, str}


def _operator(implementation: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    name = implementation.__name__.removesuffix("_impl")
    operator = torch.library.custom_op(f"tacfast::{name}", implementation, mutates_args=())
    operator.register_fake(fake)

    def call(*args: Any) -> Any:
        plain = not torch.compiler.is_compiling() and _PLAIN.issuperset(map(type, args))
        return implementation(*args) if plain else operator(*args)

    return call


def _fake_prepare_head(W: Tensor, bias: Tensor | None) -> Tensor:
    n_classes, dim = W.shape
    stride = dim if backend(W.device) is _reference else padded_dim(dim)
    return W.new_empty(prepared_size(n_classes, stride), dtype=torch.float64)


def _fake_gaps_of_latents(gaps: Tensor, latents: Tensor, head: Tensor) -> Tensor:
    return torch.empty_like(gaps, memory_format=torch.contiguous_format)


def _fake_gaps_of_logits(gaps: Tensor, logits: Tensor) -> Tensor:
    return torch.empty_like(gaps, memory_format=torch.contiguous_format)


def _fake_trimmed_gaps(gaps: Tensor, logits: Sequence[Tensor], trim: float) -> Tensor:
    return torch.empty_like(gaps, memory_format=torch.contiguous_format)


def _fake_logits(latents: Tensor, head: Tensor, n_classes: int, dtype: torch.dtype) -> Tensor:
    return latents.new_empty((latents.shape[0], n_classes), dtype=dtype)


def _fake_solve_classes(
    W: Tensor,
    head: Tensor,
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
    head: Tensor,
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
