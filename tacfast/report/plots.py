"""Pictures of a verdict, of its stability and of a repair."""

from __future__ import annotations

import io
import math
import os
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .._files import write_atomically
from .._lazy import needed
from ..detection import Perturbation
from .words import number, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

FLAGGED, ORDINARY, THRESHOLD = "#b03a2e", "#6b7f95", "#b03a2e"
INK = "#333333"
# Norms further out than this many medians and scores further than this are cut off, or nothing else could be seen.
MAX_MEDIANS, MAX_SCORE = 3.0, 12.0
MARKERS = "osd^v"
# More classes than this below one another are too many.
MAX_RANGES = 40
SCORE = "how far the class stands out,\nin standard deviations"
# More bars than this are too narrow for a number each.
MAX_NUMBERED = 50
# Inches that a digit, and a character of a name, take beside their neighbours.
DIGIT_WIDTH, CHARACTER_WIDTH = 0.1125, 0.09
# And an entry of a legend.
LEGEND_WIDTH = 3.0
# Inches a picture is wide, if it shows few classes.
WIDTH = 7.0
# Inches an image of a trigger takes, and how much its difference to the clean one is magnified.
IMAGE_WIDTH, DIFFERENCE_FACTOR = 1.1, 10


def new_figure(width: float, height: float = 4.2) -> Figure:
    """Empty figure, in inches: not pyplot's, so no global state, no window system, no other backend.

    Raises
    ------
    ImportError
        Without the extra ``report`` (Matplotlib).
    """
    figures = needed("matplotlib.figure", "pictures need Matplotlib: pip install 'tacfast[report]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure: Figure = figures.Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_scores(facts: Mapping[str, Any], path: str | os.PathLike[str], *, note: str = "") -> None:
    """Draw how far each class stands out, the threshold and the verdict; write a PNG, atomically.

    Parameters
    ----------
    facts : result of `scan_facts`
    path : of the picture
    note : a line under the title

    Raises
    ------
    ImportError
        Without the extra ``report`` (Matplotlib).
    """
    write_atomically(path, saved(scores_figure(facts, note=note), "png"))


def scores_figure(facts: Mapping[str, Any], *, note: str = "") -> Figure:
    """The picture of `plot_scores`."""
    figure = new_figure(width_for(facts["classes"]))
    axes = _draw_scores(figure, facts, facts["classes"])
    axes.set_title(
        facts["verdict"]["headline"] + (f"\n{note}" if note else ""), loc="left", fontsize=11, parse_math=False
    )
    return figure


def width_for(classes: Sequence[Mapping[str, Any]]) -> float:
    """Width in inches of a picture of all classes side by side."""
    return min(max(WIDTH, 0.32 * len(classes)), 40.0)


def easiest(classes: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """All classes in their order, or the ``limit`` that are the easiest to reach, those first."""
    return classes if len(classes) <= limit else sorted(classes, key=lambda row: row["rank"])[:limit]


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
    rows = {
        "clean": clean,
        "triggered": triggered,
        f"difference × {DIFFERENCE_FACTOR}\n(0.5 + {DIFFERENCE_FACTOR} (x′ − x),\ncut to 0…1)": _difference(
            clean, triggered, DIFFERENCE_FACTOR
        ),
    }
    figure = _draw_images(rows, titles)
    figure.suptitle(headline, fontsize=11, parse_math=False)
    write_atomically(path, saved(figure, "png"))


def is_image(perturbation: Perturbation) -> bool:
    """Whether its inputs can be shown: images (n, channels, h, w) with 1 or 3 channels."""
    return perturbation.inputs.ndim == 4 and perturbation.inputs.shape[1] in (1, 3)


def perturbation_figure(perturbation: Perturbation) -> Figure:
    """Draw images without and with a universal perturbation, and the difference.

    Whatever the inputs are normalised by, the smallest and largest value of each channel become 0 and 1.
    """
    both = torch.cat([perturbation.inputs, perturbation.perturbed])
    low, high = both.amin((0, 2, 3), keepdim=True), both.amax((0, 2, 3), keepdim=True)
    clean, changed = ((both - low) / (high - low).clamp_min(1e-12)).chunk(2)
    largest = float((changed - clean).abs().max())
    rows = {
        "as they are": clean,
        "with the\nperturbation": changed,
        "difference,\nin full contrast": _difference(clean, changed, 0.5 / max(largest, 1e-12)),
    }
    return _draw_images(rows, [""] * len(clean))


def _difference(clean: Tensor, changed: Tensor, factor: float) -> Tensor:
    return (0.5 + factor * (changed - clean)).clamp(0, 1)


def _draw_images(rows: Mapping[str, Tensor], titles: Sequence[str]) -> Figure:
    """Rows of images (n, channels, h, w) in [0, 1] below one another, each with its label."""
    figure = new_figure(1.6 + IMAGE_WIDTH * len(titles), 0.8 + IMAGE_WIDTH * len(rows))
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        for cell, image in zip(line, images.float().permute(0, 2, 3, 1), strict=True):
            cell.imshow(image.numpy(force=True), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            cell.set(xticks=[], yticks=[])
    for cell, title in zip(axes[0], titles, strict=True):
        cell.set_title(title, fontsize=9, parse_math=False)
    return figure


def bare_scores_figure(facts: Mapping[str, Any], classes: Sequence[Mapping[str, Any]], width: float) -> Figure:
    """Draw the picture of `plot_scores` for some of the classes, without its title, ``width`` inches wide."""
    figure = new_figure(width, 3.2 + 0.7 * CHARACTER_WIDTH * _longest(classes))
    _draw_scores(figure, facts, classes)
    return figure


def norms_figure(classes: Sequence[Mapping[str, Any]], width: float) -> Figure:
    """Draw the norm of the shift towards each of ``classes`` as bars, ``width`` inches wide."""
    figure = new_figure(width, 2.6 + 0.7 * CHARACTER_WIDTH * _longest(classes))
    axes = figure.add_subplot()
    finite = [row["norm"] for row in classes if math.isfinite(row["norm"])]
    middle = statistics.median(finite) if finite else 1.0
    top = 1.08 * (max((norm for norm in finite if norm <= MAX_MEDIANS * middle), default=1.0) or 1.0)
    for place, row in enumerate(classes):
        norm = row["norm"]
        if math.isfinite(norm):
            axes.bar(place, norm, color=FLAGGED if row["named"] else ORDINARY, width=0.75)
        if len(classes) <= MAX_NUMBERED:
            # No bar can show infinity or a failed solve; words in its place can.
            text, colour = _in_words(norm) + " ↑" * (top < norm < math.inf), "white" if math.isfinite(norm) else INK
            turn = 0 if len(text) * DIGIT_WIDTH < width / len(classes) else 90
            axes.text(place, 0.02 * top, text, ha="center", va="bottom", fontsize=9, rotation=turn, color=colour)
    axes.set_ylim(0, top)
    _name_classes(axes, classes, width)
    axes.set_ylabel("norm of the shift of the\nlatents towards the class")
    _finish(figure, axes)
    return figure


def ranges_figure(threshold: float, classes: Sequence[Mapping[str, Any]], width: float) -> Figure:
    """Draw the score (a mark) and its jackknife range (a bar) of each of ``classes``, below one another.

    Neither a threshold nor a score that is NaN is drawn.
    """
    figure = new_figure(width, 1.1 + 0.24 * max(len(classes), 3))
    axes = figure.add_subplot()
    for place, row in enumerate(classes):
        colour, marker = (FLAGGED, "D") if row["named"] else (ORDINARY, "o")
        low, high = (_within(value) for value in row["jackknife"]["score"])
        axes.plot([low, high], [place] * 2, color=colour, linewidth=5, alpha=0.45, solid_capstyle="butt")
        axes.plot([_within(row["score"])], [place], color=colour, marker=marker, markersize=6 if row["named"] else 5)
        if row["score"] > MAX_SCORE:
            _say_cut(axes, f"{number(row['score'], '.1f')} →", (MAX_SCORE, place), left=True)
    if math.isfinite(threshold):
        axes.axvline(threshold, color=THRESHOLD, linewidth=1.2, linestyle="--", label="threshold")
    axes.set_yticks(range(len(classes)), [_short_label(row) for row in classes], parse_math=False)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_xlabel(SCORE)
    _finish(figure, axes)
    return figure


def history_figure(accuracies: Sequence[float], chosen: int, width: float) -> Figure:
    """Draw the held-out accuracy after epoch 1, 2, … of a repair and the ``chosen`` epoch (0: none)."""
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
    return figure


def _draw_scores(figure: Figure, facts: Mapping[str, Any], classes: Sequence[Mapping[str, Any]]) -> Axes:
    axes = figure.add_subplot()
    colours = [FLAGGED if row["named"] else ORDINARY for row in classes]
    ends = [_within(row["score"]) for row in classes]
    axes.vlines(range(len(classes)), 0, ends, colors=colours, linewidth=3, alpha=0.45)
    for place, row in enumerate(classes):
        scores = [found["score"] for found in row["statistics"].values() if not math.isnan(found["score"])]
        high, low = max(scores, default=0.0), min(scores, default=0.0)
        for end, arrow, furthest in ((MAX_SCORE, "↑", high), (-MAX_SCORE, "↓", low)):
            if furthest / end > 1:
                _say_cut(axes, f"{number(furthest, '.1f')} {arrow}", (place, end), left=2 * place > len(classes))
    for statistic, marker in zip(facts["statistics"], MARKERS, strict=False):
        for named, colour in ((False, ORDINARY), (True, FLAGGED)):
            places = [place for place, row in enumerate(classes) if row["named"] == named]
            values = [_within(classes[place]["statistics"][statistic["name"]]["score"]) for place in places]
            label = None if named else statistic["title"]
            axes.plot(places, values, linestyle="none", marker=marker, markersize=6, color=colour, label=label)
    threshold = facts["verdict"]["threshold"]
    if math.isfinite(threshold):
        label = f"threshold {threshold:.2f}: suspicious above"
        axes.axhline(threshold, color=THRESHOLD, linewidth=1.2, linestyle="--", label=label)
    axes.axhline(0, color=INK, linewidth=0.8)
    _name_classes(axes, classes, figure.get_figwidth())
    axes.set_ylabel(SCORE)
    _finish(figure, axes)
    return axes


def _say_cut(axes: Axes, text: str, place: tuple[float, float], *, left: bool) -> None:
    """Write a score that is too large for the picture beside the mark that stands for it."""
    side = "right" if left else "left"
    axes.annotate(text, place, (-7 if left else 7, 0), textcoords="offset points", ha=side, va="center", fontsize=9)


def _name_classes(axes: Axes, classes: Sequence[Mapping[str, Any]], width: float) -> None:
    """Label an axis of classes, as many as can be read on a picture ``width`` inches wide."""
    room = width / max(len(classes), 1)
    step = max(1, -(-len(classes) // MAX_NUMBERED))
    ticks = [_short_label(row) for row in classes[::step]]
    turned = max(map(len, ticks), default=0) * CHARACTER_WIDTH > step * room
    how, side = ("anchor", "right") if turned else ("default", "center")
    places = range(0, len(classes), step)
    axes.set_xticks(places, ticks, parse_math=False, rotation=45 * turned, rotation_mode=how, ha=side)
    axes.set_xlim(-0.6, len(classes) - 0.4)
    axes.set_xlabel("class")


def _short_label(row: Mapping[str, Any]) -> str:
    return short_name({} if row["name"] is None else {row["class"]: row["name"]}, row["class"])


def _longest(classes: Sequence[Mapping[str, Any]]) -> int:
    return max((len(_short_label(row)) for row in classes), default=0)


def _within(score: float) -> float:
    """A score as far as the picture goes; NaN, of which nothing is drawn, stays."""
    return score if math.isnan(score) else min(max(score, -MAX_SCORE), MAX_SCORE)


def _in_words(norm: float) -> str:
    if math.isfinite(norm):
        return f"{norm:.2f}" if norm < 1000 else f"{norm:.1e}"
    return "not reachable" if math.isinf(norm) else "not solved"


def _finish(figure: Figure, axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        columns = 2 if figure.get_figwidth() > 2 * LEGEND_WIDTH else 1
        figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def saved(figure: Figure, kind: str) -> bytes:
    """The picture as a file of kind ``"svg"`` or ``"png"``."""
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
