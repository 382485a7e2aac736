"""Scan a model: stream its latents, solve for the shifts, judge their norms."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .detection import RULE_TRIM, Verdict, detect
from .models.head import Head
from .models.latents import latent_batches, resolve_head
from .solver import GapMatrix, TacSolution
from .stability import Stability, check_blocks, leave_blocks_out


@dataclass(frozen=True, eq=False)
class ScanReport:
    """What a scan found.

    Attributes
    ----------
    verdict : the judgement with its reasons
    solution : the shift s_k towards every class, with norms and certificate
    head : the layer whose inputs were taken as latents
    fingerprint : of the weights of the head, by which `tacfast.repair` knows the model again
    accuracy : share of the samples that the model classifies as labelled; None without labels
    timings : seconds for ``"latents"`` (running the model), ``"solve"``, ``"stability"`` and ``"total"``
    class_accuracy : the same share for each class, (C,) float64, NaN where no sample is labelled so; None without
        labels
    stability : how much of this survives leaving out blocks of samples; None if that was not asked for
    """

    verdict: Verdict
    solution: TacSolution
    head: Head
    fingerprint: str
    accuracy: float | None
    timings: Mapping[str, float]
    class_accuracy: Tensor | None = None
    stability: Stability | None = None


def scan(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    head: Head | str | None = None,
    on_batch: Callable[[int], None] | None = None,
    blocks: int | None = None,
) -> ScanReport:
    """Look for a backdoor in a classifier, given clean samples that it was not trained on.

    For every class k the smallest shift s_k of the latents that sends the samples there is found exactly (P_k
    of arXiv 2511.08944, in the trimmed form that `tacfast.detect` was made for), and the norms are compared.
    Latents are streamed; n·C logits are kept, because trimming is an order statistic. The model is not
    changed.

    Parameters
    ----------
    model : a classifier whose output is that of a linear layer; run where its weights are
    loader : yields ``inputs`` or ``(inputs, labels)``; labels, integers of shape (n,), only serve
        ``accuracy``
    head : result of `find_head`, or the name of the layer; found on the first batch if None
    on_batch : called after each batch with the number of samples seen so far
    blocks : how many blocks of samples to leave out in turn for ``stability``, at the cost of as many solves; 0 for
        none, None for 10 where they cost seconds at most (n·C² up to 10¹⁰: 10 000 samples of 1000 classes)

    Returns
    -------
    ScanReport

    Raises
    ------
    HeadError
        If the model does not end in a linear layer; see `find_head`.
    TypeError, ValueError
        If the loader yields nothing or something else than described, a label is not a class of the head,
        latents or logits are not finite, or ``blocks`` is 1 or negative.
    """
    check_blocks(blocks)
    start = time.perf_counter()
    found, loader = resolve_head(model, loader, head)
    gaps = GapMatrix(found.weight, found.bias, keep_logits=True)
    # The classes that trimming sorts the samples into: those that the model assigns them to.
    assigned = torch.zeros(found.num_classes, dtype=torch.int64, device=found.device)
    labelled, correct = torch.zeros_like(assigned), torch.zeros_like(assigned)
    with latent_batches(model, loader, found) as batches:
        for batch in batches:
            gaps.update(batch.latents)
            answers = batch.logits.argmax(1)
            assigned += torch.bincount(answers, minlength=found.num_classes)
            if batch.labels is not None:
                labelled += torch.bincount(batch.labels, minlength=found.num_classes)
                correct += torch.bincount(batch.labels[answers == batch.labels], minlength=found.num_classes)
            if on_batch is not None:
                on_batch(gaps.n_samples)
    if gaps.n_samples == 0:
        raise ValueError("loader: expected at least one batch, got none")
    streamed = time.perf_counter()
    solution = gaps.solve(trim=RULE_TRIM, raise_on_failure=False)
    verdict = detect(solution, assigned)
    solved = time.perf_counter()
    stability = leave_blocks_out(gaps, blocks)
    end = time.perf_counter()
    any_labels = bool(labelled.any())
    return ScanReport(
        verdict=verdict,
        solution=solution,
        head=found,
        fingerprint=gaps.fingerprint,
        accuracy=int(correct.sum()) / int(labelled.sum()) if any_labels else None,
        timings={
            "latents": streamed - start,
            "solve": solved - streamed,
            "stability": end - solved,
            "total": end - start,
        },
        class_accuracy=correct.cpu().double() / labelled.cpu() if any_labels else None,
        stability=stability,
    )
