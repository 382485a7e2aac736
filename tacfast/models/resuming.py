"""What is said of work that goes on from a file, and of work that is interrupted and keeps one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
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
    except KeyboardInterrupt as interrupt:
        # Said once, by the innermost, which knows most.
        if not getattr(interrupt, "told", False) and (what := kept()) is not None:
            log.info("%s kept in %s: do the same again to go on from there", what, path)
            interrupt.told = True  # type: ignore[attr-defined]
        raise


@contextmanager
def telling_of(paths: Sequence[Path]) -> Iterator[None]:
    """As `telling`, of the file that was written last of those that work goes on from."""
    try:
        yield
    except KeyboardInterrupt:
        there = [path for path in paths if path.exists()]
        if there:
            with telling(max(there, key=lambda path: path.stat().st_mtime), lambda: "what was done is"):
                raise
        raise
