"""Pictures, tables, pages and files for people and programs to read."""

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .._files import check_writable
    from .facts import accuracy_warning, error_facts, repair_facts, scan_facts
    from .files import schema_text, write_json
    from .html import write_html, write_index
    from .plots import new_figure, plot_scores, plot_triggers
    from .tables import before_after_table
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "accuracy_warning",
    "before_after_table",
    "check_writable",
    "error_facts",
    "new_figure",
    "plot_scores",
    "plot_triggers",
    "repair_facts",
    "scan_facts",
    "schema_text",
    "write_html",
    "write_index",
    "write_json",
]
