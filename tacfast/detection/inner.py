"""How small a change of what an early layer gives, the same for all samples, sends them to a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .cut import Cut, find_cut
from .lock_step import Distortion
from .statistic import Evidence
from .universal import UniversalPerturbation, differ, spread_of

# Inputs on which a layer is looked for: a number that the other dimensions of what layers give seldom have.
FEW = 7
# A shift for each class must fit into memory, twice: a gigabyte of float32.
MAX_NUMBERS = 2**28


@dataclass(frozen=True, eq=False)
class Shift:
    """Adds something to what a layer gives for every sample.

    Parameters
    ----------
    cut : the layer
    like : (..., *shape) what it gives
    """

    cut: Cut
    like: Tensor

    def start(self, count: int) -> Tensor:
        """Parameters (count, *shape): what is added."""
        return self.like.new_zeros(count, *self.like.shape[1:])

    def run(self, classify: Callable[[Tensor], Tensor], inputs: Tensor, parameters: Tensor) -> Tensor:
        """Logits of inputs for which the layer gives their row of ``parameters`` more."""
        with self.cut.changing(lambda output: (output + parameters).to(output.dtype)):
            return classify(inputs)


@dataclass(frozen=True, kw_only=True)
class InnerPerturbation(UniversalPerturbation):
    """Mean log-loss of a universal shift of an early layer as it grows towards every class in lock-step.

    A trigger that differs from image to image, or that is no small pattern, is no small additive change of the pixels;
    the first layers of a network that knows it see more or less the same in all of them. Sizes are relative to the
    mean distance of what the layer gives for a sample from the mean of all. Where the model cannot be cut near
    ``depth``, the inputs themselves are shifted.

    Parameters
    ----------
    depth : share of the layers with weights that come before; the nearest layer at which the model can be cut is taken
    """

    name: ClassVar[str] = "inner"
    title: ClassVar[str] = "smallest shift of an early layer"
    by_nature: ClassVar[bool] = False

    depth: float = 0.25

    def distortion(self, evidence: Evidence) -> tuple[Distortion, float]:
        """What grows, and the unit of its sizes."""
        inputs, classify = evidence.for_model()
        few = inputs[: min(FEW, evidence.together)]
        with torch.no_grad():
            classes = classify(few).shape[1]
        most = MAX_NUMBERS // classes
        cut = None if evidence.model is None else find_cut(evidence.model, classify, few, self.depth, most)
        if cut is not None:
            given = cut.outputs(classify, inputs[: evidence.together])
            if bool(given.isfinite().all()) and differ(given):
                return Shift(cut, given[:1]), spread_of(given)
        return super().distortion(evidence)
