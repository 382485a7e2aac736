"""A report as one HTML page that stands alone: no script, no network, pictures inlined."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._text import printable
from ..scanning import ScanReport
from ..solver._files import write_atomically
from .facts import RESIDUALS, scan_facts
from .plots import history_svg, norms_svg, ranges_svg
from .words import class_label

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
# Rows of a table, and classes in a picture for a wide and for a narrow screen, that can still be read.
MAX_ROWS = 50
WIDE, NARROW = (7.6, 40), (3.9, 16)
MAX_RANGES = 40


def write_html(
    path: str | os.PathLike[str],
    report: ScanReport,
    *,
    names: Mapping[int, str] | None = None,
    source: Mapping[str, Any] | None = None,
    repair: Mapping[str, Any] | None = None,
    attack: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
) -> None:
    """Write the report of a scan, and of the repair after it, as one HTML file, atomically.

    It says what `scan_facts` collects, for people to read; of many classes, it shows those that are the easiest to
    reach. Names and ``source`` are shown as text, whatever they hold.

    Parameters
    ----------
    path : of the page
    report, names, source, repair, attack, warnings : as of `scan_facts`

    Raises
    ------
    ImportError
        Without the extra ``report`` (Jinja2 and Matplotlib).
    """
    page = _environment().get_template("report.html.j2")
    facts = scan_facts(report, names=names, source=source, repair=repair, attack=attack, warnings=warnings)
    classes = _easiest(facts["classes"], MAX_ROWS)
    text = page.render(
        facts=facts,
        classes=classes,
        limit=MAX_ROWS,
        residuals=RESIDUALS,
        losses=_losses(facts),
        pictures=_pictures(report, facts, names or {}),
        label=lambda k: class_label(names or {}, k),
    )
    write_atomically(path, text.encode())


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("HTML reports need Jinja2: pip install 'tacfast[report]'") from error
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # a subclass of it is markup
    )
    environment.filters |= {
        "number": _number,
        "index": _index,
        "percent": _percent,
        "points": _points,
        "residual": _residual,
        "seconds": _seconds,
    }
    return environment


def _easiest(classes: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """All classes in their order, or the ``limit`` that are the easiest to reach, those first."""
    return classes if len(classes) <= limit else sorted(classes, key=lambda row: row["rank"])[:limit]


def _losses(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy of each class before and after a repair; of many classes those that lost most."""
    repair = facts["repair"]
    if repair is None or repair["before"] is None:
        return []
    rows = [
        {"class": k, "before": before, "after": after, "change": after - before}
        for k, (before, after) in enumerate(
            zip(repair["before"]["per_class"], repair["after"]["per_class"], strict=True)
        )
    ]
    if len(rows) <= MAX_ROWS:
        return rows
    return sorted(rows, key=lambda row: math.inf if math.isnan(row["change"]) else row["change"])[:MAX_ROWS]


def _pictures(report: ScanReport, facts: dict[str, Any], names: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    """Each picture for wide and for narrow screens, as data URIs, and how many classes it shows."""

    def some(limit: int) -> list[int]:
        return [row["class"] for row in _easiest(facts["classes"], limit)]

    found = {}
    found["norms"] = {
        kind: (_data_uri(norms_svg(report.verdict, names, some(limit), width)), len(some(limit)))
        for kind, (width, limit) in (("wide", WIDE), ("narrow", NARROW))
    }
    if report.stability is not None:
        shown = some(MAX_RANGES)
        found["ranges"] = {
            kind: (_data_uri(ranges_svg(report.verdict, report.stability, names, shown, width)), len(shown))
            for kind, (width, _) in (("wide", WIDE), ("narrow", NARROW))
        }
    repair = facts["repair"]
    if repair is not None and repair["held_out"]:
        found["history"] = {
            kind: (_data_uri(history_svg(repair["held_out"], repair["epoch"], width)), 0)
            for kind, (width, _) in (("wide", WIDE), ("narrow", NARROW))
        }
    return found


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _number(value: float, form: str = "#.4g") -> str:
    if math.isnan(value):
        return "–"
    return ("−" if value < 0 else "") + (format(abs(value), form) if math.isfinite(value) else "∞")


def _index(value: float) -> str:
    return _number(value, ".2f" if abs(value) < 1000 else ".1e")


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def _points(change: float) -> str:
    return ("+" if change > 0 else "") + _number(100 * change, ".1f")


def _residual(value: float) -> str:
    return "0" if value == 0 else _number(value, ".1e")


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.1f} ms"
