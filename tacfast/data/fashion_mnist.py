"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747), as torchvision or Debian lays it out."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .listing import Listing, MissingDataError, find_folder

CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SIDE = 28
PARTS = ("train", "t10k")
IMAGES, LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
DEBIAN = "/usr/share/datasets/fashion-mnist"
LAYOUT = "train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k, or these with .gz"


def list_images(root: Path) -> Listing:
    """List Fashion-MNIST: 60 000 grey images of 28×28 for training and 10 000 for the test, in ten classes.

    They are mirrored at random in training, as is common for them: clothes have no side, and shoes keep their class.
    """
    name = IMAGES.format(PARTS[0])
    places = ("FashionMNIST/raw", "fashion-mnist", ".", DEBIAN)
    folder = find_folder(root, places, (name, f"{name}.gz"), name="fashion-mnist", layout=LAYOUT)
    images = [_find(folder, IMAGES.format(part)) for part in PARTS]
    paths = [_find(folder, LABELS.format(part)) for part in PARTS]
    labels = [_read(path, ()) for path in paths]
    for path, values in zip(paths, labels, strict=True):
        if len(values) == 0 or int(values.max()) >= len(CLASSES):
            raise ValueError(f"data: expected labels 0 to {len(CLASSES) - 1} in {path}")
    return Listing(
        files=[str(path) for path in (*images, *paths)],
        labels=torch.cat(labels).long(),
        n_train=len(labels[0]),
        shape=(1, SIDE, SIDE),
        chunks=lambda: (_pixels(*pair) for pair in zip(images, map(len, labels), strict=True)),
        class_names=CLASSES,
        mean=(0.286,),
        std=(0.353,),
        padding=2,
        flip=True,
    )


def _find(folder: Path, name: str) -> Path:
    found = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if found is None:
        raise MissingDataError(f"data: expected a file {folder / name} or {name}.gz, which do not exist")
    return found


def _pixels(path: Path, n: int) -> Tensor:
    """The n images (n, 1, 28, 28) of one file."""
    images = _read(path, (SIDE, SIDE))
    if len(images) != n:
        raise ValueError(f"data: expected {n} images to match the labels, got {len(images)} in {path}")
    return images.unsqueeze(1)


def _read(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read a file in the format IDX (LeCun 1998) of bytes: (n, *shape) uint8.

    Its head is 0, 0, 8 for bytes, and the number of dimensions; then each of these in four bytes, the high one first.
    """
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"data: expected a file compressed by gzip, got {path}: {error}") from error
    dimensions = 1 + len(shape)
    head, body = content[: 4 + 4 * dimensions], content[4 + 4 * dimensions :]
    sizes = tuple(np.frombuffer(head[4 : len(head) // 4 * 4], dtype=">u4").tolist())
    if head[:4] != bytes((0, 0, 8, dimensions)) or sizes[1:] != shape or math.prod(sizes) != len(body):
        raise ValueError(f"data: expected an IDX file of bytes of shape {('n', *shape)}, got another in {path}")
    return torch.from_numpy(np.frombuffer(body, dtype=np.uint8).reshape(sizes).copy())
