"""`repair`: pick a defence by name and run it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn
from torch.utils.data import SequentialSampler

from ..scanning import ScanReport
from .base import EpochRecord, RepairResult
from .latent import LatentRepair

MODES = {"latent": LatentRepair}


def repair(
    model: nn.Module,
    loader: Iterable[Any],
    report: ScanReport,
    *,
    mode: str = "latent",
    on_epoch: Callable[[EpochRecord], None] | None = None,
    **settings: Any,
) -> RepairResult:
    """Remove the backdoor that a scan found; a new model comes back and the given one is untouched.

    Parameters
    ----------
    model : the scanned classifier
    loader : clean samples, (inputs, labels) in batches of at least two, labels integers of shape (n,); gone
        through once to count and check them, then twice per epoch. Best in small shuffled batches, the incomplete
        last one left out: ``DataLoader(data, batch_size=32, shuffle=True, drop_last=True)``
    report : result of `tacfast.scan` on this model
    mode : ``"latent"``, see `LatentRepair`
    on_epoch : called with an `EpochRecord` after each epoch
    **settings : fields of the mode's class, such as ``epochs`` (60), ``lr`` (0.1), ``seed`` or ``target``

    Returns
    -------
    RepairResult

    Raises
    ------
    ValueError
        If the mode is unknown, a setting is out of range, the report is of another model (known by the weights of
        the head), it names no suspicious class and ``target`` is not given, or the loader yields nothing, no
        labels, or labels that are not classes of the head.
    TypeError
        If a setting is unknown, or an argument of another type than described.
    RuntimeError
        If the loss or a weight is no longer finite after an epoch.

    Warns
    -----
    UserWarning
        If the loader yields its samples in the same order in every epoch.
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(map(repr, MODES))}, got {mode!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(report, ScanReport):
        raise TypeError(f"report: expected a ScanReport (from tacfast.scan), got {type(report).__name__}")
    if isinstance(loader, Iterator):
        raise TypeError("loader: expected an iterable that can be gone through repeatedly, got an iterator")
    # The sampler in use: that of the batch sampler, unless the loader has none.
    if isinstance(getattr(getattr(loader, "batch_sampler", None) or loader, "sampler", None), SequentialSampler):
        warnings.warn("loader: expected shuffled samples, got the same order every epoch", UserWarning, stacklevel=2)
    return MODES[mode](**settings).repair(model, loader, report, on_epoch=on_epoch)
