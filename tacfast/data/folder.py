"""Any images in one folder per class."""

from __future__ import annotations

from pathlib import Path

import torch

from .folders import FORMATS, pillow
from .listing import Listing, decoded, find_class_folders


def list_images(root: Path) -> Listing:
    """List images in ``<class>/*``, or in ``train/<class>/*`` with an official test set in ``test/<class>/*``.

    All are read in colour and get the size of the first one: they are resized until they cover it, and the centre is
    cut out. Nothing is known of them, so that they are normalised to [−1, 1], moved by an eighth of their size in
    training, as those of CIFAR-10 are, and not mirrored, which might change their class.
    """
    train_folder, test_folder = root / "train", root / "test"
    # A class may be called train, too.
    divided = train_folder.is_dir() and any(entry.is_dir() for entry in train_folder.iterdir())
    train = find_class_folders(train_folder if divided else root)
    files, labels = list(train.files), list(train.labels)
    if divided and test_folder.is_dir():
        test = find_class_folders(test_folder, train.class_names)
        files, labels = files + test.files, labels + test.labels
    shape = (3, *_size(files[0]))
    return Listing(
        files=files,
        labels=torch.tensor(labels),
        n_train=len(train.labels),
        shape=shape,
        chunks=lambda: decoded(files, shape),
        class_names=train.class_names,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        padding=min(shape[1:]) // 8,
        flip=False,
    )


def _size(path: str) -> tuple[int, int]:
    """Height and width of an image."""
    Image = pillow()
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.height, image.width
    except Exception as error:  # decoders raise all sorts on damaged files
        raise ValueError(f"data: expected an image, got {path}: {error}") from error
