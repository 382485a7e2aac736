"""A command in several processes, as torchrun starts them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist

# Functions there have the group of all processes as a default, where there is one at the import, which optimizers, too,
# bring about. That keeps it, and threads of gloo which abort the process at its end if they are caught at work.
import torch.distributed.nn.functional

from ..._processes import all_processes, lost

# One that does not answer for so long is given up: another may be busy with what it alone has to do.
TIMEOUT = timedelta(minutes=30)
# Exit status of wrong usage.
USAGE = 2

_kept: list[Callable[[], None]] = []


def once_written(forget: Callable[[], None]) -> None:
    """Delete what was kept in case of an interruption; of several processes each does so when they leave.

    That is, if the first one called this, too, which it does when it has written all.
    """
    if all_processes().size == 1:
        forget()
    else:
        _kept.append(forget)


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes that torchrun started; the block is a command that leaves by SystemExit.

    Each has the GPU of its number on its machine, where there are GPUs. But for number 0, none prints anything, unless
    it is used wrongly. They leave together, with the exit status of number 0: torchrun kills all when one has another
    status than 0.
    """
    backend = "gloo"
    if torch.cuda.is_available():
        here, number = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
        if number >= here:
            raise ValueError(
                f"--nproc-per-node: expected a GPU for each process, got {here} GPUs and at least {number + 1} "
                "processes; with CUDA_VISIBLE_DEVICES= they run without"
            )
        torch.cuda.set_device(number)
        backend = "cpu:gloo,cuda:nccl"
    with lost():
        dist.init_process_group(backend, timeout=TIMEOUT)
    processes = all_processes()
    try:
        if processes.rank == 0:
            yield
        else:
            with _unless_used_wrongly_quiet():
                yield
    except SystemExit as stop:
        if stop.code == USAGE:
            raise
        sys.stdout.flush()
        status, written = processes.first((stop.code, bool(_kept)))
        if written:
            for forget in _kept:
                forget()
        if backend != "gloo":
            dist.destroy_process_group()
        raise SystemExit(status) from None
    finally:
        # After a failure, too, for threads of gloo that are left; NCCL may then wait for one that is gone.
        if backend == "gloo":
            dist.destroy_process_group()


@contextmanager
def _unless_used_wrongly_quiet() -> Iterator[None]:
    said = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            yield
    except SystemExit as stop:
        if stop.code == USAGE:
            sys.stderr.write(said.getvalue())
        raise
