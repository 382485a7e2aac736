"""Cut off the latents that carry the reconstructed trigger-activated change, then fine-tune."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from .._processes import Processes
from ..data.randomness import isolated_randomness
from ..models.head import Head
from ..scanning import ScanReport
from .base import EpochRecord, RepairResult, scanned_copy
from .held_out import EpochChoice, HeldOut, fewest_correct
from .shifts import ShiftSettings, check_reachable, solve_shifts
from .targeted import resolve_targets
from .training import Objective, Training


@dataclass(frozen=True, kw_only=True)
class PruneRepair(ShiftSettings):
    """Prune the latents along which s_p is largest, as many as clean accuracy allows, then fine-tune.

    The columns of the head's weight are zeroed in the order of |s_p|, each p in units of its norm and the largest
    over several p: the largest count whose held-out accuracy is within ``max_drop``. Then all weights are trained on
    clean samples with the pruned columns masked, so that they are exactly zero throughout and after it; the epoch is
    chosen on the held-out samples as in every mode, and the network before any fine-tuning is good enough for that.

    As Fine-Pruning (Liu et al. 2018, arXiv 1805.12185) with s_p of arXiv 2511.08944 in place of the activations.
    Weaker than ``"latent"`` where the backdoor has spread over many latents.
    """

    def repair(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        report: ScanReport,
        *,
        held_out: Iterable[Any] | None = None,
        on_epoch: Callable[[EpochRecord], None] | None = None,
        resume: str | PathLike[str] | None = None,
        group: torch.distributed.ProcessGroup | None = None,
    ) -> RepairResult:
        """Return a repaired copy of ``model``; see `tacfast.repair`."""
        if held_out is None:
            raise ValueError("held_out: expected a loader of labelled samples, by which mode 'prune' chooses, got None")
        targets, processes = resolve_targets(self.targets, report), Processes(group)
        with isolated_randomness(self.seed, loader), torch.inference_mode(False):
            repaired, head = scanned_copy(model, report)
            measured = HeldOut(held_out, head, self.seed, processes)
            before = measured.measure(repaired)
            shifts, statuses = solve_shifts(repaired, loader, head, targets, self.trim, processes)
            check_reachable(targets, statuses)
            ranking = rank_latents(shifts)
            counts = correct_after_pruning(head, *measured.latents(repaired), ranking)
            enough = (counts >= fewest_correct(before, self.max_drop)).nonzero().flatten().tolist()
            # Last bits may differ from process to process, but not what is pruned.
            pruned = processes.first(ranking[: max(enough, default=0)].cpu()).to(ranking.device)
            with masked_columns(head, pruned):
                choice = EpochChoice(repaired, measured, self.max_drop, first=self.first_choice, before=before)
                training = Training(repaired, head, loader, self, Objective(), choice, processes)
                training.run(on_epoch, resume)
        return training.result("prune", targets, pruned=tuple(sorted(pruned.tolist())))


def rank_latents(shifts: Tensor) -> Tensor:
    """Latents (d,) int64 by what shifts (T, d) do to them, largest first: max over rows of |s| / ‖s‖."""
    lengths = shifts.norm(dim=1, keepdim=True)
    # A class that all samples are in already has the shift 0, which says nothing.
    shares = torch.where(lengths > 0, shifts.abs() / lengths, 0.0)
    return shares.amax(0).argsort(descending=True, stable=True)


def correct_after_pruning(head: Head, latents: Tensor, labels: Tensor, ranking: Tensor) -> Tensor:
    """How many samples are right if the first 0, 1, …, d latents of ``ranking`` are pruned, (d + 1,) int64.

    From latents (n, d) and labels (n,), at the price of two products with the head.
    """
    latents, weight = latents.to(head.weight.dtype), head.weight
    logits = F.linear(latents, weight, head.bias)
    counts = [(logits.argmax(1) == labels).sum()]
    for column in ranking:
        logits.addr_(latents[:, column], weight[:, column], alpha=-1)
        counts.append((logits.argmax(1) == labels).sum())
    return torch.stack(counts)


@contextmanager
def masked_columns(head: Head, columns: Tensor) -> Iterator[None]:
    """Hold columns of the head's weight at zero; on leaving they are zero for good, and the layer is as any other.

    Raises
    ------
    ValueError
        If the layer computes its weight from other parameters.
    """
    layer = head.module
    order = list(layer._parameters)
    if "weight" not in order:
        raise ValueError(f"model: expected a head with a plain weight to prune, got the parametrised {head.name!r}")
    mask = torch.ones_like(layer.weight)
    mask[:, columns] = 0
    prune.custom_from_mask(layer, "weight", mask)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
        for name in order:  # as they were, for those who read a state dict by position
            layer._parameters[name] = layer._parameters.pop(name)
