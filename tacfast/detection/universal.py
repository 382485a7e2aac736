"""How small a change of the pixels, the same for all images, sends them to a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .._shown import Shown
from .lock_step import Climb, Distortion, climb, growing
from .statistic import Evidence

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Additive(Shown):
    """Adds something to every input, and clips sums to the range of each channel.

    Parameters
    ----------
    low, high : broadcast against the inputs
    shape : of one input
    """

    low: Tensor
    high: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, inputs: Tensor) -> Additive:
        """For inputs (n, channels, ...) of this range."""
        channels = inputs.transpose(0, 1).flatten(1)
        view = (1, -1, *[1] * (inputs.ndim - 2))
        return cls(channels.amin(1).view(view), channels.amax(1).view(view), inputs.shape[1:])

    def start(self, count: int) -> Tensor:
        """Parameters (count, *shape): what is added."""
        return torch.zeros(count, *self.shape, dtype=self.low.dtype, device=self.low.device)

    def apply(self, inputs: Tensor, parameters: Tensor) -> Tensor:
        """Inputs with their row of ``parameters`` added."""
        return torch.minimum(torch.maximum(inputs + parameters, self.low), self.high)

    def run(self, classify: Callable[[Tensor], Tensor], inputs: Tensor, parameters: Tensor) -> Tensor:
        """Logits of what `apply` gives."""
        return classify(self.apply(inputs, parameters))


def spread_of(inputs: Tensor) -> float:
    """Mean distance of an input from the mean of all: the unit of sizes, whatever the data and their normalisation."""
    return float((inputs - inputs.mean(0)).flatten(1).norm(dim=1).mean())


def differ(inputs: Tensor) -> bool:
    """Whether their spread is more than rounding."""
    return spread_of(inputs) > 1e-6 * float(inputs.flatten(1).norm(dim=1).mean())


@dataclass(frozen=True, kw_only=True)
class UniversalPerturbation:
    """Mean log-loss of a universal additive perturbation as it grows towards every class in lock-step.

    A backdoor whose trigger is some pattern makes its class the one that a small pattern leads to. Sizes are relative
    to u, the mean distance of an input from the mean of all: whatever the data and their normalisation.

    Parameters
    ----------
    batch : samples per class and step; half as many where there are many classes, see `climb`
    steps : at most; they stop when half of the classes are reached
    first, last : norm of the perturbation at the first and the last step, over u; in between it grows geometrically
    """

    name: ClassVar[str] = "universal"
    title: ClassVar[str] = "smallest perturbation of the pixels"
    needs_inputs: ClassVar[bool] = True
    by_nature: ClassVar[bool] = True

    batch: int = 8
    steps: int = 15
    first: float = 0.02
    last: float = 1.2

    def values(self, evidence: Evidence) -> Tensor:
        """(C,) float64."""
        return self.climb(evidence).effort

    @torch.inference_mode(False)  # gradients are needed, also where the caller is in it
    def climb(self, evidence: Evidence, classes: Sequence[int] | None = None) -> Climb:
        """The perturbations towards all classes, or until they are reached towards some, and how they grew."""
        inputs, classify = evidence.for_model()
        distortion, unit = self.distortion(evidence)
        budgets = [size * unit for size in growing(self.first, self.last, self.steps)]
        most = evidence.together
        run = partial(climb, inputs, classify, distortion, budgets, batch=min(self.batch, most), together=most)
        return run() if classes is None else run(classes=torch.tensor(classes, dtype=torch.int64), enough=1.0)

    def distortion(self, evidence: Evidence) -> tuple[Distortion, float]:
        """What grows, and the unit of its sizes."""
        inputs, _ = evidence.for_model()
        return Additive.of(inputs), spread_of(inputs)


@dataclass(frozen=True, eq=False, repr=False)
class Perturbation(Shown):
    """A small change of all inputs alike that sends them to a class: what a trigger may look like to the model.

    Attributes
    ----------
    target : the class
    inputs, perturbed : (m, ...) float32, some inputs without and with it
    size : its norm, over the mean distance of an input from the mean of all
    share : of the inputs that it was made with, and that are not of the class, which the model sends there with it
    additive, change : how it is applied, and what is added
    """

    target: int
    inputs: Tensor
    perturbed: Tensor
    size: float
    share: float
    additive: Additive
    change: Tensor

    def apply(self, inputs: Tensor) -> Tensor:
        """Inputs (n, ...) with it, on any device."""
        low, high, change = (each.to(inputs.device) for each in (self.additive.low, self.additive.high, self.change))
        return Additive(low, high, self.additive.shape).apply(inputs, change)

    def plot(self) -> Figure:
        """Draw the inputs without and with it, and the difference.

        Raises
        ------
        ImportError
            Without the extra ``report`` (Matplotlib).
        ValueError
            If the inputs are no images (m, channels, h, w) with 1 or 3 channels.
        """
        from ..report import views

        return views.perturbation(self)

    def _title(self) -> str:
        return f"sends {100 * self.share:.1f} % of the inputs to class {self.target}"

    def _rows(self) -> list[tuple[str, object]]:
        return [("size", self.size), ("change", self.change), ("inputs", self.inputs)]


# One class alone can be given more samples and smaller steps.
CAREFUL = UniversalPerturbation(batch=64, steps=36)


def reconstruct(evidence: Evidence, target: int, *, shown: int = 5) -> Perturbation:
    """Grow a universal perturbation towards one class until it is reached, more carefully than towards all at once."""
    inputs, classify = evidence.for_model()
    additive, unit = Additive.of(inputs), spread_of(inputs)
    change = CAREFUL.climb(evidence, [target]).distortions.to(inputs.device)
    with torch.no_grad():
        parts = torch.split(inputs, evidence.together)
        others = inputs[torch.cat([classify(part).argmax(1) for part in parts]) != target]
        others = others if len(others) else inputs
        parts = torch.split(others, evidence.together)
        sent = [classify(additive.apply(part, change)).argmax(1) == target for part in parts]
    examples = others[:shown]
    return Perturbation(
        target=target,
        inputs=examples.cpu(),
        perturbed=additive.apply(examples, change).cpu(),
        size=float(change.norm()) / unit,
        share=float(torch.cat(sent).double().mean()),
        additive=additive,
        change=change,
    )
