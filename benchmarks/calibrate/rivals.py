"""What other detectors make of the same networks: Neural Cleanse and MM-BD."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from tacfast.data.randomness import isolated_randomness
from tacfast.defenses.rivals.neural_cleanse import NeuralCleanse
from tacfast.models.head import evaluation_mode
from tacfast.models.latents import resolve_head

from ..defence.networks import Suspect

# Raised when what is measured changes.
MEASUREMENT = 1
# As published, but for the restarts (150) and the steps (300): that would be half an hour for a network of 43 classes.
RESTARTS, STEPS, RATE, MOMENTUM = 30, 150, 1e-2, 0.9
# The ascent of a class ends when its sum of margins changes by less than this share.
CONVERGED = 1e-5


def measure_rivals(suspect: Suspect) -> dict[str, Any]:
    """What each rival finds of every class, and the seconds it took."""
    trained, data = suspect.trained, suspect.dataset.data
    model = trained.model
    loader = data.subset(trained.splits.clean).loader(64, shuffle=True)
    head, _ = resolve_head(model, loader, None)
    facts: dict[str, Any] = {"measurement": MEASUREMENT, "weights": suspect.weights}
    with isolated_randomness(suspect.network.seed), evaluation_mode(model):
        start = time.perf_counter()
        triggers = NeuralCleanse().search(model, head, loader)
        facts["nc"] = {"classes": list(triggers), "norms": [trigger.norm for trigger in triggers.values()]}
        middle = time.perf_counter()
        facts["mm-bd"] = {"margins": max_margins(model, head.num_classes, suspect.dataset.image_shape).tolist()}
        facts["seconds"] = {"nc": middle - start, "mm-bd": time.perf_counter() - middle}
    return facts


def max_margins(model: nn.Module, classes: int, shape: Sequence[int]) -> Tensor:
    """Largest margin of the logit of each class (C,), over all images (MM-BD, Wang et al. 2024, IEEE S&P).

    Gradient ascent from random images with pixels in [0, 1]; no clean sample is looked at.
    """
    device = next(model.parameters()).device
    found = []
    for target in range(classes):
        images = torch.rand(RESTARTS, *shape, device=device).requires_grad_()
        optimizer = torch.optim.SGD([images], RATE, MOMENTUM)
        last = torch.inf
        for _ in range(STEPS):
            margins = _margins(model(images.clamp(0, 1)).float(), target)
            (images.grad,) = torch.autograd.grad(-margins.sum(), images)
            optimizer.step()
            total = float(margins.sum().detach())
            if abs(total - last) < CONVERGED * abs(last):
                break
            last = total
        found.append(margins.detach().max())
    return torch.stack(found).double().cpu()


def _margins(logits: Tensor, target: int) -> Tensor:
    others = logits.clone()
    others[:, target] = -torch.inf
    return logits[:, target] - others.amax(1)


def mm_bd_score(margins: Sequence[float]) -> tuple[float, int]:
    """The largest margin as −log₁₀ of its p-value by a gamma distribution of the others (Bonferroni), and its class."""
    ordered = sorted(margins)
    fitted = stats.gamma.fit(ordered[:-1])
    surprise = -(float(stats.gamma.logsf(ordered[-1], *fitted)) + math.log(len(ordered))) / math.log(10)
    return surprise, max(range(len(margins)), key=margins.__getitem__)


def nc_score(classes: Sequence[int], norms: Sequence[float]) -> tuple[float, int]:
    """The published anomaly index of the smallest mask, (median − norm) / (1.4826 · MAD), and its class."""
    values = torch.tensor(norms, dtype=torch.float64)
    below = values.quantile(0.5) - values
    index = below.max() / (1.4826 * below.abs().quantile(0.5)).clamp_min(1e-12)
    return float(index), classes[int(values.argmin())]
