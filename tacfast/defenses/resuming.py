"""The file from which a training that was killed goes on."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..solver._files import write_atomically
from .selection import named_weights

FORMAT = 1


class StateFile:
    """Holds the state of one repair, told from every other one by its ``identity``.

    Parameters
    ----------
    path : in an existing folder; the file need not exist
    identity : plain values by name: the mode, its settings, and what it was given

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such folder, or the path is one.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        self._path, self._identity = Path(path), {"format": FORMAT, **identity}
        if not self._path.parent.is_dir():
            raise FileNotFoundError(f"state_file: expected a file in an existing folder, got {self._path}")
        if self._path.is_dir():
            raise ValueError(f"state_file: expected a file, got the folder {self._path}")

    def read(self) -> dict[str, Any] | None:
        """Return what was written last, tensors on the CPU; None if there is no file.

        Raises
        ------
        ValueError
            If the file is none of these, or of another repair; the message names the first thing that differs.
        """
        if not self._path.exists():
            return None
        raw = io.BytesIO(self._path.read_bytes())  # now, since torch has OSErrors of its own for files that are cut
        try:
            content = torch.load(raw, map_location="cpu", weights_only=True)
            identity, state = content["identity"], content["state"]
            differing = [name for name, value in self._identity.items() if identity.get(name) != value]
        except Exception as error:  # whatever a file may hold that is not ours
            raise ValueError(f"state_file: expected a file written by repair, got {self._path}: {error}") from error
        if differing:
            name = differing[0]
            raise ValueError(
                f"state_file: expected the state of this repair with {name} {self._identity[name]!r}, got one with "
                f"{identity.get(name)!r} in {self._path}; remove the file to start anew"
            )
        return dict(state)

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the file, whole or not at all."""
        content = io.BytesIO()
        torch.save({"identity": self._identity, "state": dict(state)}, content)
        write_atomically(self._path, content.getvalue())

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self._path.unlink(missing_ok=True)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names, dtypes, shapes and values of all parameters and buffers, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in named_weights(model):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
