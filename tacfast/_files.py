"""Files that are either written whole or not at all, and worked on by one process, and one thread of it, at a time."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    LOCKS = False
else:
    LOCKS = True

# Locks that threads of this process hold: those of the system are the whole process's.
_held: set[Path] = set()
_holding = threading.Lock()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OSError unless a file can be written as ``path``: for before long work whose result goes there."""
    with _temporary(_target(path)) as temporary:
        temporary.write_bytes(b"")


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to a temporary file beside ``path`` and rename it.

    Whoever reads ``path`` sees the old file or the new one, never half of one; after a failure the temporary file is
    gone and the old file stands. One that a killed process has left is gone after the next write to ``path``. Of a
    symbolic link, what it leads to is written.

    Raises
    ------
    OSError
        Naming the path: if its folder does not exist, it is a folder or a device, or the disk is full.
    """
    target = _target(path)
    with _temporary(target) as temporary:
        temporary.write_bytes(content)
        temporary.replace(target)


@contextmanager
def only_process(path: str | os.PathLike[str], name: str) -> Iterator[None]:
    """Keep other processes, and other threads, from working with ``path``; where locks are unknown, threads only.

    Of a process that was killed nothing is left but an empty file, which the next one takes and removes.

    Parameters
    ----------
    path : a file, which need not exist, in a folder that does
    name : of the argument, for the error

    Raises
    ------
    BlockingIOError
        If another one does.
    OSError
        Naming the path: if its folder does not exist or cannot be written to.
    """
    target = Path(os.path.realpath(path))
    lock = target.with_name(f"{_prefix(target)}lock")
    with _holding:
        if lock in _held:  # not even opened: to close it would give up the lock of the whole process
            raise BlockingIOError(f"{name}: another thread works with {path}, wait for it")
        _held.add(lock)
    try:
        if not LOCKS:
            yield
            return
        with _locked(lock, path, name):
            try:
                yield
            finally:
                with suppress(OSError):
                    lock.unlink(missing_ok=True)
    finally:
        with _holding:
            _held.remove(lock)


def _locked(lock: Path, path: str | os.PathLike[str], name: str) -> IO[str]:
    """The lock file, ours until it is closed; errors are those of `only_process`."""
    while True:
        try:
            file = lock.open("w")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        # Not flock: a process that reads images for one that was killed would go on to hold the lock for seconds.
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.close()
                raise BlockingIOError(f"{name}: another process works with {path}, wait for it") from None
        if _is_same(file, lock):
            return file
        file.close()  # whoever held it has removed it


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """An empty file beside the target, gone on leaving; errors name the target instead of it."""
    prefix = _prefix(target)
    temporary = target.with_name(f"{prefix}{secrets.token_hex(8)}.tmp")
    try:
        for stale in target.parent.glob(f"{prefix}*.tmp"):
            _remove_unless_locked(stale)
        with temporary.open("xb") as file:
            _lock(file)
            yield temporary
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        with suppress(OSError):  # such as that of a folder that is no longer there
            temporary.unlink(missing_ok=True)


def _prefix(target: Path) -> str:
    """Of the names of files beside the target: short, whatever its own name, and the same in every process."""
    return f".{zlib.crc32(os.fsencode(target.name)):08x}."


def _remove_unless_locked(path: Path) -> None:
    """Remove what a killed process has left; what another one is about to write is locked."""
    with suppress(OSError), path.open("rb") as file:
        if _lock(file):
            path.unlink()


def _lock(file: IO[bytes]) -> bool:
    """Whether the file is ours until it is closed."""
    if not LOCKS:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_same(file: IO[str], path: Path) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


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
