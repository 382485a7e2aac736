"""Fine-tune a model until the reconstructed trigger-activated change no longer takes effect."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.randomness import isolated_randomness
from ..models.head import Head, latest_call
from ..models.latents import latent_batches, split_batch
from ..scanning import ScanReport
from ..solver import GapMatrix, Status
from .base import EpochRecord, RepairResult


@dataclass(frozen=True)
class LatentRepair:
    """Latent fine-tuning after arXiv 2511.08944: teach the model to withstand s_p.

    Minimises CE(f(x), y) + ``lam`` · CE(W(φ(x) + s_p) + b, y) over all weights, where s_p is the smallest
    shift towards the suspicious class p. It is solved again for the current network at the start of every
    epoch, because the old one soon moves nothing, and its norm is capped at the first one, because the norm
    that is needed grows as the repair succeeds and would otherwise destroy clean accuracy. SGD with momentum
    and a one-cycle rate.

    Parameters
    ----------
    epochs : passes over the clean samples
    lr : peak learning rate
    lam : weight λ of the shifted term
    momentum, weight_decay : of SGD
    trim : share of each source class that s_p need not move, in [0, 1)
    target : the class p; the report's worst suspicious class if None
    seed : of everything random; the caller's generators are left as they were
    """

    epochs: int = 20
    lr: float = 0.1
    lam: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    trim: float = 0.0
    target: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs: expected at least 1, got {self.epochs}")
        if not self.lr > 0:
            raise ValueError(f"lr: expected a positive learning rate, got {self.lr}")
        if not self.lam >= 0:
            raise ValueError(f"lam: expected a weight >= 0, got {self.lam}")

    def repair(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        report: ScanReport,
        *,
        on_epoch: Callable[[EpochRecord], None] | None = None,
    ) -> RepairResult:
        """Return a repaired copy of ``model``; see `tacfast.repair`."""
        start = time.perf_counter()
        if isinstance(loader, Iterator):
            raise TypeError("loader: expected an iterable that can be gone through repeatedly, got an iterator")
        target = _target(self.target, report)
        repaired = copy.deepcopy(model)
        head = _head_of(repaired, report)
        history = []
        with isolated_randomness(self.seed, loader), _trainable(repaired):
            steps = self.epochs * _count_batches(loader, head)
            shift = _solve_shift(repaired, loader, head, target, self.trim)
            if shift is None:
                raise ValueError(f"report: expected a class that a shift of the latents can reach, got class {target}")
            cap = float(shift.norm())
            optimizer = torch.optim.SGD(
                repaired.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
            )
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, self.lr, total_steps=steps + 1, cycle_momentum=False
            )
            for epoch in range(1, self.epochs + 1):
                if epoch > 1:
                    # None: the target cannot be reached any more, so the last shift that could reach it
                    # serves on.
                    shift = _capped(_solve_shift(repaired, loader, head, target, self.trim), shift, cap)
                loss, accuracy = self._train_epoch(repaired, loader, head, shift, optimizer, schedule)
                history.append(EpochRecord(epoch, loss, accuracy, float(shift.norm())))
                if on_epoch is not None:
                    on_epoch(history[-1])
        return RepairResult(repaired, tuple(history), time.perf_counter() - start)

    def _train_epoch(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        head: Head,
        shift: Tensor,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> tuple[float, float]:
        """One pass over the loader; mean loss and training accuracy."""
        loss_sum, correct, total = 0.0, 0, 0
        with latest_call([head]) as calls:
            for inputs, labels in _trainable_batches(loader, head):
                calls.clear()
                logits = model(inputs)
                shifted = F.linear(calls[0][1] + shift, head.module.weight, head.module.bias)
                loss = F.cross_entropy(logits, labels) + self.lam * F.cross_entropy(shifted, labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                loss_sum += float(loss.detach()) * len(labels)
                correct += int((logits.detach().argmax(1) == labels).sum())
                total += len(labels)
        return loss_sum / total, correct / total


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """Training mode and gradients for every weight, also those that were frozen; all as before on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    model.train().requires_grad_(True)
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for module, mode in modes:
            module.training = mode
        for parameter in frozen:
            parameter.requires_grad_(False)


def _target(target: int | None, report: ScanReport) -> int:
    classes = report.head.num_classes
    if target is not None:
        if not 0 <= target < classes:
            raise ValueError(f"target: expected a class 0 to {classes - 1}, got {target}")
        return target
    if not report.verdict.classes:
        raise ValueError(
            f"report: expected a suspicious class to repair, but the verdict is {report.verdict.label}; "
            "give target= to repair a class of your choice"
        )
    return report.verdict.classes[0]


def _head_of(model: nn.Module, report: ScanReport) -> Head:
    """Find the layer that has the place of the scanned head in this model."""
    name, scanned = report.head.name, report.head.module
    layer = dict(model.named_modules()).get(name)
    if not isinstance(layer, nn.Linear) or layer.weight.shape != scanned.weight.shape:
        raise ValueError(f"model: expected the scanned model, whose head is {name!r}, {scanned}; got {layer}")
    return Head(name, layer)


def _trainable_batches(loader: Iterable[Any], head: Head) -> Iterator[tuple[Tensor, Tensor]]:
    """Labelled batches of two samples or more on the device of the head: BatchNorm cannot train on one."""
    for batch in loader:
        inputs, labels = split_batch(batch, head.num_classes)
        if labels is None:
            raise ValueError("loader: repair needs labels, expected batches (inputs, labels), got inputs alone")
        if len(labels) > 1:
            yield inputs.to(head.device), labels.to(head.device)


def _count_batches(loader: Iterable[Any], head: Head) -> int:
    """Count the batches, and so check every label before any training."""
    count = sum(1 for _ in _trainable_batches(loader, head))
    if count == 0:
        raise ValueError("loader: expected at least one batch of two samples or more, got none")
    return count


def _solve_shift(model: nn.Module, loader: Iterable[Any], head: Head, target: int, trim: float) -> Tensor | None:
    """s_p of the current network, (d,); None if no shift reaches the class."""
    gaps = GapMatrix(head.weight, head.bias, keep_logits=trim > 0)
    with latent_batches(model, loader, head) as batches:
        for batch in batches:
            gaps.update(batch.latents)
    solution = gaps.solve(classes=[target], trim=trim)
    if solution.statuses[0] is Status.INFEASIBLE:
        return None
    return torch.as_tensor(solution.perturbations)[0].to(head.weight)


def _capped(shift: Tensor | None, previous: Tensor, cap: float) -> Tensor:
    if shift is None:
        return previous
    norm = float(shift.norm())
    return shift * (cap / norm) if norm > cap else shift
