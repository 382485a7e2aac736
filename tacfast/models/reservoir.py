"""Some of the inputs that a loader gives, kept as they pass."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from .._processes import Processes
from .latents import split_batch

MAX_BYTES = 2**28
# To tell inputs apart, so many of their numbers are looked at: enough for all that are no copies of one another.
LOOKED_AT = 512


class Reservoir:
    """A loader of whose inputs some are kept as they pass, each as likely as any other.

    Of every input a number is computed that might as well be random, and those with the smallest are kept: the same
    ones, whatever the order in which they come, and whoever of several processes is given them.

    Parameters
    ----------
    loader : yields ``inputs`` or ``(inputs, labels)``
    count : at most so many are kept, or as many as fit into 2²⁸ bytes; inputs of another shape, dtype or device than
        the first are passed over

    Attributes
    ----------
    largest : size of the largest batch of the latest pass
    """

    def __init__(self, loader: Iterable[Any], count: int) -> None:
        self._loader, self._count = loader, count
        self.largest = 0
        self._start()

    def _start(self) -> None:
        self._kept: Tensor | None = None
        self._seen = 0
        # Of each row of what is kept: −key, −number in the order of the loader, row. The first is the next to go.
        self._heap: list[tuple[int, int, int]] = []

    @property
    def inputs(self) -> Tensor | None:
        """Those of the latest pass (n, ...), in their order; None before one, or if ``count`` is 0."""
        if self._kept is None:
            return None
        rows = [row for _, _, row in self._in_order()]
        return self._kept if rows == sorted(rows) else self._kept[rows]

    def _in_order(self) -> list[tuple[int, int, int]]:
        return sorted(self._heap, key=lambda entry: -entry[1])

    def __iter__(self) -> Iterator[Any]:
        self._start()
        for batch in self._loader:
            inputs = split_batch(batch)[0].detach()
            self.largest = max(self.largest, len(inputs))
            if self._count:
                self._take(inputs)
            yield batch

    def _take(self, inputs: Tensor) -> None:
        """Keep some of a batch."""
        kept = inputs[:0] if self._kept is None else self._kept
        if (inputs.shape[1:], inputs.dtype, inputs.device) != (kept.shape[1:], kept.dtype, kept.device):
            return
        free = self._most(inputs) - len(kept)
        kept = self._kept = torch.cat([kept, inputs[:free]]) if free else kept
        for i, key in enumerate(_keys(inputs)):
            self._seen += 1
            if i < free:
                heapq.heappush(self._heap, (-key, -self._seen, len(self._heap)))
            elif -key > self._heap[0][0]:
                row = self._heap[0][2]
                heapq.heapreplace(self._heap, (-key, -self._seen, row))
                kept[row] = inputs[i]

    def _most(self, inputs: Tensor) -> int:
        return max(1, min(self._count, MAX_BYTES // max(1, inputs[0].numel() * inputs.element_size())))

    def gather(self, processes: Processes) -> None:
        """Keep, in every process, what one would have kept that is given the samples of all in order of rank.

        Where the first of a process is of another shape or dtype than the very first, those that it kept are passed
        over.
        """
        if processes.size == 1:
            return
        kept, keys = self._kept, [-key for key, _, _ in self._in_order()]
        kind = None if kept is None else (kept.shape[1:], kept.dtype, self._most(kept))
        told = processes.gather((kind, keys, self.largest))
        self.largest = max(largest for _, _, largest in told)
        first = next((kind for kind, _, _ in told if kind is not None), None)
        if first is None:
            return
        every = [
            (key, rank, i) for rank, (kind, keys, _) in enumerate(told) if kind == first for i, key in enumerate(keys)
        ]
        chosen = heapq.nsmallest(first[2], every)
        mine = sorted(i for _, rank, i in chosen if rank == processes.rank)
        inputs = self.inputs
        parts = processes.gather(inputs[mine].cpu() if inputs is not None and mine else None)
        together = torch.cat([part for part in parts if part is not None])
        self._kept = together if kept is None else together.to(kept.device)
        self._heap = [(-key, -i, i) for i, (key, _, _) in enumerate(sorted(chosen, key=lambda each: each[1:]))]
        heapq.heapify(self._heap)


def _keys(inputs: Tensor) -> list[int]:
    """A number for each input, which hangs on nothing but its own bits."""
    rows = inputs.reshape(len(inputs), -1)
    some = rows[:, :: max(1, -(-rows.shape[1] // LOOKED_AT))].contiguous().view(torch.uint8).cpu().numpy()
    return [int.from_bytes(blake2b(row.tobytes(), digest_size=8).digest(), "big") for row in some]
