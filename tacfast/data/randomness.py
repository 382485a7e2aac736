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
    """Seed every global generator, and the loader's own if it has one; restore them all on leaving.

    Covers Python's ``random``, NumPy's legacy global generator (data augmentation uses both), torch on the
    CPU and on every CUDA device.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    own = getattr(loader, "generator", None)
    own_state = own.get_state() if isinstance(own, torch.Generator) else None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.manual_seed(seed)
            if isinstance(own, torch.Generator):
                own.manual_seed(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            if isinstance(own, torch.Generator) and own_state is not None:
                own.set_state(own_state)
