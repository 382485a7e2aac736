"""Backdoor attacks, to test defences with."""

from .badnets import BadNets
from .base import Attack, PoisonedImages, poison

__all__ = ["Attack", "BadNets", "PoisonedImages", "poison"]
