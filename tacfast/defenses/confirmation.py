"""Whether a second scan bears out a repair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from .._shown import Shown
from ..data.randomness import isolated_randomness
from ..detection import Verdict
from ..detection.universal import Perturbation
from ..models.head import evaluation_mode, logits_of
from ..models.latents import split_batch
from ..scanning import ScanReport, scan

# Share of the samples that may still go to the class with what led the suspect there: errors of a repaired network.
MAX_FOLLOWED = 0.1

Outcome = Literal["confirmed", "not confirmed", "could not be tested"]


@dataclass(frozen=True, repr=False)
class Confirmation(Shown):
    """What the verdict on a repaired model, from samples that did not train it, says of the repair.

    Attributes
    ----------
    verdict : of the repaired model
    first : of the suspect
    targets : the classes that were repaired
    followed : by target, the share of the samples of other classes, which it does not send there as they are, that the
        repaired model sends there with the perturbation that led the suspect there; without those targets of which
        the first scan has no perturbation. A repair that only hides a backdoor from the verdict, as a latent one
        cut short did with an ASR of 86 %, leaves most of it
    """

    verdict: Verdict
    first: Verdict
    targets: tuple[int, ...]
    followed: Mapping[int, float] = field(default_factory=dict)

    @property
    def alarm(self) -> bool:
        """Whether the repaired model still looks attacked.

        As many clean networks do, it may be borderline in another class than those that were repaired.
        """
        again = self.verdict
        if again.all_to_all:
            return True
        if again.label == "borderline" and not again.classes:
            return again.easiest in self.targets
        return again.label in ("suspicious", "borderline")

    @property
    def unnamed(self) -> tuple[int, ...]:
        """Targets that the first scan did not name: where it saw nothing, the second proves nothing by seeing it."""
        return tuple(k for k in self.targets if k not in self.first.classes)

    @property
    def unjudged(self) -> tuple[int, ...]:
        """Targets of which the second scan had too few samples."""
        return tuple(k for k in self.targets if k in self.verdict.left_out)

    @property
    def unmeasured(self) -> tuple[int, ...]:
        """Targets that no perturbation of the suspect could be tried on."""
        return tuple(k for k in self.targets if k not in self.followed)

    @property
    def still_followed(self) -> tuple[int, ...]:
        """Targets that more than a few samples are still sent to by the perturbation of the suspect."""
        return tuple(k for k, share in self.followed.items() if share > MAX_FOLLOWED)

    @property
    def outcome(self) -> Outcome:
        """In words; none of them is a proof, as a scan misses some backdoors."""
        if self.alarm or self.still_followed:
            return "not confirmed"
        untested = self.verdict.label == "inconclusive" or self.unnamed or self.unjudged or self.unmeasured
        return "could not be tested" if untested else "confirmed"

    def _title(self) -> str:
        return self.outcome


def scan_again(model: nn.Module, held_out: Iterable[Any], report: ScanReport, targets: tuple[int, ...]) -> Confirmation:
    """Look at a repaired model with samples that did not train it; no generator is left changed.

    Parameters
    ----------
    model : the repaired one
    held_out : (inputs, labels) in batches
    report : of the suspect
    targets : the classes that were repaired
    """
    with isolated_randomness(0, held_out):
        verdict = scan(model, held_out, head=report.head.name).verdict
        followed = {
            each.target: share
            for each in report.perturbations
            if each.target in targets
            and (share := _share_sent(model, held_out, each, report.head.num_classes)) is not None
        }
    return Confirmation(verdict, report.verdict, targets, followed)


def _share_sent(model: nn.Module, samples: Iterable[Any], perturbation: Perturbation, classes: int) -> float | None:
    """Share of the samples of other classes, and answered so, that a perturbation sends to its own; None of none."""
    device, target, sent = next(model.parameters()).device, perturbation.target, []
    with evaluation_mode(model), torch.no_grad():
        for batch in samples:
            inputs, labels = split_batch(batch, classes, source="held_out")
            assert labels is not None
            others = inputs[labels != target].to(device)
            if len(others):
                others = others[logits_of(model, others).argmax(1) != target]
            if len(others):
                answers = logits_of(model, perturbation.apply(others).to(others.dtype)).argmax(1)
                sent.append((answers == target).double().cpu())
    return float(torch.cat(sent).mean()) if sent else None
