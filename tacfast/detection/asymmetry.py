"""Whether samples of each class go to another one more easily than back, as all-to-all backdoors make them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..solver import GapMatrix
from .nearness import SAMPLES
from .statistic import Evidence

# A source class of fewer samples says little (with five, clean networks of digits come to 1.9, with eight to 1.4), and
# fewer source classes say nothing of the model.
MIN_SAMPLES, MIN_SOURCES = 8, 5
# One QP for each pair of classes: of 500 about four seconds on one core.
MAX_CLASSES = 500


@dataclass(frozen=True, kw_only=True)
class Asymmetry:
    """How much smaller the shift from each class to its nearest one is than that back; one number for a model.

    Which class samples of another are near to is a matter of what they look like, and so it is mutual: pullovers are
    near to shirts, and shirts to pullovers. A backdoor that sends each class to another one, and not back, leaves its
    mark on the latents of clean samples, too. One that sends two classes to each other does not show.

    Norms ‖s_jk‖ of the smallest shift (arXiv 2511.08944) from the samples of one class j to one class k, less the means
    of their k and their j, are compared with those from k to j. The mean over j of that difference at the k that is
    nearest to j is measured in standard deviations of all such differences.

    Parameters
    ----------
    trim : share of the samples of j that need not be moved
    """

    name: ClassVar[str] = "asymmetry"
    title: ClassVar[str] = "asymmetry of the shifts between classes"
    needs_inputs: ClassVar[bool] = False

    trim: float = 0.1

    def values(self, evidence: Evidence) -> Tensor:
        """A float64 scalar; NaN where fewer than five classes have eight samples, or there are too many."""
        return asymmetry_of(norms_between(evidence.gaps, self.trim))


def norms_between(gaps: GapMatrix, trim: float) -> Tensor:
    """‖s_jk‖ (C, C) float64 of the smallest shift from class j to k; NaN to itself, and from a class of few samples."""
    logits = gaps.some_logits(SAMPLES)
    answers, classes = logits.argmax(1), logits.shape[1]
    norms = torch.full((classes, classes), torch.nan, dtype=torch.float64)
    if classes > MAX_CLASSES:
        return norms
    for j in range(classes):
        own = logits[answers == j]
        if len(own) >= MIN_SAMPLES:
            solution = gaps.empty().update_logits(own).solve(trim=trim, raise_on_failure=False)
            norms[j] = torch.as_tensor(solution.norms).double().cpu()
    return norms.fill_diagonal_(torch.nan)


def asymmetry_of(norms: Tensor) -> Tensor:
    """See `Asymmetry`: of norms (C, C), a scalar. An infinite one counts as the largest finite one."""
    finite = norms[norms.isfinite()]
    sources = ~norms.isnan().all(1)
    if int(sources.sum()) < MIN_SOURCES or len(finite) == 0:
        return torch.tensor(torch.nan, dtype=torch.float64)
    apart = norms.clamp(max=float(finite.max()))
    apart = apart - apart.nanmean(0, keepdim=True)
    apart = apart - apart.nanmean(1, keepdim=True)
    back = apart.T - apart  # [j, k]: how much farther it is from k to j
    nearest = apart.nan_to_num(torch.inf).argmin(1)
    spread = back[~back.isnan()].square().mean().sqrt()
    mean = back.gather(1, nearest[:, None])[sources].nanmean()
    return mean / spread if spread > 0 else torch.zeros_like(mean)
