"""From the JSON cells to rows: what every table and the site's summary are made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tacfast.defenses.held_out import wilson_interval

from .cells import NETWORK_CELL, SCAN_CELL, contender
from .profiles import CLEAN, Network
from .store import Store

# A backdoor that takes less often than this before any repair says little about a repair.
MIN_ASR = 0.9
NONE = "none"
METRICS = ("acc", "asr", "ra", "der")


def is_weak(metrics: Mapping[str, float], *, all_to_all: bool) -> bool:
    """Whether an attack took too seldom: for all-to-all of the images that the network tells apart, the most it can."""
    return metrics["asr"] < MIN_ASR * (metrics["acc"] if all_to_all else 1)


@dataclass(frozen=True)
class Share:
    """A share of some images, with Wilson's 95 % interval (Wilson 1927)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, n: int) -> Share:
        """The interval of a share ``value`` of n images."""
        return cls(value, *wilson_interval(value, n))


@dataclass(frozen=True)
class Row:
    """One defence against the networks of one group that differ in nothing but the seed.

    Attributes
    ----------
    data, arch, attack, ratio : of the group
    defence : name of the column; "none" for the suspects themselves
    cells : the JSON of each seed
    networks : that of the suspects, in the same order, each with that of its ``scan``, or None
    """

    data: str
    arch: str
    attack: str
    ratio: float
    defence: str
    cells: tuple[dict[str, Any], ...]
    networks: tuple[dict[str, Any], ...]

    @property
    def weak(self) -> bool:
        """Whether the attack did not take well enough on one of them."""
        return self.attack != CLEAN and any(
            is_weak(network["before"], all_to_all=network["target"] is None) for network in self.networks
        )

    def values(self, metric: str) -> list[float]:
        """One value per seed; metrics, or seconds of the defence, or ASR after relearning as ``relearn-50``."""
        if self.defence == NONE:
            cells: Sequence[dict[str, Any]] = [{"after": network["before"], **network} for network in self.networks]
        else:
            cells = self.cells
        if metric == "der":
            return [cell["der"] for cell in cells if "der" in cell]
        if metric == "seconds":
            return [cell["seconds"]["defence"] for cell in cells if "defence" in cell["seconds"]]
        if metric.startswith("relearn-"):
            count = int(metric.removeprefix("relearn-"))
            # What was not repaired is what it was: its relearning stands with the network.
            steps = [cell["relearning"] or net["relearning"] for cell, net in zip(cells, self.networks, strict=True)]
            return [step["asr"] for each in steps for step in each if step["poisoned_images"] == count]
        return [cell["after"][metric] for cell in cells]

    def mean(self, metric: str) -> float:
        """Mean over the seeds; NaN of none."""
        values = self.values(metric)
        return statistics.fmean(values) if values else math.nan

    def spread(self, metric: str) -> float | None:
        """Standard deviation over the seeds; None of a single one."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    def interval(self, metric: str) -> Share:
        """Wilson's interval of a share of all images of all seeds together."""
        counted = "test_images" if metric == "acc" else "attacked_images"
        return Share.of(self.mean(metric), sum(network[counted] for network in self.networks))

    @property
    def notes(self) -> list[str]:
        """Errors, and why nothing was repaired, each once."""
        return list(dict.fromkeys(note for cell in self.cells for note in (cell["error"], cell["reason"]) if note))


Sound = Callable[[Network, str], bool]


def rows_of(
    store: Store, networks: Iterable[Network], defences: Sequence[str], sound: Sound | None = None
) -> list[Row]:
    """Rows of all cells that are there, grouped over seeds.

    Those that are missing or damaged are left out, and those that are not ``sound``: made with other settings.
    """

    def read(network: Network, name: str) -> dict[str, Any] | None:
        return store.read(network.name, name) if sound is None or sound(network, name) else None

    groups: dict[tuple[str, str, str, float], list[dict[str, dict[str, Any]]]] = {}
    for network in networks:
        suspect = read(network, NETWORK_CELL)
        if suspect is None:
            continue
        found = {name: cell for name in defences if (cell := read(network, name)) is not None}
        key = (network.data, network.arch, network.attack, network.ratio)
        suspect[SCAN_CELL] = read(network, SCAN_CELL)
        groups.setdefault(key, []).append({NETWORK_CELL: suspect, **found})
    rows = []
    for key, members in groups.items():
        rows.append(Row(*key, NONE, (), tuple(member[NETWORK_CELL] for member in members)))
        for name in defences:
            having = [member for member in members if name in member]
            if having:
                cells, suspects = (tuple(member[part] for member in having) for part in (name, NETWORK_CELL))
                rows.append(Row(*key, name, cells, suspects))
    return rows


@dataclass(frozen=True)
class Average:
    """One defence over the attacks of a data set with one poison ratio: the summary.

    Attributes
    ----------
    data, ratio, defence : as in `Row`
    attacks : how many rows of backdoored networks whose attack took
    means : of each metric over those rows
    clean_loss : mean loss of clean accuracy over the clean networks; None without one
    told, oracle : see `Contender`
    """

    data: str
    ratio: float
    defence: str
    attacks: int
    means: dict[str, float]
    clean_loss: float | None
    told: bool
    oracle: bool


def averages(rows: Sequence[Row]) -> list[Average]:
    """Average every defence over the attacks that took, of each data set and poison ratio; the first in front."""
    groups: dict[tuple[str, float, str], list[Row]] = {}
    for row in rows:
        if row.attack != CLEAN and not row.weak:
            groups.setdefault((row.data, row.ratio, row.defence), []).append(row)
    found = []
    for (data, ratio, defence), attacked in groups.items():
        chosen = None if defence == NONE else contender(defence)
        found.append(
            Average(
                data=data,
                ratio=ratio,
                defence=defence,
                attacks=len(attacked),
                means={metric: _mean([row.mean(metric) for row in attacked]) for metric in METRICS},
                clean_loss=_clean_loss(rows, data, defence),
                told=chosen is not None and chosen.told,
                oracle=chosen is not None and chosen.oracle,
            )
        )
    return sorted(found, key=lambda each: (each.defence != NONE, -each.attacks, -each.means["ra"]))


def _clean_loss(rows: Sequence[Row], data: str, defence: str) -> float | None:
    clean = [row for row in rows if (row.data, row.attack, row.defence) == (data, CLEAN, defence) and row.cells]
    losses = [net["before"]["acc"] - cell["after"]["acc"] for row in clean for cell, net in _pairs(row)]
    return statistics.fmean(losses) if losses else None


def _pairs(row: Row) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    return zip(row.cells, row.networks, strict=True)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan
