"""Tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import needed
from ..evaluation import Metrics

if TYPE_CHECKING:
    from rich.table import Table


def before_after_table(before: Metrics, after: Metrics | None, *, title: str = "") -> Table:
    """Rich table of clean accuracy, attack success and robust accuracy, before and after a repair.

    Raises
    ------
    ImportError
        Without the extra ``cli`` (Rich).
    """
    tables = needed("rich.table", "tables need Rich: pip install 'tacfast[cli]'")
    table: Table = tables.Table(title=title or None, title_justify="left")
    table.add_column("on the test images")
    table.add_column("before", justify="right")
    if after is not None:
        table.add_column("after repair", justify="right")
    rows = {
        "clean accuracy (ACC)": "acc",
        "trigger sends image to target (ASR)": "asr",
        "triggered image classified correctly (RA)": "ra",
    }
    for label, name in rows.items():
        values = [getattr(metrics, name) for metrics in (before, after) if metrics is not None]
        table.add_row(label, *(f"{100 * value:.1f} %" for value in values))
    return table
