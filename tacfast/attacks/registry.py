"""Attacks by name, for images of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from .._lazy import Registry

if TYPE_CHECKING:
    from .base import Attack

# (target, number of classes, image shape, seed) → attack, with the published settings for that size.
Factory: TypeAlias = "Callable[[int, int, tuple[int, int, int], int], Attack]"

ATTACKS: Registry[Factory] = Registry(
    __package__,
    {
        "badnets": "badnets.for_images",
        "badnets-a2a": "badnets.all_to_all_for_images",
        "blended": "blended.for_images",
        "sig": "sig.for_images",
        "sig-dirty": "sig.dirty_for_images",
        "wanet": "wanet.for_images",
        "trojannn": "trojannn.for_images",
        "input-aware": "input_aware.for_images",
        "lira": "lira.for_images",
    },
)
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
