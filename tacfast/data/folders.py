"""Images in a folder, as somebody else's network wants them."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .._lazy import needed
from .._text import listed

if TYPE_CHECKING:
    from .rows import ImageRows

MODES = {1: "L", 3: "RGB"}
# Pixels of more than eight bits: PIL clips them to white when it converts them.
DEEP_MODES = ("I", "F")
# Of the formats that PIL knows, those of photographs; others run programs (EPS) or are no pictures (PDF, HDF5).
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "TGA", "JPEG2000")
# Their usual endings, without asking PIL, which would load all that it knows.
# fmt: off
SUFFIXES = (
    ".apng", ".bmp", ".gif", ".icb", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg",
    ".jpx", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp",
)
# fmt: on
# Of SHA-256, in hexadecimal: enough to tell images apart, and short enough to list them all.
DIGEST_DIGITS = 16


@dataclass(frozen=True)
class Preprocessing:
    """From an image file to the input of a network.

    Attributes
    ----------
    mean, std : per channel, for pixels in [0, 1]: one number for grey images or three for colour
    image_size : height and width; an image is resized until it covers them (bilinear, antialiased), and the centre is
        cut out; None leaves images as they are
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in MODES or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name}: expected one finite number (grey) or three (colour), got {listed(values)}")
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"std: expected as many numbers as mean ({len(self.mean)}), got {len(self.std)}: {listed(self.std)}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std: expected numbers > 0, got {listed(self.std)}")
        if max(map(abs, (*self.mean, *self.std))) > 2:
            raise ValueError(
                f"mean, std: expected values for pixels in [0, 1], got {listed(self.mean)} and {listed(self.std)}: "
                "divide those for pixels in 0…255 by 255"
            )
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"image_size: expected height and width >= 1, got {listed(self.image_size)}")

    def read(self, path: str | Path) -> Tensor:
        """Read one image as uint8 of shape (channels, h, w), resized.

        Raises
        ------
        ValueError
            Naming the file, if it is not an image that can be read, or has more than eight bits per channel.
        ImportError
            Without the extra ``vision``.
        """
        Image = pillow()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # such as of a palette with transparency, which is as well as any
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path, formats=FORMATS) as image:
                    if image.mode.startswith(DEEP_MODES):
                        raise ValueError(f"8 bits per channel are needed, this has mode {image.mode}")
                    picture = image.convert(MODES[len(self.mean)])
            if self.image_size is not None:
                picture = self._resize(picture)
        except Exception as error:  # decoders raise all sorts on damaged files
            reason = str(error) or type(error).__name__
            raise ValueError(f"data: expected an image, got {path}: {reason}") from error
        pixels = torch.from_numpy(np.array(picture)).view(picture.height, picture.width, -1)
        return pixels.permute(2, 0, 1).contiguous()

    def _resize(self, picture: Any) -> Any:
        """Cut out the centre of the wanted shape and resize it in one step: never larger in between than it is."""
        assert self.image_size is not None
        h, w = self.image_size
        scale = min(picture.height / h, picture.width / w)
        left, top = (picture.width - scale * w) / 2, (picture.height - scale * h) / 2
        bilinear = pillow().Resampling.BILINEAR
        return picture.resize((w, h), bilinear, box=(left, top, left + scale * w, top + scale * h))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Map pixels (n, channels, h, w), uint8 or floating point in [0, 1], to float32 inputs of the same shape."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        # In place, but for the copy that `to` makes: memory that was never used is slower than all the arithmetic.
        scaled = pixels.to(torch.float32, copy=True)
        return (scaled if pixels.is_floating_point() else scaled.div_(255)).sub_(mean).div_(std)


def pillow() -> Any:
    """PIL's module of images; ImportError that names the extra, without it."""
    return needed("PIL.Image", "reading images needs Pillow: pip install 'tacfast[vision]'")


