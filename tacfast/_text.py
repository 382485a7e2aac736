"""Text that is safe to show: names, paths and messages may be whatever somebody wrote."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

MAX_LISTED = 8
_JOINERS = "\u200c\u200d"  # invisible, but letters and emoji need them


def printable(text: str) -> str:
    """Replace what cannot be shown, or reorders the text around it, by U+FFFD: controls, surrogates, unassigned."""
    return "".join(c if unicodedata.category(c)[0] != "C" or c in _JOINERS else "\ufffd" for c in text)


def first_line(error: Exception) -> str:
    """The first line of what an exception says, printable."""
    return printable((str(error).splitlines() or [""])[0])


def excerpt(text: str, limit: int = 120) -> str:
    """Printable text of at most ``limit`` characters; what is longer ends in dots."""
    return printable(text if len(text) <= limit else text[: limit - 3] + "...")


def listed(items: Iterable[object]) -> str:
    """At most eight names or numbers, printable, with the count of the rest; "" for none."""
    entries = list(items)
    rest = len(entries) - MAX_LISTED
    text = ", ".join(f"{x:g}" if isinstance(x, float) else excerpt(str(x)) for x in entries[:MAX_LISTED])
    return f"{text} and {rest} more" if rest > 0 else text
