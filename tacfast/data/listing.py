"""What a data set is before its pixels are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .._text import listed
from .folders import SUFFIXES, Preprocessing, folder_classes

# Images that are decoded at once.
CHUNK = 2000
DECODING_THREADS = 4


class ClassFolders(NamedTuple):
    """Image files sorted by class and name, the class of each, and the names of the classes."""

    files: list[str]
    labels: list[int]
    class_names: tuple[str, ...]


class MissingDataError(FileNotFoundError):
    """A data set is not where it was looked for."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a data set, those for training first, and how to read them.

    Attributes
    ----------
    files : paths of all that is read, by which a cache is known; empty if the images come with a library
    labels : (n,) int64
    n_train : how many of the n are the official training set; n if there is no official test set
    shape : (channels, height, width) of every image
    chunks : reads the images, in this order, as tensors (b, channels, height, width), uint8 or floating point
    class_names, mean, std, padding, flip : see `ImageDataset`
    """

    files: Sequence[str]
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


def find_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Paths of what has one of these endings, in either case, in a folder, sorted; hidden files are passed over.

    Raises
    ------
    MissingDataError
        Without such a folder, or such a file in it.
    """
    try:
        with os.scandir(folder) as entries:
            shown = [entry.path for entry in entries if entry.name[0] != "."]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingDataError(f"data: expected a folder of images {folder}, which does not exist") from error
    paths = sorted(path for path in shown if path.lower().endswith(suffixes))
    if not paths:
        raise MissingDataError(f"data: expected images ({listed(suffixes)}), got none in {folder}")
    return paths


def named_files(folder: Path, names: Sequence[str], *, source: Path) -> list[str]:
    """Paths of the files in a folder that the file ``source`` names, in its order.

    Raises
    ------
    MissingDataError
        Without one of them.
    """
    found = {path.rpartition(os.sep)[2]: path for path in find_files(folder, SUFFIXES)}
    missing = [name for name in names if name not in found]
    if missing:
        raise MissingDataError(f"data: expected images named in {source}, got none for {listed(missing)} in {folder}")
    return [found[name] for name in names]


def read_text(path: Path) -> str:
    """Read a text file of a data set.

    Raises
    ------
    MissingDataError
        Without it.
    """
    if not path.is_file():
        raise MissingDataError(f"data: expected a file {path}, which does not exist")
    return path.read_text("utf-8", errors="replace")


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
        raise MissingDataError(f"data: expected one folder per class in {folder}, got none for {listed(missing)}")
    ordered = [find_files(folder / name, SUFFIXES) for name in sorted(names, key=numbers.__getitem__)]
    labels = [label for label, files in enumerate(ordered) for _ in files]
    return ClassFolders([file for files in ordered for file in files], labels, classes)


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
