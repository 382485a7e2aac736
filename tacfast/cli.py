"""Entry point of the command ``tacfast``."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Sequence

from ._text import printable

INTERRUPTED = 130

# Options that have another name than the argument of the Python function behind them, which its errors begin with.
_OPTIONS = {"state_file": "--state", "targets": "--target", "name": "--head"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; errors are one line, never a traceback.

    Python imports tacfast, and so torch, before it can call this: Ctrl-C during that second or two still ends in
    Python's own traceback.

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
        return _run(arguments)
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


def _run(arguments: Sequence[str] | None) -> int:
    try:
        from .commands import app
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in ("typer", "rich"):
            raise
        print("tacfast: the command line needs an extra: pip install 'tacfast[all]'", file=sys.stderr)
        return 1
    try:
        with warnings.catch_warnings(), _Resuming():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            app(args=None if arguments is None else list(arguments), prog_name="tacfast")
    except Exception as error:
        argument, colon, message = (str(error).splitlines() or [""])[0].partition(": ")
        line = _OPTIONS.get(argument, argument) + colon + message
        kind = "" if isinstance(error, (ValueError, ImportError, OSError)) else f"{type(error).__name__}: "
        print(f"tacfast: error: {kind}{printable(line)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
