"""Tiny copies of data sets in their official layouts; every function returns the pixels that must be read."""

import gzip
import struct

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

RNG = np.random.default_rng(0)
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WNIDS = ("n02", "n10", "n01")


def noise(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def draw(path, size=32):
    """Save random pixels without loss, whatever the name says; returns them as (channels, h, w)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = noise(size, size, 3)
    Image.fromarray(pixels).save(path, format="PPM" if path.suffix == ".ppm" else "PNG")
    return pixels.transpose(2, 0, 1)


def cifar_folders(folder, names=CIFAR):
    """Two images per class for training and one for the test."""
    train = [draw(folder / "train" / name / f"{i}.png") for name in names for i in range(2)]
    return train + [draw(folder / "test" / name / "0.png") for name in names]


def string(content):
    """A string of Python 2, in a pickle."""
    return b"T" + struct.pack("<i", len(content)) + content


def whole(*numbers):
    return b"".join(b"J" + struct.pack("<i", number) for number in numbers)


def batch_of_python2(pixels, labels):
    """A pickle of protocol 2 as Python 2 wrote it: {'data': array, 'labels': list, 'batch_label': str}."""
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + whole(0, 1) + b"\x87R"
    dtype += b"(" + whole(3) + string(b"|") + b"NNN" + whole(-1, -1, 0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + whole(0) + b"\x85" + string(b"b")
    array += b"\x87R" + b"(" + whole(1) + b"(" + whole(*pixels.shape) + b"t" + dtype + b"\x89"
    array += string(pixels.tobytes()) + b"tb"
    items = string(b"batch_label") + string(b"training batch 1 of 5")
    items += string(b"labels") + b"](" + whole(*labels) + b"e" + string(b"data") + array
    return b"\x80\x02}(" + items + b"u."


def cifar_pickles(folder):
    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels = noise(6, 2, 3072), RNG.integers(0, 10, (6, 2))
    for i, name in enumerate(("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")):
        (folder / name).write_bytes(batch_of_python2(pixels[i], labels[i]))
    (folder / "test_batch").write_bytes(batch_of_python2(pixels[5], labels[5]))
    return pixels.reshape(12, 3, 32, 32), labels.ravel()


def signs(folder):
    """One image per class for training and three for the test, whose answers are in another order."""
    pixels = [draw(folder / "GTSRB" / "Training" / f"{k:05}" / "00000_00001.ppm") for k in range(43)]
    test = {i: draw(folder / "GTSRB" / "Final_Test" / "Images" / f"{i:05}.ppm") for i in range(3)}
    lines = [f"{i:05}.ppm;53;54;6;5;48;49;{label}" for i, label in ((2, 16), (0, 42), (1, 0))]
    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    (folder / "GT-final_test.csv").write_bytes("\r\n".join([header, *lines, ""]).encode())
    return [*pixels, test[2], test[0], test[1]]


def tiny(folder):
    """Two images per class for training, and three of val in an order of their own."""
    train = {(w, i): draw(folder / "train" / w / "images" / f"{w}_{i}.JPEG", 64) for w in WNIDS for i in range(2)}
    for wnid in WNIDS:
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    val = [draw(folder / "val" / "images" / f"val_{i}.JPEG", 64) for i in range(3)]
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n" for i, wnid in ((0, "n10"), (2, "n02"), (1, "n01"))]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(WNIDS))
    (folder / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn10\tCoffee mug\n")
    return [train[w, i] for w in sorted(WNIDS) for i in range(2)] + [val[0], val[2], val[1]]


def idx(values):
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def clothes(folder, compress):
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = noise(7, 28, 28), RNG.integers(0, 10, 7, dtype=np.uint8)
    for part, rows in (("train", slice(0, 5)), ("t10k", slice(5, 7))):
        for name, values in ((f"{part}-images-idx3-ubyte", images[rows]), (f"{part}-labels-idx1-ubyte", labels[rows])):
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
            else:
                (folder / name).write_bytes(idx(values))
    return images[:, None], labels
