"""Several processes that share one piece of work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._text import first_line, printable

T = TypeVar("T")
_log = logging.getLogger(__name__)


class ProcessError(OSError):
    """Another process failed, or does not answer."""


class Processes:
    """The processes of a group, as one of them sees them.

    Every method is to be called in all of them.

    Parameters
    ----------
    group : of torch.distributed; None for this process alone

    Attributes
    ----------
    group : the same
    rank : number of this process, 0 … ``size`` − 1
    size : how many there are
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)

    def share(self, count: int) -> slice:
        """Which of ``count`` things in a row are this one's; in order of rank they are in order."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, value: T) -> list[T]:
        """What each process gave, in order of rank; tensors should be on the CPU."""
        if self.group is None:
            return [value]
        values: list[T] = [value] * self.size
        with lost():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def first(self, value: T) -> T:
        """What process 0 gave; tensors should be on the CPU."""
        if self.group is None:
            return value
        values = [value]
        with lost():
            dist.broadcast_object_list(values, group=self.group, group_src=0)
        return values[0]

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes, which are given the same bits; in place, where there are several."""
        if self.group is not None:
            with lost():
                dist.all_reduce(tensor, group=self.group)
        return tensor

    def totals(self, *numbers: float) -> tuple[float, ...]:
        """The sum of each number over the processes."""
        return tuple(sum(column) for column in zip(*self.gather(numbers), strict=True))

    @torch.no_grad()
    def add_gradients(self, model: nn.Module) -> None:
        """Add the gradients up, and take the buffers of process 0, as `DistributedDataParallel` does; in place."""
        if self.group is None:
            return
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if self.rank > 0:
            buffers = [buffer.zero_() for buffer in buffers]
        tensors = [*(each.grad for each in model.parameters() if each.grad is not None), *buffers]
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = self.add(torch.cat([tensor.reshape(-1) for tensor in alike]))
            parts = torch.split(flat, [tensor.numel() for tensor in alike])
            for tensor, part in zip(alike, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise in every process if the block raises in one, which itself raises no other than its own error.

        Nobody is left waiting for one that failed. The block must not wait for others.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            failure = error
        told = self.gather(None if failure is None else f"{type(failure).__name__}: {first_line(failure)}")
        if failure is not None:
            raise failure
        for number, error_elsewhere in enumerate(told):
            if error_elsewhere is not None:
                raise ProcessError(f"process {number} failed: {error_elsewhere}")


ALONE = Processes()


@contextmanager
def lost() -> Iterator[None]:
    """Say in plain words what a backend says of its sockets, or of a message cut short; its own words are logged."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _log.debug("the backend says: %s", printable(str(error)))
        raise ProcessError(
            "another process is gone, or did not answer in time; if it said why, that is above"
        ) from error


def all_processes() -> Processes:
    """Those that `joined` joined, else this one alone."""
    return Processes(dist.group.WORLD if dist.is_available() and dist.is_initialized() else None)
