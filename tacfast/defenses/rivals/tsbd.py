"""Two-stage backdoor defence, TSBD (Lin et al. 2024, arXiv 2405.20291)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ...models.head import Head, logits_of, unwrapped
from ..held_out import HeldOut, cloned_weights, load_weights
from ..training import BELOW_ONE, COUNT, NOT_NEGATIVE, RATE, SHARE, widened
from .base import Rival, Tell, train_epochs
from .unlearning import unlearn


@dataclass(frozen=True, kw_only=True)
class TwoStageDefense(Rival):
    """Zero the weights that unlearning changes most, then fine-tune with a penalty on the norm of the gradient.

    First the clean samples are unlearned by gradient ascent. Of all output channels of the convolutions the share
    ``neurons`` whose weights changed most, in ℓ1 norm, is taken, and of the weights of these, all together, the share
    ``weights`` that changed most is set to zero in the given network. Without convolutions the linear layers but the
    head take their place. Then all weights are trained on L + λ‖∇L‖: a step follows
    (1 − α) ∇L(θ) + α ∇L(θ + r ∇L(θ) / ‖∇L(θ)‖).

    Settings as published but for fewer epochs, of two passes each here, and a larger learning rate of the unlearning,
    that is up to 1000 epochs long there. The published code takes the norm in the last formula per tensor, the paper
    over all weights, as here. Only the epochs of fine-tuning are told of.

    Parameters
    ----------
    epochs : passes over the clean samples to fine-tune
    lr, momentum, weight_decay : of the fine-tuning
    unlearning_epochs, unlearning_lr : passes at most, and the learning rate, of the unlearning
    floor : training accuracy at which the samples count as unlearned
    neurons, weights : shares that are reinitialised, n and m in the paper
    radius, alpha : r and α
    """

    name: ClassVar[str] = "tsbd"
    epochs: int = 10
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    unlearning_epochs: int = 10
    unlearning_lr: float = 1e-3
    floor: float = 0.1
    neurons: float = 0.15
    weights: float = 0.7
    radius: float = 0.05
    alpha: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_each(COUNT, "epochs", "unlearning_epochs")
        self.check_each(RATE, "lr", "unlearning_lr")
        self.check_each(BELOW_ONE, "momentum", "floor")
        self.check_each(SHARE, "neurons", "weights", "alpha")
        self.check_each(NOT_NEGATIVE, "weight_decay", "radius")

    def treat(self, model: nn.Module, head: Head, loader: Iterable[Any], held_out: HeldOut | None, tell: Tell) -> None:
        """Reinitialise and fine-tune ``model`` in place."""
        layers, given = layers_to_reset(model, head), cloned_weights(model)
        before = [layer.weight.detach().clone() for layer in layers]
        unlearn(model, head, loader, epochs=self.unlearning_epochs, lr=self.unlearning_lr, floor=self.floor)
        changes = [(layer.weight.detach() - old).abs() for layer, old in zip(layers, before, strict=True)]
        load_weights(model, given)
        with torch.no_grad():
            for layer, reset in zip(layers, most_changed(changes, self.neurons, self.weights), strict=True):
                layer.weight[reset] = 0
        self._fine_tune(unwrapped(model)[0], head, loader, tell)

    def _fine_tune(self, model: nn.Module, head: Head, loader: Iterable[Any], tell: Tell) -> None:
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        batch: list[Tensor] = []

        def step(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            batch[:] = inputs, labels
            logits = logits_of(model, inputs)
            return F.cross_entropy(widened(logits), labels), logits

        def update(loss: Tensor) -> None:
            parameters = dict(model.named_parameters())
            here = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
            there = self._gradient_ahead(model, parameters, here, batch)
            for parameter, first, second in zip(parameters.values(), here, there, strict=True):
                parameter.grad = torch.lerp(first, second, self.alpha)
            optimizer.step()

        train_epochs(model, head, loader, self.epochs, step, optimizer=optimizer, tell=tell, update=update)

    def _gradient_ahead(
        self, model: nn.Module, parameters: Mapping[str, Tensor], gradients: tuple[Tensor, ...], batch: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """∇L at the distance r up the gradient; the statistics of BatchNorm do not notice."""
        inputs, labels = batch
        norm = torch.stack([gradient.float().norm() for gradient in gradients]).norm()
        scale = self.radius / norm if norm > 0 else 0.0
        ahead = {
            name: (parameter.detach() + scale * gradient).requires_grad_()
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        }
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        loss = F.cross_entropy(widened(functional_call(model, {**buffers, **ahead}, (inputs,))), labels)
        return torch.autograd.grad(loss, list(ahead.values()), materialize_grads=True)


def layers_to_reset(model: nn.Module, head: Head) -> list[nn.Conv2d | nn.Linear]:
    """The convolutions, or else the linear layers, other than the head.

    Raises
    ------
    ValueError
        If there are none.
    """
    for kind in (nn.Conv2d, nn.Linear):
        layers = [module for module in model.modules() if isinstance(module, kind) and module is not head.module]
        if layers:
            return layers
    raise ValueError("model: expected convolutions or linear layers before the head, got none")


def most_changed(changes: list[Tensor], neurons: float, weights: float) -> list[Tensor]:
    """Which weights to reset, a boolean tensor per layer, by how much each changed, (channels out, …) per layer."""
    per_neuron = torch.cat([change.flatten(1).sum(1) for change in changes])
    count = int(neurons * len(per_neuron))
    chosen = torch.zeros_like(per_neuron, dtype=torch.bool)
    chosen[per_neuron.argsort(descending=True)[:count]] = True
    per_layer = torch.split(chosen, [len(change) for change in changes])
    values = torch.cat([change[rows].flatten() for change, rows in zip(changes, per_layer, strict=True)])
    kept = int(weights * len(values))
    least = values.sort(descending=True).values[kept - 1] if kept else torch.inf
    rows = (chosen.view(-1, *[1] * (change.ndim - 1)) for change, chosen in zip(changes, per_layer, strict=True))
    return [(change >= least) & each for change, each in zip(changes, rows, strict=True)]
