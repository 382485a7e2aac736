"""Train classifiers, clean or under an attack."""

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .loop import TrainedEpoch, train
    from .recipe import Recipe
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = ["Recipe", "TrainedEpoch", "train"]
