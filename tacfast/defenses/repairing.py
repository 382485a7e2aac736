"""`repair`: pick a defence by name and run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

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
        through twice per epoch
    report : result of `tacfast.scan` on this model
    mode : ``"latent"``, see `LatentRepair`
    on_epoch : called with an `EpochRecord` after each epoch
    **settings : fields of the mode's class, such as ``epochs``, ``lr``, ``seed`` or ``target``

    Returns
    -------
    RepairResult

    Raises
    ------
    ValueError
        If the mode is unknown, the report names no suspicious class and ``target`` is not given, or the
        loader yields nothing, no labels, or labels that are not classes of the head.
    TypeError
        If a setting is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(map(repr, MODES))}, got {mode!r}")
    return MODES[mode](**settings).repair(model, loader, report, on_epoch=on_epoch)
