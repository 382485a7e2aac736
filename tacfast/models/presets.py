"""How images of well-known data sets are usually fed to a network."""

from __future__ import annotations

from typing import NamedTuple

from .backdoorbench import NORMALISATION


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
