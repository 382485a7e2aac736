"""Find the last linear layer of a classifier, and check on a batch that it is the head."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .._text import listed


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

    It may be a 1×1 convolution. Where that runs on more than one position, and the average of its outputs is what
    the model answers, φ(x) is the average of its inputs: the two averages are as linear as the layer.

    Attributes
    ----------
    name : dotted name of the layer inside the model, as in ``model.get_submodule(name)``
    module : the layer itself; its input is the latent φ(x) of shape (n, d), or (n, d, h, w) for a convolution, its
        output the logits (n, C) or (n, C, h, w)
    """

    name: str
    module: nn.Linear | nn.Conv2d

    # A parametrised layer computes its weight whenever it is read, and in training mode that can change the layer
    # (spectral_norm takes a step of its power iteration): so both are read as they are in evaluation mode.

    @property
    def weight(self) -> Tensor:
        """W of shape (C, d), detached; shares memory with the model unless the layer computes it."""
        with evaluation_mode(self.module), torch.no_grad():
            return self.module.weight.detach().flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """Bias b of shape (C,), detached, as of ``weight``; None for a head without one."""
        with evaluation_mode(self.module), torch.no_grad():
            bias: Tensor | None = self.module.bias  # the stubs of torch forget that it may be None
            return None if bias is None else bias.detach()

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return self.module.out_channels if isinstance(self.module, nn.Conv2d) else self.module.out_features

    @property
    def device(self) -> torch.device:
        """The device of the weights, where inputs are sent."""
        return next(self.module.parameters()).device

    def apply(self, latents: Tensor) -> Tensor:
        """Logits (n, C) of latents (n, d), from the layer itself and with its gradients."""
        if isinstance(self.module, nn.Conv2d):
            return self.pooled(self.module(latents[:, :, None, None]))
        logits: Tensor = self.module(latents)
        return logits

    def pooled(self, values: Tensor) -> Tensor:
        """Latents (n, d) or logits (n, C) from what goes into the layer or comes out of it, (n, ·, h, w) or (n, ·)."""
        return values.flatten(2).mean(2) if isinstance(self.module, nn.Conv2d) else values


def unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """Take off nn.DataParallel, DistributedDataParallel and torch.compile; also give the prefix they put before names.

    What is left runs once on the whole batch, where hooks can see it: DataParallel runs copies on parts of it.
    """
    prefix = ""
    while True:
        if isinstance(model, (nn.DataParallel, DistributedDataParallel)):
            model, prefix = model.module, prefix + "module."
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model, prefix = inner, prefix + "_orig_mod."
        else:
            return model, prefix


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """What a model says of inputs: its output, or the logits in it, as `logits_in` finds them."""
    return logits_in(model(inputs))


def logits_in(output: object) -> Tensor:
    """The logits in what a model gives: a tensor; ``logits`` of a dictionary or object; the first tensor of a tuple.

    Raises
    ------
    HeadError
        If there are none.
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if named is None and isinstance(output, (tuple, list)) and output:
        named = output[0]
    if isinstance(named, Tensor):
        return named
    keys = f" with {listed(output)}" if isinstance(output, Mapping) else ""
    raise HeadError(
        "model: expected logits (n, C) as its output, or a dictionary or object that has them as logits, or a tuple "
        f"that begins with them, got {type(output).__name__}{keys}; wrap the model in a module that returns the logits "
        "of one head"
    )


def as_written() -> AbstractContextManager[object]:
    """Run what is compiled, a part of a model or all of it in place, as it is written.

    With hooks it would be compiled anew, for minutes, and after a few times not any more.
    """
    # Who compiles has loaded this module already, and for everybody else loading it takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def latest_call(layers: Iterable[Head]) -> Iterator[list[tuple[Head, Tensor, Tensor]]]:
    """Hold the latest call of any of the layers, (layer, latents, logits), in a list that is empty before.

    Earlier calls are dropped, so that the activations of a large model do not pile up. Meanwhile compiled models
    run uncompiled. On leaving, the hooks are gone.
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
                given = args[0] if args else kwargs["input"]
                calls[:] = [(head, head.pooled(given), head.pooled(out))]

            handles.append(layer.module.register_forward_hook(record, with_kwargs=True))
        with as_written():
            yield calls
    finally:
        for handle in handles:
            handle.remove()


