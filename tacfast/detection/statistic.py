"""What a detection statistic is: one number per class, small where a class is suspiciously easy to reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor, nn

from .._shown import Shown
from ..solver import GapMatrix, TacSolution

MIN_CLASSES = 5
"""Below so many classes an odd one cannot be told from chance."""
# If more of them than this share are left out, what is said of the others is no verdict on the model.
MAX_LEFT_OUT = 1 / 3


@dataclass(frozen=True, eq=False, repr=False)
class Evidence(Shown):
    """What statistics are made of: clean samples and what the model makes of them.

    Attributes
    ----------
    gaps : of all samples, with their logits
    inputs : (n, ...) floating point, some of the samples as the model takes them; None where only logits are at hand
    classify : from such inputs to logits (n, C), float32, in evaluation mode and with gradients where they are enabled;
        None with ``inputs``
    model : what ``classify`` runs, to look into; None where it is not at hand
    together : samples that it is given at once, at most: memory may be short
    """

    gaps: GapMatrix
    inputs: Tensor | None = None
    classify: Callable[[Tensor], Tensor] | None = None
    model: nn.Module | None = None
    together: int = 128
    _solutions: dict[float, TacSolution] = field(default_factory=dict)

    def for_model(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """``inputs``, fit for gradients, and ``classify``; ValueError where they are not at hand."""
        if self.inputs is None or self.classify is None:
            raise ValueError("evidence: expected inputs and a model, got only what the model said")
        return self.inputs.clone() if self.inputs.is_inference() else self.inputs, self.classify

    def solution(self, trim: float) -> TacSolution:
        """Of the class-wise QPs of all classes; solved once, whoever asks."""
        if trim not in self._solutions:
            self._solutions[trim] = self.gaps.solve(trim=trim, raise_on_failure=False)
        return self._solutions[trim]


class Statistic(Protocol):
    """One way to tell how easy each class is to reach; a frozen dataclass of settings in a file of its own.

    Attributes
    ----------
    name : key in reports
    title : what a value says, for people
    needs_inputs : whether it runs the model on ``Evidence.inputs``, or is content with the gap matrix
    by_nature : whether it is small, too, for classes that are near to others by nature, so that this is taken off
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs_inputs: ClassVar[bool]
    by_nature: ClassVar[bool]

    def values(self, evidence: Evidence) -> Tensor:
        """One value per class, (C,) float64; the smaller, the easier to reach. NaN where it says nothing."""
        ...
