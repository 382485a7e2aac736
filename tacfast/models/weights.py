"""Read the weights of somebody else's checkpoint without running it, and put them into a model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor, nn

from .._lazy import needed
from .._text import excerpt, listed, printable
from ._archives import LEGACY_MAGIC, ZIP_MAGIC, load_pickled
from ._pickles import ContentError, ForeignObjectError
from ._strangers import kind_of

# Under these names training scripts keep the state dict beside epoch, optimiser and so on; the first one counts.
STATE_DICT_NAMES = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params"),
    *("ema", "model_ema", "ema_state_dict", "state_dict_ema"),  # averages of the weights, where there is nothing else
)
# Prefixes that wrappers put before every name: DataParallel, torch.compile, Lightning and the like.
PREFIXES = ("module.", "_orig_mod.", "model.")
MAX_PREFIXES = 6
MAX_HEADER_BYTES = 16 * 2**20
MAX_START = 40
# How other files begin that come in the place of weights, what they are, and what to do instead.
_FROM_PYTORCH = "save the weights of the PyTorch model that it was made from, torch.save(model.state_dict(), ...)"
OTHER_FILES = (
    (
        rb"\x08[\x01-\x1f][\x12\x1a\x22\x32\x3a\x42]",
        f"an ONNX file, a program whose layers have no names: {_FROM_PYTORCH}",
    ),
    (rb"\x89HDF\r\n", "an HDF5 file, as Keras writes, and only models of PyTorch are read"),
    (rb"version https://git-lfs", "a pointer of Git LFS, and not the file itself: fetch that with git lfs pull"),
    (rb"\s*<(?i:!doctype|html|\?xml)", "a page of a web site, as a failed download leaves: download it again"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "compressed: unpack it first"),
)
DTYPES = frozenset(
    {
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
    }
)


class CheckpointError(ValueError):
    """The checkpoint is damaged, refused because it might be hostile, or does not fit the model."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, safetensors or a file of `torch.save`, onto the CPU.

    The file may come from anybody. What it is, is decided by its content and not by its name. No code in it is run:
    safetensors has none, the rest goes through ``torch.load(weights_only=True)``, after a look at what it would build.
    No memory is taken for numbers that are not in the file.

    Parameters
    ----------
    path : of a state dict, or of a dictionary that holds one as ``state_dict``, ``model_state_dict``,
        ``model_state``, ``model``, ``net``, ``network``, ``weights`` or ``params``

    Returns
    -------
    dict : dense tensors by name, in the dtype of the file, detached

    Raises
    ------
    CheckpointError
        In one line that names the path: if the file cannot be read, is damaged, holds no state dict, or more than
        tensors in it (a pickled model, a TorchScript archive, an exported program ``.pt2``), or tensors that are
        sparse, quantised, complex or larger than their numbers.
    ImportError
        For a safetensors file without the extra ``io``.
    """
    return weights_in(load_file(path), path)


def load_file(path: str | os.PathLike[str]) -> Any:
    """Whatever a checkpoint holds: the dictionary of a safetensors file, or the object that was given to torch.save."""
    try:
        if not Path(path).is_file():  # a pipe or a device could be read for ever
            raise ContentError("it is not a file" if Path(path).exists() else "there is no such file")
        with Path(path).open("rb") as file:
            start = file.read(MAX_START)
            if start.startswith((ZIP_MAGIC, LEGACY_MAGIC)):
                return load_pickled(file)
            _check_safetensors(file, start)
        return _load_safetensors(path)
    except ImportError:
        raise
    except ForeignObjectError as error:
        raise CheckpointError(
            f"{shown_path(path)}: refused, because it holds more than weights: {error}, whose code would have to run. "
            "Whoever made the file can save the weights alone: torch.save(model.state_dict(), ...)"
        ) from error
    except ContentError as error:
        raise CheckpointError(f"{shown_path(path)}: not read: {error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{shown_path(path)}: not read: it does not fit into memory") from error
    except OSError as error:
        raise CheckpointError(f"{shown_path(path)}: not read: {error.strerror or type(error).__name__}") from error
    except Exception as error:  # torch, zipfile and safetensors raise all sorts on damaged files
        raise CheckpointError(f"{shown_path(path)}: not read, it is damaged: {_first_line(error)}") from error


def key_of(loaded: Any) -> str | None:
    """The name under which a checkpoint has its state dict; None if it is one itself."""
    inner = [(name, dict.get(loaded, name)) for name in STATE_DICT_NAMES] if isinstance(loaded, dict) else []
    return next((name for name, value in inner if isinstance(value, dict) and value), None)


def weights_in(
    loaded: Any, path: str | os.PathLike[str], key: str | None = None, prefix: str | None = None
) -> dict[str, Tensor]:
    """Find the state dict in what `load_file` gave, and check that it is one.

    Parameters
    ----------
    loaded, path : what is in the file, and its name for messages
    key : under which the state dict is, with dots between names in names; found if None
    prefix : only tensors whose name begins so, without it, whatever is beside them; all, and nothing else, if None
    """
    found = loaded
    wanted = key_of(loaded) if key is None else key
    for part in () if wanted is None else _parts_of(loaded, wanted):
        if not isinstance(found, dict) or part not in dict.keys(found):
            raise CheckpointError(f"{shown_path(path)}: expected {key!r} in it, got {_described(loaded)}")
        found = dict.get(found, part)
    if not isinstance(found, dict) or not any(isinstance(value, Tensor) for value in dict.values(found)):
        raise CheckpointError(
            f"{shown_path(path)}: expected a state dict, or a dictionary with one under "
            f"{', '.join(STATE_DICT_NAMES)}, got {_described(loaded)}"
        )
    weights = {}
    for name, value in dict.items(found):  # not found.items(): a pickle can give a dictionary any attribute
        if prefix is not None and not (isinstance(name, str) and name.startswith(prefix)):
            continue
        if not isinstance(name, str) or not isinstance(value, Tensor):
            key = repr(excerpt(name)) if isinstance(name, str) else f"a key of type {type(name).__name__}"
            raise CheckpointError(
                f"{shown_path(path)}: expected a state dict of tensors by name, got {kind_of(value)} for {key}"
            )
        if value.layout != torch.strided or value.dtype not in DTYPES or value.device.type != "cpu":
            raise CheckpointError(
                f"{shown_path(path)}: expected dense tensors of real or whole numbers, "
                f"got {value.dtype}, {value.layout} for {excerpt(name)!r}"
            )
        weights[name.removeprefix(prefix or "")] = value.detach()
    if not weights:
        names = listed(name for name in dict.keys(found) if isinstance(name, str))
        raise CheckpointError(
            f"{shown_path(path)}: expected names that begin with {prefix!r}, got {names or 'nothing'}"
        )
    return weights


def _parts_of(loaded: Any, key: str) -> list[str]:
    """The key as it is, if there is such a one, or else its parts between dots."""
    return [key] if isinstance(loaded, dict) and key in dict.keys(loaded) else key.split(".")


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put weights into a model, all of them or none.

    Prefixes that wrappers put before every name (``module.``, ``_orig_mod.``, ``model.``, also nested) do not count,
    on either side. Numbers are cast to the dtype of the model, floating to floating and whole to whole. As in torch,
    ``num_batches_tracked`` may be missing: checkpoints from before torch 0.4.1 have none. Tensors of an auxiliary
    head that the model was built without (``AuxLogits`` of Inception) are left out.

    Parameters
    ----------
    model : changed in place, on its device
    weights : tensors by name, as from `read_weights`

    Raises
    ------
    CheckpointError
        Listing missing and unexpected names, and shapes and kinds of number that differ. The model is unchanged.
    """
    model.load_state_dict(match_weights(model, weights))


