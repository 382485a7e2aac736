"""Argument checks of the solver: each error names the argument, what was expected and what came."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _arrays
from ._arrays import Array, kind_of

METHODS = ("auto", "active-set", "projected-gradient")


class Head(NamedTuple):
    """A checked linear head: W (C, d) and b (C,) or None, tensors on one device."""

    W: Tensor
    b: Tensor | None


def as_tensor(name: str, value: Any) -> Tensor:
    """Tensor view of an array of any kind: real floating point, detached, no copy where torch can help it."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got {type(value).__name__}")
    if kind_of(value) not in ("torch", "") and (value.dtype.kind != "f" or value.dtype.itemsize > 8):
        raise TypeError(f"{name}: expected float16, float32 or float64 values, got {value.dtype}")
    tensor = _arrays.as_tensor(name, value)
    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64 values, got {tensor.dtype}")
    if tensor.is_nested or tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {'nested ' * tensor.is_nested}layout {tensor.layout}")
    plain = type(tensor) is Tensor and not tensor.requires_grad  # as it is then: a view takes longer than the checks
    return (tensor if plain else tensor.detach()).resolve_neg()


def check_head(W: Array, b: Array | None) -> Head:
    """Check W (C, d) and b (C,)."""
    weight = as_tensor("W", W)
    if weight.ndim != 2 or weight.shape[1] == 0:
        raise ValueError(f"W: expected shape (C, d) with d >= 1, got {tuple(weight.shape)}")
    if weight.shape[0] < 2:
        raise ValueError(f"W: expected at least two classes (rows), got {weight.shape[0]}")
    if b is None:
        return Head(weight, None)
    bias = as_tensor("b", b)
    if tuple(bias.shape) != (weight.shape[0],):
        if tuple(bias.shape) == (weight.shape[1],):
            raise ValueError(
                f"W: expected shape ({len(bias)}, d), a row for each entry of b, got {tuple(weight.shape)}: give W.T?"
            )
        raise ValueError(f"b: expected shape ({weight.shape[0]},) to match W, got {tuple(bias.shape)}")
    if bias.device != weight.device:
        raise ValueError(f"b: expected device {weight.device} to match W, got {bias.device}")
    return Head(weight, bias)


def check_latents(latents: Array, W: Tensor) -> Tensor:
    """Check latents (n, d) against W (C, d)."""
    z = as_tensor("latents", latents)
    if z.ndim != 2:
        raise ValueError(f"latents: expected shape (n, {W.shape[1]}), got {tuple(z.shape)}")
    if z.shape[1] != W.shape[1]:
        if z.shape[0] == W.shape[1]:
            raise ValueError(
                f"latents: expected shape (n, {W.shape[1]}) to match W, got {tuple(z.shape)}: give latents.T?"
            )
        hint = ": give W.T?" if z.shape[1] == W.shape[0] else ""
        raise ValueError(
            f"W: expected shape (C, {z.shape[1]}) to match latents (n, {z.shape[1]}), got {tuple(W.shape)}{hint}"
        )
    if z.shape[0] == 0:
        raise ValueError(f"latents: expected at least one sample, got shape {tuple(z.shape)}")
    if z.device != W.device:
        raise ValueError(f"latents: expected device {W.device} to match W, got {z.device}")
    return z


def check_logits(name: str, logits: Array, W: Tensor) -> Tensor:
    """Check logits (n, C) against W (C, d)."""
    values = as_tensor(name, logits)
    if values.ndim != 2 or values.shape[1] != W.shape[0]:
        raise ValueError(f"{name}: expected shape (n, {W.shape[0]}) to match W, got {tuple(values.shape)}")
    if values.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one sample, got shape {tuple(values.shape)}")
    if values.device != W.device:
        raise ValueError(f"{name}: expected device {W.device} to match W, got {values.device}")
    return values


def check_gaps(name: str, gaps: Array, W: Tensor) -> Tensor:
    """Check a gap matrix or its transpose (C, C) against W (C, d); returns a row-major copy, float32 or float64."""
    values = as_tensor(name, gaps)
    size = len(W)
    if tuple(values.shape) != (size, size):
        raise ValueError(f"{name}: expected shape ({size}, {size}) to match W, got {tuple(values.shape)}")
    if values.device != W.device:
        raise ValueError(f"{name}: expected device {W.device} to match W, got {values.device}")
    if values.device.type == "cpu" and not torch.compiler.is_compiling() and bool(values.diagonal().any()):
        raise ValueError(f"{name}: expected a zero diagonal, got another value")
    return values.to(result_dtype(values), copy=True, memory_format=torch.contiguous_format)


def first_bad(values: Tensor) -> int:
    """Flat index of the first entry that is not finite, or -1."""
    if math.isfinite(values.sum().item()):  # one fast pass, which a NaN or an infinity always reaches the end of
        return -1
    bad = ~values.isfinite()
    return int(bad.reshape(-1).int().argmax()) if bool(bad.any()) else -1


def describe_bad(values: Tensor, first_row: int = 0) -> str:
    """The first entry of a vector or matrix that is not finite, and where it is."""
    bad = first_bad(values)
    row, column = divmod(bad, values.shape[-1])
    where = bad if values.ndim == 1 else (first_row + row, column)
    return f"{float(values.reshape(-1)[bad])} at index {where}"


