"""Read the results of BackdoorBench, safely and wherever their folder is now, and write results for it.

Source: https://github.com/SCLBD/BackdoorBench, ``utils/save_load_attack.py`` and ``utils/bd_dataset_v2.py``.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._files import write_atomically
from .._shown import Shown
from ._strangers import kind_of
from .presets import NORMALISATION
from .weights import CheckpointError, load_file, shown_path, weights_in

# Its ViTs are the second part of a Sequential, after a layer that enlarges the images.
VIT, VIT_PREFIX, VIT_SIZE = "vit_", "1.", (224, 224)
ATTACK_RESULT = "attack_result.pt"
RESULT_KEYS = frozenset({"model_name", "num_classes", "model"})


@dataclass(frozen=True)
class PoisonedImage:
    """A test image with the trigger in it.

    Attributes
    ----------
    path : of the picture
    bd_label : the class that the attacker wants
    original_label : the class that it shows
    """

    path: Path
    bd_label: int
    original_label: int


@dataclass(frozen=True, eq=False, repr=False)
class BackdoorBenchResult(Shown):
    """What ``attack_result.pt`` or ``defense_result.pt`` says.

    Attributes
    ----------
    path : of the file
    model_name : which is also a name for `build_model`, except ``resnext29`` and ``senet18``
    num_classes : C
    weights : tensors by name, as `build_model` names them
    image_size : height and width of what the model takes; None in the result of a defence
    dataset : name of the clean data; None in the result of a defence
    mean, std : by which BackdoorBench normalises that data; None if it is unknown
    """

    path: Path
    model_name: str
    num_classes: int
    weights: dict[str, Tensor]
    image_size: tuple[int, int] | None
    dataset: str | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    _bd_test: Any = field(repr=False)

    def poisoned_images(self) -> list[PoisonedImage]:
        """Poisoned test images, for measuring the attack, found relative to where ``path`` is now.

        Raises
        ------
        CheckpointError
            If the file lists none, in another form, or their folder is not beside it.
        """
        container = self._bd_test.get("bd_data_container") if isinstance(self._bd_test, dict) else None
        entries = container.get("data_dict") if isinstance(container, dict) else None
        if not isinstance(entries, dict) or not entries:
            raise CheckpointError(f"{shown_path(self.path)}: expected a list of poisoned test images, got none")
        images = [self._image(entry) for entry in entries.values()]
        folder = images[0].path.parents[1]
        if not folder.is_dir():
            raise CheckpointError(
                f"{shown_path(self.path)}: expected its images in {shown_path(folder)}: no such folder"
            )
        return images

    def _image(self, entry: Any) -> PoisonedImage:
        """Only the end of the path counts, ``bd_test_dataset/<label>/<index>.png``: the rest is where it once was."""
        path, labels = (entry.get("path"), entry.get("other_info")) if isinstance(entry, dict) else (None, None)
        parts = PurePosixPath(path.replace("\\", "/")).parts[-3:] if isinstance(path, str) else ()
        numbers = [int(n) for n in labels if isinstance(n, (int, np.integer))] if isinstance(labels, list) else []
        if len(parts) != 3 or ".." in parts or "/" in parts or "\0" in str(path) or len(numbers) != 2:
            raise CheckpointError(
                f"{shown_path(self.path)}: expected poisoned test images as "
                "{'path': '…/bd_test_dataset/<label>/<index>.png', 'other_info': [bd_label, original_label]}"
            )
        return PoisonedImage(self.path.parent.joinpath(*parts), *numbers)


def read_backdoorbench(path: str | os.PathLike[str]) -> BackdoorBenchResult:
    """Read ``attack_result.pt`` or ``defense_result.pt``. No code in it is run.

    (A run without an attack leaves ``clean_model.pth``, a bare state dict: `read_weights` reads it.)

    Raises
    ------
    CheckpointError
        As `read_weights`, and if the file is no result of BackdoorBench.
    """
    result = result_in(load_file(path), path)
    if result is None:
        raise CheckpointError(f"{shown_path(path)}: expected a result of BackdoorBench, with {', '.join(RESULT_KEYS)}")
    return result


def read_attack_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Arguments of the attack (``attack``, ``attack_target``, ``pratio``…) from ``info.pickle`` beside a result.

    Raises
    ------
    CheckpointError
        As `read_weights`, and if that file holds something else.
    """
    info = Path(path).parent / "info.pickle"
    settings = load_file(info)
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in dict.keys(settings)):
        raise CheckpointError(f"{shown_path(info)}: expected a dictionary of arguments, got {kind_of(settings)}")
    return dict(settings)


def result_in(loaded: Any, path: str | os.PathLike[str]) -> BackdoorBenchResult | None:
    """The result of BackdoorBench in what `load_file` gave; None if it is something else."""
    if type(loaded) is not dict or not loaded.keys() >= RESULT_KEYS or not isinstance(loaded["model"], dict):
        return None
    name, num_classes = loaded["model_name"], loaded["num_classes"]
    size, dataset = loaded.get("img_size"), loaded.get("clean_data")
    if not isinstance(name, str) or type(num_classes) is not int or not isinstance(dataset, (str, type(None))):
        raise CheckpointError(f"{shown_path(path)}: expected the name of a model and the number of its classes")
    weights = weights_in(loaded, path)
    if name.startswith(VIT) and all(key.startswith(VIT_PREFIX) for key in weights):
        weights = {key.removeprefix(VIT_PREFIX): tensor for key, tensor in weights.items()}
        size = VIT_SIZE
    if size is not None:
        if not isinstance(size, (list, tuple)) or len(size) < 2 or not all(type(n) is int and n > 0 for n in size):
            raise CheckpointError(f"{shown_path(path)}: expected img_size as [height, width, channels]")
        size = (size[0], size[1])
    mean, std = NORMALISATION.get(dataset or "", (None, None))
    return BackdoorBenchResult(Path(path), name, num_classes, weights, size, dataset, mean, std, loaded.get("bd_test"))


def write_defense_result(
    path: str | os.PathLike[str], model_name: str, num_classes: int, weights: Mapping[str, Tensor]
) -> None:
    """Write a repaired model as BackdoorBench writes the result of a defence (``defense_result.pt``), atomically.

    Parameters
    ----------
    path : of the file
    model_name, num_classes : as in the `BackdoorBenchResult` of the attack
    weights : tensors by name, as `build_model` names them
    """
    prefix = VIT_PREFIX if model_name.startswith(VIT) else ""
    model = {prefix + name: tensor.detach().cpu() for name, tensor in weights.items()}
    content = io.BytesIO()
    torch.save({"model_name": model_name, "num_classes": num_classes, "model": model}, content)
    write_atomically(path, content.getvalue())
