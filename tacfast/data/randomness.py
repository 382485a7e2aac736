"""Seeded work that leaves the caller's random state as it was."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def isolated_randomness(seed: int, loader: Iterable[Any] | None = None) -> Iterator[None]:
    """Seed every global generator and those of the loader; restore them all on leaving.

    Covers Python's ``random``, NumPy's legacy global generator (data augmentation uses both), torch on the
    CPU and on every CUDA device, and the attribute ``generator`` of the loader and of its samplers. Generators
    that a data set keeps for itself go on from where they are.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    own_states = [(generator, generator.get_state()) for generator in _generators(loader)]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.manual_seed(seed)
            for generator, _ in own_states:
                generator.manual_seed(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            for generator, state in own_states:
                generator.set_state(state)


def _generators(loader: Iterable[Any] | None) -> list[torch.Generator]:
    """The generators of a loader and of its samplers, each once: a loader shares its own with them."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())
