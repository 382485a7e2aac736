"""Scan a model: stream its latents, solve for the shifts, judge their norms."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn

from ._processes import Processes
from ._shown import Tabled
from .detection import FULL, QUICK, RULE_TRIM, Evidence, Perturbation, Verdict, obstacles_of, reconstruct
from .detection.universal import differ
from .detection.verdict import said
from .jackknife import Stability, check_blocks, leave_blocks_out, weigh
from .models.head import Head, as_written, evaluation_mode, logits_of, unwrapped
from .models.latents import latent_batches, resolve_head
from .models.precision import bfloat16_autocast, native_bfloat16
from .models.reservoir import Reservoir
from .models.tally import ResumeFile, Tally
from .solver import GapMatrix, TacSolution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

# So many inputs are kept to run the model on again.
KEPT_INPUTS = 500
# A change of the inputs is found from no fewer than so many of them.
MIN_INPUTS = 8
# Of more suspicious classes than this the perturbations are not looked for: a few seconds each.
MAX_PERTURBATIONS = 3


@dataclass(frozen=True, eq=False, repr=False)
class ScanReport(Tabled):
    """What a scan found.

    Attributes
    ----------
    verdict : the judgement with its reasons; borderline, too, where ``stability`` has runs that disagree
    solution : the shift s_k towards every class, with norms and certificate
    head : the layer whose inputs were taken as latents
    fingerprint : of the weights of the head, by which `tacfast.repair` knows the model again
    accuracy : share of the samples that the model classifies as labelled; None without labels
    timings : seconds for ``"latents"`` (streaming), ``"solve"``, ``"statistics"`` (all but the norms), ``"stability"``
        and ``"total"`` (with ``perturbations``). Parts of the first are ``"reading"`` (waiting for the loader) and
        ``"folding"`` (adding what the model gave to the gap matrix); the model runs for the rest
    class_accuracy : the same share for each class, (C,) float64, NaN where no sample is labelled so; None without
        labels
    perturbations : of the inputs that send them to the class, of each class that is suspicious, or the easiest to reach
        if the verdict is borderline; empty without a look at the inputs, and where no single class is suspicious
    stability : how much of this survives leaving out blocks of samples; None if that was not asked for
    """

    verdict: Verdict
    solution: TacSolution
    head: Head
    fingerprint: str
    accuracy: float | None
    timings: Mapping[str, float]
    class_accuracy: Tensor | None = None
    perturbations: tuple[Perturbation, ...] = ()
    stability: Stability | None = None

    def plot(self) -> Figure:
        """Draw how far each class stands out, the threshold and the verdict.

        Raises
        ------
        ImportError
            Without the extra ``report`` (Matplotlib).
        """
        from .report import views

        return views.scores(self)

    def _title(self) -> str:
        return self.verdict._title()

    def _rows(self) -> list[tuple[str, object]]:
        rows = [*self.verdict._rows(), *self.solution._rows()]
        accuracy = "without labels" if self.accuracy is None else f"accuracy {100 * self.accuracy:.1f} %"
        rows.append(("samples", f"{self.solution.n_samples}, {accuracy}"))
        if self.stability is not None:
            rows.append(("stability", self.stability._title()))
        return rows


def scan(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    head: Head | str | None = None,
    on_batch: Callable[[int], None] | None = None,
    resume: str | os.PathLike[str] | None = None,
    blocks: int | None = None,
    quick: bool = False,
    group: torch.distributed.ProcessGroup | None = None,
) -> ScanReport:
    """Look for a backdoor in a classifier, given clean samples that it was not trained on.

    For every class k the smallest shift s_k of the latents that sends the samples there is found exactly (P_k
    of arXiv 2511.08944, trimmed), and so is, by gradient steps, a small change of the inputs, the same for all of them,
    that does so. A class that either finds easier to reach than the others, by more than in clean networks, is
    suspicious. Latents are streamed; n·C logits are kept, because trimming is an order statistic, and up to
    ``KEPT_INPUTS`` inputs. The model is not changed.

    Parameters
    ----------
    model : a classifier whose output is that of a linear layer; run where its weights are
    loader : yields ``inputs`` or ``(inputs, labels)``; labels, integers of shape (n,), only serve
        ``accuracy``
    head : result of `find_head`, or the name of the layer; found on the first batch if None
    on_batch : called after each batch with the number of samples seen so far
    resume : file that keeps what has been seen, written when the loader or the model fails or is interrupted, after
        the last batch, and before that as often as it costs 5 % of the time: what a killed process loses is the current
        batch, or, where that is more, 20 times what it takes to write the file. Where it exists, the scan goes on from
        there: the loader must give the same samples in the same order, and the model does not run again on those seen
        before. Deleted at the end
    blocks : how many blocks of samples to leave out in turn for ``stability``, at the cost of as many solves; 0 for
        none, None for 10 where they cost seconds at most (n·C + 20·C² up to 10⁸: 80 000 samples of 1000 classes)
    quick : only the shifts of the latents: no gradients, no second look at inputs, and fewer backdoors found
    group : processes that share the samples, such as ``torch.distributed.group.WORLD``. Each calls this with the same
        model and the part of the samples that is its own, all of them together what one process would be given. Where
        these are whole batches, in order of rank, all get the report of that process, to the bit, given the same
        logits. A process may have no samples, if ``head`` is given. Its file is ``resume`` with ``.RANK-of-SIZE``
        behind the name, and ``on_batch`` and the timings are about its own part. None: this process alone

    Returns
    -------
    ScanReport

    Raises
    ------
    HeadError
        If the model does not end in a linear layer; see `find_head`.
    TypeError, ValueError
        If the loader yields nothing or something else than described, a label is not a class of the head,
        latents or logits are not finite, ``blocks`` is 1 or negative, or the file ``resume`` is not of an interrupted
        scan of this model and loader.
    FileNotFoundError, IsADirectoryError
        If the folder of ``resume`` does not exist, or ``resume`` is one.
    BlockingIOError
        If another process works with ``resume``.
    ImportError
        If safetensors, which ``resume`` needs, is not installed.
    OSError
        If another process of the ``group`` failed, is gone, or did not answer in time.
    """
    report = scan_and_keep(
        model, loader, head=head, on_batch=on_batch, resume=resume, blocks=blocks, quick=quick, group=group
    )
    forget(resume, group)
    return report


def forget(resume: str | os.PathLike[str] | None, group: torch.distributed.ProcessGroup | None = None) -> None:
    """Delete what a scan has kept, in this process."""
    if resume is not None:
        Path(_own(resume, Processes(group))).unlink(missing_ok=True)


def scan_and_keep(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    head: Head | str | None = None,
    on_batch: Callable[[int], None] | None = None,
    resume: str | os.PathLike[str] | None = None,
    blocks: int | None = None,
    quick: bool = False,
    group: torch.distributed.ProcessGroup | None = None,
) -> ScanReport:
    """As `scan`, but the file ``resume`` is left, for whoever has to bring the report to safety first."""
    check_blocks(blocks)
    start = time.perf_counter()
    processes = Processes(group)
    reading = _Waiting(loader)
    kept = Reservoir(reading, 0 if quick else KEPT_INPUTS)
    with ExitStack() as held:
        with processes.together():
            found, batches = resolve_head(model, kept, head)
            tally = Tally(found)
            file = None if resume is None else ResumeFile(_own(resume, processes), tally)
            if file is not None:
                held.enter_context(file.held())
            folding = _stream(model, batches, found, tally, file, on_batch)
        tally.gather(processes)
        kept.gather(processes)
        if tally.gaps.n_samples == 0:
            raise ValueError("loader: expected at least one batch, got none")
        streamed = time.perf_counter()
        _log.info("%d samples seen in %.1f s", tally.gaps.n_samples, streamed - start)
        timings = {"latents": streamed - start, "reading": reading.seconds, "folding": folding}
        return _judged(model, tally, found, kept, blocks, processes, quick=quick, start=start, timings=timings)


def _judged(
    model: nn.Module,
    tally: Tally,
    found: Head,
    kept: Reservoir,
    blocks: int | None,
    processes: Processes,
    *,
    quick: bool,
    start: float,
    timings: dict[str, float],
) -> ScanReport:
    """The report of what was seen, and of a second look at the inputs that were kept."""
    streamed = time.perf_counter()
    evidence, missing = evidence_of(model, found, tally.gaps, kept.inputs, together=kept.largest)
    rule = QUICK if evidence.inputs is None else FULL
    solution = evidence.solution(RULE_TRIM)
    solved = time.perf_counter()
    with evaluation_mode(model):
        values = {statistic.name: statistic.values(evidence) for statistic in rule.measured}
        verdict = rule.judge(values, tally.gaps.samples_per_class, obstacles_of(solution))
    if missing is not None and not quick:
        verdict = replace(verdict, reasons=(*verdict.reasons, missing))
    compared = time.perf_counter()
    stability = leave_blocks_out(tally.gaps, rule, values, blocks)
    verdict = processes.first(weigh(verdict, stability))  # where machines differ, so may last bits, but nothing else
    weighed = time.perf_counter()
    with evaluation_mode(model):
        perturbations = _perturbations(evidence, verdict)
    end = time.perf_counter()
    _log.info("verdict after %.1f s: %s", end - start, said(verdict))
    any_labels = bool(tally.labelled.any())
    return ScanReport(
        verdict=verdict,
        solution=solution,
        head=found,
        fingerprint=tally.gaps.fingerprint,
        accuracy=int(tally.correct.sum()) / int(tally.labelled.sum()) if any_labels else None,
        timings={
            **timings,
            "solve": solved - streamed,
            "statistics": compared - solved,
            "stability": weighed - compared,
            "total": end - start,
        },
        class_accuracy=tally.correct.cpu().double() / tally.labelled.cpu() if any_labels else None,
        perturbations=perturbations,
        stability=stability,
    )


def _stream(
    model: nn.Module,
    loader: Iterable[Any],
    head: Head,
    tally: Tally,
    file: ResumeFile | None,
    on_batch: Callable[[int], None] | None,
) -> float:
    """Add all batches to the tally; returns the seconds that this took beside running the model."""
    if file is not None:
        loader = file.restore(model, loader, head)
    folding = 0.0
    with latent_batches(model, loader, head, skip=tally.gaps.n_samples) as batches:
        for batch in batches if file is None else file.keep(batches):
            came = time.perf_counter()
            tally.update(batch)
            folding += time.perf_counter() - came
            if on_batch is not None:
                on_batch(tally.gaps.n_samples)
    return folding


def _own(path: str | os.PathLike[str], processes: Processes) -> str:
    """The file of this process."""
    return os.fspath(path) + ("" if processes.size == 1 else f".{processes.rank}-of-{processes.size}")


def _perturbations(evidence: Evidence, verdict: Verdict) -> tuple[Perturbation, ...]:
    if evidence.inputs is None or verdict.label not in ("suspicious", "borderline"):
        return ()
    if verdict.only_all_to_all:
        return ()  # there is one for each class, and none of them stands out
    return tuple(reconstruct(evidence, k) for k in (verdict.classes or (verdict.easiest,))[:MAX_PERTURBATIONS])


class _Waiting:
    """A loader that adds up the seconds that are spent waiting for its batches."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.seconds = 0.0
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        start = time.perf_counter()
        for batch in self._loader:
            self.seconds += time.perf_counter() - start
            yield batch
            start = time.perf_counter()


