"""Results on disk: one JSON per cell, whole or not at all, and locks that end with the process that holds them."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tacfast.report import write_json

CHECKSUM = "sha256"


class Store:
    """A folder with one folder per network, and in that one JSON per cell.

    Parameters
    ----------
    folder : of the results; made if it does not exist
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, network: str, cell: str) -> Path:
        """Of the JSON of a cell."""
        return self.folder / network / f"{cell}.json"

    def write(self, network: str, cell: str, payload: Mapping[str, Any]) -> None:
        """Write a cell with a checksum, atomically."""
        path = self.path(network, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.loads(json.dumps(_without_nan(payload), allow_nan=False))
        write_json(path, {**content, CHECKSUM: _checksum(content)})

    def read(self, network: str, cell: str) -> dict[str, Any] | None:
        """Return a cell; None if there is none, or its file is damaged."""
        try:
            content = json.loads(self.path(network, cell).read_text(encoding="utf-8"))
            checksum = content.pop(CHECKSUM)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return content if checksum == _checksum(content) else None

    def has(self, network: str, cell: str, identity: Mapping[str, Any]) -> bool:
        """Whether a sound cell is there that was made with the same ``identity``: its settings and its network's."""
        content = self.read(network, cell)
        return content is not None and content.get("identity") == json.loads(json.dumps(identity))


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold a lock, unless another process does: yields whether it is ours. A killed process holds nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
