"""Figures made of cells: ratios, means over problems, and how time grows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .races import FOLDED, OURS, OURS_SAMPLES, PRODUCT

# By race, what an entrant's time is compared with: measured in the same process, in turn.
YARDSTICKS = {"qps": OURS, "gaps": FOLDED, "whole": PRODUCT, "samples": OURS_SAMPLES, "paper": OURS}
# Shift of the geometric mean, in units of tacfast's time: keeps entrants that are all alike quick from counting as far
# apart.
SHIFT = 1.0


@dataclass(frozen=True)
class Measured:
    """A cell as it was kept.

    Attributes
    ----------
    race, problem, entrant, threads : what was measured
    figures : what came of it, as of `Cell.measure`; ``failed`` where nothing did
    """

    race: str
    problem: str
    entrant: str
    threads: int
    figures: Mapping[str, Any]

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Measured:
        """From the content of its file."""
        return cls(kept["race"], kept["problem"], kept["entrant"], kept["threads"], kept)

    @property
    def failed(self) -> str:
        """Why there are no figures; empty if there are."""
        return str(self.figures.get("failed", ""))

    def seconds(self, name: str | None = None) -> dict[str, float]:
        """Median, min and max of one who ran in this cell, by default of the one that it is of."""
        found: dict[str, float] = self.figures["seconds"][name or self.entrant]
        return found

    @property
    def ratio(self) -> float:
        """Its time over that of the yardstick; infinite if it failed."""
        if self.failed:
            return math.inf
        return self.seconds()["median"] / self.seconds(YARDSTICKS[self.race])["median"]

    @property
    def solved(self) -> bool:
        """Whether it answered every class, and rightly."""
        said = self.figures.get("said", {})
        return not self.failed and not any(word == "gave up" or word.endswith("wrongly") for word in said)


def of_race(cells: Iterable[Measured], race: str, threads: int | None = 1) -> list[Measured]:
    """Cells of a race, with so many threads."""
    return [cell for cell in cells if cell.race == race and threads in (None, cell.threads)]


def by_problem(cells: Iterable[Measured]) -> dict[str, list[Measured]]:
    """In the order in which they come."""
    found: dict[str, list[Measured]] = {}
    for cell in cells:
        found.setdefault(cell.problem, []).append(cell)
    return found


def by_entrant(cells: Iterable[Measured], race: str) -> dict[tuple[str, str], Measured]:
    """Those of a race on one thread that have figures, by problem and entrant."""
    return {(cell.problem, cell.entrant): cell for cell in of_race(cells, race) if not cell.failed}


def with_all(cells: Iterable[Measured], names: Sequence[str]) -> dict[str, dict[str, Measured]]:
    """Class-wise QPs on one thread: by problem the cells by entrant, where all of these were raced."""
    groups = {
        problem: {cell.entrant: cell for cell in group} for problem, group in by_problem(of_race(cells, "qps")).items()
    }
    return {problem: group for problem, group in groups.items() if all(name in group for name in names)}


def ranked(group: Iterable[Measured]) -> list[Measured]:
    """Those that have figures, by threads and then by time over that of the yardstick."""
    return sorted((cell for cell in group if not cell.failed), key=lambda cell: (cell.threads, cell.ratio))


def shifted_mean(ratios: Sequence[float]) -> float:
    """Shifted geometric mean; infinite if any ratio is."""
    return math.exp(statistics.fmean(math.log(ratio + SHIFT) for ratio in ratios)) - SHIFT


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of a line through the logarithms, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def size_of(problem: str, letter: str) -> int:
    """C, n or d in the name of a generated problem."""
    return next(int(part[1:]) for part in problem.split("-") if part[:1] == letter and part[1:].isdigit())
