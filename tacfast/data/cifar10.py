"""CIFAR-10 (Krizhevsky 2009): the official pickles, or folders of images as copies of it come."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .listing import Listing, decoder, describe, find_class_folders, find_folder

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
        paths = [official / name for name in (*TRAIN_BATCHES, TEST_BATCH)]
        files = [describe(path) for path in paths]
        batches = [_read_batch(path)["labels"] for path in paths]
        labels, n_train, chunks = sum(batches, []), sum(map(len, batches[:-1])), partial(_pixels, paths)
    else:
        train, test = (find_class_folders(folder / part, CLASSES) for part in ("train", "test"))
        files, labels = train.files + test.files, train.labels + test.labels
        n_train, chunks = len(train.files), decoder(files, SHAPE)
    return Listing(
        files=files,
        labels=torch.tensor(labels),
        n_train=n_train,
        shape=SHAPE,
        chunks=chunks,
        class_names=CLASSES,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.243, 0.261),
        padding=4,
        flip=True,
    )


class _Unpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain values and nothing else: a copy of the data may come from anybody."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse everything that arrays do not need."""
        if (module.partition(".")[0], name) in {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return np._core.multiarray._reconstruct if name == "_reconstruct" else getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_batch(path: Path) -> dict[str, Any]:
    """Read one of the official batches: ``data`` (b, 3072) uint8 and ``labels``, a list of b."""
    try:
        with path.open("rb") as file:
            batch = _Unpickler(file, encoding="latin1").load()
        labels, pixels = [int(label) for label in batch["labels"]], batch["data"]
        sound = pixels.dtype == np.uint8 and pixels.shape == (len(labels), 3072) and set(labels) <= set(range(10))
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises all sorts
        raise ValueError(f"data: expected a batch of CIFAR-10, got {path}: {error}") from error
    if not sound:
        raise ValueError(f"data: expected a batch of CIFAR-10, got other pixels or labels in {path}")
    return {"labels": labels, "data": pixels}


def _pixels(paths: Sequence[Path]) -> Iterator[Tensor]:
    for path in paths:
        yield torch.from_numpy(_read_batch(path)["data"].reshape(-1, *SHAPE).copy())
