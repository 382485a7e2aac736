"""What the GPU benchmarks share: timing by CUDA events, and a JSON file for each stage, rewritten after each row."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from _common import write_results

WARM_UPS = 3
FEW, LONG_S = 3, 2.0  # so many counted calls suffice once all have taken so long


def parser(description: str) -> argparse.ArgumentParser:
    """Return the arguments of every GPU benchmark; the CPU is for trying the script out, with small sizes."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--out", required=True, help="JSON file to write")
    result.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    result.add_argument("--repeats", type=int, default=21)
    result.add_argument("--shrink", type=int, default=1, help="divide the number of samples by this")
    return result


def versions(*packages: str) -> dict[str, str]:
    """Return the version of each package, or that it is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def device_report() -> dict:
    """Describe the device, its driver and the commit; what cannot be known is null."""
    report = {"device": None, "driver": None, "commit": os.environ.get("COMMIT") or None, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        report["device"] = properties.name
        report["compute_capability"] = f"{properties.major}.{properties.minor}"
        report["multiprocessors"] = properties.multi_processor_count
        report["memory_bytes"] = properties.total_memory
        report["l2_bytes"] = properties.L2_cache_size
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        done = subprocess.run(query, capture_output=True, text=True)
        report["driver"] = done.stdout.strip() if done.returncode == 0 else None
    return report


class Clock:
    """Median milliseconds of a call: by CUDA events and with a flushed L2 cache, or by the wall clock on the CPU."""

    def __init__(self, device: str, repeats: int) -> None:
        self.cuda = device == "cuda"
        self.repeats = repeats
        if self.cuda:
            # Large enough to push everything out, and to give the launches behind it a head start.
            size = 8 * torch.cuda.get_device_properties(0).L2_cache_size
            self._flush = torch.empty(size, dtype=torch.uint8, device="cuda")

    def median_ms(self, fn: Callable[[], object], repeats: int | None = None) -> float:
        """Median of ``repeats`` calls, fewer where they are slow, after some that are not counted."""
        once = self._once_on_device if self.cuda else self._once
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < (repeats or self.repeats) + WARM_UPS:
            times.append(once(fn))
            if len(times) >= WARM_UPS + FEW and time.perf_counter() - begin > LONG_S:
                break
        return statistics.median(times[WARM_UPS:])

    def wall_ms(self, fn: Callable[[], object], repeats: int) -> float:
        """As `median_ms`, by the wall clock: for what waits for the device itself, on streams of its own."""
        times = [self._once(fn) for _ in range(repeats + 1)]
        return statistics.median(times[1:])

    def graph_ms(self, fn: Callable[[], object]) -> float:
        """As `median_ms`, for the call captured in a CUDA graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                fn()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            fn()
        return self.median_ms(graph.replay)

    def _once_on_device(self, fn: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        fn()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def _once(self, fn: Callable[[], object]) -> float:
        start = time.perf_counter()
        fn()
        if self.cuda:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)


class Rows:
    """The rows of one stage, in a JSON file that is complete after each of them."""

    def __init__(self, args: argparse.Namespace, stage: str, **facts: object) -> None:
        self.out = pathlib.Path(args.out)
        trial = args.device == "cpu" or args.shrink != 1  # of the script; says nothing about speed
        method = {"trial": trial, "repeats": args.repeats, "warm_ups": WARM_UPS, "enough": f"{FEW} after {LONG_S:g} s"}
        self.payload = {"stage": stage, **device_report(), **method, **facts, "rows": []}
        self.failed: list[str] = []
        self.write()

    def measure(self, name: str, run: Callable[[], dict], may_fail: bool = False) -> dict:
        """Add what ``run`` returns, or why it returned nothing. A ``graph_note`` in it counts as a failure."""
        print(f"{name} ...", flush=True)
        row = {"name": name}
        try:
            row |= run()
            if "graph_note" in row:
                self.failed.append(f"{name}, graph")
        except ModuleNotFoundError as error:
            row["note"] = f"not installed: {error.name}"
        except Exception as error:  # the other rows shall still be measured
            row["note"] = f"failed: {type(error).__name__}: {str(error)[:500]}"
            if not may_fail:
                self.failed.append(name)
        print(f"  {row}", flush=True)
        self.payload["rows"].append(row)
        self.write()
        return row

    def write(self) -> None:
        """Write what there is."""
        write_results(self.out, self.payload | {"failed": self.failed})

    def finish(self) -> None:
        """End the script, non-zero if a row failed."""
        sys.exit(f"failed: {', '.join(self.failed)}" if self.failed else 0)
