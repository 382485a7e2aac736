"""Pictures of a verdict."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..detection import Verdict
from ..solver._files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLAGGED, ORDINARY, THRESHOLD = "#b03a2e", "#6b7f95", "#b03a2e"
# More bars than this are too narrow for a number each.
MAX_NUMBERED = 50


def new_figure(width: float) -> Figure:
    """Empty figure, ``width`` inches wide: not pyplot's, so no global state, no window system, no other backend.

    Raises
    ------
    ImportError
        Without the extra ``report`` (Matplotlib).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need Matplotlib: pip install 'tacfast[report]'") from error
    figure = Figure(figsize=(width, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_norms(
    verdict: Verdict, path: str | os.PathLike[str], *, names: Mapping[int, str] | None = None, note: str = ""
) -> None:
    """Draw the norm of the shift towards every class, the threshold and the verdict; write a PNG, atomically.

    Parameters
    ----------
    verdict : result of `tacfast.detect` or ``scan(...).verdict``
    path : of the picture
    names : of the classes, for the axis; their numbers if None
    note : a line under the title

    Raises
    ------
    ImportError
        Without the extra ``report`` (Matplotlib).
    """
    figure = new_figure(width=min(max(7.0, 0.32 * len(verdict.norms)), 40.0))
    axes = figure.add_subplot()
    _draw(axes, verdict, names or {})
    axes.set_title(_title(verdict, names or {}) + (f"\n{note}" if note else ""), loc="left", fontsize=11)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(path, content.getvalue())


def _title(verdict: Verdict, names: Mapping[int, str]) -> str:
    if verdict.label == "suspicious":
        flagged = ", ".join(names.get(k, str(k)) for k in verdict.classes)
        return f"Suspicious: class {flagged} is far easier to reach than the others"
    if verdict.label == "nothing_found":
        return "Nothing found: no class is far easier to reach than the others"
    return "Inconclusive: the rule cannot be applied to these norms"


def _draw(axes: Axes, verdict: Verdict, names: Mapping[int, str]) -> None:
    classes = list(verdict.norms)
    finite = [norm for norm in verdict.norms.values() if math.isfinite(norm)]
    top = 1.08 * max([*finite, 1e-12])
    for place, k in enumerate(classes):
        norm, flagged = verdict.norms[k], k in verdict.classes
        if math.isfinite(norm):
            axes.bar(place, norm, color=FLAGGED if flagged else ORDINARY, width=0.75)
            text, colour = f"{norm:.2f}", "white"
        else:
            # No bar can show infinity or a failed solve; words in its place can.
            text, colour = "not reachable" if math.isinf(norm) else "not solved", "#333333"
        if len(classes) <= MAX_NUMBERED:
            turn = 0 if math.isfinite(norm) and len(classes) <= 15 else 90
            # At the foot of the bar, where no line crosses the number.
            axes.text(place, 0.02 * top, text, ha="center", va="bottom", fontsize=9, rotation=turn, color=colour)
    if math.isfinite(verdict.median):
        axes.axhline(verdict.median, color="#333333", linewidth=1, linestyle=":", label=f"median {verdict.median:.2f}")
    if math.isfinite(verdict.threshold):
        label = f"threshold {verdict.threshold:.2f}: suspicious below"
        axes.axhline(max(verdict.threshold, 0.0), color=THRESHOLD, linewidth=1.2, linestyle="--", label=label)
    axes.set_ylim(0, top)
    axes.set_xlim(-0.6, len(classes) - 0.4)
    step = max(1, -(-len(classes) // MAX_NUMBERED))
    axes.set_xticks(range(0, len(classes), step), [names.get(k, str(k)) for k in classes[::step]])
    axes.set_xlabel("class")
    axes.set_ylabel("norm of the solved shift of\nthe latents towards the class")
    axes.spines[["top", "right"]].set_visible(False)
