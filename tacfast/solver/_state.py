"""What a gap matrix saves, and the checks of what it is given to restore: a file may hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _checks
from ._arrays import DEVICES


class State(NamedTuple):
    """The fields of `GapMatrix.state_dict`.

    ``fingerprint`` of W and b; ``gaps`` (C, C), the transpose of R, or None before the first sample; ``logits``, the
    kept ones, or None; ``n_samples`` seen, ``n_own`` of them not through `GapMatrix.all_reduce`; ``kind`` of the
    results, as of `kind_of`.
    """

    fingerprint: str
    gaps: Tensor | None
    logits: list[Tensor] | None
    n_samples: int
    n_own: int
    kind: str


def check_state(state: Mapping[str, Any], W: Tensor, fingerprint: str, keep_logits: bool) -> State:
    """Check a saved state for the head (W (C, d), ...) of that fingerprint; returns copies."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected what GapMatrix.state_dict gave, got {type(state).__name__}")
    missing = sorted(set(State._fields) - set(state))
    if missing:
        raise ValueError(f"state: expected the fields of GapMatrix.state_dict, got none named {missing}")
    if state["fingerprint"] != fingerprint:
        raise ValueError("state: expected a gap matrix of the same W and b, got one of another head")
    if not isinstance(state["kind"], str) or state["kind"] not in DEVICES:
        raise ValueError(f"state['kind']: expected one of {', '.join(DEVICES)}, got {state['kind']!r}")
    gaps = None if state["gaps"] is None else _checks.check_gaps("state['gaps']", state["gaps"], W)
    logits = _check_logits(state["logits"], gaps, W, keep_logits)
    n_samples = _checks.check_integer("state['n_samples']", state["n_samples"], 0)
    if logits is not None and n_samples != (rows := sum(map(len, logits))):
        raise ValueError(f"state['n_samples']: expected {rows}, the number of rows of logits, got {n_samples}")
    n_own = _checks.check_integer("state['n_own']", state["n_own"], 0)
    return State(fingerprint, gaps, logits, n_samples, n_own, state["kind"])


def _check_logits(chunks: Any, gaps: Tensor | None, W: Tensor, keep_logits: bool) -> list[Tensor] | None:
    name = "state['logits']"
    expected, kind = ("a list", list) if keep_logits else ("None", type(None))
    if not isinstance(chunks, kind):
        came = type(chunks).__name__
        raise ValueError(f"{name}: expected {expected} to match keep_logits={keep_logits}, got {came}")
    if chunks is None:
        return None
    if (gaps is None) != (not chunks):
        raise ValueError(f"{name}: expected batches exactly if there are gaps, got {len(chunks)}")
    return [] if gaps is None else [_copy(f"{name}[{i}]", chunk, W, gaps.dtype) for i, chunk in enumerate(chunks)]


def _copy(name: str, chunk: Any, W: Tensor, dtype: torch.dtype) -> Tensor:
    logits = _checks.check_logits(name, chunk, W)
    _checks.check_finite(name, logits)
    return logits.to(dtype, copy=True, memory_format=torch.contiguous_format)
