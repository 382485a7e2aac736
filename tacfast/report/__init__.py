"""Pictures, tables and files for people and programs to read."""

from ..solver._files import check_writable
from .files import write_json
from .plots import new_figure, plot_norms
from .tables import before_after_table

__all__ = ["before_after_table", "check_writable", "new_figure", "plot_norms", "write_json"]
