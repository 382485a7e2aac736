"""Published defences to compare with, one per file, behind the interface of our own."""

from .base import PruningRival, Rival
from .fine_tuning import FineTuning
from .registry import RIVALS

__all__ = ["RIVALS", "FineTuning", "PruningRival", "Rival"]
