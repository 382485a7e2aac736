"""Unlearn perturbations of the inputs that lead both the suspect and the repaired model to the suspicious class."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F

from .._processes import ALONE, Processes
from ..detection import RULE_TRIM
from ..detection.lock_step import climb, growing, is_reached, scaled
from ..detection.universal import Additive, differ, spread_of
from ..models.head import Head, evaluation_mode, logits_of
from ..scanning import ScanReport
from ..solver import Status
from .base import EpochRecord, RepairResult
from .latent import frozen_logits
from .shifts import capped, solve_shifts
from .targeted import TargetedRepair
from .training import NOT_NEGATIVE, DivergedError, Objective, is_finite, trainable_batches, widened

# The perturbation is first looked for on so many samples.
SAMPLES = 500
# It grows between these shares of the spread of the inputs, in so many steps with so many samples each.
SMALLEST, LARGEST, STEPS, BATCH = 0.02, 0.6, 24, 32
# To what gradients are shortened where the training costs too much: about their median on
# CIFAR-10, where that is not needed, and a fifth to a half of it on GTSRB, where it is.
CALM = 10.0
# The least weight of shifted latents there: without them shortened gradients leave backdoors that hide in weaknesses of
# the network's own, as those of LIRA.
CALM_SHIFT = 0.3
# A network from so far back on its line, as a share of ``blend``, is still taken rather than that of another training.
NEAR = 0.6
# Length of its steps while the network is trained, as a share of the radius.
STEP = 0.2


@dataclass(frozen=True, kw_only=True)
class UniversalRepair(TargetedRepair):
    """Teach the model to withstand small perturbations that lead it, and the suspect with it, to the class p.

    Minimises ``distill`` · T² KL(suspect ‖ f)(x) with T = 2 on clean samples x, and the cross-entropy of samples of
    other classes than p when they are perturbed, x + δ + η(x), with a weight of ``lam``, and ``led`` more where f sends
    them to p. δ is a universal perturbation that takes a normalised gradient step for each step of the network, as in
    universal adversarial training (Shafahi et al. 2020, arXiv 1811.11304), and η one such step for the sample alone.
    Both lower the sum of the losses towards p of f and of the suspect, because what fools both is the backdoor rather
    than a weakness that the training has just made (shared adversarial examples, Wei et al. 2023, arXiv 2307.10562).

    With ``shift``, clean latents of other classes that are shifted by the suspect's s_p count as well, as the head
    answers them; only the layers before it learn from that, so that the head alone cannot absorb it.

    The training is short on purpose: a longer one teaches the backdoor again, through what the suspect says. Where the
    network of its end costs more clean accuracy than is allowed, as where the suspect is very sure of its answers, and
    so does the one somewhat further back, it is done again with gradients shortened to ``CALM`` and shifted latents,
    unless ``max_norm`` says otherwise.

    Parameters
    ----------
    epochs, lr : five at a rate that networks with BatchNorm survive
    lam, led : weight λ of a perturbed sample, and how much more it has while f sends it to p
    distill : weight of the distance to what the suspect says of clean samples
    radius : largest norm of δ over the spread of the inputs, their mean distance from their mean; None for
        ``slack`` times the one that sends four in five samples to p in the suspect
    slack : how much larger than that triggers may be
    own : norm of η over the radius
    shift : weight of a shifted latent over that of a perturbed sample
    """

    name: ClassVar[str] = "universal"
    rates: ClassVar[tuple[float, ...]] = (0.01, 0.003)
    epochs: int = 5
    lr: float = 0.01
    blend: float = 0.7
    lam: float = 1.0
    led: float = 5.0
    distill: float = 5.0
    radius: float | None = None
    slack: float = 1.0
    own: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_each(NOT_NEGATIVE, "lam", "led", "distill", "own", "shift")
        radius = self.radius
        self.check("radius", "a finite share > 0, or None", radius is None or (is_finite(radius) and radius > 0))
        self.check("slack", "a finite factor > 0", is_finite(self.slack) and self.slack > 0)

    def repair(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        report: ScanReport,
        *,
        held_out: Iterable[Any] | None = None,
        on_epoch: Callable[[EpochRecord], None] | None = None,
        resume: str | os.PathLike[str] | None = None,
        group: torch.distributed.ProcessGroup | None = None,
    ) -> RepairResult:
        """Return a repaired copy of ``model``; see `tacfast.repair`. Epochs count from 1 again in a second training."""
        run = partial(super().repair, model, loader, report, held_out=held_out, on_epoch=on_epoch, group=group)
        if self.max_norm is not None or held_out is None:
            return run(resume=resume)
        start, second = time.perf_counter(), None if resume is None else calm_state(resume)
        # Where there is a state of the second training, the first is done with.
        if not Processes(group).first(second is not None and second.exists()):
            with suppress(DivergedError):
                first = run(resume=resume)
                if first.epoch == self.epochs and first.blend >= NEAR * self.blend:
                    return first
        spent = time.perf_counter() - start
        calm = replace(self, max_norm=CALM, shift=max(self.shift, CALM_SHIFT))
        result = calm.repair(model, loader, report, held_out=held_out, on_epoch=on_epoch, resume=second, group=group)
        return replace(result, seconds=spent + result.seconds)

    def objective(
        self, model: nn.Module, head: Head, loader: Iterable[Any], targets: tuple[int, ...], processes: Processes
    ) -> Objective:
        """See `TargetedRepair.objective`."""
        return PerturbedLoss(model, head, loader, targets, self, processes)


def calm_state(resume: str | os.PathLike[str]) -> Path:
    """Where the second training of a repair keeps its state, given where the first does."""
    return Path(f"{os.fspath(resume)}.calm")


class PerturbedLoss(Objective):
    """Distance to the suspect on clean samples, and cross-entropy on changed ones, above all those that go astray.

    Parameters
    ----------
    model, head : as they are trained; the suspect is a copy of what they are now
    loader : what perturbations are first looked for on
    targets : classes, one after the other
    settings : weights and radius
    processes : that share every batch, and step by step change the perturbations alike
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        loader: Iterable[Any],
        targets: Sequence[int],
        settings: UniversalRepair,
        processes: Processes = ALONE,
    ) -> None:
        self._processes = processes
        self._model, self._head, self._targets, self._settings = model, head, tuple(targets), settings
        self._suspect = copy.deepcopy(model).eval().requires_grad_(False)
        inputs = _some_inputs(loader, head)
        self._additive = Additive.of(inputs)
        self._steps, self._target = 0, self._targets[0]
        self._answers = self._others = torch.zeros(0)
        spread = spread_of(inputs)
        if not differ(inputs):
            raise ValueError("loader: expected inputs that differ, got the same again and again")
        sizes = growing(SMALLEST * spread, LARGEST * spread, STEPS)
        found = climb(
            inputs,
            lambda x: widened(logits_of(self._suspect, x)),
            self._additive,
            sizes,
            batch=BATCH,
            classes=torch.tensor(self._targets),
            enough=1.0,
        )
        if settings.radius is None:
            self._radii = [settings.slack * _size_that_leads(sizes, reached) for reached in found.reached.T]
        else:
            self._radii = [settings.radius * spread] * len(self._targets)
        self._shifts = _shifts(model, loader, head, targets, processes) if settings.shift else None
        self._perturbations = torch.stack(
            [capped(each, radius) for each, radius in zip(found.distortions.to(head.device), self._radii, strict=True)]
        )
        # Found by each of them, but last bits may differ.
        self.load_state_dict(processes.first(self.state_dict() | {"perturbations": self._perturbations.cpu()}))

    def batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The inputs, and behind them those of other classes than the one whose turn it is, perturbed towards it."""
        turn = self._steps % len(self._targets)
        self._steps += 1
        self._target = self._targets[turn]
        with torch.no_grad():
            self._answers = widened(logits_of(self._suspect, inputs))
        self._others = labels != self._target
        return torch.cat([inputs, self._perturbed(turn, inputs[self._others])])

    def loss(self, latents: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Of logits (n + m, C) of `batch` and labels (n,), m of them of other classes."""
        clean, perturbed = torch.split(widened(logits), [len(labels), len(logits) - len(labels)])
        distance = F.kl_div(
            (clean / 2).log_softmax(1), (self._answers / 2).log_softmax(1), reduction="batchmean", log_target=True
        )
        astray = self._errors(perturbed, labels)
        if self._shifts is not None and len(perturbed):
            shift = self._shifts[self._targets.index(self._target)]
            shifted = frozen_logits(self._head, latents[: len(labels)][self._others] + shift)
            astray = astray + self._settings.shift * self._errors(widened(shifted), labels)
        return self._settings.distill * 4 * distance + astray / len(labels)

    def _errors(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of the cross-entropies of changed samples of other classes, by their logits (m, C)."""
        weights = self._settings.lam + self._settings.led * (logits.argmax(1) == self._target)
        return (weights * F.cross_entropy(logits, labels[self._others], reduction="none")).sum()

    def _perturbed(self, turn: int, others: Tensor) -> Tensor:
        """Take a step of δ, and one more for every sample."""
        radius = self._radii[turn]
        gradient = self._uphill(self._additive.apply(others, self._perturbations[turn]))
        step = scaled(self._processes.add(gradient.sum(0, keepdim=True)), STEP * radius)[0]
        self._perturbations[turn] = capped(self._perturbations[turn] - step, radius)
        own = scaled(gradient, self._settings.own * radius)
        return self._additive.apply(others, self._perturbations[turn] - own)

    def _uphill(self, given: Tensor) -> Tensor:
        """The gradient of the losses towards the target of the network and of the suspect, at each of some inputs."""
        if len(given) == 0:
            return given
        given = given.requires_grad_()
        aim = torch.full((len(given),), self._target, device=given.device)
        with evaluation_mode(self._model), torch.enable_grad():
            logits = [widened(logits_of(net, given)) for net in (self._model, self._suspect)]
            loss = F.cross_entropy(torch.cat(logits), aim.repeat(2), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, given)
        return gradient

    def identity(self) -> dict[str, Any]:
        """The targets: those of the report where the settings name none."""
        return {"targets": self._targets}

    def state_dict(self) -> dict[str, Any]:
        """The perturbations with their radii, and whose turn it is."""
        return {"perturbations": self._perturbations, "radii": self._radii, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._perturbations = state["perturbations"].to(self._perturbations.device)
        self._radii, self._steps = state["radii"], state["steps"]


def _shifts(
    model: nn.Module, loader: Iterable[Any], head: Head, targets: Sequence[int], processes: Processes
) -> Tensor:
    """s_p of the suspect for each of T targets (T, d); zeros where there is none."""
    found, statuses = solve_shifts(model, loader, head, targets, RULE_TRIM, processes)
    solved = torch.tensor([status is Status.OPTIMAL for status in statuses], device=found.device)
    return found.where(solved[:, None], 0.0)


def _some_inputs(loader: Iterable[Any], head: Head) -> Tensor:
    """Up to ``SAMPLES`` inputs, evenly over a pass: the samples may be sorted by class."""
    total = sum(len(inputs) for inputs, _ in trainable_batches(loader, head))
    if total == 0:
        raise ValueError("loader: expected at least one batch of two samples or more, got none")
    step, found, seen = -(-total // SAMPLES), [], 0
    for inputs, _ in trainable_batches(loader, head):
        found.append(inputs[-seen % step :: step].detach().clone())  # a view would keep its whole batch
        seen += len(inputs)
    return torch.cat(found)


def _size_that_leads(sizes: Sequence[float], reached: Tensor) -> float:
    """The first size from which on the class is reached, as `climb` sees it; the last that was tried if none is."""
    leading = is_reached(reached[:-1], reached[1:]).nonzero().flatten().tolist()
    return sizes[leading[0] + 1 if leading else len(reached) - 1]
