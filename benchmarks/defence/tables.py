"""Tables of a grid as Markdown and as one HTML page that stands alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from tacfast._files import write_atomically

from .cells import SCAN_CELL
from .profiles import CLEAN
from .summary import METRICS, Average, Row, averages

TEMPLATES = Path(__file__).parent
HEAD = ("ACC", "ASR", "RA", "DER", "ASR relearned 5", "50", "500", "s")
SUMMARY_HEAD = ("attacks", "ACC", "ASR", "RA", "DER", "loss of ACC on clean networks")
RELEARNED = ("relearn-5", "relearn-50", "relearn-500")


def percent(value: float) -> str:
    """A share in percent, one digit."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _with_spread(row: Row, metric: str) -> str:
    spread = row.spread(metric)
    return percent(row.mean(metric)) + (f" ± {100 * spread:.1f}" if spread is not None else "")


def _with_interval(row: Row, metric: str) -> str:
    share = row.interval(metric)
    return f"{_with_spread(row, metric)} [{percent(share.low)}, {percent(share.high)}]"


def line_of(row: Row) -> list[str]:
    """Cells of a table for one defence: name, shares with Wilson intervals, relearning, seconds, remarks."""
    seconds = row.mean("seconds")
    shares = [_with_interval(row, metric) for metric in ("acc", "asr", "ra")]
    last = [percent(row.mean(metric)) for metric in RELEARNED] + ["–" if math.isnan(seconds) else f"{seconds:.0f}"]
    return [row.defence, *shares, _with_spread(row, "der"), *last, "; ".join(row.notes)]


def title_of(row: Row) -> str:
    """What the networks of a row have in common."""
    attack = "clean (measured with BadNets)" if row.attack == CLEAN else f"{row.attack}, {100 * row.ratio:g} % poisoned"
    return f"{row.data}, {row.arch}, {attack}"


def sections(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One table per group of networks: those whose attack took first, then clean ones, then those that did not."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(title_of(row), []).append(row)
    found = [
        {
            "title": title,
            "weak": members[0].weak,
            "clean": members[0].attack == CLEAN,
            "seeds": len(members[0].networks),
            "facts": _facts(members[0]),
            "lines": [line_of(row) for row in members],
        }
        for title, members in groups.items()
    ]
    return sorted(found, key=lambda section: (section["weak"], section["clean"]))


def _facts(row: Row) -> str:
    """What is known of the suspects before any repair, in a sentence for each."""
    said = []
    for network in row.networks:
        scan, target = network[SCAN_CELL], network["target"]
        poisoned = (
            "no poisoned class" if row.attack == CLEAN else f"poisoned class {'all' if target is None else target}"
        )
        named = f" {', '.join(map(str, scan['classes']))}" if scan and scan["classes"] else ""
        verdict = scan["label"].replace("_", " ") if scan else "to be made"
        ceiling, change = network["ceiling"], network["reconstruction"]
        said.append(
            f"{poisoned}; scan: {verdict}{named}"
            + (f"; a clean network's RA on the same images {percent(ceiling['ra'])}" if ceiling else "")
            + (
                f"; reconstruction of the TAC: cosine {change['shift']['cosine']:.2f}, top tenth "
                f"{percent(change['shift']['top_overlap'])} % (closed form {change['closed_form']['cosine']:.2f}, "
                f"{percent(change['closed_form']['top_overlap'])} %)"
                if change
                else ""
            )
        )
    return " / ".join(said)


def label_of(average: Average) -> str:
    """Name of a defence, and what it was told that a user does not know."""
    if average.told:
        return f"{average.defence} (class told)"
    return f"{average.defence} (threshold by the test set)" if average.oracle else average.defence


def summaries(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One table per data set and poison ratio: every defence averaged over the attacks that took."""
    groups: dict[tuple[str, float], list[Average]] = {}
    for average in averages(rows):
        groups.setdefault((average.data, average.ratio), []).append(average)
    order = list(dict.fromkeys((row.data, row.ratio) for row in rows))
    return [
        {
            "title": f"{data}, {100 * ratio:g} % poisoned",
            "lines": [[label_of(each), *_summary_cells(each)] for each in groups[data, ratio]],
        }
        for data, ratio in sorted(groups, key=order.index)
    ]


def _summary_cells(average: Average) -> list[str]:
    loss = "–" if average.clean_loss is None else percent(average.clean_loss)
    return [str(average.attacks), *(percent(average.means[metric]) for metric in METRICS), loss]


def markdown_summary(rows: Sequence[Row]) -> str:
    """The `summaries` as Markdown."""
    parts = []
    for table in summaries(rows):
        head = f"| {table['title']} | {' | '.join(SUMMARY_HEAD)} |"
        lines = [f"| {' | '.join(line)} |" for line in table["lines"]]
        parts.append("\n".join([head, "|" + "---|" * (len(SUMMARY_HEAD) + 1), *lines]))
    return "\n\n".join(parts)


def markdown(rows: Sequence[Row], about: str) -> str:
    """The whole report as Markdown."""
    parts = [f"# Attacks × defences\n\n{about}", "## Summary", markdown_summary(rows)]
    for section in sections(rows):
        weak = " (listed apart: ASR below 0.9 before any repair)" if section["weak"] else ""
        head = f"## {section['title']}{weak}\n\n{section['facts']}\n"
        table = [f"| defence | {' | '.join(HEAD)} | remarks |", "|" + "---|" * (len(HEAD) + 2)]
        table += [f"| {' | '.join(line)} |" for line in section["lines"]]
        parts.append(head + "\n" + "\n".join(table))
    return "\n\n".join(parts) + "\n"


def html(rows: Sequence[Row], about: str) -> str:
    """The whole report as one page."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.get_template("tables.html.j2")
    return template.render(
        about=about, summaries=summaries(rows), summary_head=SUMMARY_HEAD, sections=sections(rows), head=HEAD
    )


def write_tables(folder: Path, name: str, rows: Sequence[Row], about: str) -> list[Path]:
    """Write ``NAME.md`` and ``NAME.html``; returns their paths."""
    paths = [folder / f"{name}.md", folder / f"{name}.html"]
    for path, text in zip(paths, (markdown(rows, about), html(rows, about)), strict=True):
        write_atomically(path, text.encode())
    return paths
