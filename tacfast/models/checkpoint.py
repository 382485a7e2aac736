"""A checkpoint that says what it is: weights as safetensors, and beside them a JSON file that people can read."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from .._files import write_atomically
from .._lazy import needed
from .._shown import Shown
from .._text import excerpt, listed
from . import huggingface
from .backdoorbench import ATTACK_RESULT, result_in
from .registry import build_model
from .weights import DTYPES, CheckpointError, key_of, load_file, load_weights, match_weights, shown_path, weights_in

# In the provenance: under which name of the file the weights were.
KEY = "state dict"
FORMAT, VERSION = "tacfast checkpoint", 1
SAFETENSORS, PICKLES = ".safetensors", (".pt", ".pth")
SUFFIXES = (SAFETENSORS, *PICKLES, ".bin", ".ckpt")
# A file of a few bytes must not ask for a network, or for images, that fill the memory.
MAX_CLASSES, MAX_SIDE = 100_000, 4096
MAX_SIDECAR_BYTES = 16 * 2**20
MAX_ARGUMENT = 100_000
MAX_NAME = 200


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(Shown):
    """Weights of a classifier and what is needed to use them. Everything but the weights is None where it is unknown.

    Attributes
    ----------
    weights : tensors by name
    arch, arch_args : for `build_model`
    num_classes : C
    class_names : of the C classes, in their order
    mean, std : per colour channel, of pixels scaled to 0 … 1, by which images are normalised
    image_size : height and width, in pixels, of the images that the model takes
    provenance, metrics : where the weights come from and how good they are; anything that JSON can hold, by name

    Raises
    ------
    ValueError
        Naming the field, what was expected and what came.
    """

    weights: dict[str, Tensor]
    arch: str | None = None
    arch_args: dict[str, Any] | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: tuple[int, int] | None = None
    provenance: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, tensor in self.weights.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
                raise ValueError(
                    f"weights: expected tensors of real or whole numbers by name, got {type(tensor).__name__}"
                )
        for name, (expected, fits) in _FIELDS.items():
            value = getattr(self, name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, name, value)
            if value is not None and not _does(fits, value):
                raise ValueError(f"{name}: expected {expected}, got {_shown(value)}")
        if self.class_names is not None and self.num_classes != len(self.class_names):
            raise ValueError(
                f"class_names: expected one for each of {self.num_classes} classes, got {len(self.class_names)}"
            )
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("mean, std: expected both, for the same colour channels, or none")


def _does(fits: Callable[[Any], bool], value: Any) -> bool:
    """Whether a value fits; one that is nested too deep, or too large for a float, does not."""
    try:
        return fits(value)
    except (RecursionError, OverflowError):
        return False


def _shown(value: Any) -> str:
    try:
        return excerpt(repr(value))
    except (RecursionError, ValueError):  # an integer may have too many digits to be written
        return f"a {type(value).__name__} that cannot be shown"


def _is_whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_json_object(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _is_moderate(value: Any) -> bool:
    """Whether there is no number in it for which a list of that length would be too long."""
    if isinstance(value, (list, tuple, dict)):
        return all(map(_is_moderate, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, (int, float)) or -MAX_ARGUMENT <= value <= MAX_ARGUMENT


_JSON_OBJECT = ("a dictionary by name of what JSON can hold", _is_json_object)
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "arch": ("a name", lambda value: isinstance(value, str) and value.isprintable() and len(value) <= MAX_NAME),
    "arch_args": (
        f"arguments by name, with numbers up to {MAX_ARGUMENT}",
        lambda value: _is_json_object(value) and _is_moderate(value),
    ),
    "num_classes": (f"a whole number from 2 to {MAX_CLASSES}", lambda value: _is_whole(value, 2, MAX_CLASSES)),
    "class_names": (
        "a list of printable names",
        lambda value: isinstance(value, tuple) and all(isinstance(name, str) and name.isprintable() for name in value),
    ),
    "mean": (
        "a list of numbers",
        lambda value: isinstance(value, tuple) and len(value) > 0 and all(map(_is_finite, value)),
    ),
    "std": (
        "a list of positive numbers",
        lambda value: isinstance(value, tuple) and len(value) > 0 and all(_is_finite(x) and x > 0 for x in value),
    ),
    "image_size": (
        f"height and width of at most {MAX_SIDE}",
        lambda value: isinstance(value, tuple) and len(value) == 2 and all(_is_whole(x, 1, MAX_SIDE) for x in value),
    ),
    "provenance": _JSON_OBJECT,
    "metrics": _JSON_OBJECT,
}


def save_checkpoint(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint, atomically.

    Parameters
    ----------
    checkpoint : tensors may be on any device
    path : ``NAME.safetensors`` gets everything but the weights in ``NAME.json`` beside it, written last, with the
        SHA-256 of the weights. ``NAME.pt`` or ``NAME.pth`` is the plain state dict, for other tools, and nothing else.

    Raises
    ------
    ValueError
        For another suffix, or if ``NAME.json`` exists and is something else.
    ImportError
        Without the extra ``io`` (safetensors).
    OSError
        If a file cannot be written.
    """
    target = Path(path)
    check_target(target)
    sidecar = sidecar_of(target)
    weights = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint.weights.items()
    }
    if target.suffix in PICKLES:
        content = io.BytesIO()
        torch.save(weights, content)
        write_atomically(target, content.getvalue())
        return
    safetensors = needed("safetensors.torch", "safetensors files need safetensors: pip install 'tacfast[io]'")
    data: bytes = safetensors.save(weights, metadata={"format": "pt"})
    described = {item.name: getattr(checkpoint, item.name) for item in fields(checkpoint) if item.name != "weights"}
    head = {"format": FORMAT, "version": VERSION, "weights_sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps({**head, **described}, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(target, data)
    write_atomically(sidecar, (text + "\n").encode())


def check_target(path: Path) -> None:
    """Raise ValueError, as `save_checkpoint` does, if a checkpoint cannot be written under this name."""
    if path.suffix not in (SAFETENSORS, *PICKLES):
        raise ValueError(f"path: expected a name that ends in {SAFETENSORS}, .pt or .pth, got {path}")
    sidecar = sidecar_of(path)
    if path.suffix == SAFETENSORS and sidecar.exists() and _read_sidecar(sidecar) is None:
        raise ValueError(f"path: expected a name for which {shown_path(sidecar)} is free, but that is another file")


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """What is meant by a path: itself, or, of a folder that is none of transformers or timm, the checkpoint in it.

    That is BackdoorBench's ``attack_result.pt``, or else the only file with the name of a checkpoint.

    Raises
    ------
    CheckpointError
        If there is none in the folder, or more than one.
    """
    target = Path(path)
    try:
        if not target.is_dir() or huggingface.is_folder_of(target):
            return target
        if (result := target / ATTACK_RESULT).is_file():
            return result
        found = sorted(each for each in target.iterdir() if each.suffix in SUFFIXES and each.is_file())
    except OSError as error:
        raise CheckpointError(f"{shown_path(target)}: not read: {error.strerror}") from error
    if len(found) != 1:
        came = listed(each.name for each in found) or "none"
        raise CheckpointError(
            f"{shown_path(target)}: expected a folder with config.json (transformers, timm), with {ATTACK_RESULT}, or "
            f"with one checkpoint ({', '.join(SUFFIXES)}), got {came}"
        )
    return found[0]


def load_checkpoint(
    path: str | os.PathLike[str], *, key: str | None = None, strip_prefix: str | None = None
) -> Checkpoint:
    """Read a checkpoint of `save_checkpoint`, a result of BackdoorBench, or anything that `read_weights` reads.

    Of the last, only the weights are known. Of a result of BackdoorBench, the architecture, the number of classes and,
    if it is that of an attack, image size and normalisation are known; what the attack was is left alone. A folder may
    be one that ``save_pretrained`` of transformers wrote, or timm for the hub, which say everything, or have one
    checkpoint in it, see `find_checkpoint`.

    Parameters
    ----------
    path : file or folder
    key : under which a checkpoint of a training has its state dict, such as ``model_ema`` or ``nets.teacher``; found if
        None, and told in ``provenance``
    strip_prefix : what stands before the names of the model, such as ``net.``; tensors without it are left out

    Raises
    ------
    CheckpointError
        As `read_weights`; if the JSON file beside the weights is damaged or belongs to others.
    ImportError
        For a safetensors file without the extra ``io``.
    """
    target = find_checkpoint(path)
    if target.is_dir():
        if key is not None or strip_prefix is not None:
            raise CheckpointError(f"{shown_path(target)}: expected no key or prefix, its layout says where weights are")
        return _checked(target, *huggingface.describe_folder(target))
    sidecar = sidecar_of(target)
    described = _read_sidecar(sidecar) if target.suffix == SAFETENSORS and sidecar.is_file() else None
    loaded = load_file(target)
    if key is not None or strip_prefix is not None:
        where = key if key is not None else key_of(loaded)
        return Checkpoint(weights_in(loaded, target, key, strip_prefix), provenance={KEY: where or "the file itself"})
    if described is None:
        return _from_elsewhere(loaded, target)
    if described.pop("weights_sha256", None) != digest_of(target):
        raise CheckpointError(
            f"{shown_path(sidecar)}: it does not belong to {shown_path(target)}, whose content differs from what was "
            "saved with it; if the weights are those that you want, delete it and say yourself what it would"
        )
    return _checked(sidecar, weights_in(loaded, target), described)


def restore_model(checkpoint: Checkpoint) -> nn.Module:
    """Build the model of a checkpoint and put its weights in; in training mode, on the CPU.

    Give what a checkpoint from elsewhere does not say by ``dataclasses.replace(checkpoint, arch=..., ...)``.

    Raises
    ------
    CheckpointError
        If architecture or number of classes are unknown, or the weights do not fit, as in `load_weights`.
    ValueError, ImportError
        As in `build_model`.
    """
    if checkpoint.arch is None or checkpoint.num_classes is None:
        unknown = "arch" if checkpoint.arch is None else "num_classes"
        raise CheckpointError(f"{unknown}: expected it in the checkpoint or by you, but it is unknown")
    outline = _outlined(checkpoint, checkpoint.arch, checkpoint.num_classes)
    if checkpoint.arch.startswith(huggingface.PREFIX):
        if outline is None:
            raise CheckpointError(f"arch: {checkpoint.arch} cannot be outlined")
        return huggingface.restore(outline, checkpoint.weights)
    model = build_model(checkpoint.arch, checkpoint.num_classes, arch_args=checkpoint.arch_args)
    load_weights(model, checkpoint.weights)
    return model


def _outlined(checkpoint: Checkpoint, arch: str, num_classes: int) -> nn.Module | None:
    """The model without memory: the file may ask for an architecture that is far larger than its weights.

    None where it cannot be built so.
    """
    room = 2 * len(checkpoint.weights) + 100

    def count(*_: object) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise ValueError(f"it has far more than the {len(checkpoint.weights)} tensors that there are")

    handle = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            model = build_model(arch, num_classes, arch_args=checkpoint.arch_args)
            if not arch.startswith(huggingface.PREFIX):  # whose names may be those of another version
                match_weights(model, checkpoint.weights)
            return model
    except NotImplementedError:  # torchvision's RegNets look at numbers while they are built
        if checkpoint.arch_args:
            raise CheckpointError(f"arch_args: expected none for {arch}, which cannot be outlined") from None
        return None
    finally:
        handle.remove()


def _from_elsewhere(loaded: Any, path: str | os.PathLike[str]) -> Checkpoint:
    result = result_in(loaded, path)
    if result is None:
        where = key_of(loaded)
        return Checkpoint(weights_in(loaded, path), provenance=None if where is None else {KEY: where})
    described = {
        "arch": result.model_name,
        "num_classes": result.num_classes,
        "mean": result.mean,
        "std": result.std,
        "image_size": result.image_size,
        "provenance": {"source": "BackdoorBench", "dataset": result.dataset},
    }
    return _checked(path, result.weights, described)


def _checked(path: str | os.PathLike[str], weights: dict[str, Tensor], described: Mapping[str, Any]) -> Checkpoint:
    unknown = described.keys() - _FIELDS.keys()
    if unknown:
        raise CheckpointError(f"{shown_path(path)}: expected {', '.join(_FIELDS)}, got {excerpt(repr(min(unknown)))}")
    try:
        return Checkpoint(weights, **described)
    except ValueError as error:
        raise CheckpointError(f"{shown_path(path)}: {error}") from error


def sidecar_of(path: Path) -> Path:
    """The JSON file beside the weights."""
    return path.with_suffix(".json")


def digest_of(path: Path) -> str:
    """SHA-256 in hex of a file, or of what is in a folder: of the names of its files with theirs, in order."""
    digest = hashlib.sha256()
    if path.is_dir():
        for each in sorted(each for each in path.iterdir() if each.is_file()):
            digest.update(f"{each.name} {digest_of(each)}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"{shown_path(path)}: not read: {error.strerror}") from error
    return digest.hexdigest()


def _read_sidecar(path: Path) -> dict[str, Any] | None:
    """Fields of a JSON file that `save_checkpoint` wrote; None if it is somebody else's."""
    try:
        if path.stat().st_size > MAX_SIDECAR_BYTES:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{shown_path(path)}: not read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown_path(path)}: expected JSON, got something damaged") from error
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        return None
    if found.pop("version", None) != VERSION:
        raise CheckpointError(
            f"{shown_path(path)}: expected version {VERSION} of the format, is tacfast too old for it?"
        )
    return found
