"""The functions of `_stages` as ``torch.library`` operators with fake kernels, for torch.compile and torch.export.

A plain eager call goes straight to the function: the dispatcher costs more than a small solve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _gradients, _stages
from ._backend import backend
from ._contract import empty_results, empty_samples, prepared_size

# The types of arguments that no dispatcher needs to see: no subclass of Tensor among them.
_PLAIN = {Tensor, type(None), list, torch.dtype, int, float, bool, str}


def _registered(implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    name = implementation.__name__.removesuffix("_impl")
    operator = torch.library.custom_op(f"tacfast::{name}", implementation, mutates_args=())
    operator.register_fake(fake)
    return operator


def _operator(implementation: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    operator = _registered(implementation, fake)

    def call(*args: Any) -> Any:
        plain = not torch.compiler.is_compiling() and _PLAIN.issuperset(map(type, args))
        return implementation(*args) if plain else operator(*args)

    return call


def _fake_prepare_head(W: Tensor, bias: Tensor | None) -> Tensor:
    n_classes, dim = W.shape
    stride = backend(W.device).padded_dim(dim)
    return W.new_empty(prepared_size(n_classes, stride), dtype=torch.float64)


def _fake_gaps(gaps: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(gaps, memory_format=torch.contiguous_format)


def _fake_logits(latents: Tensor, head: Tensor, n_classes: int, dtype: torch.dtype) -> Tensor:
    return latents.new_empty((latents.shape[0], n_classes), dtype=dtype)


def _fake_solve_classes(W: Tensor, head: Tensor, gaps: Tensor, classes: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(empty_results(classes, W.shape[1], gaps))


def _fake_solve_samples(latents: Tensor, W: Tensor, head: Tensor, classes: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return_perturbations, dtype = rest[-2:]
    return tuple(empty_samples(latents, classes, W.shape[1] if return_perturbations else 0, dtype))


def _fake_attach_gradients(
    latents: Tensor, W: Tensor, b: Tensor | None, perturbations: Tensor, norms: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(perturbations), torch.empty_like(norms)


def _fake_pull_back(
    grad_perturbations: Tensor, grad_norms: Tensor, latents: Tensor, W: Tensor, b: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    found = [
        x.new_empty(x.shape if wanted else 0)
        for x, wanted in zip((latents, W, W[:, 0] if b is None else b), rest[-1], strict=True)
    ]
    return found[0], found[1], found[2]


prepare_head = _operator(_stages.prepare_head_impl, _fake_prepare_head)
gaps_of_latents = _operator(_stages.gaps_of_latents_impl, _fake_gaps)
gaps_of_logits = _operator(_stages.gaps_of_logits_impl, _fake_gaps)
logits = _operator(_stages.logits_impl, _fake_logits)
trimmed_gaps = _operator(_stages.trimmed_gaps_impl, _fake_gaps)
solve_classes = _operator(_stages.solve_classes_impl, _fake_solve_classes)
solve_samples = _operator(_stages.solve_samples_impl, _fake_solve_samples)


# These two always go through the dispatcher, which is how autograd gets to see them.
attach_gradients = _registered(_gradients.attach_gradients_impl, _fake_attach_gradients)
_pull_back = _registered(_gradients.pull_back_impl, _fake_pull_back)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.trim = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_perturbations: Tensor, grad_norms: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    found = _pull_back(grad_perturbations, grad_norms, *ctx.saved_tensors, ctx.trim, wanted)
    return *(grad if asked else None for grad, asked in zip(found, wanted, strict=True)), *(None,) * 6


def _refuse(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError(
        "latents, W, b: expected first derivatives of solve_tac only, got a second derivative (a backward through the "
        "gradients that create_graph=True kept), which is not implemented"
    )


attach_gradients.register_autograd(_backward, setup_context=_keep_inputs)
_pull_back.register_autograd(_refuse)
