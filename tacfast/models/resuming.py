"""What is said of work that goes on from a file, and of work that is interrupted and keeps one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .._files import only_process

# The command line shows what is logged here.
log = logging.getLogger("tacfast.resuming")


@contextmanager
def held(path: Path, kept: Callable[[], str | None]) -> Iterator[None]:
    """Work with a file, BlockingIOError if another process does; where that is interrupted, say as `telling` does."""
    with only_process(path, "resume"), telling(path, kept):
        yield


@contextmanager
def telling(path: Path, kept: Callable[[], str | None]) -> Iterator[None]:
    """Where the work inside is interrupted, say what of it is kept; ``kept`` gives that in words, or None."""
    try:
        yield
    except KeyboardInterrupt:
        if (what := kept()) is not None:
            log.info("%s kept in %s: do the same again to go on from there", what, path)
        raise
