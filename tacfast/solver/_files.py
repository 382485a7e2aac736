"""Files that are either written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OSError unless a file can be written as ``path``: for before long work whose result goes there."""
    target = _target(path)
    if target.is_dir():
        raise IsADirectoryError(f"path: expected the name of a file, got the folder {target}")
    probe = target.with_name(f".{secrets.token_hex(8)}.tmp")
    write_atomically(probe, b"")
    probe.unlink()


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to a temporary file beside ``path`` and rename it.

    Whoever reads ``path`` sees the old file or the new one, never half of one; after a failure the temporary file is
    gone and the old file stands. Raises FileNotFoundError if the folder does not exist.
    """
    target = _target(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _target(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: expected a file in an existing folder, got {target}")
    return target
