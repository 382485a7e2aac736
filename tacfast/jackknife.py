"""How much of a verdict survives leaving out a block of the samples: the jackknife."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from ._shown import Shown, by_class
from .detection import RULE_TRIM, Evidence, Rule, Verdict, obstacles_of
from .detection.verdict import said
from .solver import GapMatrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCKS = 10
# Ten solves of so much `_work` take about three seconds on one core; nobody who did not ask is made to wait for more.
MAX_UNASKED_WORK = 10**8


class Range(NamedTuple):
    """Smallest and largest of some values that are not NaN; two NaN of none."""

    low: float
    high: float


@dataclass(frozen=True, repr=False)
class Stability(Shown):
    """The verdicts without each of the blocks of samples in turn.

    Their ranges are *jackknife ranges*, no confidence intervals: they show how much hangs on a few of these samples,
    and say nothing about other data, other models, or backdoors that the rule cannot see. Only the shifts of the
    latents are solved for again; all else stays as it is with all samples, also the asymmetry, whose limit ten runs
    would cross more often than one.

    Attributes
    ----------
    runs : one verdict per block that was left out
    """

    runs: tuple[Verdict, ...]

    @cached_property
    def scores(self) -> Mapping[int, Range]:
        """Range of the score of each class over the runs in which it is defined."""
        return self._ranges(lambda run: run.scores)

    @cached_property
    def ranks(self) -> Mapping[int, Range]:
        """Range of the place of each class among the scores, see `ranks`."""
        return self._ranges(lambda run: ranks(run.scores))

    @cached_property
    def labels(self) -> Mapping[str, int]:
        """Number of runs with each label; labels without a run are left out."""
        return Counter(run.label for run in self.runs)

    @cached_property
    def named(self) -> Mapping[int, int]:
        """Number of runs that call a class suspicious; classes that none names are left out."""
        return Counter(k for run in self.runs for k in run.classes)

    def plot(self) -> Figure:
        """Draw the range of the score of each class; of many classes the easiest to reach.

        Raises
        ------
        ImportError
            Without the extra ``report`` (Matplotlib).
        """
        from .report import views

        return views.ranges(self)

    def _title(self) -> str:
        labels = ", ".join(f"{label.replace('_', ' ')} in {count}" for label, count in self.labels.items())
        return f"of {len(self.runs)} runs without a block of samples {labels}"

    def _rows(self) -> list[tuple[str, object]]:
        worst = sorted(self.ranks, key=lambda k: self.ranks[k])
        return [
            ("runs that name it", by_class(self.named)),
            ("range of the score", by_class({k: " … ".join(f"{x:.2f}" for x in self.scores[k]) for k in worst})),
        ]

    def _ranges(self, values: Callable[[Verdict], Mapping[int, float]]) -> dict[int, Range]:
        runs = [values(run) for run in self.runs]
        return {k: _range([run[k] for run in runs]) for k in runs[0]}


def _range(values: list[float]) -> Range:
    known = [value for value in values if not math.isnan(value)]
    return Range(min(known), max(known)) if known else Range(math.nan, math.nan)


def ranks(scores: Mapping[int, float]) -> dict[int, int]:
    """Place of each class, 1 for the largest score; equal ones share the better place, NaN counts as −inf."""
    values = {k: -math.inf if math.isnan(score) else score for k, score in scores.items()}
    places: dict[float, int] = {}
    for place, score in enumerate(sorted(values.values(), reverse=True), start=1):
        places.setdefault(score, place)
    return {k: places[score] for k, score in values.items()}


def check_blocks(blocks: int | None) -> None:
    """Raise unless ``blocks`` is None, 0 or at least 2: with the only block left out, nothing is left."""
    if blocks is not None and (isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 0 or blocks == 1):
        raise ValueError(f"blocks: expected None, 0 or an integer >= 2, got {blocks!r}")


def _work(n: int, classes: int) -> int:
    """What a solve costs: the trimmed gaps about 2 ns for each logit, the QPs about 40 ns for each pair of classes."""
    return classes * (n + 20 * classes)


def leave_blocks_out(
    gaps: GapMatrix, rule: Rule, values: Mapping[str, Tensor], blocks: int | None = None
) -> Stability | None:
    """Deal the samples into blocks, and judge the model without each of them in turn.

    The blocks have the same mix of classes, and are drawn at random, always the same way, whatever the order of the
    samples. One gap matrix is made per block, and those that stay are merged by element-wise maximum; their logits are
    not copied.

    Parameters
    ----------
    gaps : with the logits, of all samples
    rule : by which is judged
    values : (C,) of all that it measures, with all samples; all but the norms stay as they are here
    blocks : at least 2; 0 for none; None for ``BLOCKS`` = 10 if n·C + 20·C² ≤ ``MAX_UNASKED_WORK`` = 10⁸, else none

    Returns
    -------
    Stability, or None for no blocks or fewer samples than blocks.

    Raises
    ------
    ValueError
        If ``blocks`` is 1 or negative, or the logits are not kept.
    """
    check_blocks(blocks)
    counts = gaps.samples_per_class
    if blocks is None:
        blocks = BLOCKS if _work(gaps.n_samples, len(counts)) <= MAX_UNASKED_WORK else 0
    if blocks == 0 or gaps.n_samples < blocks:
        return None
    parts = gaps.deal(blocks)
    runs = []
    for left_out in parts:
        rest = reduce(GapMatrix.merge, (part for part in parts if part is not left_out), gaps.empty())
        evidence = Evidence(rest)
        again = {each.name: each.values(evidence) for each in rule.statistics if not each.needs_inputs}
        # Judged as if nothing were missing: whether there are enough samples is a question about all of them.
        runs.append(rule.judge({**values, **again}, counts, obstacles_of(evidence.solution(RULE_TRIM))))
    return Stability(tuple(runs))


def weigh(verdict: Verdict, stability: Stability | None) -> Verdict:
    """Make a verdict borderline unless every run without a block of samples comes to the same label and classes.

    The classes stay named, so that they can be repaired; an inconclusive verdict stays what it is. That all runs agree
    proves nothing: a backdoor that the rule misses is missed by all of them. A suspicion of an all-to-all backdoor is
    not touched, because the runs do not measure what it is about.
    """
    if stability is None or verdict.all_to_all or verdict.label in ("borderline", "inconclusive"):
        return verdict
    expected = verdict.label, set(verdict.classes)  # which of several comes first is no disagreement
    others = [run for run in stability.runs if (run.label, set(run.classes)) != expected]
    if not others:
        return verdict
    counted = Counter(said(run) for run in others)
    listed = ", ".join(f"{count} {words}" for words, count in counted.most_common())
    reason = (
        f"all samples together say {said(verdict)}, but of {len(stability.runs)} runs, each without a block of them, "
        f"{len(others)} disagree ({listed}): that is borderline"
    )
    return replace(verdict, label="borderline", reasons=(*verdict.reasons, reason))
