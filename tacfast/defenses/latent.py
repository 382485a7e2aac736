"""Fine-tune a model until the reconstructed trigger-activated change no longer takes effect."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.randomness import isolated_randomness
from ..models.head import Head, head_named, kept_modes, latest_call, unwrapped
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

    Give small shuffled batches: steps count, and with 60 epochs of a few hundred samples batches of 32 or 64 make
    hundreds of them (benchmarks/repair_batches.py says what larger ones cost).

    Parameters
    ----------
    epochs : passes over the clean samples
    lr : peak learning rate
    lam : weight λ of the shifted term
    momentum, weight_decay : of SGD
    trim : share of each source class that s_p need not move, in [0, 1)
    target : the class p; the report's worst suspicious class if None
    seed : of torch, NumPy, Python's ``random`` and the loader's generators; all are left as they were
    """

    epochs: int = 60
    lr: float = 0.1
    lam: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    trim: float = 0.0
    target: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, expected, holds in (
            ("epochs", "an integer >= 1", _is_integer(self.epochs) and self.epochs >= 1),
            ("lr", "a finite learning rate > 0", _is_finite(self.lr) and self.lr > 0),
            ("lam", "a finite weight >= 0", _is_finite(self.lam) and self.lam >= 0),
            ("momentum", "a number in [0, 1)", _is_finite(self.momentum) and 0 <= self.momentum < 1),
            ("weight_decay", "a finite number >= 0", _is_finite(self.weight_decay) and self.weight_decay >= 0),
            ("trim", "a share in [0, 1)", _is_finite(self.trim) and 0 <= self.trim < 1),
            ("target", "a class or None", self.target is None or _is_integer(self.target)),
            ("seed", "an integer in [0, 2**63)", _is_integer(self.seed) and 0 <= self.seed < 2**63),
        ):
            if not holds:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

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
        target = _target(self.target, report)
        history = []
        # Not in inference mode: that also turns gradients on where the caller is under no_grad.
        with isolated_randomness(self.seed, loader), torch.inference_mode(False):
            repaired = copy.deepcopy(model)
            head = _head_of(repaired, report)
            with _trainable(repaired):
                for record in self._train(repaired, loader, head, target):
                    history.append(record)
                    if on_epoch is not None:
                        on_epoch(record)
        return RepairResult(repaired, tuple(history), time.perf_counter() - start)

    def _train(self, model: nn.Module, loader: Iterable[Any], head: Head, target: int) -> Iterator[EpochRecord]:
        """Train in place, one epoch per record."""
        steps = self.epochs * _count_batches(loader, head)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps + 1, cycle_momentum=False)
        never_finite = _not_finite(model)
        shift, status = _solve_shift(model, loader, head, target, self.trim)
        if status is not Status.OPTIMAL:
            raise ValueError(f"report: expected a class with a shift towards it, got class {target}: {status.sentence}")
        cap = float(shift.norm())
        for epoch in range(1, self.epochs + 1):
            if epoch > 1:
                fresh, status = _solve_shift(model, loader, head, target, self.trim)
                shift = _capped(fresh, cap) if status is Status.OPTIMAL else shift
            loss, accuracy = self._train_epoch(model, loader, head, shift, optimizer, schedule)
            if not math.isfinite(loss) or _not_finite(model) - never_finite:
                raise RuntimeError(f"repair diverged in epoch {epoch}: loss {loss:g}; lower lr (it is {self.lr:g})")
            yield EpochRecord(epoch, loss, accuracy, float(shift.norm()), status is Status.OPTIMAL)

    def _train_epoch(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        head: Head,
        shift: Tensor,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.OneCycleLR,
    ) -> tuple[float, float]:
        """One pass over the loader; mean loss and training accuracy."""
        loss_sum, correct, total = 0.0, 0, 0
        run, _ = unwrapped(model)
        with latest_call([head]) as calls:
            for inputs, labels in _trainable_batches(loader, head):
                calls.clear()
                run(inputs)
                # Not the model's output: in training mode some models return more than the logits.
                _, latents, logits = calls[0]
                shifted = head.apply(latents + shift)
                loss = F.cross_entropy(logits, labels) + self.lam * F.cross_entropy(shifted, labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                # A loader may yield more batches than were counted: they are trained on at the final, tiny rate.
                if schedule.last_epoch < schedule.total_steps - 1:
                    schedule.step()
                loss_sum += float(loss.detach()) * len(labels)
                correct += int((logits.detach().argmax(1) == labels).sum())
                total += len(labels)
        return loss_sum / total, correct / total


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """Training mode and gradients for every weight, also those that were frozen; all as before on leaving."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    with kept_modes(model):
        model.train().requires_grad_(True)
        try:
            yield
        finally:
            model.zero_grad(set_to_none=True)
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
    """Find the layer that has the place of the scanned head in this model, and check that it is the same."""
    name = report.head.name
    head = head_named(model, name)
    if head is None:
        raise ValueError(
            f"model: expected the scanned model, whose head is {name!r}, {report.head.module}; "
            "got one without a linear layer of that name"
        )
    if GapMatrix(head.weight, head.bias).fingerprint != report.fingerprint:
        raise ValueError(
            f"model: expected the scanned model, got one whose head {name!r} has other weights than were scanned"
        )
    return head


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


def _not_finite(model: nn.Module) -> set[str]:
    """Names of the parameters and buffers that hold a NaN or an infinity, as a mask of −inf does from the start."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    return {name for name, tensor in tensors if not bool(tensor.isfinite().all())}


def _solve_shift(
    model: nn.Module, loader: Iterable[Any], head: Head, target: int, trim: float
) -> tuple[Tensor, Status]:
    """s_p of the current network, (d,), and how the solve ended: a shift only if that is OPTIMAL."""
    gaps = GapMatrix(head.weight, head.bias, keep_logits=trim > 0)
    with latent_batches(model, loader, head) as batches:
        for batch in batches:
            gaps.update(batch.latents)
    solution = gaps.solve(classes=[target], trim=trim, raise_on_failure=False)
    return torch.as_tensor(solution.perturbations)[0].to(head.weight), solution.statuses[0]


def _capped(shift: Tensor, cap: float) -> Tensor:
    norm = float(shift.norm())
    return shift * (cap / norm) if norm > cap else shift
