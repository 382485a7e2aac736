"""Pictures, tables and files for people and programs to read."""

from ..solver._files import write_atomically
from .files import write_json
from .plots import new_figure, plot_norms
from .tables import before_after_table

__all__ = ["before_after_table", "new_figure", "plot_norms", "write_atomically", "write_json"]
