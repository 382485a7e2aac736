"""A report as one HTML page that stands alone: no script, no network, pictures inlined."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import write_atomically
from .._lazy import needed
from .._text import printable
from ..detection import Perturbation
from ..solver._results import RESIDUALS
from . import plots
from .words import class_label, number

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).with_name("templates")
# Rows of a table, and classes in a picture for a wide and for a narrow screen, that can still be read.
MAX_ROWS = 50
WIDE, NARROW = (7.6, 40), (3.9, 16)


def write_html(
    path: str | os.PathLike[str], facts: Mapping[str, Any], perturbations: Sequence[Perturbation] = ()
) -> None:
    """Write the report of a scan, and of the repair after it, as one HTML file, atomically.

    Of many classes, it shows those that are the easiest to reach. Names and the source are shown as text, whatever they
    hold.

    Parameters
    ----------
    path : of the page
    facts : result of `scan_facts`
    perturbations : ``perturbations`` of the report, to be shown as pictures

    Raises
    ------
    ImportError
        Without the extra ``report`` (Jinja2 and Matplotlib).
    """
    page = _environment().get_template("report.html.j2")
    names = {row["class"]: row["name"] for row in facts["classes"] if row["name"] is not None}
    text = page.render(
        facts=facts,
        classes=plots.easiest(facts["classes"], MAX_ROWS),
        limit=MAX_ROWS,
        residuals=RESIDUALS,
        losses=_losses(facts),
        robust=_robust(facts),
        pictures=_pictures(facts),
        changes={
            each.target: data_uri(plots.perturbation_figure(each), "png")
            for each in perturbations
            if plots.is_image(each)
        },
        label=lambda k: class_label(names, k),
    )
    write_atomically(path, text.encode())


def write_index(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a page that links the reports of several scans, atomically.

    Parameters
    ----------
    path : of the page, in the folder of the reports
    rows : in the order to be shown, each with ``name``, ``label`` (or ``"error"``) and ``error``, and without an error
        ``html``, ``headline``, ``surprise`` and ``accuracy``, as ``tacfast scan --out`` writes them

    Raises
    ------
    ImportError
        Without the extra ``report`` (Jinja2).
    """
    told = [{key: value for key, value in row.items() if value is not None or key == "error"} for row in rows]
    text = _environment().get_template("index.html.j2").render(rows=told, nan=math.nan)
    write_atomically(path, text.encode())


def _environment() -> Environment:
    jinja2 = needed("jinja2", "HTML reports need Jinja2: pip install 'tacfast[report]'")
    environment: Environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # a subclass of it is markup
    )
    environment.filters |= {
        "number": number,
        "score": _score,
        "percent": _percent,
        "points": _points,
        "residual": _residual,
        "seconds": _seconds,
    }
    return environment


def _losses(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy of each class before and after a repair; of many classes those that lost most."""
    repair = facts["repair"]
    if repair is None or repair["before"] is None:
        return []
    return _lowest("change", repair["before"]["per_class"], repair["after"]["per_class"])


def _robust(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """RA of each class before and, if there was one, after a repair; of many classes those that came out worst."""
    attack = facts["attack"]
    if attack is None:
        return []
    before = attack["before"]["ra_per_class"]
    return _lowest("after", before, (attack["after"] or attack["before"])["ra_per_class"])


def _lowest(key: str, before: Sequence[float], after: Sequence[float]) -> list[dict[str, Any]]:
    """A row for each class, or ``MAX_ROWS`` with the lowest values of one."""
    rows = [
        {"class": k, "before": old, "after": new, "change": new - old}
        for k, (old, new) in enumerate(zip(before, after, strict=True))
    ]
    if len(rows) <= MAX_ROWS:
        return rows
    return sorted(rows, key=lambda row: math.inf if math.isnan(row[key]) else row[key])[:MAX_ROWS]


def _pictures(facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each picture for wide and for narrow screens, as data URIs, and how many classes it shows."""

    def drawn(draw: Callable[[list[dict[str, Any]], float], Figure], *, side_by_side: bool) -> dict[str, Any]:
        found = {}
        for kind, (width, most) in (("wide", WIDE), ("narrow", NARROW)):
            shown = plots.easiest(facts["classes"], most if side_by_side else plots.MAX_RANGES)
            found[kind] = data_uri(draw(shown, width), "svg"), len(shown)
        return found

    found = {
        "scores": drawn(lambda classes, width: plots.bare_scores_figure(facts, classes, width), side_by_side=True),
        "norms": drawn(plots.norms_figure, side_by_side=True),
    }
    if facts["stability"] is not None:
        found["ranges"] = drawn(
            lambda classes, width: plots.ranges_figure(facts["verdict"]["threshold"], classes, width),
            side_by_side=False,
        )
    repair = facts["repair"]
    if repair is not None and repair["held_out"]:
        found["history"] = drawn(
            lambda _, width: plots.history_figure(repair["held_out"], repair["epoch"], width), side_by_side=False
        )
    return found


def data_uri(figure: Figure, kind: str) -> str:
    """A figure, as SVG or PNG like `saved`, for the ``src`` of an ``img``."""
    media = "svg+xml" if kind == "svg" else kind
    return f"data:image/{media};base64," + base64.b64encode(plots.saved(figure, kind)).decode()


def _score(value: float) -> str:
    return number(value, ".2f")


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def _points(change: float) -> str:
    return ("+" if change > 0 else "") + number(100 * change, ".1f")


def _residual(value: float) -> str:
    return "0" if value == 0 else number(value, ".1e")


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.1f} ms"