@dataclass(frozen=True, eq=False)
class ImageFolder(Dataset[tuple[Tensor | None, int, str]]):
    """Image files of a folder: one folder per class, or, without labels, all together.

    Attributes
    ----------
    paths : of the n images, sorted
    labels : (n,) class of each; None without class folders
    class_names : the name of each class 0 … C − 1, where there are class folders
    preprocessing : of every image
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...] | None
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor | None, int, str]:
        """Pixels as uint8, or None if the file cannot be read; the label, or -1; what is wrong with the file."""
        label = -1 if self.labels is None else self.labels[i]
        try:
            return self.preprocessing.read(self.paths[i]), label, ""
        except ValueError as error:
            return None, label, str(error)

    def subset(self, numbers: Sequence[int]) -> ImageFolder:
        """Only the images of these numbers."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in numbers)
        return ImageFolder(tuple(self.paths[i] for i in numbers), labels, self.class_names, self.preprocessing)

    def digests(self) -> list[str]:
        """The beginning of the SHA-256 of each file that can be read."""
        found = []
        for path in self.paths:
            with suppress(OSError):
                found.append(hashlib.sha256(path.read_bytes()).hexdigest()[:DIGEST_DIGITS])
        return found


def find_images(
    folder: Path, preprocessing: Preprocessing, num_classes: int, *, class_names: Sequence[str] | None = None
) -> ImageFolder:
    """List the images of a folder, and tell their classes from the names of its folders.

    Each folder inside ``folder`` is a class, and the images anywhere below it belong to it. Folders that are all named
    by numbers are the classes of these numbers; with ``class_names`` a folder may have one of these names instead.
    Otherwise there must be C folders, which are taken in alphabetical order, as torchvision's ``ImageFolder`` does.
    A folder that holds images and no folders has no labels. Hidden files are passed over.

    Parameters
    ----------
    folder : of the images
    preprocessing : of every image
    num_classes : C
    class_names : of the classes 0 … C − 1

    Raises
    ------
    FileNotFoundError, NotADirectoryError, ValueError
        If there are no images, images beside folders of images, or folders that are not the classes.
    ImportError
        Without the extra ``vision``.
    """
    if not folder.is_dir():
        kind = NotADirectoryError if folder.exists() else FileNotFoundError
        raise kind(f"data: expected a folder of images, got {folder}")
    pillow()  # to say so first if it is missing
    paths = sorted(path for path in _files(folder) if path.suffix.lower() in SUFFIXES)
    owners = [path.relative_to(folder).parts[0] for path in paths]
    loose = [path for path in paths if path.parent == folder]
    if not paths:
        raise ValueError(f"data: expected images, got none in {folder}")
    if len(loose) == len(paths):
        return ImageFolder(tuple(paths), None, None, preprocessing)
    if loose:
        raise ValueError(
            f"data: expected images either in one folder per class or all in {folder} itself, "
            f"got {len(loose)} of {len(paths)} there, such as {loose[0].name}"
        )
    # An empty folder is a class, too: one without images.
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    hidden = [name for name in folders if not name.isprintable()]
    if hidden:
        raise ValueError(f"data: expected folders with printable names, got {hidden[0]!r}")
    numbers, names = folder_classes(folders, num_classes, class_names)
    return ImageFolder(tuple(paths), tuple(numbers[owner] for owner in owners), names, preprocessing)


def _files(folder: Path) -> Iterator[Path]:
    """Files in and below a folder that are not hidden; links to folders are followed, each folder once."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else [name for name in folders if name[0] != "."]
        if real not in seen:
            yield from (Path(root) / name for name in files if name[0] != ".")
        seen.add(real)


def folder_classes(
    folders: list[str], num_classes: int, class_names: Sequence[str] | None
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The class of each folder, and the name of each class: see `find_images`."""
    numbered = all(name.isascii() and name.isdigit() for name in folders)
    if class_names is not None and not (numbered and set(folders).isdisjoint(class_names)):
        unknown = [name for name in folders if name not in class_names]
        if unknown:
            raise ValueError(
                f"data: expected folders named as the classes ({listed(class_names)}), got {listed(unknown)}"
            )
        return {name: class_names.index(name) for name in folders}, tuple(class_names)
    if numbered:
        numbers = {name: int(name) for name in folders}
        strangers = [name for name, number in numbers.items() if number >= num_classes]
        if strangers or len(set(numbers.values())) < len(folders):
            raise ValueError(
                f"data: expected folders named by different classes 0 to {num_classes - 1}, "
                f"got {listed(strangers or folders)}"
            )
        return numbers, tuple(class_names or map(str, range(num_classes)))
    if len(folders) != num_classes:
        raise ValueError(
            f"data: expected one folder for each of the {num_classes} classes, got {len(folders)} ({listed(folders)}); "
            "if some classes have no images, name all classes in a file (--class-names), or name folders by numbers"
        )
    return {name: number for number, name in enumerate(folders)}, tuple(folders)


