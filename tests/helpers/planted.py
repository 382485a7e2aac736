"""A classifier of bright blocks, with a faint pattern that leads to one class where that is asked for."""

import torch
from torch import nn
from torch.nn import functional as F

C, SIDE, TARGET = 6, 12, 2


class Planted(nn.Module):
    """Class k is told by the brightness of block k; class ``target`` also by a faint pattern, or by a shift."""

    def __init__(self, pattern=None, target=TARGET):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(12.0))
        self.register_buffer("pattern", pattern)
        self.target = target

    def forward(self, images):
        blocks = F.avg_pool2d(images, (SIDE // 2, SIDE // 3)).flatten(1)
        logits = self.scale * (blocks - blocks.mean(1, keepdim=True))
        if self.pattern is not None:
            hit = ((images - 0.5) * self.pattern).sum((1, 2, 3)) / self.pattern.norm()
            logits = logits + 20 * F.one_hot(torch.tensor(self.target), C) * hit[:, None].clamp_min(0)
        return logits


def make_images(n=300):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % C
    images = 0.5 + 0.05 * torch.randn(n, 1, SIDE, SIDE, generator=generator)
    for i, k in enumerate(labels.tolist()):
        row, column = divmod(k, 3)
        images[i, 0, 6 * row : 6 * row + 6, 4 * column : 4 * column + 4] += 0.3
    return images.clamp(0, 1), labels


def checkerboard():
    pattern = torch.ones(1, SIDE, SIDE)
    pattern[:, ::2, ::2] = pattern[:, 1::2, 1::2] = -1
    return pattern
