"""German Traffic Sign Recognition Benchmark (Stallkamp et al. 2012, Neural Networks 32), as torchvision lays it out."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from .listing import Listing, decoded, find_files, find_folder, named_files, read_text

CLASSES = (
    "speed limit 20",
    "speed limit 30",
    "speed limit 50",
    "speed limit 60",
    "speed limit 70",
    "speed limit 80",
    "end of speed limit 80",
    "speed limit 100",
    "speed limit 120",
    "no passing",
    "no passing for vehicles over 3.5 t",
    "right of way at the next intersection",
    "priority road",
    "yield",
    "stop",
    "no vehicles",
    "vehicles over 3.5 t prohibited",
    "no entry",
    "general caution",
    "dangerous curve to the left",
    "dangerous curve to the right",
    "double curve",
    "bumpy road",
    "slippery road",
    "road narrows on the right",
    "road work",
    "traffic signals",
    "pedestrians",
    "children crossing",
    "bicycles crossing",
    "beware of ice or snow",
    "wild animals crossing",
    "end of all speed and passing limits",
    "turn right ahead",
    "turn left ahead",
    "ahead only",
    "go straight or right",
    "go straight or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no passing",
    "end of no passing for vehicles over 3.5 t",
)
SHAPE = (3, 32, 32)
TRAIN, TEST, ANSWERS = "GTSRB/Training", "GTSRB/Final_Test/Images", "GT-final_test.csv"
LAYOUT = f"{TRAIN}/<00000 to 00042>/*.ppm, {TEST}/*.ppm and {ANSWERS} (torchvision's layout)"


def list_images(root: Path) -> Listing:
    """List GTSRB: traffic signs of 15 to 250 pixels in 43 classes, resized to 32×32 as the backdoor literature does.

    Left and right matter, so that images are not mirrored.
    """
    folder = find_folder(root, ("gtsrb", "."), (TRAIN,), name="gtsrb", layout=LAYOUT)
    train = [find_files(folder / TRAIN / f"{label:05}", (".ppm",)) for label in range(len(CLASSES))]
    test, test_labels = _test_images(folder)
    labels = [label for label, files in enumerate(train) for _ in files]
    files = [*(file for files in train for file in files), *test]
    return Listing(
        files=files,
        labels=torch.tensor(labels + test_labels),
        n_train=len(labels),
        shape=SHAPE,
        chunks=lambda: decoded(files, SHAPE),
        class_names=CLASSES,
        mean=(0.3403, 0.3121, 0.3214),
        std=(0.2724, 0.2608, 0.2669),
        padding=4,
        flip=False,
    )


def _test_images(folder: Path) -> tuple[list[str], list[int]]:
    """The test images in the order of the list of answers, and their classes."""
    answers = folder / ANSWERS
    try:
        rows = list(csv.DictReader(read_text(answers).splitlines(), delimiter=";"))
        names, labels = [row["Filename"] for row in rows], [int(row["ClassId"]) for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"data: expected columns Filename;…;ClassId in {answers}") from error
    strange = [label for label in labels if not 0 <= label < len(CLASSES)]
    if strange:
        raise ValueError(f"data: expected classes 0 to {len(CLASSES) - 1} in {answers}, got {strange[0]}")
    return named_files(folder / TEST, names, source=answers), labels
