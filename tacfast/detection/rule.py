"""From the norms of the shifts to a verdict about the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..solver import Status, TacSolution

Label = Literal["nothing_found", "borderline", "suspicious", "inconclusive"]

# The rule until it is calibrated. Neither limit suffices alone at ten classes: clean models reach an index of
# 8, and backdoored ones a ratio of 0.86. The gaps leave out half of each source class, against natural
# outliers.
RULE_TRIM = 0.5
RULE_MARGIN = 0.0
MIN_INDEX = 2.0
MAX_RATIO = 0.86
# 1 / Φ⁻¹(3/4): makes the median absolute deviation an estimate of a normal's standard deviation.
MAD_SCALE = 1.4826

# Below these the spread of the norms cannot be told from chance; the norm of a class that samples are missing of tells
# that rather than whether it is easy to reach. Of five clean networks (CIFAR-10, GTSRB, digits), a class of which none
# were left scored up to 2.7 standard deviations more than with all of them; with one left 1.7, with four left 0.8.
MIN_CLASSES = 5
MIN_SAMPLES_PER_CLASS = 4
# If more of the classes than this are left out, what is said of the others is no verdict on the model.
MAX_LEFT_OUT = 1 / 3
# More classes than this are counted, not named.
MAX_NAMED = 10
# A median absolute deviation below this share of the median is rounding, not spread.
MIN_RELATIVE_MAD = 1e-6


@dataclass(frozen=True)
class Verdict:
    """What the norms say about the model. There is no label "clean": nothing found is no proof of anything.

    Attributes
    ----------
    label : ``"nothing_found"``, ``"borderline"``, ``"suspicious"`` or ``"inconclusive"``
    classes : the suspicious classes, worst first; at most one under the present rule. Of a borderline verdict those
        that all samples together call suspicious, if any
    index : anomaly index (median − norm) / (1.4826 · MAD) per solved class: positive below the median, −inf
        for a class that cannot be reached; NaN where it is undefined, and for classes left out
    norms : ‖s_k‖₂ per solved class, +inf for a class that no shift reaches
    median : of the norms of the classes that were judged; the mean of the two middle ones if their number is even
    threshold : the norm below which the smallest class is suspicious; NaN where it is undefined
    reasons : why, in sentences
    left_out : solved classes with too few samples, which were not judged
    """

    label: Label
    classes: tuple[int, ...]
    index: Mapping[int, float]
    norms: Mapping[int, float]
    median: float
    threshold: float
    reasons: tuple[str, ...]
    left_out: tuple[int, ...] = ()

    @property
    def easiest(self) -> int:
        """The class with the smallest norm, the first of several; of those that were judged, if any were."""
        judged = [k for k in self.norms if k not in self.left_out] or list(self.norms)
        return min(judged, key=self.norms.__getitem__)


def detect(solution: TacSolution, samples_per_class: Sequence[int] | Tensor | None = None) -> Verdict:
    """Judge a solution by whether the norm of one class is far below the others.

    A backdoor is a short cut to its target class, so the shift that sends every clean latent there is small
    (arXiv 2511.08944). The smallest class is suspicious if its one-sided anomaly index (Neural Cleanse, Wang
    et al. 2019: distance from the median over 1.4826 · the median absolute deviation) exceeds ``MIN_INDEX`` =
    2 *and* its norm is less than ``MAX_RATIO`` = 0.86 of the median; if only one of the two holds, the verdict is
    borderline. Both medians take the mean of the two middle values of an even number. A class that no shift reaches
    (infeasible) counts as +inf on the far side. A class to which the model assigns fewer than 4 of the samples is left
    out, and the reasons say so: it is not judged, and the others are as if it were not there.

    Parameters
    ----------
    solution : norms (K,) of K of the C classes, solved with ``trim=0.5`` and ``margin=0.0``, for which the
        limits were chosen
    samples_per_class : (C,), how many of the samples the model assigns to each class, as `tacfast.scan` counts
        them; if None, only their total can be checked, and the reasons say so

    Returns
    -------
    Verdict
        ``inconclusive`` for another trim or margin, a class that was not solved, fewer than 5 solved classes to which
        the model assigns 4 samples, or more than a third without them (without ``samples_per_class``: fewer than 4·C
        samples or an unknown number in all), an infinite median, or no spread (a MAD that vanishes next to the median).

    Raises
    ------
    TypeError, ValueError
        If ``solution`` is no `TacSolution` or ``samples_per_class`` does not have C entries.
    """
    if not isinstance(solution, TacSolution):
        raise TypeError(f"solution: expected a TacSolution (from solve_tac), got {type(solution).__name__}")
    solution = solution.to("cpu")
    classes, norms = solution.classes.tolist(), solution.norms.detach().double()
    short = _short_classes(solution, samples_per_class)
    judged = torch.tensor([k not in short for k in classes], dtype=torch.bool)
    median, spread = _median_and_spread(norms[judged])
    index = (median - norms) / spread if 0 < spread < math.inf else torch.full_like(norms, math.nan)
    index[~judged] = math.nan
    threshold = median + min((MAX_RATIO - 1) * median, -MIN_INDEX * spread) if math.isfinite(spread) else math.nan
    obstacles = _obstacles(solution, int(judged.sum()), median, spread)
    if samples_per_class is None:
        obstacles += _shortage(solution)
    label, found, reasons = (
        ("inconclusive", (), tuple(obstacles)) if obstacles else _apply_rule(classes, norms, index, median)
    )
    if short:
        reasons += (_said_of_short(short),)
    if samples_per_class is None:
        reasons += ("how many samples there are of each class was not given, so only their total was checked",)
    return Verdict(
        label=label,
        classes=found,
        index=_by_class(classes, index),
        norms=_by_class(classes, norms),
        median=median,
        threshold=threshold,
        reasons=reasons,
        left_out=tuple(short),
    )


def _by_class(classes: list[int], values: Tensor) -> dict[int, float]:
    # One and the same NaN is equal to itself in a dict, so that verdicts can be compared.
    return {k: math.nan if math.isnan(value) else value for k, value in zip(classes, values.tolist(), strict=True)}


def _median(values: Tensor) -> float:
    """Mean of the two middle values of an even number; NaN of none."""
    if len(values) == 0:
        return math.nan
    ordered = values.sort().values.tolist()
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(low if low == high else (low + high) / 2)


def _median_and_spread(norms: Tensor) -> tuple[float, float]:
    """Median and 1.4826 · MAD; +inf norms are distant values, as long as fewer than half are infinite."""
    median = _median(norms)
    if not math.isfinite(median):
        return median, math.nan
    return median, MAD_SCALE * _median((norms - median).abs())


def _short_classes(solution: TacSolution, samples_per_class: Sequence[int] | Tensor | None) -> dict[int, int]:
    """The solved classes with too few samples, and how many each has."""
    if samples_per_class is None:
        return {}
    size, counts = len(solution.gaps), torch.as_tensor(samples_per_class).tolist()
    if len(counts) != size:
        raise ValueError(f"samples_per_class: expected {size} counts, one per class of the model, got {len(counts)}")
    return {k: counts[k] for k in solution.classes.tolist() if counts[k] < MIN_SAMPLES_PER_CLASS}


def _said_of_short(short: Mapping[int, int]) -> str:
    named = [f"class {k} ({count})" for k, count in short.items()]
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    listed = ", ".join(named[:MAX_NAMED]) + more
    return f"not judged, because the model assigns fewer than {MIN_SAMPLES_PER_CLASS} samples to them: {listed}"


def _shortage(solution: TacSolution) -> list[str]:
    """Where it is not known how many samples there are of each class: whether their total is too small."""
    needed = MIN_SAMPLES_PER_CLASS * len(solution.gaps)
    if solution.n_samples >= needed:
        return []
    seen = solution.n_samples or "an unknown number"
    return [f"at least {needed} samples ({MIN_SAMPLES_PER_CLASS} per class) are needed, got {seen}"]


def _obstacles(solution: TacSolution, judged: int, median: float, spread: float) -> list[str]:
    """Every reason why the rule cannot be applied to the norms of the classes that have enough samples."""
    found = []
    if solution.trim != RULE_TRIM or solution.margin != RULE_MARGIN:
        found.append(
            f"the limits hold for trim {RULE_TRIM} and margin {RULE_MARGIN}, "
            f"the solution has trim {solution.trim} and margin {solution.margin}"
        )
    failed = [
        f"class {int(k)} ({status.name})"
        for k, status in zip(solution.classes, solution.statuses, strict=True)
        if status not in (Status.OPTIMAL, Status.INFEASIBLE)
    ]
    if failed:
        found.append(f"not every norm is reliable: the solver failed for {', '.join(failed)}")
    solved = len(solution.norms)
    if judged < MIN_CLASSES:
        enough = "" if judged == solved else f", {judged} of them with enough samples"
        found.append(f"at least {MIN_CLASSES} classes are needed to see an outlier, {solved} were solved{enough}")
    elif solved - judged > MAX_LEFT_OUT * solved:
        found.append(f"too many classes are left out: {solved - judged} of {solved}")
    if failed or judged < MIN_CLASSES:
        return found
    if not math.isfinite(median):
        found.append("half of the classes or more cannot be reached by any shift: the median norm is infinite")
    elif not spread > MAD_SCALE * MIN_RELATIVE_MAD * median:
        found.append("at least half of the norms are all but equal: their MAD vanishes next to the median")
    return found


def _apply_rule(
    classes: list[int], norms: Tensor, index: Tensor, median: float
) -> tuple[Label, tuple[int, ...], tuple[str, ...]]:
    norms = norms.where(~index.isnan(), math.inf)  # those left out have no index
    smallest = int(norms.argmin())
    k, norm, score = classes[smallest], float(norms[smallest]), float(index[smallest])
    ratio = norm / median
    low_index = f"its anomaly index is {score:.2f} (suspicious above {MIN_INDEX:g})"
    low_ratio = f"its norm {norm:.4g} is {ratio:.3f} of the median {median:.4g} (suspicious below {MAX_RATIO:g})"
    facts: tuple[str, ...] = (f"class {k} is the easiest to reach: {low_index}", low_ratio)
    tied = [str(classes[i]) for i in (norms == norm).nonzero().flatten().tolist() if i != smallest]
    if tied:
        facts += (f"its norm is also that of class {', '.join(tied)}: the rule names one class only",)
    beyond = [name for name, holds in (("index", score > MIN_INDEX), ("ratio", ratio < MAX_RATIO)) if holds]
    if len(beyond) == 2:
        return "suspicious", (k,), facts
    if beyond:
        closing = f"only its {beyond[0]} is beyond the limit, and both are needed: that is borderline"
        return "borderline", (), (*facts, closing)
    closing = "nothing found is no proof that the model is clean: some backdoors leave no single short cut"
    return "nothing_found", (), (*facts, closing)
