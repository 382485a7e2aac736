"""Data sets and their splits."""

from .digits import load_digits
from .images import LabelledImages
from .splits import Splits, split_indices

__all__ = ["LabelledImages", "Splits", "load_digits", "split_indices"]
