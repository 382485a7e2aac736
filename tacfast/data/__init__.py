"""Data sets and their splits."""

from .digits import load_digits
from .folders import FolderLoader, ImageFolder, Preprocessing, find_images
from .images import LabelledImages
from .splits import Splits, hold_out, split_indices

__all__ = [
    "FolderLoader",
    "ImageFolder",
    "LabelledImages",
    "Preprocessing",
    "Splits",
    "find_images",
    "hold_out",
    "load_digits",
    "split_indices",
]
