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

    A 3×3 first convolution, four stages of two blocks, global average pooling and a linear head. There is no BatchNorm
    or ReLU before the pooling, so that the latents can be negative.

    Parameters
    ----------
    num_classes : C
    in_channels : colour channels of the images
    width : channels of the first stage; every stage doubles them, and the latent dimension d is eight times that
    stem_stride : stride of the first convolution: 2 makes the network four times as fast. Its kernel is 3×3, or large
        enough to see every pixel
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 64, stem_stride: int = 1) -> None:
        super().__init__()
        kernel = max(3, stem_stride + 1 - stem_stride % 2)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stem_stride, kernel // 2, bias=False)
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.layer4 = _stage(4 * width, 8 * width, 2)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, in_channels, h, w) to logits (n, C)."""
        y = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return cast(Tensor, self.linear(F.adaptive_avg_pool2d(y, 1).flatten(1)))


def _stage(before: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(SharedPreActBlock(before, channels, stride), SharedPreActBlock(channels, channels, 1))


class SmallVggBn(nn.Module):
    """VGG-11 with BatchNorm (Simonyan & Zisserman 2015, arXiv 1409.1556) for small images: one linear layer at the end.

    Parameters
    ----------
    num_classes : C
    in_channels : colour channels of the images
    width : channels of the first convolution, a quarter to an eighth of those of the last; 64 as published
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for stage in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
            for factor in stage:
                layers += [nn.Conv2d(before, factor * width, 3, 1, 1), nn.BatchNorm2d(factor * width), nn.ReLU()]
                before = factor * width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, in_channels, h, w) to logits (n, C)."""
        return cast(Tensor, self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)))
