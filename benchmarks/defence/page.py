"""The site's summary of the grid, made from the committed cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tacfast._files import write_atomically

from .cells import SCAN_CELL, is_sound
from .profiles import CLEAN, DEFENCES, PROFILES, Network
from .store import Store
from .summary import MIN_ASR, NONE, Row, averages, rows_of
from .tables import markdown_summary

PAGE = Path("docs") / "comparison.md"
BEGIN, END = "<!-- defence: begin, made by python -m benchmarks.defence --tables -->", "<!-- defence: end -->"
PROFILE = "paper-small"


def rows_in_profile(store: Store, profile: str, defences: Sequence[str]) -> list[Row]:
    """Rows of the cells of a profile that were made with its present settings."""
    settings = PROFILES[profile]

    def sound(network: Network, name: str) -> bool:
        return is_sound(store, settings, network, name)

    return rows_of(store, settings.networks, defences, sound)


def page_summary(store: Store) -> str:
    """What stands between the marks on the page."""
    rows = rows_in_profile(store, PROFILE, tuple(DEFENCES))
    suspects = [row for row in rows if row.defence == NONE]
    networks = sum(len(row.networks) for row in suspects)
    said = (
        f"{networks} networks of the profile's {len(PROFILES[PROFILE].networks)} so far "
        f"({sum(row.attack != CLEAN for row in suspects)} kinds under attack). {_verdicts(suspects)}{_weak(suspects)}"
    )
    return f"{said}\n\n{markdown_summary(rows)}" if averages(rows) else said


def _verdicts(suspects: Sequence[Row]) -> str:
    """How the scan judged them, in words."""
    scanned = [(row.attack, network) for row in suspects for network in row.networks if network[SCAN_CELL] is not None]
    clean = [network for attack, network in scanned if attack == CLEAN]
    attacked = [network for attack, network in scanned if attack != CLEAN]
    # An all-to-all attack has no target, and is found where every class is to be repaired.
    right = sum(
        network[SCAN_CELL]["classes"] == ([] if network["target"] is None else [network["target"]])
        and bool(network[SCAN_CELL]["aims"])
        for network in attacked
    )
    named = sum(bool(network[SCAN_CELL]["aims"]) for network in attacked)
    alarms = sum(bool(network[SCAN_CELL]["aims"]) for network in clean)
    return (
        f"The scan named the poisoned class of {right} of {len(attacked)} backdoored networks, a wrong one of "
        f"{named - right}, and a class of {alarms} of {len(clean)} clean ones."
    )


def _weak(suspects: Sequence[Row]) -> str:
    """Which attacks are in no mean."""
    weak = [f"{row.attack} on {row.data} ({100 * row.ratio:g} %)" for row in suspects if row.weak]
    return f" In no mean, because their ASR was below {MIN_ASR:g} before any repair: {', '.join(weak)}." if weak else ""


def update_page(root: Path, store: Store) -> list[Path]:
    """Put the summary into its page of the site; returns the path, or nothing if it stood there already."""
    path = root / PAGE
    text = path.read_text(encoding="utf-8")
    new = with_summary(text, page_summary(store), (BEGIN, END))
    if new == text:
        return []
    write_atomically(path, new.encode())
    return [path]


def with_summary(text: str, summary: str, marks: tuple[str, str]) -> str:
    """A page with another summary between two marks.

    Raises
    ------
    ValueError
        If a mark is missing.
    """
    begin, end = marks
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"text: expected the marks {begin} and {end}, each once")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{summary}\n\n{end}{rest.split(end)[1]}"