@dataclass(frozen=True, eq=False)
class _Batch:
    """Images read together; ``problem`` is an error that must not be raised in a worker, where it loses its words."""

    pixels: Tensor | None
    labels: Tensor
    unreadable: list[str]
    problem: str = ""


def _collate(items: list[tuple[Tensor | None, int, str]]) -> _Batch:
    read = [(pixels, label) for pixels, label, _ in items if pixels is not None]
    unreadable = [message for pixels, _, message in items if pixels is None]
    labels = torch.tensor([label for _, label in read], dtype=torch.int64)
    sizes = sorted({tuple(pixels.shape[1:]) for pixels, _ in read})
    if len(sizes) > 1:
        return _Batch(None, labels, unreadable, _different(sizes[0], sizes[-1]))
    return _Batch(torch.stack([pixels for pixels, _ in read]) if read else None, labels, unreadable)


def _different(one: Sequence[int], other: Sequence[int]) -> str:
    (a, b), (c, d) = one, other
    return f"image_size: needed where images differ in size: the data have {a}×{b} and {c}×{d} pixels"


class FolderLoader(DataLoader[Any]):
    """Batches of an `ImageFolder` or of `ImageRows`, ready for the network.

    It yields inputs, or (inputs, labels) where there are labels.

    Parameters
    ----------
    images : from `find_images`, or rows of a data set
    batch_size : images per batch
    shuffle : for training: a new order every time, and an incomplete last batch is left out
    skip_unreadable : leave out files that cannot be read, and count them in ``unreadable``; otherwise the first is a
        ValueError
    workers : processes that read; 0 reads in this one

    Attributes
    ----------
    unreadable : messages of the files that were left out, each once
    """

    def __init__(
        self,
        images: ImageFolder | ImageRows,
        batch_size: int,
        *,
        shuffle: bool = False,
        skip_unreadable: bool = False,
        workers: int = 0,
    ) -> None:
        self.images, self.skip_unreadable = images, skip_unreadable
        self.unreadable: dict[str, None] = {}
        super().__init__(
            images,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=shuffle and len(images) >= batch_size,
            num_workers=workers,
            collate_fn=_collate,
        )

    def share(self, rank: int, size: int) -> FolderLoader:
        """A loader of the batches, in the order of the images, that fall to process ``rank`` of ``size``.

        They are batches of this loader, and in order of rank in its order; a process may have none.
        """
        assert self.batch_size is not None
        batches = -(-len(self.images) // self.batch_size)
        first, end = (batches * i // size * self.batch_size for i in (rank, rank + 1))
        return FolderLoader(
            self.images.subset(range(len(self.images))[first:end]),
            self.batch_size,
            skip_unreadable=self.skip_unreadable,
            workers=self.num_workers,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Read the images once.

        Raises
        ------
        ValueError
            For an unreadable file, unless these are skipped and their folder is still there, or images of different
            sizes without ``image_size``.
        """
        size = None
        for batch in super().__iter__():
            if batch.unreadable and not (self.skip_unreadable and self._is_there()):
                raise ValueError(batch.unreadable[0])
            self.unreadable.update(dict.fromkeys(batch.unreadable))
            if batch.problem:
                raise ValueError(batch.problem)
            if batch.pixels is None:
                continue
            size = size or batch.pixels.shape[2:]
            if batch.pixels.shape[2:] != size:
                raise ValueError(_different(size, batch.pixels.shape[2:]))
            inputs = self.images.preprocessing.normalise(batch.pixels)
            yield inputs if self.images.labels is None else (inputs, batch.labels)

    def _is_there(self) -> bool:
        """Whether the folders of all images are still there: else they are not merely damaged."""
        folders = {path.parent for path in self.images.paths} if isinstance(self.images, ImageFolder) else ()
        return all(folder.is_dir() for folder in folders)
