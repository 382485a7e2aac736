"""Arrays of torch, NumPy, CuPy and numba as tensors that share their memory, and tensors as such arrays.

CuPy and numba are imported only where their arrays are asked for. Nothing here waits on the host: where two libraries
use different CUDA streams, the stream that reads waits for the stream that wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack
from typing_extensions import TypeVar


class CudaArray(Protocol):
    """What the arrays of CuPy and of numba have in common; neither library says more of them to a type checker."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


Array: TypeAlias = Tensor | np.ndarray | CudaArray
# The kind of results, and the kind of what they are computed from: that is one of three, not its very type, because
# norms of a Parameter are a Tensor, and an array of one shape and dtype has results of others.
Kind = TypeVar("Kind", bound=Array, default=Tensor)
Given = TypeVar("Given", Tensor, np.ndarray, CudaArray)

# The kinds, and the device on which arrays of a kind live; tensors live anywhere.
DEVICES = {"torch": None, "numpy": "cpu", "cupy": "cuda", "numba": "cuda"}

_PACKAGES = {"cupy": "cupy", "numba": "numba", "numba_cuda": "numba"}


class _ReadOnly:
    """Presents a read-only NumPy array as writable, because torch warns about read-only memory that it shares.

    Nothing in the solver writes to its inputs.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def kind_of(value: Any) -> str:
    """Key of `DEVICES` for an array, "" for anything else."""
    if isinstance(value, Tensor):
        return "torch"
    if isinstance(value, np.ndarray):
        return "numpy"
    if not hasattr(type(value), "__cuda_array_interface__"):
        return ""
    packages = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    return next((kind for package, kind in _PACKAGES.items() if package in packages), "")


def as_tensor(name: str, value: Any) -> Tensor:
    """Tensor of the same memory, which torch's current stream may read; a copy only of strides that torch lacks.

    Raises
    ------
    TypeError, ValueError
        If it is no array, or a CUDA array that torch cannot share; ``name`` is that of the argument.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return _from_numpy(value)
    kind = kind_of(value)
    if not kind:
        expected = "a torch.Tensor, numpy.ndarray, cupy.ndarray or device array of numba"
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if not torch.cuda.is_available():
        raise ValueError(f"{name}: expected an array that torch can use, got one of {kind} and a torch without CUDA")
    return _from_cupy(value) if kind == "cupy" else _from_numba(name, value)


def as_kind(tensor: Tensor, kind: str) -> Any:
    """Array of that kind with the memory of a tensor; the tensor itself where that kind has no arrays on its device.

    What the library of that kind does next on its current stream (numba: its default stream) sees the finished values.
    """
    if tensor.device.type != DEVICES[kind]:
        return tensor
    if kind == "numpy":
        return tensor.numpy()
    if kind == "numba":
        return _to_numba(tensor)
    with _captured_stream():
        return import_module("cupy").from_dlpack(tensor)


def hand_back(*arrays: Any) -> None:
    """Let the streams of CuPy and numba wait for what torch's current stream is still to read from these arrays.

    After that the caller may overwrite or free them as if they had been read at once. Nothing is to be done for other
    kinds, nor while a graph is captured, whose inputs stay where they are.
    """
    for value in arrays:
        kind = kind_of(value)
        if kind not in ("cupy", "numba") or torch.cuda.is_current_stream_capturing():
            continue
        if kind == "cupy":
            as_kind(from_dlpack(value), kind)  # makes CuPy's current stream wait for torch's
        else:
            device = torch.as_tensor(value).device
            stream = _numba_stream(value.__cuda_array_interface__["stream"], device)
            _order(torch.cuda.current_stream(device), stream)


def _from_numpy(value: np.ndarray) -> Tensor:
    if any(s < 0 or s % value.itemsize for s in value.strides) or not value.dtype.isnative:
        value = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
    return torch.from_numpy(value if value.flags.writeable else np.asarray(_ReadOnly(value)))


def _from_cupy(value: Any) -> Tensor:
    with _captured_stream():
        if min(value.strides, default=0) < 0:
            value = value.copy(order="C")
        return from_dlpack(value)  # CuPy makes torch's current stream wait for its own


@contextmanager
def _captured_stream() -> Iterator[None]:
    """While a graph is captured, CuPy works on that stream, which can neither wait for another nor be waited for."""
    if torch.cuda.is_current_stream_capturing():
        stream = torch.cuda.current_stream(None).cuda_stream
        with import_module("cupy").cuda.ExternalStream(stream):
            yield
    else:
        yield


def _from_numba(name: str, value: Any) -> Tensor:
    interface = value.__cuda_array_interface__
    strides = interface["strides"]
    if strides is not None and min(strides, default=0) < 0:
        raise ValueError(f"{name}: expected no negative strides, got {strides}")
    tensor = torch.as_tensor(value)
    if tensor.numel() and tensor.data_ptr() != interface["data"][0]:  # torch.set_default_device made torch copy
        raise ValueError(f"{name}: expected an array on torch's default device {tensor.device}, got one elsewhere")
    # A stream that is being captured in a graph cannot wait for the default one: whoever captures has waited before.
    if interface["stream"] is not None or not torch.cuda.is_current_stream_capturing():
        _order(_numba_stream(interface["stream"], tensor.device), torch.cuda.current_stream(tensor.device))
    return tensor


def _to_numba(tensor: Tensor) -> Any:
    cuda = import_module("numba.cuda")
    if not torch.cuda.is_current_stream_capturing():
        _order(torch.cuda.current_stream(tensor.device), torch.cuda.default_stream(tensor.device))
    with cuda.gpus[tensor.device.index]:
        return cuda.as_cuda_array(tensor, sync=False)


def _numba_stream(stream: int | None, device: torch.device) -> torch.cuda.Stream:
    """The stream that an array of numba names in its interface: None and 1 are the default one, as 0 is elsewhere."""
    if stream in (None, 0, 1):
        return torch.cuda.default_stream(device)
    return torch.cuda.ExternalStream(stream, device)  # type: ignore[no-untyped-call]


def _order(first: torch.cuda.Stream, then: torch.cuda.Stream) -> None:
    """What is put on ``then`` from now on runs after what is on ``first`` already."""
    if first.cuda_stream != then.cuda_stream:
        then.wait_stream(first)
