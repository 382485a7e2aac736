"""CIFAR-10 (Krizhevsky 2009): the official pickles, or folders of images as copies of it come."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .listing import Listing, MissingDataError, decoded, find_class_folders, find_folder

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
TRAIN_BATCHES, TEST_BATCH = tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch"
PICKLES = "cifar-10-batches-py"
LAYOUT = f"{PICKLES}/{TEST_BATCH} and so on (the official Python version), or train/<class>/* and test/<class>/*"


def list_images(root: Path) -> Listing:
    """List CIFAR-10: 50 000 training and 10 000 test images of 32×32 in ten classes, whichever way it came."""
    places = ("cifar10", "cifar-10", "CIFAR10", ".")
    folder = find_folder(root, places, ("train", PICKLES, TEST_BATCH), name="cifar10", layout=LAYOUT)
    official = next((place for place in (folder / PICKLES, folder) if (place / TEST_BATCH).is_file()), None)
    if official is not None:
        files = [str(official / name) for name in (*TRAIN_BATCHES, TEST_BATCH)]
        batches = [_read_batch(path)[1] for path in files]
        labels, n_train = list(chain(*batches)), len(list(chain(*batches[:-1])))
    else:
        train, test = (find_class_folders(folder / part, CLASSES) for part in ("train", "test"))
        files, labels, n_train = train.files + test.files, train.labels + test.labels, len(train.files)
    return Listing(
        files=files,
        labels=torch.tensor(labels),
        n_train=n_train,
        shape=SHAPE,
        chunks=lambda: _pixels(files) if official else decoded(files, SHAPE),
        class_names=CLASSES,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.243, 0.261),
        padding=4,
        flip=True,
    )


# What pickles of arrays ask for; the module of the first has moved over the years.
_FOR_ARRAYS = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}


class _Unpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain values and nothing else: a copy of the data may come from anybody."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse everything that arrays do not need."""
        if module.partition(".")[0] == "numpy" and name in _FOR_ARRAYS:
            return _FOR_ARRAYS[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_batch(path: str) -> tuple[Tensor, list[int]]:
    """Read the pixels (b, 3, 32, 32) uint8 of one of the official batches, and its b labels."""
    try:
        with Path(path).open("rb") as file:
            batch = _Unpickler(file, encoding="latin1").load()
        labels, pixels = [int(label) for label in batch["labels"]], batch["data"]
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072) or not set(labels) <= set(range(10)):
            raise ValueError(f"pixels of shape {pixels.shape} and type {pixels.dtype}, {len(labels)} labels")
    except FileNotFoundError as error:
        raise MissingDataError(f"data: expected a file {path}, which does not exist") from error
    except Exception as error:  # a damaged pickle raises all sorts
        raise ValueError(f"data: expected a batch of CIFAR-10, got {path}: {error}") from error
    return torch.from_numpy(pixels.reshape(-1, *SHAPE)), labels


def _pixels(paths: Sequence[str]) -> Iterator[Tensor]:
    for path in paths:
        yield _read_batch(path)[0]
