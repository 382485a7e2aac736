"""What a data set is before its pixels are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .folders import Preprocessing

# Images that are decoded at once.
CHUNK = 2000
DECODING_THREADS = 4


class MissingDataError(FileNotFoundError):
    """A data set is not where it was looked for."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a data set, those for training first, and how to read them.

    Attributes
    ----------
    files : all that is read, with sizes in bytes; empty if the images come with a library. A cache is known by them
    labels : (n,) int64
    n_train : how many of the n are the official training set; n if there is no official test set
    shape : (channels, height, width) of every image
    chunks : reads the images, in this order, as tensors (b, channels, height, width), uint8 or floating point
    class_names, mean, std, padding, flip : see `ImageDataset`
    """

    files: Sequence[tuple[str, int]]
    labels: Tensor
    n_train: int
    shape: tuple[int, int, int]
    chunks: Callable[[], Iterator[Tensor]]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    flip: bool


def find_folder(root: Path, candidates: Iterable[str], markers: Iterable[str], *, name: str, layout: str) -> Path:
    """Return the first of ``root / candidate`` that holds one of ``markers``, files or folders.

    Raises
    ------
    MissingDataError
        Saying where the data set ``name`` was looked for, and that it must have this ``layout``.
    """
    places = [root / candidate for candidate in candidates]
    for place in places:
        if any((place / marker).exists() for marker in markers):
            return place
    looked = " or ".join(str(place) for place in dict.fromkeys(places))
    raise MissingDataError(
        f"data: {name} not found: looked for {looked}, which must hold {layout}; --data-root or TACFAST_DATA says where"
    )


def sizes_of(paths: Iterable[Path]) -> list[tuple[str, int]]:
    """Names and sizes in bytes of files."""
    return [(str(path), path.stat().st_size) for path in paths]


def decoded(paths: Sequence[Path], shape: tuple[int, int, int]) -> Iterator[Tensor]:
    """Decode image files, resized where they have another shape, into uint8 tensors (b, *shape) in their order.

    Raises
    ------
    ValueError
        Naming the first file that is no image.
    """
    channels, height, width = shape
    read = Preprocessing((0.0,) * channels, (1.0,) * channels, (height, width)).read
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for start in range(0, len(paths), CHUNK):
            yield torch.stack(list(pool.map(read, paths[start : start + CHUNK])))


def decoder(paths: Sequence[Path], shape: tuple[int, int, int]) -> Callable[[], Iterator[Tensor]]:
    """`decoded`, to be started later."""
    return partial(decoded, paths, shape)
