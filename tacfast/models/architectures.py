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
        self.shortcut: nn.Module = (
            nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        )

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


class SharedPreActBlock(PreActBlock):
    """The block as He et al. 2016 use it where the shape changes: the shortcut, too, starts after BatchNorm and ReLU.

    Its layers have the names that BackdoorBench's checkpoints give them.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__(channels_in, channels_out, stride)
        self.reshapes = isinstance(self.shortcut, nn.Conv2d)
        if self.reshapes:
            self.shortcut = nn.Sequential(self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels_in, h, w) to (n, channels_out, h / stride, w / stride)."""
        activated = F.relu(self.bn1(x))
        y = self.conv1(activated)
        return cast(Tensor, self.conv2(F.relu(self.bn2(y))) + (self.shortcut(activated) if self.reshapes else x))


class PreActResNet18(nn.Module):
    """PreActResNet18 for small images (He et al. 2016, arXiv 1603.05027), laid out as BackdoorBench has it.

    A 3×3 first convolution, four stages of two blocks with 64 to 512 channels, global average pooling and a linear
    head. There is no BatchNorm or ReLU before the pooling, so that the 512 latents can be negative.

    Parameters
    ----------
    num_classes : C
    in_channels : colour channels of the images
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        self.layer1 = nn.Sequential(SharedPreActBlock(64, 64, 1), SharedPreActBlock(64, 64, 1))
        self.layer2 = nn.Sequential(SharedPreActBlock(64, 128, 2), SharedPreActBlock(128, 128, 1))
        self.layer3 = nn.Sequential(SharedPreActBlock(128, 256, 2), SharedPreActBlock(256, 256, 1))
        self.layer4 = nn.Sequential(SharedPreActBlock(256, 512, 2), SharedPreActBlock(512, 512, 1))
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, in_channels, h, w) to logits (n, C)."""
        y = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return cast(Tensor, self.linear(F.adaptive_avg_pool2d(y, 1).flatten(1)))