def find_head(model: nn.Module, batch: Tensor, *, name: str | None = None) -> Head:
    """Find the classification head: the last linear layer that runs, whose output must be the model's output.

    The model is run once on ``batch``, in evaluation mode and without gradients; modes and hooks are
    restored, also after an exception. "Last linear layer" is the layer whose inputs arXiv 2511.08944 calls
    latents. A 1×1 convolution counts as one, before or after the global average pooling. nn.DataParallel,
    DistributedDataParallel and torch.compile are looked into: what they wrap is run by itself.

    Parameters
    ----------
    model : a classifier that maps a batch of inputs to logits of shape (n, C), or to an output with them: see
        `logits_in`
    batch : inputs of shape (n, ...), n >= 1; moved to the device of the model
    name : dotted name of the layer, if the last linear layer is not the head; with or without the prefix of a
        wrapper (``module.``, ``_orig_mod.``)

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
        output = unwrapped(model)[0](batch.to(candidates[-1].device))
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
    others = [each.name for each in candidates if each.name != head.name and each.num_classes == head.num_classes]
    _check_output(head, logits, logits_in(output), others)
    return head


def check_finite(latents: Tensor, logits: Tensor, source: str) -> None:
    """Raise, naming the ``source`` of the batch, unless latents (n, d) and logits (n, C) are finite."""
    rows = latents.isfinite().all(1) & logits.isfinite().all(1)
    if not bool(rows.all()):
        raise ValueError(
            f"{source}: expected inputs with finite latents and logits, "
            f"got a NaN or an infinity for input {int(rows.int().argmin())}"
        )


def _is_linear(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether a layer is linear, or a convolution that is so at every position."""
    if isinstance(layer, nn.Conv2d):
        pointwise = layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1
        return pointwise and layer.padding in ((0, 0), "valid", "same")
    return isinstance(layer, nn.Linear)


def _candidates(model: nn.Module, name: str | None) -> list[Head]:
    linear = [Head(path, module) for path, module in model.named_modules() if _is_linear(module)]
    if name is None:
        if not linear:
            raise HeadError(
                "model: expected a linear layer or a 1×1 convolution to be the head, "
                f"but {type(model).__name__} has none"
            )
        return linear
    path, layer = _layer(model, name)
    if layer is not None and _is_linear(layer):
        return [Head(path, layer)]
    found = "no such layer" if layer is None else f"a {type(layer).__name__}"
    known = ", ".join(["…"] * (len(linear) > 6) + [head.name for head in linear[-6:]]) or "none"
    raise HeadError(f"name: expected a linear layer or a 1×1 convolution of the model ({known}), got {name!r}: {found}")


def head_named(model: nn.Module, name: str) -> Head | None:
    """Layer of that name, with or without the prefix of a wrapper, if it can be a head."""
    path, layer = _layer(model, name)
    return Head(path, layer) if layer is not None and _is_linear(layer) else None


def _layer(model: nn.Module, name: str) -> tuple[str, nn.Module | None]:
    """Full name of a layer, which may be the second one of a tied layer, and the layer; None if there is none."""
    bare = name
    while bare.startswith(("module.", "_orig_mod.")):
        bare = bare.removeprefix("module.").removeprefix("_orig_mod.")
    for path in (name, unwrapped(model)[1] + bare):
        with suppress(AttributeError):
            return path, model.get_submodule(path)
    return name, None


def _check_affine(head: Head, latents: Tensor, logits: Tensor) -> None:
    """Raise unless logits = W latents + b, to the rounding of the dtype of the logits."""
    weight, bias = head.weight, head.bias
    wide = torch.promote_types(logits.dtype, torch.float32)
    # Convolutions on CUDA round float32 to the 10 bits of TF32 unless told not to, and products do if told to.
    eps = max(torch.finfo(logits.dtype).eps, 2**-10 if logits.is_cuda else 0)
    latents, weight, bias = latents.to(wide), weight.to(wide), None if bias is None else bias.to(wide)
    affine = nn.functional.linear(latents, weight, bias)
    summands = nn.functional.linear(latents.abs(), weight.abs(), None if bias is None else bias.abs())
    if not bool(((logits - affine).abs() <= 4 * eps * summands).all()):
        raise HeadError(
            f"head {head.name!r}: its output is not weight @ latents + bias: is it a modified or quantised layer, "
            "or is its output changed in place?"
        )


def _check_output(head: Head, logits: Tensor, output: Tensor, others: Sequence[str]) -> None:
    """Raise, saying what differs, unless the output is that of the head, perhaps cast; ``others`` are as wide."""
    where = f"head {head.name!r}"
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
    elif others:  # as in distilled models, whose output is the mean of two heads
        cause = (
            f"something changes the logits after this layer, or what {listed(others)} gives is mixed in: wrap the "
            "model in a module that returns the logits of one head"
        )
    else:
        cause = "something changes the logits after this layer"
    raise HeadError(f"{where}: expected logits == head(latents), but they differ by up to {difference:.3g}; {cause}")