def check_finite(name: str, values: Tensor, first_row: int = 0) -> None:
    """Check that a vector or matrix holds no NaN and no infinity."""
    if first_bad(values) >= 0:
        raise ValueError(f"{name}: expected finite values, got {describe_bad(values, first_row)}")


def check_classes(classes: Sequence[int] | Array | None, n_classes: int, device: torch.device) -> Tensor:
    """Check the type of a selection of classes; None means all. Returns int64 (K,) on ``device``.

    The values are checked by `check_class_values`, inside the operators, where a traced tensor has some. On a device a
    tensor of them is not looked at: what is no class gets the status INVALID_INPUT.
    """
    if classes is None:
        return torch.arange(n_classes, device=device)
    try:
        chosen = _integers(classes)
    except (TypeError, ValueError, RuntimeError):  # whatever torch has to say of a set, a dict, None or 2**70
        chosen = None
    if chosen is None or chosen.ndim != 1:
        raise TypeError(f"classes: expected a 1-D sequence of integers, got {classes!r}")
    _arrays.hand_back(classes)
    if device.type == "cuda" and chosen.device != device and _is_captured():
        raise ValueError(
            f"classes: expected None or a tensor on {device} while a CUDA graph is captured, got "
            f"{type(classes).__name__} on {chosen.device}"
        )
    if chosen.device.type == "cpu" != device.type and not torch.compiler.is_compiling():
        check_class_values(chosen, n_classes)  # here, because nothing waits for a device to do so
    return chosen.to(device)


def check_raise(raise_on_failure: bool, device: torch.device) -> bool:
    """Refuse to raise where that would wait for a device that must not be waited for."""
    if raise_on_failure and device.type == "cuda" and (torch.compiler.is_compiling() or _is_captured()):
        raise ValueError(
            "raise_on_failure: expected False in a CUDA graph or in compiled code on CUDA, where nothing may wait for "
            "the device, got True; .status tells"
        )
    return raise_on_failure


def _is_captured() -> bool:
    return not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()


def _integers(values: Any) -> Tensor | None:
    """int64 copy of a sequence or array of integers of any kind; None, or an error, if it is something else."""
    if isinstance(values, np.ndarray):
        plain = values.dtype.kind in "iu" and not isinstance(values, np.ma.MaskedArray)
        return torch.from_numpy(values.astype(np.int64)) if plain else None
    if kind_of(values):
        values = _arrays.as_tensor("classes", values)
    else:
        values = torch.as_tensor(values, dtype=None if len(values) else torch.int64)
    kind = values.dtype
    whole = not (kind.is_floating_point or kind.is_complex or kind == torch.bool) and values.layout == torch.strided
    return values.detach().to(torch.int64, copy=True) if whole else None


def check_class_values(classes: Tensor, n_classes: int) -> None:
    """Check that classes (K,), on the CPU, lie in [0, n_classes) and do not repeat."""
    values = classes.tolist()
    outside = [k for k in values if not 0 <= k < n_classes]
    if outside:
        raise ValueError(f"classes: expected values in [0, {n_classes}), got {outside[0]}")
    if len(set(values)) != len(values):
        raise ValueError(f"classes: expected no duplicates, got {values}")


def check_margin(margin: float) -> float:
    """Check a margin: finite and at least 0."""
    expected = "margin: expected a finite number >= 0"
    check_number(margin, expected)
    if not 0 <= margin < math.inf:
        raise ValueError(f"{expected}, got {margin!r}")
    return float(margin)


def check_trim(trim: float) -> float:
    """Check a trimmed share: in [0, 1)."""
    expected = "trim: expected a share in [0, 1)"
    check_number(trim, expected)
    if not 0 <= trim < 1:
        raise ValueError(f"{expected}, got {trim!r}")
    return float(trim)


def check_method(method: str) -> str:
    """Check the name of a method."""
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    return method


def check_tol(tol: float | None, dtype: torch.dtype) -> float:
    """Check a tolerance on the certificate; None means 1e-10 in float64 and 1e-6 otherwise."""
    if tol is None:
        return 1e-10 if dtype == torch.float64 else 1e-6
    expected = "tol: expected a finite number > 0"
    check_number(tol, expected)
    if not 0 < tol < math.inf:
        raise ValueError(f"{expected}, got {tol!r}")
    return float(tol)


def check_max_iter(max_iter: int | None, n_classes: int) -> int:
    """Check an iteration limit per class; None means 4 C + 100."""
    return 4 * n_classes + 100 if max_iter is None else check_integer("max_iter", max_iter, 1, 2**31 - 1)


def check_number(value: Any, expected: str) -> None:
    """Check the type of a number; ``expected`` begins the message."""
    if not isinstance(value, (float, int, numbers.Real)):  # the last alone is slow, and true of NumPy's numbers too
        raise TypeError(f"{expected}, got {value!r}")


def check_integer(name: str, value: Any, least: int, most: int = 2**63 - 1) -> int:
    """Check an integer of any kind but bool, in [least, most]."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer >= {least}, got {value!r}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {number}")
    if number > most:
        raise ValueError(f"{name}: expected an integer <= {most}, got {number}")
    return number


def result_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is, else float32."""
    return torch.float64 if torch.float64 in [t.dtype for t in tensors if t is not None] else torch.float32
