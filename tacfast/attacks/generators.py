"""What attacks share whose trigger is made by a network of their own, trained along with the victim's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.head import evaluation_mode

# Whole test sets are triggered at once: so many images go through the generator together.
CHUNK = 256


def halvings(image_shape: tuple[int, int, int], smallest: int, most: int) -> int:
    """How often a generator halves images (channels, h, w): down to ``smallest`` pixels, one to ``most`` times."""
    return max(1, min(most, (min(image_shape[1:]) // smallest).bit_length() - 1))


class AnySize(nn.Module):
    """Let a network whose sizes must be multiples of something take images of any size: pad, run, and crop."""

    def __init__(self, body: nn.Module, multiple: int) -> None:
        super().__init__()
        self.body, self.multiple = body, multiple

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, h, w) to (n, channels_out, h, w), in float32 also where autocast is active."""
        h, w = images.shape[2:]
        with torch.autocast(images.device.type, enabled=False):
            padded = F.pad(images.float(), (0, -w % self.multiple, 0, -h % self.multiple), mode="replicate")
            made: Tensor = self.body(padded)[..., :h, :w]
        return made


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (n, C) in float32 of the victim in evaluation mode, with gradients; leaves it as it was.

    Its buffers do not change in evaluation mode. Where autocast is active it stays so, but the weights that it
    casts are not kept: the victim's own step casts them anew.
    """
    kind = images.device.type
    cast = torch.autocast(
        kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
    )
    with evaluation_mode(model), cast:
        logits: Tensor = model(images)
    return logits.float()


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take a step of the optimiser; no gradient is kept, and none reaches what it does not own."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.grad = slope
    optimizer.step()
    optimizer.zero_grad()


def move(network: nn.Module, optimizer: torch.optim.Optimizer | None, device: torch.device) -> None:
    """Move a network and the state of its optimiser to a device."""
    if next(network.parameters()).device != device:
        network.to(device)
        if optimizer is not None:
            optimizer.load_state_dict(optimizer.state_dict())  # casts its state to the weights' new device


def in_chunks(
    make: Callable[[Tensor, Tensor], Tensor], images: Tensor, sources: Tensor, on: nn.Module, channels: int
) -> Tensor:
    """Apply ``make`` to images and the sources of their triggers, both (n, channels, h, w), without gradients.

    It runs on the device of the network ``on``, on a few images at a time; what it makes has the device and the
    dtype of ``images``.
    """
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(f"images: expected shape (n, {channels}, h, w), got {tuple(images.shape)}")
    device = next(on.parameters()).device
    with torch.no_grad():
        made = [
            make(part.to(device).float(), source.to(device).float()).to(images)
            for part, source in zip(torch.split(images, CHUNK), torch.split(sources, CHUNK), strict=True)
        ]
        return torch.cat(made)
