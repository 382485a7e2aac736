"""Who does which cell: processes on this machine, or, through Ray, on many."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .cells import NETWORK_CELL, cells_of, identity
from .networks import Suspects
from .profiles import PROFILES, Network, Profile
from .store import Store, try_lock

# While others hold all that is left, look again after so many seconds.
PATIENCE = 5.0
# The trigger of this attack is made on a clean network of the same kind.
NEEDS_CLEAN = ("trojannn",)


@dataclass(frozen=True)
class Grid:
    """A run of a profile; plain values, so that any process can be given it.

    Attributes
    ----------
    profile : name of one of ``PROFILES``
    networks : those of its networks that are worked on
    defences : names of the columns
    results, models : folders of the JSON cells and of the trained networks
    root : folder of the data sets; None for what ``TACFAST_DATA`` says
    """

    profile: str
    networks: tuple[Network, ...]
    defences: tuple[str, ...]
    results: Path
    models: Path
    root: Path | None

    @property
    def settings(self) -> Profile:
        """The profile itself."""
        return PROFILES[self.profile]

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of the cells of each network."""
        return (NETWORK_CELL, *self.defences)

    def missing(self, network: Network) -> list[str]:
        """Cells of a network that are not there, are damaged, or were made with other settings."""
        store, profile = Store(self.results), self.settings
        return [name for name in self.cells if not store.has(network.name, name, identity(profile, network, name))]

    def run(self, network: Network, names: Sequence[str], say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
        """Make cells of one network, after training it where that is needed."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        suspects = Suspects(self.settings, self.models, self.root, say, device)
        yield from cells_of(suspects.get(network), self.settings, names)


def work(grid: Grid, say: Callable[[str], None]) -> None:
    """Make whatever is missing and nobody else is making, until nothing is; returns when the grid is complete."""
    torch.set_num_threads(1)
    store = Store(grid.results)
    while left := [network for network in grid.networks if grid.missing(network)]:
        if not any([_take(grid, store, network, say) for network in left]):
            time.sleep(PATIENCE)


def _take(grid: Grid, store: Store, network: Network, say: Callable[[str], None]) -> bool:
    """Make the missing cells of one network; False if that is somebody else's, or has to wait."""
    clean = network.clean
    if network.attack in NEEDS_CLEAN and not Suspects(grid.settings, grid.models, None, say, _CPU).is_trained(clean):
        if clean in grid.networks:
            return False
    with try_lock(grid.models / "locks" / network.name) as ours:
        if not ours:
            return False
        for name, cell in grid.run(network, grid.missing(network), say):
            store.write(network.name, name, cell)
            say(f"{network.name}: {name} done")
    return True


_CPU = torch.device("cpu")


def _worker(grid: Grid, log: Any) -> None:
    work(grid, log.put)


def run_local(grid: Grid, workers: int, say: Callable[[str], None]) -> None:
    """Work in several processes, each with one thread.

    Raises
    ------
    RuntimeError
        If one of them fails.
    """
    context = multiprocessing.get_context("spawn")
    log = context.Queue()
    processes = [context.Process(target=_worker, args=(grid, log), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes) or not log.empty():
        try:
            say(log.get(timeout=0.5))
        except Exception:  # queue.Empty
            continue
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise RuntimeError(f"workers: {len(failed)} of {workers} failed with exit status {failed[0]}")
