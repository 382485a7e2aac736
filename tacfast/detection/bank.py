"""What the networks of the bank look like to a rule, in a few numbers each, as `benchmarks.calibrate` made them."""

from __future__ import annotations

import bisect
import functools
import json
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("bank.json")


@dataclass(frozen=True)
class Bank:
    """Trained networks of which it is known whether they have a backdoor, in the light of one rule.

    Attributes
    ----------
    clean : surprise of each clean network, ascending, see `surprise_of`
    suspicious, borderline : surprises above which a network is called so; chosen on the clean networks alone
    judged, alarms : clean networks, and how many of them are called suspicious, each by limits from strangers: clean
        networks of another data set or architecture
    attacked, found, right : networks with a backdoor that sends all classes to one, and works; how many are suspicious,
        by such limits; and of these, how many with the right class
    """

    clean: tuple[float, ...]
    suspicious: float
    borderline: float
    judged: int
    alarms: int
    attacked: int
    found: int
    right: int

    @classmethod
    @functools.cache
    def of(cls, rule: str) -> Bank:
        """That of a rule by its name."""
        found = json.loads(FILE.read_text(encoding="utf-8"))["rules"][rule]
        return cls(**{**found, "clean": tuple(sorted(found["clean"]))})

    def count(self, surprise: float) -> int:
        """How many clean networks are at least as surprising."""
        return len(self.clean) - bisect.bisect_left(self.clean, surprise)

    def p_value(self, surprise: float) -> float:
        """Share of the clean networks, with this one counted in, that are at least as surprising."""
        return (1 + self.count(surprise)) / (1 + len(self.clean))
