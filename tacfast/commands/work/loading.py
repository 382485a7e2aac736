"""Somebody else's model and images, made ready from what the command line says."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn

from ..._text import excerpt, first_line, listed
from ...data import FolderLoader, ImageFolder, ImageRows
from ...models import Checkpoint, Head, HeadError, find_head, load_checkpoint, restore_model
from ...models.checkpoint import KEY, SAFETENSORS, SUFFIXES, digest_of, find_checkpoint, sidecar_of
from ...models.huggingface import ABOUT, CONFIG, PREPROCESSOR
from ...models.latents import split_batch
from ...models.presets import PRESETS
from ...report import check_writable
from ...scanning import ScanReport
from ..options import SuspectOptions
from .images import Images, open_images

# Below this, starting processes takes longer than reading the images.
MANY_IMAGES = 2000
MAX_WORKERS = 8
# In the provenance of repaired weights.
TRAINED_BY = "images that trained it"


@dataclass(frozen=True, eq=False)
class Suspect:
    """A model that somebody else trained, and clean images for it.

    Attributes
    ----------
    path : of the checkpoint
    model : on the device where it will run
    checkpoint : its weights, and all that is known of them, from the file or the command line
    data : where its clean images are from
    """

    path: Path
    model: nn.Module
    checkpoint: Checkpoint
    data: Images

    @property
    def images(self) -> ImageFolder | ImageRows:
        """The clean images."""
        return self.data.listed

    @property
    def names(self) -> dict[int, str]:
        """The names of the classes that have one."""
        return {k: name for k, name in enumerate(self.images.class_names or ()) if name != str(k)}

    def source(self, report: ScanReport, loader: FolderLoader) -> dict[str, Any]:
        """What was scanned, for a report."""
        made, arguments = self.images.preprocessing, self.checkpoint.arch_args
        where = (self.checkpoint.provenance or {}).get(KEY)
        return {
            "checkpoint": str(self.path),
            "SHA-256": digest_of(self.path),
            **({} if where is None else {KEY: str(where)}),
            "architecture": f"{self.checkpoint.arch}, {excerpt(str(arguments))}" if arguments else self.checkpoint.arch,
            "normalised by": f"mean {listed(made.mean)}; standard deviation {listed(made.std)}",
            "image size": "as it is" if made.image_size is None else "{}×{}".format(*made.image_size),
            "images": self.data.source,
            "images found": len(self.images),
            "images that could not be read": len(loader.unreadable),
            "classes without an image": listed(self._missing(report)) or "none",
        }

    def warnings(self, report: ScanReport, loader: FolderLoader) -> list[str]:
        """Sentences on images that are missing, or that the model knows already."""
        found = []
        if self.data.trained:
            found.append(
                f"{self.data.trained} of the {len(self.images)} images trained this model: images that it "
                "has not seen tell more"
            )
        if known := self._known():
            found.append(
                f"{known} of the {len(self.images)} images trained the repair of this model, which hides what a scan "
                "with them could find: use others"
            )
        if unreadable := list(loader.unreadable):
            found.append(f"images that could not be read and were left out: {len(unreadable)}; {unreadable[0]}")
        if missing := self._missing(report):
            found.append(f"classes without an image: {len(missing)} ({listed(missing)})")
        return found

    @property
    def trained_by(self) -> list[str]:
        """Digests of the images that trained a repair of these weights, as their ``digests`` gives them."""
        found = (self.checkpoint.provenance or {}).get(TRAINED_BY)
        return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []

    def _known(self) -> int:
        recorded = set(self.trained_by)
        return sum(each in recorded for each in self.images.digests()) if recorded else 0

    def _missing(self, report: ScanReport) -> list[str]:
        """Names of the classes of which no image was read; none where there are no labels."""
        if report.class_accuracy is None or self.images.class_names is None:
            return []
        return [
            name for name, share in zip(self.images.class_names, report.class_accuracy, strict=True) if share.isnan()
        ]


def open_suspect(path: Path, data: str, given: SuspectOptions) -> Suspect:
    """Read the weights, build the model, list the images. What the command line says goes before the file.

    Raises
    ------
    typer.BadParameter
        If neither the command line nor the file says what is needed.
    CheckpointError, OSError, ValueError
        Naming the argument that is wrong.
    """
    path = find_checkpoint(path)
    read = load_checkpoint(path, key=given.key, strip_prefix=given.strip_prefix)
    size, names = given.image_size, given.class_names
    told = {
        "arch": given.arch,
        "arch_args": given.arch_args,
        "num_classes": given.num_classes,
        "mean": given.mean,
        "std": given.std,
        "image_size": None if size is None else (size, size),
        "class_names": None if names is None else read_names(names),
    }
    preset = {} if given.preset is None else PRESETS[given.preset]._asdict()
    usual = {name: value for name, value in preset.items() if getattr(read, name) is None}
    known = usual | {name: value for name, value in told.items() if value is not None}
    needed = ("arch", "num_classes", "mean", "std")
    missing = [name for name in needed if name not in known and getattr(read, name) is None]
    if missing:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        hint = f" (or --preset {'|'.join(PRESETS)})" if {"mean", "std"} & set(missing) else ""
        raise typer.BadParameter(f"give {options}{hint}: {path} does not say it, and a guess would spoil the answer")
    checkpoint = replace(read, **known)
    model = restore_model(checkpoint).to(device_of(given.device))
    return Suspect(
        path, model, checkpoint, open_images(checkpoint, data, given.data_root, given.split, given.max_images)
    )


def device_of(name: str | None) -> torch.device:
    """The device of that name, or else the usual one; usage errors are told as such."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error) or type(error).__name__
        raise typer.BadParameter(
            f"expected a device such as cpu or cuda:0, got {name!r}: {reason}", param_hint="--device"
        ) from None
    return device


