"""Data sets and their splits."""

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .datasets import ImageDataset, load_dataset
    from .digits import load_digits
    from .folders import FolderLoader, ImageFolder, Preprocessing, find_images
    from .images import LabelledImages
    from .listing import MissingDataError
    from .registry import DATASETS
    from .rows import ImageRows
    from .splits import Splits, hold_out, split_indices
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "DATASETS",
    "FolderLoader",
    "ImageDataset",
    "ImageFolder",
    "ImageRows",
    "LabelledImages",
    "MissingDataError",
    "Preprocessing",
    "Splits",
    "find_images",
    "hold_out",
    "load_dataset",
    "load_digits",
    "split_indices",
]
