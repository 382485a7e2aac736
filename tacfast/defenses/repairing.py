"""`repair`: pick a defence by name and run it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.utils.data import SequentialSampler

from ..scanning import ScanReport
from .base import EpochRecord, Mode, RepairResult, warn_caller
from .confirmation import scan_again
from .modes import MODES
from .rivals import RIVALS
from .training import DivergedError
from .universal import calm_state

_log = logging.getLogger(__name__)


def repair(
    model: nn.Module,
    loader: Iterable[Any],
    report: ScanReport,
    *,
    mode: str | Mode = "auto",
    held_out: Iterable[Any] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    resume: str | PathLike[str] | None = None,
    group: torch.distributed.ProcessGroup | None = None,
    **settings: Any,
) -> RepairResult:
    """Remove the backdoor that a scan found; a new model comes back and the given one is untouched.

    Parameters
    ----------
    model : the scanned classifier
    loader : clean samples, (inputs, labels) in batches of at least two, labels integers of shape (n,); gone
        through up to three times to count, check and look at them, then up to twice per epoch. Best in small shuffled
        batches, the incomplete last one left out: ``DataLoader(data, batch_size=32, shuffle=True, drop_last=True)``
    report : result of `tacfast.scan` on this model
    mode : ``"auto"``, see `AutoRepair`, ``"universal"``, see `UniversalRepair`, ``"latent"``, see `LatentRepair`, or
        ``"prune"``, see `PruneRepair`; an object of one of these, or of a `Mode` of one's own; or the name of a
        published defence to compare with, a key of `tacfast.defenses.RIVALS` such as ``"anp"``: these use nothing that
        the report found, choose their thresholds on ``held_out`` if they have any, and cannot go on from a
        ``resume``
    held_out : other clean labelled samples than those of ``loader``, in batches of any size; nothing is trained on
        them. The result is then the network of the last epoch, after the first 30 % of the training, that lost no more
        accuracy on them than ``max_drop`` allows, counted in whole samples, and a plain copy of the given one if no
        epoch qualifies. Unless it is given, that is down to the lower end of Wilson's 95 % interval of the accuracy
        before; and it is scanned once more with them, see ``confirmation`` of the result. Without them the last epoch
        is taken as it is
    on_epoch : called with an `EpochRecord` after each epoch
    resume : path of a file, in an existing folder, that holds the state of the training after every epoch. If it
        exists the training goes on from there, on the CPU to the very weights that it would have had without the
        interruption; it is deleted at the end. Out of its reach are generators that a data set keeps for itself and
        those of persistent workers
    group : processes that share the work, such as ``torch.distributed.group.WORLD``; None: this one alone. Each calls
        this with the same arguments, and is given the same batches, of which it takes its part: they need at least two
        samples for each. All end with the same weights, but for rounding those of one process if the model has no
        dropout, and no BatchNorm, which sees a part of the batch at a time; its running statistics are those of the
        first. Only for our own modes. The first alone reads and writes ``resume``
    **settings : fields of the mode's class, such as ``epochs``, ``lr``, ``seed`` or ``targets``; none beside an object

    Returns
    -------
    RepairResult

    Raises
    ------
    ValueError
        If the mode is unknown, a setting is out of range, the report is of another model (known by the weights of
        the head), it names no suspicious class and ``targets`` is not given, no shift leads to one of them, a loader
        yields nothing, no labels, or labels that are not classes of the head, the mode needs ``held_out``, several
        processes cannot share its work, or ``resume`` is of another repair.
    TypeError
        If a setting is unknown or given beside a mode that is an object, or an argument of another type than described.
    FileNotFoundError, BlockingIOError
        If the folder of ``resume`` does not exist, or another process works with it.
    OSError
        If another process of the ``group`` failed, is gone, or did not answer in time.
    DivergedError
        A RuntimeError: if the loss or a weight is no longer finite after an epoch.

    Warns
    -----
    UserWarning
        If the loader yields its samples in the same order in every epoch, or none of one of the classes.

    Notes
    -----
    On a GPU that computes in bfloat16 (compute capability 8.0 and up) the training runs in mixed precision and with
    images in channels-last order; shifts are solved for and held in float32.
    """
    chosen = _resolved(mode, settings)
    try:
        result = repair_and_keep(
            model, loader, report, mode=chosen, held_out=held_out, on_epoch=on_epoch, resume=resume, group=group
        )
    except DivergedError:  # whoever lowers the learning rate begins anew
        forget(resume)
        raise
    forget(resume)
    return result


def forget(resume: str | PathLike[str] | None) -> None:
    """Delete what a repair has kept."""
    for path in () if resume is None else (Path(resume), calm_state(resume)):
        path.unlink(missing_ok=True)


def repair_and_keep(
    model: nn.Module,
    loader: Iterable[Any],
    report: ScanReport,
    *,
    mode: Mode,
    held_out: Iterable[Any] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    resume: str | PathLike[str] | None = None,
    group: torch.distributed.ProcessGroup | None = None,
) -> RepairResult:
    """As `repair`, but ``resume`` is left, for whoever has to bring the result to safety first; see `forget`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(report, ScanReport):
        raise TypeError(f"report: expected a ScanReport (from tacfast.scan), got {type(report).__name__}")
    for name, samples in (("loader", loader), ("held_out", held_out)):
        if isinstance(samples, Iterator):
            raise TypeError(f"{name}: expected an iterable that can be gone through repeatedly, got an iterator")
    # The sampler in use: that of the batch sampler, unless the loader has none.
    if isinstance(getattr(getattr(loader, "batch_sampler", None) or loader, "sampler", None), SequentialSampler):
        warn_caller("loader: expected shuffled samples, got the same order every epoch")
    _log.info("repair by %s", type(mode).__name__)
    shared = {} if group is None else {"group": _for_ours(mode, group)}
    result = mode.repair(model, loader, report, held_out=held_out, on_epoch=on_epoch, resume=resume, **shared)
    if held_out is None or result.rolled_back or not result.targets:
        return result
    confirmation = scan_again(result.model, held_out, report, result.targets)
    _log.info("repair %s", confirmation.outcome)
    return replace(result, confirmation=confirmation)


def _for_ours(mode: Mode, group: torch.distributed.ProcessGroup) -> torch.distributed.ProcessGroup:
    if not isinstance(mode, tuple(MODES.values())):
        raise ValueError(f"group: expected one of the modes {', '.join(MODES)}, got {type(mode).__name__}")
    return group


def _resolved(mode: str | Mode, settings: dict[str, Any]) -> Mode:
    """The mode of that name with its settings, or the object itself."""
    if isinstance(mode, str):
        known: dict[str, Callable[..., Mode]] = {**MODES, **RIVALS}
        if mode not in known:
            raise ValueError(f"mode: expected one of {', '.join(map(repr, known))}, got {mode!r}")
        return known[mode](**settings)
    if isinstance(mode, type) or not callable(getattr(mode, "repair", None)):
        raise TypeError(f"mode: expected a name or an object with a method repair, got {mode!r}")
    if settings:
        raise TypeError(f"mode: an object has its settings, got {', '.join(settings)} beside {type(mode).__name__}")
    return mode