def read_names(path: Path) -> tuple[str, ...]:
    """Names of the classes from a file, one per line."""
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError:
        raise ValueError(f"class_names: expected a text file with one name per line, got {path}") from None
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"class_names: expected different names in {path}, got {twice[0]!r} more than once")
    return names


def open_loader(
    images: ImageFolder | ImageRows,
    batch_size: int,
    *,
    workers: int | None,
    shuffle: bool = False,
    skip_unreadable: bool = False,
) -> FolderLoader:
    """Batches of images, read by as many processes as pay off: none for those that are decoded already."""
    if workers is None:
        workers = MAX_WORKERS if len(images) >= MANY_IMAGES and isinstance(images, ImageFolder) else 0
    workers = min(workers, os.cpu_count() or 1)
    return FolderLoader(images, batch_size, shuffle=shuffle, skip_unreadable=skip_unreadable, workers=workers)


def first_head(model: nn.Module, loader: FolderLoader, name: str | None) -> Head:
    """Run the model on the first batch, find its head, and say in one line what the model does not like.

    Raises
    ------
    HeadError
        If the head is not what is needed.
    ValueError
        If no image can be read, or the model fails, which is most often for the size of the images.
    """
    batch = next(iter(loader), None)
    if batch is None:
        raise ValueError(f"data: none of the {len(loader.images)} images can be read; {next(iter(loader.unreadable))}")
    inputs, _ = split_batch(batch)
    try:
        return find_head(model, inputs, name=name)
    except HeadError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise ValueError(
            f"data: the model fails on a batch of shape {tuple(inputs.shape)} ({type(error).__name__}: {reason}); "
            "--image-size sets the size, and the number of values of --mean the channels"
        ) from error


def check_files(read: Mapping[str, Sequence[Path]], **outputs: Path | Sequence[Path] | None) -> None:
    """Raise now, rather than after the work, if results could not be written, or only over one another.

    Parameters
    ----------
    read : what must not be overwritten, by the name of its argument; with a checkpoint what describes it, and of a
        folder the checkpoints in it and what describes them
    outputs : the files that will be written, by the name of their option

    Raises
    ------
    OSError
        Naming the option.
    typer.BadParameter
        If two of them are the same file.
    """
    written = {name: [path] if isinstance(path, Path) else path or [] for name, path in outputs.items()}
    taken = {each.resolve(): name for name, paths in read.items() for path in paths for each in _files_of(path)}
    for name, paths in written.items():
        for path in paths:
            for each in _files_of(path):
                if (other := taken.setdefault(each.resolve(), f"--{name}")) != f"--{name}":
                    raise typer.BadParameter(
                        f"expected another file than {other} uses, got {each}", param_hint=f"--{name}"
                    )
    check_outputs(**{name: paths[0] for name, paths in written.items() if paths})


def _files_of(path: Path) -> list[Path]:
    """A file and what lies beside it to describe it; of a folder its checkpoints, likewise, and its descriptions."""
    if path.is_dir():
        checkpoints = [each for each in path.iterdir() if each.suffix in SUFFIXES]
        described = [path / name for name in (CONFIG, PREPROCESSOR, ABOUT)]
        return [each for checkpoint in checkpoints for each in _files_of(checkpoint)] + described
    return [path, sidecar_of(path)] if path.suffix == SAFETENSORS else [path]


def check_outputs(**outputs: Path | None) -> None:
    """Raise now, rather than after the work, if the files could not be written; OSError naming the option."""
    for name, path in outputs.items():
        try:
            if path is not None:
                check_writable(path)
        except OSError as error:
            reason = error.strerror or str(error).removeprefix("path: ")
            raise type(error)(f"{name}: cannot write {path}: {reason}") from error
