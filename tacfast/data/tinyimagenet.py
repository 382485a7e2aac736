"""Tiny ImageNet (Stanford CS231n, 2015), 200 classes of ImageNet, in its official layout."""

from __future__ import annotations

from pathlib import Path

import torch

from .listing import Listing, decoded, find_files, find_folder, named_files, read_text

SHAPE = (3, 64, 64)
SUFFIXES = (".jpeg",)
ANNOTATIONS = "val/val_annotations.txt"
LAYOUT = f"wnids.txt, train/<wnid>/images/*.JPEG, val/images/*.JPEG and {ANNOTATIONS} (the official layout)"


def list_images(root: Path) -> Listing:
    """List Tiny ImageNet: 100 000 images of 64×64 for training, and 10 000 of ``val`` for the test.

    The labels of the official test set were never published. Classes are in alphabetical order of their WordNet ids,
    which is that of torchvision's ``ImageFolder``, and are named by the first of their words. Normalisation, crop and
    mirroring are the customary ones. That ``std`` is about the mean of the images' own deviations; of all pixels
    together it would be 0.27, 0.27, 0.28.
    """
    folder = find_folder(
        root, ("tiny-imagenet-200", "tinyimagenet", "."), ("wnids.txt",), name="tinyimagenet", layout=LAYOUT
    )
    wnids = sorted(read_text(folder / "wnids.txt").split())
    train = [find_files(folder / "train" / wnid / "images", SUFFIXES) for wnid in wnids]
    test, test_labels = _test_images(folder, wnids)
    labels = [label for label, files in enumerate(train) for _ in files]
    files = [*(file for files in train for file in files), *test]
    return Listing(
        files=files,
        labels=torch.tensor(labels + test_labels),
        n_train=len(labels),
        shape=SHAPE,
        chunks=lambda: decoded(files, SHAPE),
        class_names=_names(folder / "words.txt", wnids),
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2302, 0.2265, 0.2262),
        padding=4,
        flip=True,
    )


def _test_images(folder: Path, wnids: list[str]) -> tuple[list[str], list[int]]:
    """The images of ``val`` in the order of their annotations, and their classes."""
    annotations = folder / ANNOTATIONS
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    rows = [line.split("\t")[:2] for line in read_text(annotations).splitlines()]
    strange = [row for row in rows if len(row) != 2 or row[1] not in numbers]
    if strange:
        raise ValueError(f"data: expected a file and a wnid in every line of {annotations}, got {strange[0]}")
    images = named_files(folder / "val" / "images", [name for name, _ in rows], source=annotations)
    return images, [numbers[wnid] for _, wnid in rows]


def _names(words: Path, wnids: list[str]) -> tuple[str, ...]:
    """The first word for each class; its wnid without the file of words."""
    lines = read_text(words).splitlines() if words.is_file() else []
    wanted = dict(zip(wnids, wnids, strict=True))
    for line in lines:  # of all 82 000 words of WordNet
        wnid, _, text = line.partition("\t")
        if wnid in wanted:
            wanted[wnid] = text.partition(",")[0]
    return tuple(wanted.values())
