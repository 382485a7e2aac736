"""Clean accuracy, attack success, recovery; and the rule of what a defence may see."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from .attacks.base import Attack
from .data.images import LabelledImages
from .data.splits import Splits
from .defenses.base import Defense, RepairResult
from .models.head import evaluation_mode
from .models.latents import split_batch
from .scanning import ScanReport, scan


@dataclass(frozen=True)
class Metrics:
    """How well a model classifies, and how well an attack on it works; all shares in [0, 1].

    Attributes
    ----------
    acc : clean test accuracy
    asr : attack success rate: triggered images of the other classes that are classified as the target
    ra : robust accuracy: the same images classified as their true class
    """

    acc: float
    asr: float
    ra: float


def evaluate(model: nn.Module, loader: Iterable[Any], attack: Attack) -> Metrics:
    """Measure a model on a test set, with and without the trigger.

    The model runs in evaluation mode without gradients and is left as it was.

    Parameters
    ----------
    model : maps images to logits (n, C)
    loader : yields (images, labels) of the clean test set, labels integers of shape (n,)
    attack : its trigger is applied to every image whose label is not its target

    Raises
    ------
    TypeError, ValueError
        If the loader yields nothing, or no labels, or only images of the target class.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    correct = total = hits = recovered = attacked = 0
    with evaluation_mode(model), torch.no_grad():
        for batch in loader:
            images, labels = split_batch(batch)
            if labels is None:
                raise ValueError("loader: expected (images, labels), got batches without labels")
            images, labels = images.to(device), labels.to(device)
            correct += int((model(images).argmax(1) == labels).sum())
            total += len(labels)
            others = labels != attack.target
            if others.any():
                answers = model(attack.trigger(images[others])).argmax(1)
                hits += int((answers == attack.target).sum())
                recovered += int((answers == labels[others]).sum())
                attacked += int(others.sum())
    if attacked == 0:
        raise ValueError(f"loader: expected images of other classes than the target {attack.target}, got none")
    return Metrics(acc=correct / total, asr=hits / attacked, ra=recovered / attacked)


def defense_effectiveness(before: Metrics, after: Metrics) -> float:
    """Rate a defence: DER = (max(0, ΔASR) − max(0, ΔACC) + 1) / 2, in [0, 1]; Δ is before − after."""
    return (max(0.0, before.asr - after.asr) - max(0.0, before.acc - after.acc) + 1) / 2


@dataclass(frozen=True, eq=False)
class Trial:
    """A backdoored (or clean) model and the data around it, split so that a defence cannot see too much.

    Attributes
    ----------
    model : the suspect
    data : the whole clean data set
    splits : disjoint shares of it
    attack : what the model was attacked with, or, of a clean model, what it is measured against
    """

    model: nn.Module
    data: LabelledImages
    splits: Splits
    attack: Attack

    def __post_init__(self) -> None:
        largest = max(int(share.max()) for share in (self.splits.train, self.splits.clean, self.splits.test))
        if largest >= len(self.data):
            raise ValueError(f"splits: expected indices below {len(self.data)}, the size of data, got {largest}")

    @property
    def clean(self) -> LabelledImages:
        """The clean share: all that a scan or a defence gets."""
        return self.data.subset(self.splits.clean)

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
        return evaluate(model, self.data.subset(self.splits.test).loader(), self.attack)


@dataclass(frozen=True, eq=False)
class Outcome:
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
    are used here, out of its reach. What it may measure on but not train on is a part of the clean share too.

    Parameters
    ----------
    defense : such as ``functools.partial(tacfast.repair, mode="latent", seed=3)``
    trial : the suspect, its data and the attack
    batch_size : of the clean share
    held_out : share of the clean share, in (0, 1), that goes to the defence as ``held_out`` and not as training data
    """
    before = trial.before
    # In one go, so that the head in the report is that of the copied model.
    suspect, report = copy.deepcopy((trial.model, trial.report))
    if held_out is None:
        result = defense(suspect, trial.clean.loader(batch_size, shuffle=True), report)
    else:
        given, kept = trial.split_clean(held_out)
        result = defense(suspect, given.loader(batch_size, shuffle=True), report, held_out=kept.loader())
    return Outcome(result=result, before=before, after=trial.evaluate(result.model))
