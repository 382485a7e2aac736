"""How near the samples of other classes already are to a class, without any change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .statistic import Evidence

# So many samples say it well enough.
SAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """What logit k lies below the largest, at most, for the nearest ``share`` of the samples that are not of class k.

    Some classes are close by nature, as shirts are to pullovers and coats, and so are easier to reach than others in
    every network. It tells that before anything is changed; a trigger that no clean sample carries hardly shows in it.

    Parameters
    ----------
    share : of the samples of other classes
    """

    name: ClassVar[str] = "nearness"
    title: ClassVar[str] = "distance of the nearest samples"
    needs_inputs: ClassVar[bool] = False
    by_nature: ClassVar[bool] = True

    share: float = 0.1

    def values(self, evidence: Evidence) -> Tensor:
        """(C,) float64; NaN for a class that all samples are of."""
        logits = evidence.gaps.some_logits(SAMPLES).double()
        below = logits.amax(1, keepdim=True) - logits
        answers = logits.argmax(1)
        found = torch.full((logits.shape[1],), torch.nan, dtype=torch.float64)
        for k in range(len(found)):
            others = below[answers != k, k]
            if len(others):
                found[k] = others.quantile(self.share)
        return found
