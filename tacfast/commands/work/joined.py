"""A command in several processes, as torchrun starts them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist

from ..._processes import all_processes, lost

# One that does not answer for so long is given up: another may be busy with what it alone has to do.
TIMEOUT = timedelta(minutes=30)
# Exit status of wrong usage.
USAGE = 2


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
        status = processes.first(stop.code)
        dist.destroy_process_group()
        raise SystemExit(status) from None


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
