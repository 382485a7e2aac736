"""Which backend solves: the compiled extension, or plain torch where there is no compiled code."""

from __future__ import annotations

import functools
import warnings

import torch

from . import _compiled, _reference
from ._contract import Backend


def backend(device: torch.device) -> Backend:
    """What solves for tensors of a device."""
    if _compiled.covers(device):
        return _compiled
    if _compiled.build_info():
        _warn_of_slow_device(device.type)
    return _reference


@functools.cache
def _warn_of_slow_device(kind: str) -> None:
    warnings.warn(
        f"tacfast: this build has no compiled code for {kind} tensors; solving in plain torch on that device, which "
        "gives the same answers much more slowly. With a CUDA compiler at hand, reinstalling tacfast builds it for "
        "CUDA.",
        RuntimeWarning,
        stacklevel=3,
    )