def evidence_of(
    model: nn.Module, head: Head, gaps: GapMatrix, inputs: Tensor | None, *, together: int = Evidence.together
) -> tuple[Evidence, str | None]:
    """Collect what statistics are made of.

    Parameters
    ----------
    model, head : the classifier
    gaps : of all samples, with their logits
    inputs : (n, ...) some of them, as the model takes them; None for nothing but the gap matrix
    together : samples that the model is known to take at once

    Returns
    -------
    The evidence, and why nothing but the gap matrix can be used, in a sentence, where that is so.
    """
    without = "so only the shifts of the latents were looked at, and fewer backdoors can be seen"
    if inputs is None or not inputs.is_floating_point() or inputs.ndim < 2:
        return Evidence(gaps), f"the inputs are no batches of floating-point numbers, {without}"
    if len(inputs) < MIN_INPUTS or not differ(inputs.float()):
        return Evidence(gaps), f"fewer than {MIN_INPUTS} inputs that differ can be kept in memory, {without}"
    run, _ = unwrapped(model)
    dtype = inputs.dtype
    # Elsewhere than in float32, the model is run as it is.
    mixed = head.weight.dtype == torch.float32 and native_bfloat16(head.device)

    def classify(given: Tensor) -> Tensor:
        with as_written(), bfloat16_autocast(head.device, enabled=mixed):
            logits = logits_of(run, given.to(dtype))
        return logits.float()

    inputs = inputs.to(head.device, torch.float32)
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    evidence = Evidence(gaps, inputs, classify, run, min(together, Evidence.together))
    if obstacle := _no_gradients(model, evidence):
        return Evidence(gaps), f"{obstacle}, {without}"
    return evidence, None


@torch.inference_mode(False)
def _no_gradients(model: nn.Module, evidence: Evidence) -> str | None:
    """Why the model gives no gradients with respect to its inputs; None if it gives some."""
    inputs, classify = evidence.for_model()
    given = inputs[:2].clone().requires_grad_()
    try:
        with evaluation_mode(model), torch.enable_grad():
            (gradient,) = torch.autograd.grad(classify(given).square().sum(), given, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # no gradient at all, or a layer that has none, such as a recurrent one of cuDNN
        return f"the model gives no gradients ({str(error).splitlines()[0]})"
    if gradient is None or not bool(gradient.isfinite().all()) or not bool(gradient.any()):
        return "the model gives no gradients, or none that say anything"
    return None
