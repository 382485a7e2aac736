"""Pixels decoded once, and mapped from a file ever after: no data set has to fit in memory."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import secrets
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from .listing import Listing

_log = logging.getLogger(__name__)

CACHE_VARIABLE = "TACFAST_CACHE"


def cache_folder() -> Path:
    """Where decoded pixels are kept: ``TACFAST_CACHE``, or ``~/.cache/tacfast``."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "tacfast")


def cached_pixels(name: str, listing: Listing) -> Tensor:
    """Return all images of a listing as a uint8 tensor (n, channels, height, width) that is mapped from a file.

    The file is known by names, sizes and times of change of what it was decoded from, and redone if its own size is
    wrong. It is written under another name and renamed when it is whole, so that several processes may do that at once.

    Raises
    ------
    OSError
        If the cache cannot be written, naming its folder.
    ValueError
        If an image is damaged.
    """
    shape = (len(listing.labels), *listing.shape)
    path = cache_folder() / f"{name}-{_digest(listing)}.uint8"
    if not path.is_file() or path.stat().st_size != math.prod(shape):
        _log.info("decoding %d images of %s into %s", shape[0], name, path)
        _write(path, listing)
    return torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=torch.uint8).view(shape)


def _digest(listing: Listing) -> str:
    digest = hashlib.sha256(repr((listing.shape, listing.n_train)).encode())
    digest.update("\0".join(listing.files).encode(errors="surrogateescape"))
    states = map(os.stat, listing.files)
    digest.update(repr([number for state in states for number in (state.st_size, state.st_mtime_ns)]).encode())
    digest.update(listing.labels.numpy().tobytes())
    return digest.hexdigest()[:16]


def _write(path: Path, listing: Listing) -> None:
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for chunk in listing.chunks():
                file.write(chunk.numpy().tobytes())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(
                error.errno,
                f"{error.strerror}; TACFAST_CACHE may name another folder for decoded images",
                str(path.parent),
            ) from error
        raise
