"""What a data set is before its pixels are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from .folders import SUFFIXES, Preprocessing, folder_classes, some

# Images that are decoded at once.
CHUNK = 2000
DECODING_THREADS = 4

# Path, size in bytes and time of the last change in nanoseconds. Uncompressed images all have one size, so that a size
# alone would not tell another image of the same name.
File: TypeAlias = tuple[str, int, int]


class ClassFolders(NamedTuple):
    """Image files sorted by class and name, the class of each, and the names of the classes."""

    files: list[File]
    labels: list[int]
    class_names: tuple[str, ...]


class MissingDataError(FileNotFoundError):
    """A data set is not where it was looked for."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a data set, those for training first, and how to read them.

    Attributes
    ----------
    files : all that is read, by which a cache is known; empty if the images come with a library
    labels : (n,) int64
    n_train : how many of the n are the official training set; n if there is no official test set
    shape : (channels, height, width) of every image
    chunks : reads the images, in this order, as tensors (b, channels, height, width), uint8 or floating point
    class_names, mean, std, padding, flip : see `ImageDataset`
    """

    files: Sequence[File]
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


def find_files(folder: Path, suffixes: tuple[str, ...]) -> list[File]:
    """Files in a folder with one of these endings, in either case, sorted by name; hidden ones are passed over.

    Raises
    ------
    MissingDataError
        Without such a folder, or such a file in it.
    """
    files = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower().endswith(suffixes) and entry.name[0] != "." and entry.is_file():
                    files.append(_described(entry.path, entry.stat()))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingDataError(f"data: expected a folder of images {folder}, which does not exist") from error
    if not files:
        raise MissingDataError(f"data: expected images ({some(suffixes)}), got none in {folder}")
    return sorted(files)


def find_class_folders(folder: Path, class_names: Sequence[str] | None = None) -> ClassFolders:
    """List a folder of one folder of images per class; see `folder_classes` on how their names tell the classes.

    Raises
    ------
    MissingDataError, ValueError
        If there are none, they are not the classes, or one of the classes has no images.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingDataError(f"data: expected one folder per class in {folder}, which does not exist") from error
    if not names:
        raise MissingDataError(f"data: expected one folder per class, got none in {folder}")
    numbers, classes = folder_classes(names, len(class_names or names), class_names)
    if len(numbers) < len(classes):
        missing = [name for number, name in enumerate(classes) if number not in numbers.values()]
        raise MissingDataError(f"data: expected one folder per class in {folder}, got none for {some(missing)}")
    ordered = [find_files(folder / name, SUFFIXES) for name in sorted(names, key=numbers.__getitem__)]
    labels = [label for label, files in enumerate(ordered) for _ in files]
    return ClassFolders([file for files in ordered for file in files], labels, classes)


def describe(path: Path) -> File:
    """Describe one file.

    Raises
    ------
    MissingDataError
        If there is none.
    """
    if not path.is_file():
        raise MissingDataError(f"data: expected a file {path}, which does not exist")
    return _described(str(path), path.stat())


def _described(path: str, status: os.stat_result) -> File:
    return path, status.st_size, status.st_mtime_ns


def decoded(paths: Sequence[str], shape: tuple[int, int, int]) -> Iterator[Tensor]:
    """Decode image files into uint8 tensors (b, *shape) in their order.

    One of another size is resized until it covers the shape, and its centre is cut out (see `Preprocessing`).

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


def decoder(files: Sequence[File], shape: tuple[int, int, int]) -> Callable[[], Iterator[Tensor]]:
    """`decoded`, to be started later."""
    return partial(decoded, [path for path, *_ in files], shape)
