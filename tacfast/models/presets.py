"""How images of well-known data sets are usually fed to a network."""

from __future__ import annotations

from typing import NamedTuple

# Mean and standard deviation by which BackdoorBench normalises images of its data sets.
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.5,), (0.5,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "celeba": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Preset(NamedTuple):
    """Normalisation and size.

    Attributes
    ----------
    mean, std : per colour channel, of pixels scaled to 0 … 1
    image_size : height and width, in pixels
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]


# As BackdoorBench has them, which published networks mostly follow.
PRESETS = {
    "cifar10": Preset(*NORMALISATION["cifar10"], (32, 32)),
    "gtsrb": Preset(*NORMALISATION["gtsrb"], (32, 32)),
    "tinyimagenet": Preset(*NORMALISATION["tiny"], (64, 64)),
    "imagenet": Preset(*NORMALISATION["imagenet"], (224, 224)),
}
