"""How results show themselves: a screenful of text, and where that makes sense a picture, a table and plain values."""

from __future__ import annotations

import textwrap
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from itertools import islice
from typing import TYPE_CHECKING, Any

from ._text import excerpt, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

# A screenful, the most lines of it for one thing, and how many of many values are shown.
MAX_LINES, MAX_COLUMNS, MAX_ROW_LINES, FEW = 20, 100, 4, 5


class Shown:
    """A record whose repr is a screenful at most: what it comes to, and in place of arrays their dtypes and shapes."""

    def _title(self) -> str:
        """What it comes to, in words behind its type; where there are none, a repr that fits is a single line."""
        return ""

    def _rows(self) -> list[tuple[str, object]]:
        """What is shown below that, by name; here the fields of a dataclass that are not None."""
        known: Any = self
        found = [(each.name, getattr(self, each.name)) for each in fields(known) if each.repr]
        return [(name, value) for name, value in found if value is not None]

    def _heading(self) -> str:
        title = self._title()
        return type(self).__name__ + (f": {title}" if title else "")

    def __repr__(self) -> str:
        rows = [(name, printable(value) if isinstance(value, str) else brief(value)) for name, value in self._rows()]
        line = f"{self._heading()}({', '.join(f'{name}={text}' for name, text in rows)})"
        if not self._title() and len(line) <= MAX_COLUMNS:
            return line
        wide = max((len(name) for name, _ in rows), default=0)
        lines = _wrapped(self._heading(), "", "  ")
        for name, text in rows:
            lines += _wrapped(text, f"  {name:<{wide}}  ", " " * (wide + 4))
        return "\n".join(lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], "  …"])


class Tabled(Shown, ABC):
    """A record of facts about each class."""

    # What draws and tells lies above everything that has results: it is looked up when it is asked for.

    @abstractmethod
    def plot(self) -> Figure:
        """Draw the classes."""

    def to_dict(self) -> dict[str, Any]:
        """The facts as plain values that JSON can hold, the same as in a report of `tacfast.report`.

        Tensors are left out. JSON has no NaN or infinity: they are None, and ``status`` says why.
        """
        from .report import views

        return views.to_dict(self)

    def to_pandas(self) -> DataFrame:
        """The facts about each class as a table: a row per class, in their order, whose number is the index.

        Raises
        ------
        ImportError
            Without pandas.
        """
        from .report import views

        return views.to_pandas(self)

    def _repr_html_(self) -> str:
        from .report import views

        return views.to_html(self)


def brief(value: object) -> str:
    """One line on a value: of an array what it is, of many items the first few."""
    if isinstance(value, Shown):
        return value._heading()
    if isinstance(value, str):
        return excerpt(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        where = str(getattr(value, "device", "cpu"))
        kind = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        return kind if where == "cpu" else f"{kind} on {where}"
    if isinstance(value, Mapping):
        items = [f"{brief(key)}: {brief(item)}" for key, item in islice(value.items(), FEW)]
        return f"{{{_joined(items, len(value))}}}"
    if isinstance(value, (list, tuple)):
        text = _joined([brief(item) for item in value[:FEW]], len(value))
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    text = repr(value)
    return type(value).__name__ if "\n" in text else excerpt(text)


def by_class(values: Mapping[int, object]) -> str:
    """What there is to say of the first few classes, such as ``class 3: 0.5, class 1: 0.75``."""
    items = [f"class {k}: {brief(value)}" for k, value in islice(values.items(), FEW)]
    return ", ".join([*items, "…"] if len(values) > FEW else items) or "none"


def _joined(items: list[str], count: int) -> str:
    return ", ".join([*items, f"… ({count})"] if count > len(items) else items)


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        MAX_COLUMNS,
        initial_indent=first,
        subsequent_indent=others,
        max_lines=MAX_ROW_LINES,
        placeholder=" …",
        break_on_hyphens=False,
    )
