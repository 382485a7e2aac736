"""Who does which cell: processes on this machine, or, through Ray, on many."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .cells import NETWORK_CELL, SCAN_CELL, cells_of, is_sound
from .networks import Say, Suspects
from .profiles import CLEAN, PROFILES, Network, Profile
from .store import Store, try_lock

# While others hold all that is left, look again after so many seconds.
PATIENCE = 5.0


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
        return (NETWORK_CELL, SCAN_CELL, *self.defences)

    def suspects(self, say: Say) -> Suspects:
        """Its networks."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return Suspects(self.settings, self.models, self.root, say, device)

    def missing(self, network: Network) -> list[str]:
        """Cells of a network that are not there, are damaged, or were made with other settings."""
        store, profile = Store(self.results), self.settings
        return [name for name in self.cells if not is_sound(store, profile, network, name)]

    def run(self, network: Network, names: Sequence[str], say: Say) -> Iterator[tuple[str, Any]]:
        """Make cells of one network, after training it where that is needed."""
        suspect = self.suspects(say).get(network)
        held = [Store(self.results).read(network.name, name) for name in self.cells]
        if any(cell is not None and cell.get("weights") != suspect.weights for cell in held):
            say(f"{network.name}: all cells again: it was trained again, with other weights")
            names = self.cells
        yield from cells_of(suspect, self.settings, names)


def work(grid: Grid, say: Say) -> None:
    """Make whatever is missing and nobody else is making, until nothing is; returns when the grid is complete.

    Raises
    ------
    RuntimeError
        At the end, naming the networks that could not be trained or measured; the others are complete.
    """
    torch.set_num_threads(1)
    failed: set[Network] = set()
    while left := [network for network in grid.networks if network not in failed and grid.missing(network)]:
        # From the first one again after each: what was somebody else's, or had to wait, may be free now.
        if not any(_attempt(grid, network, say, failed) for network in left):
            time.sleep(PATIENCE)
    if failed:
        raise RuntimeError(f"networks: {len(failed)} failed: {', '.join(sorted(network.name for network in failed))}")


def _attempt(grid: Grid, network: Network, say: Say, failed: set[Network]) -> bool:
    with _noted(network, say, failed):
        return _take(grid, network, say, failed)
    return True


def _take(grid: Grid, network: Network, say: Say, failed: set[Network]) -> bool:
    """Make the missing cells of one network; False if that is somebody else's, or has to wait for its clean one.

    The clean network of the same kind measures the triggered images, and TrojanNN makes its trigger on it.
    """
    first = network.attack != CLEAN and network.clean in grid.networks and network.clean not in failed
    if first and not grid.suspects(say).is_trained(network.clean):
        return _train_clean(grid, network.clean, say, failed)
    with try_lock(grid.models / "locks" / network.name) as ours:
        missing = grid.missing(network) if ours else []
        for name, cell in grid.run(network, missing, say) if missing else ():
            Store(grid.results).write(network.name, name, cell)
            say(f"{network.name}: {name} done", 1)
    return bool(missing)


def _train_clean(grid: Grid, network: Network, say: Say, failed: set[Network]) -> bool:
    """Train a clean network for others: its own cells may all be there from a run whose models were lost."""
    with try_lock(grid.models / "locks" / network.name) as ours:
        if ours:
            with _noted(network, say, failed):
                grid.suspects(say).get(network)
    return ours


@contextmanager
def _noted(network: Network, say: Say, failed: set[Network]) -> Iterator[None]:
    """Say that a network failed, and go on with the others."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        say(f"{network.name}: failed: {error}")
        failed.add(network)


def _worker(grid: Grid, log: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def say(text: str, cells: int = 0) -> None:
        log.put((text, cells))

    try:
        work(grid, say)
    except (OSError, RuntimeError) as error:
        say(str(error))
        sys.exit(1)


def _end_with_parent() -> None:
    """End this process when the one that started it is killed: nobody would know that it goes on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def run_local(grid: Grid, workers: int, say: Say) -> None:
    """Work in several processes, each with one thread.

    Raises
    ------
    RuntimeError
        If one of them fails; what it said went to ``say``.
    """
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    log = context.Queue()
    processes = [context.Process(target=_worker, args=(grid, log), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    alive = True
    while alive:
        alive = any(process.is_alive() for process in processes)
        with suppress(queue.Empty):
            while True:
                say(*log.get(timeout=0.5))
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise RuntimeError(f"workers: {len(failed)} of {workers} failed, the first with exit status {failed[0]}")


def run_ray(grid: Grid, address: str, say: Say) -> None:
    """Let the workers of a Ray cluster work, one network per task; this process writes the cells as they come.

    Workers need this package, the data sets (``root``, or their own ``TACFAST_DATA``) and a folder of models, which
    need not be shared: a network that a worker does not find there it trains.

    Raises
    ------
    ImportError
        Without Ray: pip install 'tacfast[ray]'.
    RuntimeError
        If networks failed, naming them.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("--ray needs Ray: pip install 'tacfast[ray]'") from error
    here = str(Path(__file__).parents[2])
    ray.init(address=address, runtime_env={"env_vars": {"PYTHONPATH": here}}, log_to_driver=False)
    gpus = min(1.0, ray.cluster_resources().get("GPU", 0))
    cells = ray.remote(num_cpus=1, num_gpus=gpus, num_returns="streaming", max_retries=3)(_remote_cells)

    def follow(network: Network) -> str | None:
        try:
            for found in cells.remote(grid, network, grid.missing(network)):
                name, cell = ray.get(found)
                Store(grid.results).write(network.name, name, cell)
                say(f"{network.name}: {name} done", 1)
        except ray.exceptions.RayError as error:
            reason = str(getattr(error, "cause", error)).strip().splitlines()[-1]
            say(f"{network.name}: failed: {reason}")
            return network.name
        return None

    try:
        left = [network for network in grid.networks if grid.missing(network)]
        # What others are made from comes first.
        batches = [[network for network in left if (network.attack != CLEAN) == late] for late in (False, True)]
        failed = []
        for batch in batches:
            with ThreadPoolExecutor(max(1, len(batch))) as pool:
                failed += [name for name in pool.map(follow, batch) if name is not None]
    finally:
        ray.shutdown()
    if failed:
        raise RuntimeError(f"networks: {len(failed)} failed: {', '.join(failed)}")


def _remote_cells(grid: Grid, network: Network, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    torch.set_num_threads(1)

    def say(text: str, cells: int = 0) -> None:
        print(text, flush=True)

    yield from grid.run(network, names, say)
