"""Seeded work that leaves the caller's random state as it was, and that can be stopped and taken up again."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
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
    before = random_states(loader)
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        for generator in _generators(loader):
            generator.manual_seed(seed)
        yield
    finally:
        set_random_states(before, loader)


def random_states(loader: Iterable[Any] | None = None) -> dict[str, Any]:
    """State of every generator that `isolated_randomness` covers, safe for ``torch.save`` and ``weights_only=True``."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "loader": [generator.get_state() for generator in _generators(loader)],
    }


def set_random_states(states: Mapping[str, Any], loader: Iterable[Any] | None = None) -> None:
    """Restore what `random_states` gave for a loader with as many generators, on as many CUDA devices."""
    name, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state_all(states["cuda"])
    for generator, state in zip(_generators(loader), states["loader"], strict=True):
        generator.set_state(state)


def _generators(loader: Iterable[Any] | None) -> list[torch.Generator]:
    """The generators of a loader and of its samplers, each once: a loader shares its own with them."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())
