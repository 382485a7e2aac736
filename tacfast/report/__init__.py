"""Pictures, tables, pages and files for people and programs to read."""

from ..solver._files import check_writable
from .facts import accuracy_warning, repair_facts, scan_facts
from .files import write_json
from .html import write_html
from .plots import new_figure, plot_scores, plot_triggers
from .tables import before_after_table

__all__ = [
    "accuracy_warning",
    "before_after_table",
    "check_writable",
    "new_figure",
    "plot_scores",
    "plot_triggers",
    "repair_facts",
    "scan_facts",
    "write_html",
    "write_json",
]
