"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .._lazy import Registry

if TYPE_CHECKING:
    from .listing import Listing

# Where load_dataset looks if it is not told.
ROOT_VARIABLE = "TACFAST_DATA"

DATASETS: Registry[Callable[[Path], Listing]] = Registry(
    __package__,
    {
        "cifar10": "cifar10.list_images",
        "gtsrb": "gtsrb.list_images",
        "tinyimagenet": "tinyimagenet.list_images",
        "fashion-mnist": "fashion_mnist.list_images",
        "digits": "digits.list_images",
        "folder": "folder.list_images",
    },
)
"""Data sets by name; each is a function that lists the files of a folder."""
