"""Files that are either written whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OSError unless a file can be written as ``path``: for before long work whose result goes there."""
    target = _target(path)
    write_atomically(probe := target.with_name(f".{secrets.token_hex(8)}.tmp"), b"")
    probe.unlink()


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to a temporary file beside ``path`` and rename it.

    Whoever reads ``path`` sees the old file or the new one, never half of one; after a failure the temporary file is
    gone and the old file stands. Of a symbolic link, what it leads to is written.

    Raises
    ------
    OSError
        Naming the path: if its folder does not exist, it is a folder or a device, or the disk is full.
    """
    target = _target(path)
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # not in the name of the temporary file
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def _target(path: str | os.PathLike[str]) -> Path:
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: expected a file in an existing folder, got {path}")
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"path: expected the name of a file, got the folder {path}")
    if not stat.S_ISREG(mode):
        raise OSError(f"path: expected the name of a file, got {path}, which is a device or a pipe")
    return target
