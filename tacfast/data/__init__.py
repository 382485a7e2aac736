"""Data sets and their splits."""

from .datasets import DATASETS, ImageDataset, MissingDataError, load_dataset
from .digits import load_digits
from .folders import FolderLoader, ImageFolder, Preprocessing, find_images
from .images import LabelledImages
from .rows import ImageRows
from .splits import Splits, hold_out, split_indices

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
