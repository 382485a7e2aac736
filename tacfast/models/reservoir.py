"""Some of the inputs that a loader gives, kept as they pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .latents import split_batch

MAX_BYTES = 2**28


class Reservoir:
    """A loader of whose inputs some are kept as they pass, each as likely as any other (Vitter 1985, algorithm R).

    Parameters
    ----------
    loader : yields ``inputs`` or ``(inputs, labels)``
    count : at most so many are kept, or as many as fit into 2²⁸ bytes; inputs of another shape, dtype or device than
        the first are passed over

    Attributes
    ----------
    inputs : (n, ...) those of the latest pass; None before one, or if ``count`` is 0
    largest : size of its largest batch
    """

    def __init__(self, loader: Iterable[Any], count: int) -> None:
        self._loader, self._count = loader, count
        self.inputs: Tensor | None = None
        self.largest = 0

    def __iter__(self) -> Iterator[Any]:
        self.inputs, seen, generator = None, 0, torch.Generator().manual_seed(0)
        for batch in self._loader:
            inputs = split_batch(batch)[0].detach()
            self.largest = max(self.largest, len(inputs))
            if self._count:
                seen += self._take(inputs, seen, generator)
            yield batch

    def _take(self, inputs: Tensor, seen: int, generator: torch.Generator) -> int:
        """Keep some of a batch, after so many that could have been kept; returns how many of these it has."""
        kept = inputs[:0] if self.inputs is None else self.inputs
        if (inputs.shape[1:], inputs.dtype, inputs.device) != (kept.shape[1:], kept.dtype, kept.device):
            return 0
        count = max(1, min(self._count, MAX_BYTES // max(1, inputs[0].numel() * inputs.element_size())))
        free = count - len(kept)
        kept = torch.cat([kept, inputs[:free]]) if free else kept
        numbers = seen + torch.arange(1, len(inputs) + 1)
        places = (torch.rand(len(inputs), generator=generator, dtype=torch.float64) * numbers).long()
        places[:free] = count  # these have one already
        for row in (places < count).nonzero().flatten().tolist():
            kept[places[row]] = inputs[row]
        self.inputs = kept
        return len(inputs)
