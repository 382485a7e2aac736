"""Train classifiers, clean or under an attack."""

from .loop import TrainedEpoch, train
from .recipe import Recipe

__all__ = ["Recipe", "TrainedEpoch", "train"]
