"""How far one value lies below the others, on the scale of a standard normal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist

import torch
from torch import Tensor

# Values that differ by less than this share of the largest are equal: the rest is rounding.
SAME = 1e-9
# That of ten classes. Among the 200 of a clean TinyImageNet network the easiest to reach lies 5.5 standard deviations
# below the others, which happens in one of ten thousand such networks if all classes are drawn from one normal
# distribution, and in one of ten with so heavy a tail.
MAX_FREEDOM = 8


def outlier_scores(values: Tensor) -> Tensor:
    """Standardised distance of each value below the mean of the others, whatever their unit and number.

    t_k = (mean_{j≠k} v_j − v_k) / (sd_{j≠k} √(1 + 1/(C − 1))) has Student's distribution with C − 2 degrees of freedom
    if all are drawn from one normal distribution; it is mapped to a normal's scale (Wallace 1959). Of many classes some
    are easy to reach by nature, more than a normal distribution would have: never more than ``MAX_FREEDOM`` degrees are
    counted, so that scores among 10 and among 200 classes are comparable.

    Parameters
    ----------
    values : (C,) float64. +inf counts as the largest finite one, NaN as missing; −inf scores +inf, and counts as
        missing for the others

    Returns
    -------
    Tensor
        (C,) float64, large where a value is small; 0 where the others are all but equal, and so is it; NaN where it is
        missing or fewer than three others are there.
    """
    scores = torch.full_like(values, math.nan)
    known = ~values.isnan() & (values > -math.inf)
    finite = values[values.isfinite()]
    count = int(known.sum())
    if count < 4 or len(finite) == 0:
        return scores
    v = values[known].clamp(max=float(finite.max()))
    from_mean = v - v.mean()
    below = -from_mean * count / (count - 1)  # how far below the mean of the others
    squares = from_mean.square().sum() + from_mean * below
    rounding = SAME * v.abs().max()
    spread = (squares.clamp_min(0) / (count - 2)).sqrt().clamp_min(rounding)
    t = (below / (spread * math.sqrt(1 + 1 / (count - 1)))).nan_to_num(0.0)  # 0/0 of zeros
    freedom = min(count - 2, MAX_FREEDOM)
    scale = (8 * freedom + 1) / (8 * freedom + 3)
    found = t.sign() * scale * (freedom * (t.square() / freedom).log1p()).sqrt()
    scores[known] = found.where(below.abs() > rounding, 0.0)
    scores[values == -math.inf] = math.inf
    return scores


def surprise_of(scores: Mapping[int, float]) -> float:
    """−log₁₀ of how many of so many classes are expected to score as high as the highest, or higher, if none is odd.

    That is for one statistic; with the largest of m it is up to m times as many. NaN if no class has a score.
    """
    known = [score for score in scores.values() if not math.isnan(score)]
    if not known:
        return math.nan
    tail = float(torch.special.log_ndtr(torch.tensor(-max(known), dtype=torch.float64)))
    return -(math.log(len(known)) + tail) / math.log(10)


def threshold_of(surprise: float, classes: int) -> float:
    """The score of the highest of so many classes with this `surprise_of`; −inf if all have more, +inf if none has."""
    expected = 10.0**-surprise / classes
    if expected == 0:
        return math.inf
    return -NormalDist().inv_cdf(expected) if expected < 1 else -math.inf
