"""Whether samples of each class go to another one more easily than back, as all-to-all backdoors make them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..solver import GapMatrix
from .nearness import SAMPLES
from .outliers import SAME
from .qp_norm import log_norms
from .statistic import MAX_LEFT_OUT, MIN_CLASSES, Evidence

# The limit was chosen on networks of which there were no fewer samples than 350: with fewer than half of that, one
# clean network in fifteen exceeds it. Of each class that counts there are a few.
MIN_SAMPLES, MIN_OWN = 350, 8
# No clean network of more was looked at, and the mean of the smallest of many grows with their number.
MAX_CLASSES = 200
# Of rows and columns in turn, until no mean of either is left.
SWEEPS = 30


@dataclass(frozen=True, kw_only=True)
class Asymmetry:
    """How much smaller the shift from each class to its nearest one is than that back; one number for a model.

    Which class samples of another are near to is a matter of what they look like, and so it is mutual: pullovers are
    near to shirts, and shirts to pullovers. A backdoor that sends each class to another one, and not back, leaves its
    mark on the latents of clean samples, too. One that sends two classes to each other does not show.

    Norms ‖s_jk‖ of the smallest shift (arXiv 2511.08944) from the samples of one class j to one class k, less what
    belongs to k (easy to reach) and to j (easy to leave) alone, are compared with those from k to j. The mean over j of
    that difference at the k that is nearest to j is measured in standard deviations of all such differences.

    What shows is that clean samples of j lie towards another class, as they do after a training with labels that were
    moved from j to that class: whether a trigger works is another question.

    Parameters
    ----------
    trim : share of the samples of j that need not be moved
    """

    name: ClassVar[str] = "asymmetry"
    title: ClassVar[str] = "asymmetry of the shifts between classes"
    needs_inputs: ClassVar[bool] = False

    trim: float = 0.1

    def values(self, evidence: Evidence) -> Tensor:
        """A float64 scalar; NaN where there are too few samples, too few or too many classes."""
        return asymmetry_of(norms_between(evidence.gaps, self.trim))


def norms_between(gaps: GapMatrix, trim: float) -> Tensor:
    """‖s_jk‖ (C, C) float64 of the smallest shift from class j to k; NaN to itself, and from a class of few samples."""
    classes = len(gaps.samples_per_class)
    norms = torch.full((classes, classes), torch.nan, dtype=torch.float64)
    if not MIN_CLASSES <= classes <= MAX_CLASSES or gaps.n_samples < MIN_SAMPLES:
        return norms
    logits = gaps.some_logits(SAMPLES)
    answers = logits.argmax(1)
    for j in range(classes):
        own = logits[answers == j]
        if len(own) >= MIN_OWN:
            solution = gaps.empty().update_logits(own).solve(trim=trim, raise_on_failure=False)
            norms[j] = log_norms(solution).exp()
    return norms.fill_diagonal_(torch.nan)


def asymmetry_of(norms: Tensor) -> Tensor:
    """See `Asymmetry`: of norms (C, C), a scalar. An infinite one counts as the largest finite one."""
    sources = ~norms.isnan().all(1)
    apart = norms[sources][:, sources]  # where ways both there and back are known
    finite = apart[apart.isfinite()]
    left_out = len(norms) - len(apart)
    if len(apart) < MIN_CLASSES or left_out > MAX_LEFT_OUT * len(norms) or len(finite) == 0:
        return torch.tensor(torch.nan, dtype=torch.float64)
    apart = apart.clamp(max=float(finite.max()))
    for _ in range(SWEEPS):
        apart = apart - apart.nanmean(0, keepdim=True)
        apart = apart - apart.nanmean(1, keepdim=True)
    back = apart.T - apart  # [j, k]: how much farther it is from k to j
    nearest = apart.nan_to_num(torch.inf).argmin(1)
    spread = back[~back.isnan()].square().mean().sqrt()
    mean = back.gather(1, nearest[:, None]).nanmean()
    return mean / spread if spread > SAME * finite.abs().max() else torch.zeros_like(mean)
