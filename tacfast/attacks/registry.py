"""Attacks by name, for images of any size."""

from __future__ import annotations

import math
from collections.abc import Callable

from .badnets import BadNets
from .base import Attack
from .blended import Blended
from .input_aware import InputAware
from .lira import LIRA
from .sig import SIG
from .trojannn import TrojanNN
from .wanet import WaNet

# name → (target, number of classes, image shape, seed) → attack, with the published settings for that size.
Factory = Callable[[int, int, tuple[int, int, int], int], Attack]


def _badnets(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    return BadNets(target, size=_patch_size(image_shape))


def _badnets_all_to_all(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    return BadNets(None, size=_patch_size(image_shape), num_classes=num_classes)


def _patch_size(image_shape: tuple[int, int, int]) -> int:
    # 3 × 3 of 32 × 32 pixels, as published.
    return max(2, round(3 * min(image_shape[1:]) / 32))


def _blended(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    return Blended(target, image_shape, seed=seed)


def _sig(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    return SIG(target, frequency=_periods(image_shape))


def _sig_dirty(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    return SIG(target, frequency=_periods(image_shape), clean_label=False)


def _periods(image_shape: tuple[int, int, int]) -> int:
    # Six, as published, or as many as so few pixels can show.
    return min(6, (image_shape[2] - 1) // 2)


def _wanet(target: int, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> Attack:
    return WaNet(target, image_shape, seed=seed)


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
    "badnets-a2a": _badnets_all_to_all,
    "blended": _blended,
    "sig": _sig,
    "sig-dirty": _sig_dirty,
    "wanet": _wanet,
    "trojannn": _trojannn,
    "input-aware": _input_aware,
    "lira": _lira,
}
"""Attacks by name; `make_attack` calls them with the target, the number of classes, the image shape and a seed."""


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