def match_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of ``model`` with ``weights`` in the places of its own tensors; raises as `load_weights`."""
    own: dict[str, Tensor] = model.state_dict()
    theirs = _without_prefixes(weights)
    renamed = {name: theirs.pop(bare) for bare, name in _without_prefixes({name: name for name in own}).items()
               if bare in theirs}  # fmt: skip
    missing = [name for name in own if name not in renamed and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in theirs if not _is_switched_off(model, name)]
    shapes = [name for name in renamed if renamed[name].shape != own[name].shape]
    kinds = [name for name in renamed if renamed[name].is_floating_point() != own[name].is_floating_point()]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({listed(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected ({listed(unexpected)}){_common_prefix(own, unexpected)}")
    if shapes:
        differ = (f"{n} {tuple(renamed[n].shape)} instead of {tuple(own[n].shape)}" for n in shapes)
        problems.append(f"{len(shapes)} of another shape ({listed(differ)}){_other_classes(own, renamed, shapes)}")
    if kinds:
        differ = (f"{n} {renamed[n].dtype} instead of {own[n].dtype}" for n in kinds)
        problems.append(f"{len(kinds)} of another kind of number ({listed(differ)})")
    if problems:
        raise CheckpointError(
            f"weights: expected the {len(own)} tensors of {type(model).__name__}, got {len(weights)}: "
            + "; ".join(problems)
        )
    # Over the model's own, which brings the version of every layer and the tensors that may be missing.
    own.update(renamed)
    return own


T = TypeVar("T")


def _without_prefixes(named: Mapping[str, T]) -> dict[str, T]:
    """The same under names without the prefixes that all of them carry."""
    found = dict(named)
    for _ in range(MAX_PREFIXES):
        prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in found)), "")
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _common_prefix(own: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """A hint if names of the model are there behind one prefix, which is none of those that do not count."""
    wanted, given = [name for name in own if not name.endswith("num_batches_tracked")], set(names)
    first = wanted[0] if wanted else ""
    prefix = next((name.removesuffix(first) for name in names if name.endswith(f".{first}")), None)
    if prefix is None or not all(prefix + name in given for name in wanted):
        return ""
    return f": those of the model are there behind the prefix {excerpt(prefix)!r}, strip it"


def _is_switched_off(model: nn.Module, name: str) -> bool:
    """Whether a tensor belongs to a part, such as ``AuxLogits``, that the model knows and was built without."""
    part, dot, _ = name.partition(".")
    return bool(dot) and getattr(model, part, model) is None


def _other_classes(own: Mapping[str, Tensor], given: Mapping[str, Tensor], names: list[str]) -> str:
    """A hint if only the first lengths differ, all in one way: those are the heads, for another number of classes."""
    lengths = {(given[name].shape[:1], own[name].shape[:1]) for name in names}
    if len(lengths) != 1 or any(given[name].shape[1:] != own[name].shape[1:] for name in names):
        return ""
    ((there, here),) = lengths
    return f": the checkpoint was made for {there[0]} classes and the model for {here[0]}" if there and here else ""


def _check_safetensors(file: BinaryIO, start: bytes) -> None:
    """Raise, saying what the file is instead, unless it begins as a safetensors file does."""
    size = file.seek(0, os.SEEK_END)
    length = int.from_bytes(start[:8], "little")
    if size == 0:
        raise ContentError("it is empty")
    if len(start) >= 9 and start[8:9] == b"{":
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise ContentError(
                f"it looks like a safetensors file whose header is {length} bytes long, and it has {size}"
            )
        return
    if start[:1] == b"\x80":
        raise ForeignObjectError("it is a plain pickle, which torch.save did not write")
    raise ContentError(
        next(
            (f"it is {what}" for beginning, what in OTHER_FILES if re.match(beginning, start)),
            "it is neither a safetensors file nor one of torch.save",
        )
    )


def _load_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    safetensors = needed("safetensors.torch", "safetensors files need safetensors: pip install 'tacfast[io]'")
    # Copied, because the tensors are windows into the file, which may be cut short while they live.
    return {name: tensor.clone() for name, tensor in safetensors.load_file(path).items()}


def _first_line(error: Exception) -> str:
    """A line about an error of a library; of its arguments only text, they can be anything that was in the file."""
    text = str(error) if isinstance(error, (RuntimeError, ValueError)) else ""
    line = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return excerpt(line)


def shown_path(path: str | os.PathLike[str]) -> str:
    """Path for a message, whole but without control characters."""
    return printable(os.fspath(path))


def _described(loaded: Any) -> str:
    if not isinstance(loaded, dict):
        return kind_of(loaded)
    return f"a dictionary with {listed(key for key in dict.keys(loaded) if isinstance(key, (str, int))) or 'nothing'}"
