"""Whether a second scan bears out a repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..detection import Verdict

Outcome = Literal["confirmed", "not confirmed", "could not be tested"]


@dataclass(frozen=True)
class Confirmation:
    """What the verdict on a repaired model, from samples that did not train it, says of the repair.

    Attributes
    ----------
    verdict : of the repaired model
    first : of the suspect
    targets : the classes that were repaired
    """

    verdict: Verdict
    first: Verdict
    targets: tuple[int, ...]

    @property
    def alarm(self) -> bool:
        """Whether the repaired model still looks attacked.

        As many clean networks do, it may be borderline in another class than those that were repaired.
        """
        again = self.verdict
        if again.label == "borderline" and not again.classes:
            return again.easiest in self.targets
        return again.label in ("suspicious", "borderline")

    @property
    def unnamed(self) -> tuple[int, ...]:
        """Targets that the first scan did not name: where it saw nothing, the second proves nothing by seeing it."""
        return tuple(k for k in self.targets if k not in self.first.classes)

    @property
    def unjudged(self) -> tuple[int, ...]:
        """Targets of which the second scan had too few samples."""
        return tuple(k for k in self.targets if k in self.verdict.left_out)

    @property
    def outcome(self) -> Outcome:
        """In words; none of them is a proof, as a scan misses some backdoors."""
        if self.alarm:
            return "not confirmed"
        untested = self.verdict.label == "inconclusive" or self.unnamed or self.unjudged
        return "could not be tested" if untested else "confirmed"
