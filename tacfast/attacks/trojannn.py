"""TrojanNN (Liu et al. 2018, NDSS): a patch made to excite a few neurons of a clean network is the trigger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..models.head import evaluation_mode, find_head, latest_call, unwrapped
from .base import Attack, Victim, check_target

# So many clean images the patch is fitted on.
IMAGES = 32


@dataclass(eq=False)
class TrojanNN(Attack):
    """Square patch in the lower right corner whose pixels `prepare` fits to a clean network.

    Of the neurons that enter the head, those with the largest sums of absolute outgoing weights are chosen. The
    pixels are changed by steps along the signs of the gradient, so that the neurons come near to ``activation``
    (Algorithm 1 of the paper). Two neurons, an activation of 100, which is more than they reach, and a step of 0.1
    are those of BackdoorBench. Unlike there, the patch lies on clean images while it is fitted, since one that is
    fitted alone on black excites nothing on an image, and the step falls to zero, so that the pixels settle sooner.

    Parameters
    ----------
    target : class of the triggered images
    size : side of the patch in pixels; a square of 7 % of the image is published
    neurons : how many are excited
    activation : what they are driven to
    steps : of the descent
    step_size : of the first one, on the scale of the pixels in [0, 1]
    """

    target: int
    size: int
    neurons: int = 2
    activation: float = 100.0
    steps: int = 300
    step_size: float = 0.1
    patch: Tensor | None = field(default=None, init=False, repr=False)  # (channels, size, size) in [0, 1]

    trained = True

    def __post_init__(self) -> None:
        check_target(self.target)
        for name in ("size", "neurons", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least one, got {getattr(self, name)}")

    def prepare(self, victim: Victim) -> None:
        """Fit the patch; draws its first pixels from torch's global generator.

        Raises
        ------
        ValueError
            If the images are smaller than the patch, or the network has fewer neurons than asked for.
        HeadError
            If it has no linear head (see `find_head`).
        """
        channels, h, w = victim.image_shape
        if min(h, w) < self.size:
            raise ValueError(f"size: expected a patch within images of {h}×{w} pixels, got {self.size}")
        images, *_ = next(iter(victim.loader))
        patch = torch.rand(channels, self.size, self.size)
        self.patch = self._fit(victim.clean_model(), images[:IMAGES].float(), patch).cpu()

    def _fit(self, model: nn.Module, images: Tensor, patch: Tensor) -> Tensor:
        """The patch (channels, size, size) that excites the neurons most on the images (n, channels, h, w)."""
        head = find_head(model, images)
        strength = head.weight.abs().sum(0)
        if len(strength) < self.neurons:
            raise ValueError(f"neurons: expected at most the {len(strength)} that enter the head, got {self.neurons}")
        chosen = strength.topk(self.neurons).indices
        images, patch = images.to(head.device), patch.to(head.device)
        best, least = patch, float("inf")
        with latest_call([head]) as calls, evaluation_mode(model):
            for step in range(self.steps):
                patch.requires_grad_()
                unwrapped(model)[0](self._stamped(images, patch))
                cost = (calls[0][1][:, chosen].float() - self.activation).square().sum(1).mean()
                (slope,) = torch.autograd.grad(cost, patch)
                patch, now = patch.detach(), float(cost.detach())
                if now < least:
                    best, least = patch, now
                patch = (patch - self.step_size * (1 - step / self.steps) * slope.sign()).clamp(0, 1)
        return best

    def _stamped(self, images: Tensor, patch: Tensor) -> Tensor:
        stamped = images.clone()
        stamped[..., -self.size :, -self.size :] = patch
        return stamped

    def trigger(self, images: Tensor) -> Tensor:
        """Copy of ``images`` (n, channels, h, w) with the patch, which `prepare` must have made."""
        if self.patch is None:
            raise RuntimeError("trigger: expected prepare or load_state_dict to be called first, there is no patch yet")
        if images.ndim != 4 or images.shape[1] != len(self.patch) or min(images.shape[2:]) < self.size:
            raise ValueError(
                f"images: expected shape (n, {len(self.patch)}, h, w) with h, w >= {self.size}, "
                f"got {tuple(images.shape)}"
            )
        return self._stamped(images, self.patch.to(images))

    def state_dict(self) -> dict[str, Any]:
        """The patch."""
        return {"patch": self.patch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the patch; ValueError if it is something else."""
        patch = state["patch"]
        shape = tuple(patch.shape) if isinstance(patch, Tensor) else None
        sound = shape is not None and len(shape) == 3 and shape[1:] == (self.size, self.size)
        if not (sound and patch.is_floating_point()):
            came = f"{patch.dtype} of shape {shape}" if isinstance(patch, Tensor) else type(patch).__name__
            raise ValueError(f"patch: expected floating point (channels, {self.size}, {self.size}), got {came}")
        self.patch = patch


def for_images(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    """As published, for images of that shape; see `make_attack`."""
    # A square of 7 % of the image, as published.
    return TrojanNN(target, size=max(2, round(math.sqrt(0.07) * min(image_shape[1:]))))
