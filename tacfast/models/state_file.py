"""The file from which a training that was killed goes on."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import write_atomically
from .resuming import held, log

FORMAT = 2
DIGEST_BYTES = hashlib.sha256().digest_size


class DamagedStateError(ValueError):
    """A file holds no state, or a damaged one."""


class StateFile:
    """Holds the state of one training, told from every other one by its ``identity``.

    Parameters
    ----------
    path : in an existing folder; the file need not exist
    identity : plain values by name: what is done, its settings, and what it was given
    work : what errors call it

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such folder, or the path is one.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any], work: str = "repair") -> None:
        self._path, self._identity, self._work = Path(path), {"format": FORMAT, **identity}, work
        self._epochs = 0
        if not self._path.parent.is_dir():
            raise FileNotFoundError(f"resume: expected a file in an existing folder, got {self._path}")
        if self._path.is_dir():
            raise ValueError(f"resume: expected a file, got the folder {self._path}")

    def held(self) -> AbstractContextManager[None]:
        """Work with it alone, see `held`."""
        return held(self._path, lambda: f"epoch {self._epochs} is" if self._epochs else None)

    def read(self) -> dict[str, Any] | None:
        """Return what was written last, tensors on the CPU; None if there is no file.

        Raises
        ------
        DamagedStateError
            A ValueError: if the file is none of these.
        ValueError
            If it is of another piece of work; the message names the first thing that differs.
        """
        if not self._path.exists():
            return None
        content = self._path.read_bytes()
        digest, payload = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        try:
            if hashlib.sha256(payload).digest() != digest:
                raise ValueError("it is damaged, or something else")
            loaded = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
            identity, state = loaded["identity"], loaded["state"]
            differing = [name for name, value in self._identity.items() if identity.get(name) != value]
            epochs = len(state["history"])
        except Exception as error:  # whatever a file may hold that is not ours
            raise DamagedStateError(
                f"resume: expected a file written by {self._work}, got {self._path}: {error}"
            ) from error
        if differing:
            name = differing[0]
            raise ValueError(
                f"resume: expected the state of this {self._work} with {name} {self._identity[name]!r}, got one "
                f"with {identity.get(name)!r} in {self._path}; remove the file to start anew"
            )
        self._epochs = epochs
        log.info("going on after epoch %d, from %s", self._epochs, self._path)
        return dict(state)

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the file, whole or not at all; ``history`` in it has an item for each epoch."""
        content = io.BytesIO()
        torch.save({"identity": self._identity, "state": dict(state)}, content)
        payload = content.getvalue()
        write_atomically(self._path, hashlib.sha256(payload).digest() + payload)
        self._epochs = len(state["history"])


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers by name, also the buffers that a state dict leaves out."""
    return chain(model.named_parameters(), model.named_buffers())


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names, dtypes, shapes and values of all parameters and buffers, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in named_weights(model):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
