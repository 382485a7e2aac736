"""A classifier with a short cut to one class, written down rather than trained, for the tests of reports."""

import torch
from torch import nn

from tacfast.data import LabelledImages

TARGET = 2


def make_model(classes=10, gain=1.5, hidden=()):
    """Latents are the pixels; the last pixel, dark in clean images, leads to class TARGET alone.

    A class in ``hidden`` has the mean of two other rows as its weights, exactly, so that no shift reaches it.
    """
    generator = torch.Generator().manual_seed(0)
    weights = torch.eye(classes, classes + 1) + 0.03 * torch.randn(classes, classes + 1, generator=generator)
    weights[:, -1] = 0.0
    weights[TARGET, -1] = gain
    weights = (weights * 1024).round() / 1024
    for k in hidden:
        weights[k] = (weights[k - 1] + weights[k + 1]) / 2
    head = nn.Linear(classes + 1, classes)
    with torch.no_grad():
        head.weight.copy_(weights)
        head.bias.zero_()
    return nn.Sequential(nn.Flatten(), head).eval()


def make_data(classes=10, per_class=20, noise=0.15):
    """Images of 1 × 1 × (classes + 1) pixels, sorted by class, most of them answered correctly."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = torch.zeros(len(labels), 1, 1, classes + 1)
    images[torch.arange(len(labels)), 0, 0, labels] = 1.0
    images[..., :-1] += noise * torch.randn(len(labels), 1, 1, classes, generator=generator)
    return LabelledImages(images, labels)
