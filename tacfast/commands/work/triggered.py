"""How well the attack itself works, where the folder of the checkpoint tells what its trigger is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...attacks import Attack
from ...data import FolderLoader, ImageFolder, ImageRows
from ...data.datasets import ImageDataset
from ...data.splits import some_of
from ...evaluation.metrics import attacked_rows
from ...models import read_backdoorbench
from ...models.checkpoint import PICKLES
from ...models.head import evaluation_mode, logits_of
from ...models.normalised import Normalised
from ...training.trained import attack_of, splits_of
from .loading import Suspect, open_loader

# Enough to know a share to within three points.
MAX_IMAGES = 1000


class Triggered:
    """Test images with the trigger, or none.

    They lie beside an ``attack_result.pt``; of a network of `tacfast train` that is scanned with its data set, they are
    test images that get the trigger here.

    What is measured on them is told, and may put a repair in doubt. No verdict and no repair is made from it: whoever
    scans a model has no such images as a rule.

    Attributes
    ----------
    warnings : sentences on images that are missing
    """

    def __init__(self, suspect: Suspect, batch_size: int, *, workers: int | None) -> None:
        self.warnings: list[str] = []
        self._images: _Listed | _Applied | None = None
        try:
            if _is_attack(suspect):
                self._images = _Listed(suspect, batch_size, workers)
            else:
                self._images = _applied(suspect, batch_size)
        except Exception as error:  # whatever a stranger's file may hold, the scan goes on
            self._give_up(error)

    def measure(self, model: nn.Module) -> dict[str, Any] | None:
        """ASR and RA of a model on at most ``MAX_IMAGES`` of the images, always the same; None without any.

        RA is told for each true class, too: NaN where there is no image of one.
        """
        if self._images is None:
            return None
        try:
            found = _figures(self._images.answers(model))
        except Exception as error:
            self._give_up(error)
            return None
        self.warnings = self._images.warnings
        return found

    def _give_up(self, error: Exception) -> None:
        self._images = None
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        self.warnings = [f"the attack was not measured: {kind}{error}"]


def _figures(answers: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Any] | None:
    """Of batches of logits (n, C), the classes that the attacker wants (n,), and the true ones (n,)."""
    batches = [(logits.shape[1], logits.argmax(1).cpu(), wanted, true) for logits, wanted, true in answers]
    if not batches:
        return None
    classes = batches[0][0]
    answered, wanted, true = (torch.cat(parts) for parts in list(zip(*batches, strict=True))[1:])
    right = answered == true
    per_class = true[right].bincount(minlength=classes) / true.bincount(minlength=classes)
    return {
        "asr": float((answered == wanted).double().mean()),
        "ra": float(right.double().mean()),
        "ra_per_class": per_class.tolist(),
        "images": len(true),
    }


class _Listed:
    """The images that BackdoorBench wrote."""

    def __init__(self, suspect: Suspect, batch_size: int, workers: int | None) -> None:
        listed = read_backdoorbench(suspect.path).poisoned_images()
        images = [listed[i] for i in some_of(len(listed), MAX_IMAGES).tolist()]
        self._wanted = torch.tensor([image.bd_label for image in images])
        self._true = torch.tensor([image.original_label for image in images])
        # Each image has its number for a label, so that those that cannot be read are told apart.
        folder = ImageFolder(
            tuple(image.path for image in images), tuple(range(len(images))), None, suspect.images.preprocessing
        )
        self._loader: FolderLoader = open_loader(folder, batch_size, workers=workers, skip_unreadable=True)

    @property
    def warnings(self) -> list[str]:
        if unreadable := list(self._loader.unreadable):
            return [f"images with the trigger that could not be read: {len(unreadable)}; {unreadable[0]}"]
        return []

    @torch.no_grad()
    def answers(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        device = next(model.parameters()).device
        with evaluation_mode(model):
            for inputs, numbers in self._loader:
                yield logits_of(model, inputs.to(device)), self._wanted[numbers], self._true[numbers]


class _Applied:
    """Test images of a data set that get the trigger here."""

    warnings: list[str] = []  # noqa: RUF012  # none of them can be missing

    def __init__(self, suspect: Suspect, dataset: ImageDataset, attack: Attack, rows: Tensor, batch: int) -> None:
        made = suspect.images.preprocessing
        self._mean, self._std, self._attack = made.mean, made.std, attack
        attacked = rows[attacked_rows(attack, dataset.data.labels[rows])]
        self._images = dataset.data.subset(attacked[some_of(len(attacked), MAX_IMAGES)])
        self._batch = batch

    @torch.no_grad()
    def answers(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        device = next(model.parameters()).device
        takes_pixels = Normalised(model, self._mean, self._std).to(device)
        with evaluation_mode(takes_pixels):
            for images, labels in self._images.loader(self._batch):
                yield takes_pixels(self._attack.trigger(images.to(device))), self._attack.relabel(labels), labels


def _applied(suspect: Suspect, batch_size: int) -> _Applied | None:
    """None of a network that was not trained under an attack by `tacfast train`, or that is scanned with a folder."""
    if not isinstance(suspect.images, ImageRows):
        return None
    dataset = suspect.images.dataset
    splits, attack = splits_of(suspect.checkpoint, dataset), attack_of(suspect.checkpoint, suspect.path, dataset)
    return None if splits is None or attack is None else _Applied(suspect, dataset, attack, splits.test, batch_size)


def _is_attack(suspect: Suspect) -> bool:
    """Whether this is the result of an attack: that of a defence names no data set and lists no images."""
    source = suspect.checkpoint.provenance or {}
    return suspect.path.suffix in PICKLES and source.get("source") == "BackdoorBench" and source["dataset"] is not None
