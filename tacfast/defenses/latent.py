"""Fine-tune a model until the reconstructed trigger-activated change no longer takes effect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from .._processes import Processes
from ..models.head import Head
from ..solver import Status
from .shifts import ShiftSettings, capped, check_reachable, solve_shifts
from .targeted import TargetedRepair
from .training import Objective, is_finite, widened


@dataclass(frozen=True, kw_only=True)
class LatentRepair(ShiftSettings, TargetedRepair):
    """Latent fine-tuning after arXiv 2511.08944: teach the model to withstand s_p.

    Minimises CE(f(x), y) + ``lam`` · CE(W(φ(x) + s_p) + b, y) over all weights, where s_p is the smallest
    shift towards the suspicious class p. It is solved again for the current network at the start of every
    epoch, because the old one soon moves nothing, and its norm is capped at the first one, because the norm
    that is needed grows as the repair succeeds and would otherwise destroy clean accuracy. SGD with momentum
    and a one-cycle rate. Several classes take turns, one per step.

    Give small shuffled batches: steps count, and with 60 epochs of a few hundred samples batches of 32 or 64 make
    hundreds of them (benchmarks/repair_batches.py says what larger ones cost).

    Parameters
    ----------
    lam : weight λ of the shifted term
    freeze_head : whether W and b learn nothing from the shifted term, which they alone can absorb; not so in the paper
    """

    name: ClassVar[str] = "latent"
    lam: float = 1.0
    freeze_head: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("lam", "a finite weight >= 0", is_finite(self.lam) and self.lam >= 0)
        self.check("freeze_head", "True or False", isinstance(self.freeze_head, bool))

    def objective(
        self, model: nn.Module, head: Head, loader: Iterable[Any], targets: tuple[int, ...], processes: Processes
    ) -> Objective:
        """See `TargetedRepair.objective`."""
        logits = frozen_logits if self.freeze_head else head_logits
        solve = partial(solve_shifts, model, loader, head, targets, self.trim, processes)
        return ShiftedLoss(head, targets, solve, lam=self.lam, logits=logits)


class ShiftedLoss(Objective):
    """Cross-entropy on clean latents, and on latents shifted towards one of the targets, in turn.

    Parameters
    ----------
    head : answers shifted latents
    targets : T classes
    solve : gives s_p of the current network for each of them, see `solve_shifts`
    lam : weight of the shifted term
    logits : how the head answers shifted latents
    """

    def __init__(
        self,
        head: Head,
        targets: Sequence[int],
        solve: Callable[[], tuple[Tensor, list[Status]]],
        *,
        lam: float,
        logits: Callable[[Head, Tensor], Tensor],
    ) -> None:
        self._head, self._targets, self._lam, self._logits = head, tuple(targets), lam, logits
        self._solve = solve
        self._shifts: list[Tensor] = []
        self._caps: list[float] = []
        self._stale: tuple[int, ...] = ()
        self._steps = 0

    def start_epoch(self) -> None:
        """Solve for the shifts of the current network.

        Raises
        ------
        ValueError
            If there is none towards one of the targets, the first time.
        """
        fresh, statuses = self._solve()
        if not self._shifts:
            check_reachable(self._targets, statuses)
            self._shifts = list(fresh.unbind())
            self._caps = [float(shift.norm()) for shift in self._shifts]
            return
        for i, status in enumerate(statuses):
            if status is Status.OPTIMAL:
                self._shifts[i] = capped(fresh[i], self._caps[i])
        self._stale = tuple(
            k for k, status in zip(self._targets, statuses, strict=True) if status is not Status.OPTIMAL
        )

    def loss(self, latents: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """CE(logits, labels) + λ · CE(head(latents + s_p), labels) for the p whose turn it is."""
        shift = self._shifts[self._steps % len(self._shifts)]
        self._steps += 1
        shifted = self._logits(self._head, latents + shift)
        return super().loss(latents, logits, labels) + self._lam * F.cross_entropy(widened(shifted), labels)

    def notes(self) -> dict[str, Any]:
        """Norms of the shifts in use, and which of them are old."""
        norms = {k: float(shift.norm()) for k, shift in zip(self._targets, self._shifts, strict=True)}
        return {"shift_norms": norms, "stale_shifts": self._stale}

    def identity(self) -> dict[str, Any]:
        """The targets: those of the report where the settings name none."""
        return {"targets": self._targets}

    def state_dict(self) -> dict[str, Any]:
        """The shifts with their caps, and whose turn it is."""
        return {"shifts": self._shifts, "caps": self._caps, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._shifts = [shift.to(self._head.device) for shift in state["shifts"]]
        self._caps, self._steps = state["caps"], state["steps"]


def head_logits(head: Head, latents: Tensor) -> Tensor:
    """Logits (n, C) of latents (n, d) by the layer itself: with its gradients, hooks and parametrisations."""
    dtype = next(head.module.parameters()).dtype  # float32 shifts widen the latents of a model in half precision
    return head.apply(latents.to(dtype))


def frozen_logits(head: Head, latents: Tensor) -> Tensor:
    """The same, but the layer learns nothing from them."""
    weight = head.weight
    return F.linear(latents.to(weight.dtype), weight, head.bias)
