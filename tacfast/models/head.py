"""Find the last linear layer of a classifier, and check on a batch that it is the head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class HeadError(ValueError):
    """The model has no linear head, or the layer that looks like one does not produce the model's output."""


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Put every module back in its mode, training or evaluation, on leaving, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and each back as it was on leaving, also after an exception."""
    with kept_modes(model):
        model.eval()
        yield


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

    # A parametrised layer computes its weight whenever it is read, and in training mode that can change the layer
    # (spectral_norm takes a step of its power iteration): so both are read as they are in evaluation mode.

    @property
    def weight(self) -> Tensor:
        """W of shape (C, d), detached; shares memory with the model unless the layer computes it."""
        with evaluation_mode(self.module), torch.no_grad():
            return self.module.weight.detach()

    @property
    def bias(self) -> Tensor | None:
        """Bias b of shape (C,), detached, as of ``weight``; None for a head without one."""
        with evaluation_mode(self.module), torch.no_grad():
            bias: Tensor | None = self.module.bias  # the stubs of torch forget that it may be None
            return None if bias is None else bias.detach()

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return self.module.out_features

    @property
    def device(self) -> torch.device:
        """The device of the weights, where inputs are sent."""
        return next(self.module.parameters()).device


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
    TypeError, ValueError
        If ``model`` is no module, ``batch`` no tensor, or latents or logits are not finite.
    """
    return find_head_on(model, batch, name, source="batch")


def find_head_on(model: nn.Module, batch: Tensor, name: str | None, *, source: str) -> Head:
    """`find_head`, with errors that name the ``source`` of the batch."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(batch, Tensor):
        raise TypeError(f"{source}: expected a torch.Tensor of inputs (n, ...), got {type(batch).__name__}")
    if batch.ndim == 0 or len(batch) == 0:
        raise ValueError(f"{source}: expected at least one input, got shape {tuple(batch.shape)}")
    candidates = _candidates(model, name)
    with latest_call(candidates) as calls, evaluation_mode(model), torch.no_grad():
        output = model(batch.to(candidates[-1].device))
    if not calls:
        raise HeadError(f"model: none of its linear layers ran on the batch ({type(model).__name__})")
    head, latents, logits = calls[0]
    if latents.ndim != 2 or len(latents) != len(batch):
        raise HeadError(
            f"head {head.name!r}: expected latents of shape ({len(batch)}, d), one row per input, "
            f"got {tuple(latents.shape)}"
        )
    check_finite(latents, logits, source)
    _check_affine(head, latents, logits)
    _check_output(head, logits, output)
    return head


def check_finite(latents: Tensor, logits: Tensor, source: str) -> None:
    """Raise, naming the ``source`` of the batch, unless latents (n, d) and logits (n, C) are finite."""
    rows = latents.isfinite().all(1) & logits.isfinite().all(1)
    if not bool(rows.all()):
        raise ValueError(
            f"{source}: expected inputs with finite latents and logits, "
            f"got a NaN or an infinity for input {int(rows.int().argmin())}"
        )


def _candidates(model: nn.Module, name: str | None) -> list[Head]:
    linear = {path: Head(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    if name is None:
        if not linear:
            raise HeadError(f"model: expected a linear layer to be the head, but {type(model).__name__} has none")
        return list(linear.values())
    layer = submodule(model, name)
    if isinstance(layer, nn.Linear):
        return [Head(name, layer)]
    found = "no such layer" if layer is None else f"a {type(layer).__name__}"
    known = ", ".join(linear) or "none"
    raise HeadError(f"name: expected a linear layer of the model ({known}), got {name!r}: {found}")


def submodule(model: nn.Module, name: str) -> nn.Module | None:
    """Layer of that name, which may be the second name of a tied one; None if there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _check_affine(head: Head, latents: Tensor, logits: Tensor) -> None:
    """Raise unless logits = W latents + b, to the rounding of the dtype of the logits."""
    weight, bias = head.weight, head.bias
    wide = torch.promote_types(logits.dtype, torch.float32)
    eps = torch.finfo(logits.dtype).eps
    latents, weight, bias = latents.to(wide), weight.to(wide), None if bias is None else bias.to(wide)
    affine = nn.functional.linear(latents, weight, bias)
    summands = nn.functional.linear(latents.abs(), weight.abs(), None if bias is None else bias.abs())
    if not bool(((logits - affine).abs() <= 4 * eps * summands).all()):
        raise HeadError(
            f"head {head.name!r}: its output is not weight @ latents + bias: is it a modified or quantised layer?"
        )


def _check_output(head: Head, logits: Tensor, output: object) -> None:
    """Raise, saying what differs, unless the output of the model is that of the head, perhaps cast."""
    where = f"head {head.name!r}"
    if not isinstance(output, Tensor):
        raise HeadError(f"model: expected one tensor of logits (n, C) as its output, got {type(output).__name__}")
    if output.shape != logits.shape or not output.is_floating_point():
        raise HeadError(
            f"{where}: expected the model's output to be the layer's output, {logits.dtype} of shape "
            f"{tuple(logits.shape)}, got {output.dtype} of shape {tuple(output.shape)}; "
            "give the name of the head if it is another layer"
        )
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (output, logits))
    wide = torch.promote_types(logits.dtype, torch.float32)
    output, logits = output.to(wide), logits.to(wide)
    difference = float((output - logits).abs().max())
    if difference <= 4 * eps * float(logits.abs().max()):
        return

    def answers(expected: Tensor) -> bool:
        return torch.allclose(output, expected, rtol=4 * eps, atol=max(4 * eps, 1e-4))

    if answers(logits.softmax(1)) or answers(logits.log_softmax(1)):
        cause = "the model ends in a softmax: remove it, logits are needed"
    else:
        cause = "something changes the logits after this layer"
    raise HeadError(f"{where}: expected logits == head(latents), but they differ by up to {difference:.3g}; {cause}")
