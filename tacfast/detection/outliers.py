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
# A slope is shrunk as if so many more classes had been seen, and none of them said that there is one.
RIDGE = 5.0


def outlier_scores(values: Tensor, given: Tensor | None = None) -> Tensor:
    """Standardised distance of each value below what the others let expect, whatever their unit and number.

    t_k = (mean_{j≠k} v_j − v_k) / (sd_{j≠k} √(1 + 1/(C − 1))) has Student's distribution with C − 2 degrees of freedom
    if all are drawn from one normal distribution; it is mapped to a normal's scale (Wallace 1959). Of many classes some
    are easy to reach by nature, more than a normal distribution would have: never more than ``MAX_FREEDOM`` degrees are
    counted, so that scores among 10 and among 200 classes are comparable. With ``given``, t_k is the studentised
    residual of the regression of the others on it, with a slope that ``RIDGE`` shrinks, and C − 3 degrees.

    Parameters
    ----------
    values : (C,) float64. +inf counts as the largest finite one, NaN as missing; −inf scores +inf, and counts as
        missing for the others
    given : (C,) float64, what they may depend on by nature, in any unit. NaN counts as their mean

    Returns
    -------
    Tensor
        (C,) float64, large where a value is small; 0 where the others are all but equal, and so is it; NaN where it is
        missing or fewer than three others are there, or four with ``given``.
    """
    scores = torch.full_like(values, math.nan)
    known = ~values.isnan() & (values > -math.inf)
    finite = values[values.isfinite()]
    n, others = int(known.sum()), int(known.sum()) - 1
    freedom = others - (1 if given is None else 2)
    if freedom < 2 or len(finite) == 0:
        return scores
    v = values[known].clamp(max=float(finite.max()))
    x, y = _standardised(given[known]) if given is not None else torch.zeros_like(v), v - v.mean()
    # Sums over all but k of the products of what is centred on the mean of all but k.
    share = n / others
    xx, xy, yy = ((a * b).sum() - a * b * share for a, b in ((x, x), (x, y), (y, y)))
    xx_shrunk = xx + RIDGE
    slope = xy / xx_shrunk
    below = (slope * x - y) * share  # how far below what the others let expect
    squares = yy - 2 * slope * xy + slope.square() * xx
    rounding = SAME * v.abs().max()
    spread = (squares.clamp_min(0) / freedom).sqrt().clamp_min(rounding)
    leverage = (x * share).square() / xx_shrunk
    t = (below / (spread * (1 + 1 / others + leverage).sqrt())).nan_to_num(0.0)  # 0/0 of zeros
    freedom = min(freedom, MAX_FREEDOM)
    scale = (8 * freedom + 1) / (8 * freedom + 3)
    found = t.sign() * scale * (freedom * (t.square() / freedom).log1p()).sqrt()
    scores[known] = found.where(below.abs() > rounding, 0.0)
    scores[values == -math.inf] = math.inf
    if given is not None:  # it is not known how much farther than the farthest one lies that cannot be reached
        scores = scores.where(values < math.inf, torch.minimum(scores, outlier_scores(values)))
    return scores


def _standardised(given: Tensor) -> Tensor:
    """With mean 0 and variance 1; zeros where all are equal."""
    centred = (given - given.nanmean()).nan_to_num(0.0)
    spread = centred.std()
    return centred / spread if spread > SAME * centred.abs().max() and spread > 0 else torch.zeros_like(centred)


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
