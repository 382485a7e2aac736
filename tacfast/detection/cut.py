"""A layer in which a model can be cut in two: all gradients of its answer go through the layer's output."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# How far from where it is looked for, as a share of all layers with weights, a layer may be.
NEAR = 0.25


@dataclass(frozen=True, eq=False)
class Cut:
    """Such a layer.

    Attributes
    ----------
    name, layer : of the layer
    depth : share of the model's layers with weights that have run when it is done
    """

    name: str
    layer: nn.Module
    depth: float

    @contextmanager
    def changing(self, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """While it is entered, what the layer gives (n, ...) is replaced by ``change`` of it."""
        handle = self.layer.register_forward_hook(lambda layer, given, output: change(output))
        try:
            yield
        finally:
            handle.remove()

    def outputs(self, classify: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """What the layer gives for these inputs, (n, ...) float32."""
        seen = []

        def keep(output: Tensor) -> Tensor:
            seen.append(output.detach().float().clone())  # the next layer may write into it
            return output

        with self.changing(keep), torch.no_grad():
            classify(inputs)
        return seen[-1]


def find_cut(
    model: nn.Module, classify: Callable[[Tensor], Tensor], inputs: Tensor, depth: float, most: float = math.inf
) -> Cut | None:
    """The layer nearest to that depth in which the model can be cut; None where there is none near it.

    Parameters
    ----------
    model : of whose layers one is found
    classify : runs it, on inputs to logits
    inputs : (n, ...); a layer whose output has not n rows is none
    depth : share of the layers with weights that should have run by then
    most : numbers that the layer may give for an input
    """
    found = sorted(_candidates(model, classify, inputs, most), key=lambda cut: abs(cut.depth - depth))
    near = (cut for cut in found if abs(cut.depth - depth) <= NEAR)
    return next((cut for cut in near if _separates(cut, classify, inputs)), None)


def _candidates(model: nn.Module, classify: Callable[[Tensor], Tensor], inputs: Tensor, most: float) -> list[Cut]:
    """Layers that run once and give one tensor with a row per input; of those of one depth the last one first."""
    order: list[tuple[str, nn.Module, int, bool]] = []
    count = 0

    def note(name: str, layer: nn.Module, output: Any) -> None:
        nonlocal count
        count += any(weight.ndim > 1 for weight in layer.parameters(recurse=False))
        fits = isinstance(output, Tensor) and output.is_floating_point() and output.shape[:1] == inputs.shape[:1]
        order.append((name, layer, count, fits and output.ndim > 1 and output[0].numel() <= most))

    with ExitStack() as hooks, torch.no_grad():
        for name, layer in model.named_modules():
            if name and not isinstance(layer, torch.jit.ScriptModule):  # which takes no hooks
                hook = layer.register_forward_hook(lambda layer, given, output, name=name: note(name, layer, output))
                hooks.callback(hook.remove)
        classify(inputs)
    runs = Counter(name for name, *_ in order)
    found = [Cut(name, layer, seen / max(count, 1)) for name, layer, seen, fits in order if fits and runs[name] == 1]
    return found[::-1]


def _separates(cut: Cut, classify: Callable[[Tensor], Tensor], inputs: Tensor) -> bool:
    """Whether the logits have no gradient left when that of the layer's output is taken away."""
    given = inputs.clone().requires_grad_()
    with torch.enable_grad(), cut.changing(lambda output: output.detach().clone()):
        logits = classify(given)
        if not logits.requires_grad:
            return True
        (gradient,) = torch.autograd.grad(logits.sum(), given, allow_unused=True)
    return gradient is None
