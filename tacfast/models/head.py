"""Find the last linear layer of a classifier, and check on a batch that it is the head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class HeadError(ValueError):
    """The model has no linear head, or the layer that looks like one does not produce the model's output."""


@dataclass(frozen=True, eq=False)
class Head:
    """The last linear layer of a classifier f(x) = W φ(x) + b.

    Attributes
    ----------
    name : dotted name of the layer inside the model, as in ``model.get_submodule(name)``
    module : the layer itself; its input is the latent φ(x) of shape (n, d), its output the logits (n, C)
    """

    name: str
    module: nn.Linear

    @property
    def weight(self) -> Tensor:
        """W of shape (C, d), detached, sharing memory with the model."""
        return self.module.weight.detach()

    @property
    def bias(self) -> Tensor | None:
        """Bias b of shape (C,), detached, sharing memory with the model; None for a head without one."""
        return None if self.module.bias is None else self.module.bias.detach()

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return self.module.out_features

    @property
    def device(self) -> torch.device:
        """The device of the weights, where inputs are sent."""
        return self.module.weight.device


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and each back as it was on leaving, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def latest_call(layers: Iterable[Head]) -> Iterator[list[tuple[Head, Tensor, Tensor]]]:
    """Hold the latest call of any of the layers, (layer, input, output), in a list that is empty before.

    Earlier calls are dropped, so that the activations of a large model do not pile up. On leaving, the hooks
    are gone.
    """
    calls: list[tuple[Head, Tensor, Tensor]] = []
    handles = []
    try:
        for layer in layers:

            def record(
                _: nn.Module,
                args: tuple[Tensor, ...],
                kwargs: dict[str, Tensor],
                out: Tensor,
                head: Head = layer,
            ) -> None:
                calls[:] = [(head, args[0] if args else kwargs["input"], out)]

            handles.append(layer.module.register_forward_hook(record, with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def find_head(model: nn.Module, batch: Tensor, *, name: str | None = None) -> Head:
    """Find the classification head: the last linear layer that runs, whose output must be the model's output.

    The model is run once on ``batch``, in evaluation mode and without gradients; modes and hooks are
    restored, also after an exception. "Last linear layer" is the layer whose inputs arXiv 2511.08944 calls
    latents.

    Parameters
    ----------
    model : a classifier that maps a batch of inputs to logits of shape (n, C)
    batch : inputs of shape (n, ...), n >= 1; moved to the device of the model
    name : dotted name of the layer, if the last linear layer is not the head

    Returns
    -------
    Head

    Raises
    ------
    HeadError
        If the model has no linear layer, ``name`` is not a linear layer of it, or logits != head(latents);
        the message says what differs.
    TypeError
        If ``model`` is no module or ``batch`` no tensor.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(batch, Tensor):
        raise TypeError(f"batch: expected a torch.Tensor of inputs (n, ...), got {type(batch).__name__}")
    if batch.ndim == 0 or len(batch) == 0:
        raise ValueError(f"batch: expected at least one input, got shape {tuple(batch.shape)}")
    candidates = _candidates(model, name)
    with latest_call(candidates) as calls, evaluation_mode(model), torch.no_grad():
        output = model(batch.to(candidates[-1].device))
    if not calls:
        raise HeadError(f"model: none of its linear layers ran on the batch ({type(model).__name__})")
    head, latents, logits = calls[0]
    _check_output(head, latents, logits, output, len(batch))
    return head


def _candidates(model: nn.Module, name: str | None) -> list[Head]:
    linear = {path: Head(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    if name is None:
        if not linear:
            raise HeadError(f"model: expected a linear layer to be the head, but {type(model).__name__} has none")
        return list(linear.values())
    if name in linear:
        return [linear[name]]
    modules = dict(model.named_modules())
    found = f"a {type(modules[name]).__name__}" if name in modules else "no such layer"
    known = ", ".join(linear) or "none"
    raise HeadError(f"name: expected a linear layer of the model ({known}), got {name!r}: {found}")


def _check_output(head: Head, latents: Tensor, logits: Tensor, output: object, n: int) -> None:
    """Raise, saying what differs, unless output == head(latents) with one latent per input."""
    where = f"head {head.name!r}"
    if not isinstance(output, Tensor):
        raise HeadError(f"model: expected one tensor of logits (n, C) as its output, got {type(output).__name__}")
    if latents.ndim != 2 or len(latents) != n:
        raise HeadError(f"{where}: expected latents of shape ({n}, d), one row per input, got {tuple(latents.shape)}")
    if output.shape != logits.shape:
        raise HeadError(
            f"{where}: expected the model's output to be the layer's output of shape {tuple(logits.shape)}, "
            f"got {tuple(output.shape)}; give the name of the head if it is another layer"
        )
    affine = nn.functional.linear(latents, head.weight, head.bias)
    # Two matrix products of the same operands: only the rounding of the dtype may separate them.
    tolerance = 64 * torch.finfo(affine.dtype).eps * max(float(affine.abs().max()), 1.0)
    if not float((logits - affine).abs().max()) <= tolerance:
        raise HeadError(f"{where}: its output is not weight @ latents + bias: is it a modified or quantised layer?")
    difference = float((output - affine).abs().max())
    if difference <= tolerance:
        return
    if torch.allclose(output, affine.softmax(1), atol=1e-4) or torch.allclose(output, affine.log_softmax(1), atol=1e-4):
        cause = "the model ends in a softmax: remove it, logits are needed"
    else:
        cause = "something changes the logits after this layer"
    raise HeadError(f"{where}: expected logits == head(latents), but they differ by up to {difference:.3g}; {cause}")
