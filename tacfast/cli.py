"""Entry point of the command ``tacfast``."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import current_thread, main_thread
from types import FrameType

from ._text import first_line, printable

INTERRUPTED = 130

# Options that have another name than the argument of the Python function behind them, which its errors begin with.
_OPTIONS = {"targets": "--target", "name": "--head"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; errors are one line, never a traceback.

    Parameters
    ----------
    arguments : without the program's name; ``sys.argv[1:]`` if None

    Returns
    -------
    int
        0 success, 1 error or a promise of the demo not kept, 2 wrong usage, 130 interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that the terminal cannot show must not stop a run
    try:
        with _Interrupts() as interrupts:
            return _run(arguments, interrupts)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    if status == INTERRUPTED:  # Typer, too, turns Ctrl-C into this status, and says nothing
        print("tacfast: interrupted", file=sys.stderr)
    return status


def _show_warning(message: Warning | str, *_: object) -> None:
    """A warning in one line, without the line of code that Python adds."""
    print(f"tacfast: warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)


class _Interrupts:
    """Notes Ctrl-C, because a library that is interrupted while it is imported may swallow it and fail later."""

    def __enter__(self) -> _Interrupts:
        self.came = False
        self._before = signal.getsignal(signal.SIGINT)
        self._ours = callable(self._before) and current_thread() is main_thread()
        if self._ours:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if callable(self._before):  # Python's own raises KeyboardInterrupt
            self._before(number, frame)


class _Resuming(logging.Handler):
    """Shows what work that goes on from a file, or is interrupted, has kept."""

    def __enter__(self) -> None:
        self.logger = logging.getLogger("tacfast.resuming")
        self.before = self.logger.level
        self.logger.addHandler(self)
        self.logger.setLevel(logging.INFO)

    def __exit__(self, *_: object) -> None:
        self.logger.removeHandler(self)
        self.logger.setLevel(self.before)

    def emit(self, record: logging.LogRecord) -> None:
        print(f"tacfast: {printable(record.getMessage())}", file=sys.stderr)


def _run(arguments: Sequence[str] | None, interrupts: _Interrupts) -> int:
    try:
        with warnings.catch_warnings(), _Resuming(), _joined():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            from .commands import app

            app(args=None if arguments is None else list(arguments), prog_name="tacfast")
    except Exception as error:
        if interrupts.came:
            raise KeyboardInterrupt from error
        line = _sentence(error)
        if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in ("typer", "rich"):
            line = "the command line needs an extra: pip install 'tacfast[all]'"
        print(f"tacfast: error: {printable(line)}", file=sys.stderr)
        return 1
    return 0


def _joined() -> AbstractContextManager[None]:
    """Join the other processes, where torchrun started several; torch, which that takes, is not imported elsewhere."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return nullcontext()
    from .commands.work.joined import joined

    return joined()


def _sentence(error: Exception) -> str:
    """The first line of an error, with the option in place of the argument, and its type where that tells more."""
    argument, colon, message = first_line(error).partition(": ")
    kind = "" if isinstance(error, (ValueError, ImportError, OSError)) else f"{type(error).__name__}: "
    return kind + _OPTIONS.get(argument, argument) + colon + message


if __name__ == "__main__":
    sys.exit(main())
