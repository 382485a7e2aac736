"""A stream of latents as long as a day's: constant memory, and shards that merge to the same bits as the whole."""

from __future__ import annotations

import io
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tacfast import GapMatrix
from tacfast._files import write_atomically

BATCH, SHARDS = 100_000, 4
CLASSES, DIM = 10, 64
# Batches between two states on the disk.
SAVED = 20


@dataclass
class Stream:
    """Latents in batches, each made from the seed and its number, folded in as a whole and in shards.

    Attributes
    ----------
    seed, done : how many batches have been folded in
    whole, shards : the gap matrix of all, and of every ``SHARDS``-th batch
    peaks : peak resident memory in MiB of the process after so many batches
    """

    seed: int
    done: int = 0
    whole: GapMatrix = field(init=False)
    shards: list[GapMatrix] = field(init=False)
    peaks: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        W, b = torch.randn(CLASSES, DIM, generator=generator), torch.randn(CLASSES, generator=generator)
        self.whole, self.shards = GapMatrix(W, b), [GapMatrix(W, b) for _ in range(SHARDS)]

    def run(self, batches: int, state: Path, on_progress: Callable[[int], None]) -> None:
        """Go on until so many batches are folded in; the state is kept in a file until then."""
        if state.exists():
            self._restore(torch.load(state))
        while self.done < batches:
            latents = batch_of(self.seed, self.done)
            self.whole.update(latents)
            self.shards[self.done % SHARDS].update(latents)
            self.done += 1
            if self.done % SAVED == 0 or self.done == batches:
                self.peaks[self.done] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                self._save(state)
            on_progress(self.done)

    def merged(self) -> GapMatrix:
        """The shards merged; they are not used up."""
        merged = self.whole.empty()
        for shard in self.shards:
            merged.merge(shard)
        return merged

    def _save(self, path: Path) -> None:
        parts = [self.whole, *self.shards]
        state = {"done": self.done, "peaks": self.peaks, "parts": [part.state_dict() for part in parts]}
        content = io.BytesIO()
        torch.save(state, content)
        write_atomically(path, content.getvalue())

    def _restore(self, state: dict[str, Any]) -> None:
        self.done, self.peaks = state["done"], state["peaks"]
        for part, known in zip([self.whole, *self.shards], state["parts"], strict=True):
            part.load_state_dict(known)


def batch_of(seed: int, number: int) -> torch.Tensor:
    """Latents (``BATCH``, ``DIM``) float32."""
    # Not from the seed of W: latents that are rows of W would have the largest gaps of all, and hide all others.
    return torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(seed * 1_000_003 + 1 + number))
