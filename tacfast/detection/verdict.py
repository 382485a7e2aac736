"""What is said of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .._shown import Shown, by_class

Label = Literal["nothing_found", "borderline", "suspicious", "inconclusive"]
"""What a verdict can come to."""


@dataclass(frozen=True, repr=False)
class Finding(Shown):
    """What one statistic says of every class.

    Attributes
    ----------
    name, title : of the statistic
    values : per class; the smaller, the easier to reach. ±inf and NaN as the statistic says
    scores : how far each value lies below what those of the other classes let expect, see `outlier_scores`; NaN where
        it is undefined, and for classes left out
    """

    name: str
    title: str
    values: Mapping[int, float]
    scores: Mapping[int, float]


@dataclass(frozen=True, repr=False)
class Verdict(Shown):
    """What the statistics say about the model. There is no label "clean": nothing found is no proof of anything.

    Attributes
    ----------
    rule : name of the rule that was applied: ``"full"`` or ``"quick"``
    label : ``"nothing_found"``, ``"borderline"``, ``"suspicious"`` or ``"inconclusive"``
    classes : the suspicious classes, worst first; none of them stands out under an all-to-all backdoor. Of a borderline
        verdict those that all samples together call suspicious, if any
    findings : one per statistic that was computed
    scores : per class, the largest of its scores and of their sum, see `combined_scores`; NaN where none is defined
    surprise : −log₁₀ of how many classes of such a score are expected if none is odd; NaN where it is undefined
    p_value : share of the clean networks of the bank that are at least as surprising, this one counted in, so that it
        is 1/(n + 1) at least; NaN where there is no surprise
    threshold : the score above which a class is suspicious; NaN where it is undefined
    reasons : why, in sentences
    left_out : classes with too few samples, which were not judged
    asymmetry : how much more easily samples of each class go to another one than back, see `Asymmetry`; NaN where that
        was not looked at
    all_to_all : whether that is what makes the model suspicious; then ``classes`` may be empty
    """

    rule: str
    label: Label
    classes: tuple[int, ...]
    findings: tuple[Finding, ...]
    scores: Mapping[int, float]
    surprise: float
    p_value: float
    threshold: float
    reasons: tuple[str, ...]
    left_out: tuple[int, ...] = ()
    asymmetry: float = math.nan
    all_to_all: bool = False

    @property
    def only_all_to_all(self) -> bool:
        """Whether that is all that is suspected: no single class stands out."""
        return self.all_to_all and not self.classes

    @property
    def aims(self) -> tuple[int, ...]:
        """The classes that a repair is for: the suspicious ones, or all where all-to-all is what is suspected."""
        return tuple(self.scores) if self.only_all_to_all else self.classes

    @property
    def easiest(self) -> int:
        """The class with the largest score, the first of several."""
        return easiest_of(self.scores)

    def _title(self) -> str:
        return said(self)

    def _rows(self) -> list[tuple[str, object]]:
        worst = dict(sorted(self.scores.items(), key=lambda pair: (math.isnan(pair[1]), -pair[1])))
        return [
            *(("because", reason) for reason in self.reasons),
            ("largest scores", by_class(worst)),
            ("judged by", f"rule {self.rule}, threshold {self.threshold:.2f}, p-value {self.p_value:.2g}"),
        ]


def easiest_of(scores: Mapping[int, float]) -> int:
    """The class with the largest score, the first of several; NaN is smaller than any."""
    return max(scores, key=lambda k: -math.inf if math.isnan(scores[k]) else scores[k])


def said(verdict: Verdict) -> str:
    """The label in words, and the classes that it is about."""
    classes = f" (class {', '.join(map(str, verdict.classes))})" if verdict.classes else ""
    return verdict.label.replace("_", " ") + classes
