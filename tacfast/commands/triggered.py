"""How well the attack itself works, where a folder of BackdoorBench holds images with its trigger."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..data import FolderLoader, ImageFolder
from ..models import CheckpointError, read_backdoorbench
from ..models.checkpoint import PICKLES
from ..models.head import evaluation_mode
from .suspect import Suspect, open_loader

# Enough to know a share to within three points.
MAX_IMAGES = 1000


class Triggered:
    """Test images with the trigger that lie beside an ``attack_result.pt``, or none.

    What is measured on them is told, and may put a repair in doubt. No verdict and no repair is made from it: whoever
    scans a model has no such images as a rule.

    Attributes
    ----------
    warnings : sentences on images that are missing
    """

    def __init__(self, suspect: Suspect, batch_size: int, *, workers: int | None) -> None:
        self.warnings: list[str] = []
        self._loader: FolderLoader | None = None
        if not _is_attack(suspect):
            return
        try:
            listed = read_backdoorbench(suspect.path).poisoned_images()
        except CheckpointError as error:
            self.warnings.append(f"the attack was not measured: {error}")
            return
        chosen = torch.randperm(len(listed), generator=torch.Generator().manual_seed(0))[:MAX_IMAGES].tolist()
        images = [listed[i] for i in chosen]
        self._wanted = torch.tensor([image.bd_label for image in images])
        self._true = torch.tensor([image.original_label for image in images])
        # Each image has its number for a label, so that those that cannot be read are told apart.
        folder = ImageFolder(
            tuple(image.path for image in images), tuple(range(len(images))), None, suspect.images.preprocessing
        )
        self._loader = open_loader(folder, batch_size, workers=workers, skip_unreadable=True)

    def measure(self, model: nn.Module) -> dict[str, Any] | None:
        """ASR and RA of a model on at most ``MAX_IMAGES`` of the images, always the same; None without any."""
        if self._loader is None:
            return None
        device = next(model.parameters()).device
        hits = recovered = total = 0
        with evaluation_mode(model), torch.no_grad():
            for inputs, numbers in self._loader:
                answers = model(inputs.to(device)).argmax(1).cpu()
                hits += int((answers == self._wanted[numbers]).sum())
                recovered += int((answers == self._true[numbers]).sum())
                total += len(numbers)
        if unreadable := list(self._loader.unreadable):
            self.warnings = [f"images with the trigger that could not be read: {len(unreadable)}; {unreadable[0]}"]
        return {"asr": hits / total, "ra": recovered / total, "images": total} if total else None


def _is_attack(suspect: Suspect) -> bool:
    """Whether this is the result of an attack: that of a defence names no data set and lists no images."""
    source = suspect.checkpoint.provenance or {}
    return suspect.path.suffix in PICKLES and source.get("source") == "BackdoorBench" and source["dataset"] is not None
