"""Small networks for demonstrations and benchmarks."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F


class PreActBlock(nn.Module):
    """Two 3×3 convolutions, each after BatchNorm and ReLU, a shortcut (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels_in, h, w) to (n, channels_out, h / stride, w / stride)."""
        y = self.conv1(F.relu(self.bn1(x)))
        return cast(Tensor, self.conv2(F.relu(self.bn2(y))) + self.shortcut(x))


class SmallPreActResNet(nn.Module):
    """PreActResNet18 made small: one block per stage, three stages, global average pooling, a linear head.

    Parameters
    ----------
    num_classes : C
    in_channels : colour channels of the images
    width : channels of the first stage; the latent dimension d is four times that
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, 1, 1, bias=False),
            PreActBlock(width, width, 1),
            PreActBlock(width, 2 * width, 2),
            PreActBlock(2 * width, 4 * width, 2),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, in_channels, h, w) to logits (n, C)."""
        return cast(Tensor, self.linear(self.features(x)))
