"""One suspect put to the test, and the rule of what a defence may see."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .._shown import Shown
from ..attacks.base import Attack
from ..data.images import LabelledImages
from ..data.splits import Splits
from ..defenses.base import Defense, RepairResult
from ..scanning import ScanReport, scan
from .metrics import Metrics, defense_effectiveness, evaluate


@dataclass(frozen=True, eq=False, repr=False)
class Trial(Shown):
    """A backdoored (or clean) model and the data around it, split so that a defence cannot see too much.

    Attributes
    ----------
    model : the suspect
    data : the whole clean data set
    splits : disjoint shares of it
    attack : what the model was attacked with, or, of a clean model, what it is measured against
    augment : random crops and the like, which a defence trains on as the model did; None for the images as they are
    """

    model: nn.Module
    data: LabelledImages
    splits: Splits
    attack: Attack
    augment: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        largest = max(int(share.max()) for share in (self.splits.train, self.splits.clean, self.splits.test))
        if largest >= len(self.data):
            raise ValueError(f"splits: expected indices below {len(self.data)}, the size of data, got {largest}")

    @property
    def clean(self) -> LabelledImages:
        """The clean share: all that a scan gets, and that a defence may train on."""
        return self.data.subset(self.splits.clean)

    @property
    def held_out(self) -> LabelledImages:
        """The clean images that a defence may measure on; there may be none."""
        return self.data.subset(self.splits.held_out)

    @property
    def test(self) -> LabelledImages:
        """The test share, which no scan and no defence sees."""
        return self.data.subset(self.splits.test)

    @cached_property
    def report(self) -> ScanReport:
        """The scan of the suspect with the clean share; done once."""
        return scan(self.model, self.clean.loader())

    @cached_property
    def before(self) -> Metrics:
        """The figures of the suspect on the test share; measured once."""
        return self.evaluate(self.model)

    def split_clean(self, held_out: float) -> tuple[LabelledImages, LabelledImages]:
        """Split the clean share at random, always the same way: what to repair with, and the share held out of it."""
        indices = self.splits.clean
        n = round(held_out * len(indices))
        if not 0 < n < len(indices):
            raise ValueError(f"held_out: expected some of {len(indices)} clean images, but not all, got {held_out}")
        order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))
        return self.data.subset(indices[order[n:]]), self.data.subset(indices[order[:n]])

    def evaluate(self, model: nn.Module) -> Metrics:
        """Measure a model on the test share."""
        return evaluate(model, self.test.loader(), self.attack)


@dataclass(frozen=True, eq=False, repr=False)
class Outcome(Shown):
    """A defence put to the test: its result, and the figures before and after."""

    result: RepairResult
    before: Metrics
    after: Metrics

    @property
    def effectiveness(self) -> float:
        """DER, see `defense_effectiveness`."""
        return defense_effectiveness(self.before, self.after)


def run_defense(defense: Defense, trial: Trial, *, batch_size: int = 32, held_out: float | None = None) -> Outcome:
    """Let a defence repair the suspect and measure what came of it.

    The split rules: the defence is given copies of the suspect, of the clean share in shuffled batches, and of
    the scan of the one with the other; never the trigger, the target, the training set or the test set. Those
    are used here, out of its reach. What it may measure on but not train on is the held-out share, if there is one, or
    a part of the clean share.

    Parameters
    ----------
    defense : such as ``functools.partial(tacfast.repair, mode="latent", seed=3)``
    trial : the suspect, its data and the attack
    batch_size : of the clean share
    held_out : share of the clean share, in (0, 1), that goes to the defence as ``held_out`` and not as training data;
        None for what the splits hold out
    """
    before = trial.before
    # In one go, so that the head in the report is that of the copied model.
    suspect, report = copy.deepcopy((trial.model, trial.report))
    given, kept = (trial.clean, trial.held_out) if held_out is None else trial.split_clean(held_out)
    loader = given.loader(batch_size, shuffle=True, transform=trial.augment)
    measured = {"held_out": kept.loader()} if len(kept) else {}
    result = defense(suspect, loader, report, **measured)
    return Outcome(result=result, before=before, after=trial.evaluate(result.model))
