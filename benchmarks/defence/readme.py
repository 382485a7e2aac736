"""The README's summary of the grid, made from the committed cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tacfast.solver._files import write_atomically

from .cells import identity
from .profiles import CLEAN, DEFENCES, PROFILES, Network
from .store import Store
from .summary import Row, averages, rows_of
from .tables import markdown_summary

BEGIN, END = "<!-- defence: begin, made by python -m benchmarks.defence --tables -->", "<!-- defence: end -->"
PROFILE = "paper-small"


def rows_in_profile(store: Store, profile: str, defences: Sequence[str]) -> list[Row]:
    """Rows of the cells of a profile that were made with its present settings."""
    settings = PROFILES[profile]

    def sound(network: Network, name: str) -> bool:
        return store.has(network.name, name, identity(settings, network, name))

    return rows_of(store, settings.networks, defences, sound)


def readme_summary(store: Store) -> str:
    """What stands between the marks in the README."""
    rows = rows_in_profile(store, PROFILE, tuple(DEFENCES))
    done = {(row.data, row.attack, row.ratio) for row in rows}
    networks = len({network["network"] for row in rows for network in row.networks})
    clean = sum(attack == CLEAN for _, attack, _ in done)
    verdicts = _verdicts(store)
    said = (
        f"{networks} networks of the profile's {len(PROFILES[PROFILE].networks)} so far "
        f"({len(done) - clean} kinds under attack). {verdicts}"
    )
    return f"{said}\n\n{markdown_summary(rows)}" if averages(rows) else said


def _verdicts(store: Store) -> str:
    """How the scan judged them, in words."""
    right = wrong = silent = alarms = clean = 0
    for network in PROFILES[PROFILE].networks:
        cell = store.read(network.name, "network")
        if cell is None:
            continue
        named = cell["scan"]["classes"]
        if network.attack == CLEAN:
            clean, alarms = clean + 1, alarms + bool(named)
        elif named == [cell["target"]]:
            right += 1
        elif named:
            wrong += 1
        else:
            silent += 1
    return (
        f"The scan named the poisoned class of {right} of {right + wrong + silent} backdoored networks, a wrong one of "
        f"{wrong}, and a class of {alarms} of {clean} clean ones."
    )


def update_readme(root: Path, store: Store) -> list[Path]:
    """Put the summary into the README; returns its path, or nothing if it stood there already."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8")
    new = with_summary(text, readme_summary(store))
    if new == text:
        return []
    write_atomically(path, new.encode())
    return [path]


def with_summary(text: str, summary: str) -> str:
    """The README with another summary between its marks.

    Raises
    ------
    ValueError
        If a mark is missing.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError("README.md: expected the two marks of the summary, each once")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{summary}\n\n{END}{rest.split(END)[1]}"
