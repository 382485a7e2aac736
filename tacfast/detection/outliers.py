"""How far one value lies below the others, on the scale of a standard normal."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def outlier_scores(values: Tensor) -> Tensor:
    """Standardised distance of each value below the mean of the others, whatever their unit and number.

    t_k = (mean_{j≠k} v_j − v_k) / (sd_{j≠k} √(1 + 1/(C − 1))) has Student's distribution with C − 2 degrees of freedom
    if all are drawn from one normal distribution; it is mapped to a normal's scale (Wallace 1959), so that scores among
    10 and among 200 classes are comparable.

    Parameters
    ----------
    values : (C,) float64. ±inf count as the largest and the smallest finite one, NaN as missing

    Returns
    -------
    Tensor
        (C,) float64, large where a value is small; NaN where it is missing or fewer than three others are there.
    """
    known = ~values.isnan()
    finite = values[values.isfinite()]
    scores = torch.full_like(values, math.nan)
    count = int(known.sum())
    if count < 4 or len(finite) == 0:
        return scores
    v = values[known].clamp(float(finite.min()), float(finite.max()))
    freedom = count - 2
    rest = (v.sum() - v) / (count - 1)
    squares = (v - v.mean()).square().sum() - (v - v.mean()).square() * count / (count - 1)
    spread = (squares.clamp_min(0) / freedom).sqrt()
    t = (rest - v) / (spread * math.sqrt(1 + 1 / (count - 1))).clamp_min(torch.finfo(v.dtype).tiny)
    scale = (8 * freedom + 1) / (8 * freedom + 3)
    scores[known] = t.sign() * scale * (freedom * (t.square() / freedom).log1p()).sqrt()
    return scores
