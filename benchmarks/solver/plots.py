"""The pictures of the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tacfast.report.plots import saved

from .figures import Measured, by_entrant, size_of, with_all
from .plan import GROWING_CLASSES, GROWING_GAPS, GROWING_SAMPLES, MAIN
from .races import FOLDED, OURS, SINGLE

FACTORS = np.geomspace(1, 1e4, 200)


def pictures(cells: Sequence[Measured]) -> list[tuple[str, str]]:
    """Titles, and pictures as SVG."""
    drawn = [
        ("Share of the problems that each solves within a multiple of the shortest time", _profile(cells)),
        ("Time against the number of classes", _by_classes(cells)),
        ("Time of tacfast against the number of active constraints, 200 classes", _by_active(cells)),
        ("Time of the gap matrix", _by_samples(cells)),
    ]
    return [(title, svg) for title, svg in drawn if svg]


def _svg(figure: Figure) -> str:
    text = saved(figure, "svg").decode()
    return text[text.index("<svg") :]


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xscale="log", xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _profile(cells: Sequence[Measured]) -> str:
    """A performance profile (Dolan and Moré 2002) of the main entrants, one thread."""
    names = (OURS, SINGLE, *MAIN)
    groups = with_all(cells, names).values()
    if not groups:
        return ""
    times = np.array(
        [
            [1.0 if name == OURS else (group[name].ratio if group[name].solved else np.inf) for name in names]
            for group in groups
        ]
    )
    relative = times / times.min(1, keepdims=True)
    figure, axes = _axes("multiple of the shortest time", "share of the problems")
    for name, column in zip(names, relative.T, strict=True):
        axes.step(FACTORS, [(column <= factor).mean() for factor in FACTORS], where="post", label=name)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(fontsize=8)
    return _svg(figure)


def _by_classes(cells: Sequence[Measured]) -> str:
    done = by_entrant(cells, "qps")
    figure, axes = _axes("classes", "ms")
    axes.set_yscale("log")
    for name in (OURS, *MAIN):
        _line(axes, _present(done.get((f"trained-C{C}-n5000-d512", name)) for C in GROWING_CLASSES), "C", name)
    axes.legend(fontsize=8)
    return _svg(figure) if axes.lines else ""


def _by_active(cells: Sequence[Measured]) -> str:
    done = [cell for (_, name), cell in by_entrant(cells, "qps").items() if name == OURS]
    done = [cell for cell in done if cell.figures["said"].keys() == {"solved"} and "-C200-" in cell.problem]
    if not done:
        return ""
    figure, axes = _axes("active constraints of a class, mean", "ms")
    axes.set_yscale("log")
    for cell in done:
        at = cell.figures["active"], 1e3 * cell.seconds()["median"]
        axes.plot(*at, "o", color="C0")
        axes.annotate(cell.problem.split("-")[0], at, xytext=(4, 4), textcoords="offset points", fontsize=8)
    return _svg(figure)


def _by_samples(cells: Sequence[Measured]) -> str:
    done = by_entrant(cells, "gaps")
    figure, axes = _axes("samples n (10 classes), or classes C (50,000 samples)", "ms")
    axes.set_yscale("log")
    for name in dict.fromkeys(name for _, name in done):
        _line(axes, _present(done.get((f"trained-C10-n{n}-d64", name)) for n in GROWING_SAMPLES), "n", name)
        if name == FOLDED:
            _line(
                axes, _present(done.get((f"trained-C{C}-n50000-d512", name)) for C in GROWING_GAPS), "C", f"{name}, C"
            )
    axes.legend(fontsize=8)
    return _svg(figure) if axes.lines else ""


def _present(cells: Iterable[Measured | None]) -> list[Measured]:
    return [cell for cell in cells if cell is not None]


def _line(axes: Axes, cells: Sequence[Measured], letter: str, label: str) -> None:
    if cells:
        sizes = [size_of(cell.problem, letter) for cell in cells]
        axes.plot(sizes, [1e3 * cell.seconds()["median"] for cell in cells], "o-", label=label, markersize=4)
