"""What results show of themselves when they are asked, from the facts and with the pictures of the reports."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

from .._lazy import needed
from ..detection import Perturbation
from ..jackknife import Stability
from ..scanning import ScanReport
from ..solver import TacSolution
from . import plots
from .facts import scan_facts, solution_facts
from .files import finite
from .html import data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from .._shown import Tabled


def to_dict(result: Tabled) -> dict[str, Any]:
    """See `Tabled.to_dict`."""
    facts: dict[str, Any] = finite(_facts(result))
    return facts


def to_pandas(result: Tabled) -> DataFrame:
    """See `Tabled.to_pandas`; what is nested in the facts has a column with a dotted name."""
    pandas = needed("pandas", "tables need pandas: pip install pandas")
    table: DataFrame = pandas.json_normalize(_facts(result)["classes"]).set_index("class")
    return table


def to_html(result: Tabled) -> str:
    """The text of a result for a notebook, and its picture where Matplotlib is installed."""
    text = f"<pre>{escape(repr(result))}</pre>"
    try:
        picture = data_uri(result.plot(), "png")
    except ImportError:
        return text
    return f'{text}<img style="max-width: 100%" alt="" src="{picture}">'


def scores(report: ScanReport) -> Figure:
    """See `ScanReport.plot`."""
    return plots.scores_figure(scan_facts(report))


def norms(solution: TacSolution[Any]) -> Figure:
    """See `TacSolution.plot`. A solution alone names no class."""
    rows = [{"name": None, "named": False, **row} for row in solution_facts(solution)["classes"]]
    return plots.norms_figure(rows, plots.width_for(rows))


def ranges(stability: Stability) -> Figure:
    """See `Stability.plot`. The score with all samples is not known here."""
    rows = [
        {"class": k, "name": None, "named": k in stability.named, "score": math.nan, "rank": stability.ranks[k].low}
        | {"jackknife": {"score": stability.scores[k]}}
        for k in stability.scores
    ]
    # As many classes are judged in every run, so that all have the same threshold.
    return plots.ranges_figure(stability.runs[0].threshold, plots.easiest(rows, plots.MAX_RANGES), plots.WIDTH)


def perturbation(found: Perturbation) -> Figure:
    """See `Perturbation.plot`."""
    if not plots.is_image(found):
        shape = tuple(found.inputs.shape)
        raise ValueError(f"inputs: expected images (m, channels, h, w) with 1 or 3 channels, got shape {shape}")
    return plots.perturbation_figure(found)


def _facts(result: Tabled) -> dict[str, Any]:
    if isinstance(result, ScanReport):
        return scan_facts(result)
    assert isinstance(result, TacSolution)
    return solution_facts(result)
