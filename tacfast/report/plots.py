"""Pictures of a verdict, of its stability and of a repair."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..detection import Verdict
from ..solver._files import write_atomically
from ..stability import Stability
from .words import headline, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

FLAGGED, ORDINARY, THRESHOLD = "#b03a2e", "#6b7f95", "#b03a2e"
INK = "#333333"
# Norms further out than this many medians are cut off, or nothing else could be seen.
MAX_MEDIANS = 3.0
# More bars than this are too narrow for a number each.
MAX_NUMBERED = 50
# Inches that a digit, and a character of a name, take beside their neighbours.
DIGIT_WIDTH, CHARACTER_WIDTH = 0.1125, 0.09
# Inches an image of a trigger takes, and how much its difference to the clean one is magnified.
IMAGE_WIDTH, DIFFERENCE_FACTOR = 1.1, 10


def new_figure(width: float, height: float = 4.2) -> Figure:
    """Empty figure, in inches: not pyplot's, so no global state, no window system, no other backend.

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
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
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
    axes = _draw_norms(figure, verdict, names or {}, list(verdict.norms))
    title = headline(verdict, names or {}) + (f"\n{note}" if note else "")
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    write_atomically(path, _saved(figure, "png"))


def plot_triggers(
    clean: Tensor, triggered: Tensor, titles: Sequence[str], path: str | os.PathLike[str], *, headline: str = ""
) -> None:
    """Draw images, the same with a trigger, and ten times the difference, below one another; write a PNG, atomically.

    Parameters
    ----------
    clean, triggered : (n, channels, h, w) in [0, 1], with 1 or 3 channels
    titles : n, above the images
    path : of the picture
    headline : above everything

    Raises
    ------
    ImportError
        Without the extra ``report`` (Matplotlib).
    """
    difference = (0.5 + DIFFERENCE_FACTOR * (triggered - clean)).clamp(0, 1)
    rows = {
        "clean": clean,
        "triggered": triggered,
        f"difference × {DIFFERENCE_FACTOR}\n(0.5 + {DIFFERENCE_FACTOR} (x′ − x),\ncut to 0…1)": difference,
    }
    figure = new_figure(1.6 + IMAGE_WIDTH * len(clean), 0.8 + IMAGE_WIDTH * len(rows))
    axes = figure.subplots(len(rows), len(clean), squeeze=False)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        for cell, image in zip(line, images.float().permute(0, 2, 3, 1), strict=True):
            cell.imshow(image.numpy(force=True), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            cell.set(xticks=[], yticks=[])
    for cell, title in zip(axes[0], titles, strict=True):
        cell.set_title(title, fontsize=9, parse_math=False)
    figure.suptitle(headline, fontsize=11, parse_math=False)
    write_atomically(path, _saved(figure, "png"))


def norms_svg(verdict: Verdict, names: Mapping[int, str], classes: Sequence[int], width: float) -> bytes:
    """Draw the picture of `plot_norms` for some classes and without its title, ``width`` inches wide, as SVG."""
    longest = max((len(short_name(names, k)) for k in classes), default=0)
    figure = new_figure(width, 3.2 + 0.7 * CHARACTER_WIDTH * longest)
    _draw_norms(figure, verdict, names, classes)
    return _saved(figure, "svg")


def ranges_svg(
    verdict: Verdict, stability: Stability, names: Mapping[int, str], classes: Sequence[int], width: float
) -> bytes:
    """Draw the norm (a mark) and its jackknife range (a bar) of each of ``classes``, below one another, as SVG."""
    figure = new_figure(width, 1.1 + 0.24 * max(len(classes), 3))
    axes = figure.add_subplot()
    shown = [value for k in classes for value in (verdict.norms[k], *stability.norms[k])]
    end = _end(verdict, shown)
    for place, k in enumerate(classes):
        norm, (low, high) = verdict.norms[k], stability.norms[k]
        flagged = k in verdict.classes
        colour, marker = (FLAGGED, "D") if flagged else (ORDINARY, "o")
        if low < end:
            axes.plot([low, min(high, end)], [place] * 2, color=colour, linewidth=5, alpha=0.45, solid_capstyle="butt")
        if norm <= end:
            axes.plot([norm], [place], color=colour, marker=marker, markersize=6 if flagged else 5)
        else:
            axes.text(end, place, _in_words(norm) + " →", ha="right", va="center", fontsize=9, color=INK)
    known = [value for value in (verdict.threshold, verdict.median, *shown) if value <= end]
    margin = 0.04 * (end - min(known, default=0.0))
    axes.set_xlim(min(known, default=0.0) - margin, end + margin)
    if math.isfinite(verdict.threshold):
        axes.axvline(verdict.threshold, color=THRESHOLD, linewidth=1.2, linestyle="--", label="threshold")
    if math.isfinite(verdict.median):
        axes.axvline(verdict.median, color=INK, linewidth=1, linestyle=":", label="median")
    axes.set_yticks(range(len(classes)), [short_name(names, k) for k in classes], parse_math=False)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_xlabel("norm of the shift")
    _finish(figure, axes)
    return _saved(figure, "svg")


def history_svg(accuracies: Sequence[float], chosen: int, width: float) -> bytes:
    """Draw the held-out accuracy after epoch 1, 2, … of a repair and the ``chosen`` epoch (0: none), as SVG."""
    figure = new_figure(width, 2.6)
    axes = figure.add_subplot()
    epochs = range(1, len(accuracies) + 1)
    axes.plot(epochs, accuracies, color=ORDINARY, linewidth=1.5, marker="o", markersize=3, label="held-out accuracy")
    if 1 <= chosen <= len(accuracies):
        label = f"epoch {chosen}, chosen"
        axes.plot([chosen], [accuracies[chosen - 1]], "D", color=FLAGGED, markersize=7, label=label)
    axes.set_xlabel("epoch")
    axes.set_ylabel("share correct")
    axes.locator_params(axis="x", integer=True)
    _finish(figure, axes)
    return _saved(figure, "svg")


def _draw_norms(figure: Figure, verdict: Verdict, names: Mapping[int, str], classes: Sequence[int]) -> Axes:
    axes = figure.add_subplot()
    room = figure.get_figwidth() / max(len(classes), 1)  # of a bar, in inches
    end = _end(verdict, [verdict.norms[k] for k in classes])
    top = 1.08 * end
    for place, k in enumerate(classes):
        norm, flagged = verdict.norms[k], k in verdict.classes
        if math.isfinite(norm):
            axes.bar(place, norm, color=FLAGGED if flagged else ORDINARY, width=0.75)
        if len(classes) <= MAX_NUMBERED:
            # No bar can show infinity or a failed solve; words in its place can.
            text, colour = _in_words(norm) + " ↑" * (end < norm < math.inf), "white" if math.isfinite(norm) else INK
            turn = 0 if len(text) * DIGIT_WIDTH < room else 90
            # At the foot of the bar, where no line crosses the number.
            axes.text(place, 0.02 * top, text, ha="center", va="bottom", fontsize=9, rotation=turn, color=colour)
    if math.isfinite(verdict.median):
        axes.axhline(verdict.median, color=INK, linewidth=1, linestyle=":", label=f"median {verdict.median:.2f}")
    if math.isfinite(verdict.threshold):
        label = f"threshold {verdict.threshold:.2f}: suspicious below"
        axes.axhline(max(verdict.threshold, 0.0), color=THRESHOLD, linewidth=1.2, linestyle="--", label=label)
    axes.set_ylim(0, top)
    axes.set_xlim(-0.6, len(classes) - 0.4)
    step = max(1, -(-len(classes) // MAX_NUMBERED))
    ticks = [short_name(names, k) for k in classes[::step]]
    turned = max(map(len, ticks), default=0) * CHARACTER_WIDTH > step * room
    how, side = ("anchor", "right") if turned else ("default", "center")
    places = range(0, len(classes), step)
    axes.set_xticks(places, ticks, parse_math=False, rotation=45 * turned, rotation_mode=how, ha=side)
    axes.set_xlabel("class")
    axes.set_ylabel("norm of the solved shift of\nthe latents towards the class")
    _finish(figure, axes)
    return axes


def _end(verdict: Verdict, values: Sequence[float]) -> float:
    """Where an axis of norms must end to show these values, as far as they are not far out."""
    median = verdict.median if math.isfinite(verdict.median) else 0.0
    near = [value for value in values if value <= MAX_MEDIANS * median or (not median and math.isfinite(value))]
    return max([*near, median]) or 1.0


def _in_words(norm: float) -> str:
    if math.isfinite(norm):
        return f"{norm:.2f}" if norm < 1000 else f"{norm:.1e}"
    return "not reachable" if math.isinf(norm) else "not solved"


def _finish(figure: Figure, axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)


def _saved(figure: Figure, kind: str) -> bytes:
    import matplotlib

    content = io.BytesIO()
    # Text stays text, and the same picture the same file.
    style = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tacfast"})
    with style, warnings.catch_warnings():
        # Names in a script that Matplotlib's font lacks: an SVG is shown in the fonts of the reader.
        warnings.filterwarnings("ignore", "Glyph")
        if kind == "svg":
            figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
        else:
            figure.savefig(content, format="png")
    return content.getvalue()
