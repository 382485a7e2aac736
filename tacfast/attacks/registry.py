"""Attacks by name, for images of any size."""

from __future__ import annotations

import math
from collections.abc import Callable

from .badnets import BadNets
from .base import Attack
from .input_aware import InputAware
from .lira import LIRA
from .trojannn import TrojanNN

# name → (target, number of classes, image shape, seed) → attack, with the published settings for that size.
Factory = Callable[[int, int, tuple[int, int, int], int], Attack]


def _badnets(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    # 3 × 3 of 32 × 32 pixels, as published.
    return BadNets(target, size=max(2, round(3 * min(image_shape[1:]) / 32)))


def _trojannn(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    # A square of 7 % of the image, as published.
    return TrojanNN(target, size=max(2, round(math.sqrt(0.07) * min(image_shape[1:]))))


def _input_aware(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    # The published share, and in smaller images as many pixels as it is of MNIST's, but at most a quarter of them.
    share = min(0.25, 0.032 * max(1, 28**2 / math.prod(image_shape[1:])))
    return InputAware(target, image_shape, seed, mask_density=share)


def _lira(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    return LIRA(target, image_shape, seed)


ATTACKS: dict[str, Factory] = {
    "badnets": _badnets,
    "trojannn": _trojannn,
    "input-aware": _input_aware,
    "lira": _lira,
}


def make_attack(
    name: str, target: int, *, num_classes: int, image_shape: tuple[int, int, int], seed: int = 0
) -> Attack:
    """Make an attack by its name, with the published settings for images of that size.

    Parameters
    ----------
    name : one of ``ATTACKS``
    target : class that triggered images are sent to, in 0 … C − 1; ignored by all-to-all attacks
    num_classes : C
    image_shape : (channels, height, width)
    seed : of whatever is random in the trigger

    Raises
    ------
    ValueError
        For an unknown name, or a target that is no class.
    """
    if name not in ATTACKS:
        raise ValueError(f"attack: expected one of {', '.join(ATTACKS)}, got {name!r}")
    if not 0 <= target < num_classes:
        raise ValueError(f"target: expected a class 0 to {num_classes - 1}, got {target}")
    return ATTACKS[name](target, num_classes, image_shape, seed)
