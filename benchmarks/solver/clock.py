"""Seconds and memory of calls that are made in turn, so that a slow spell of the machine meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Of the repetitions of each call, the first of which is not counted unless it is all there is.
LEAST, MOST = 2, 16
# One with less than this is repeated a little, however slow the other.
SHORT, AT_LEAST = 0.05, 6
# One that takes longer than this is run once.
SLOW = 5.0


class Race:
    """Calls by name, each given the number of the repetition, made in turn until the time is up.

    Attributes
    ----------
    seconds : by name, of every repetition
    results : by name, of the last one
    memory : bytes that the last of the calls needs at most beyond what the process had before; None where Linux does
        not tell
    """

    def __init__(self, calls: dict[str, Callable[[int], Any]], budget: float, most: int = MOST) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in calls}
        self.results: dict[str, Any] = {}
        *_, last = calls
        self.memory = _extra_memory(lambda: self._run(last, calls[last], 0))
        if self.seconds[last][0] > SLOW:  # this once is all there is of it
            calls = {name: call for name, call in calls.items() if name != last}
        else:
            self.seconds[last].clear()
        start = time.perf_counter()
        for number in range(most):
            for name, call in calls.items():
                self._run(name, call, number)
            if number + 1 >= LEAST and time.perf_counter() - start > budget:
                break
        for name, call in calls.items():  # the quick beside the slow
            while len(self.seconds[name]) < min(AT_LEAST, most) and max(self.seconds[name]) < SHORT:
                self._run(name, call, len(self.seconds[name]))

    def _run(self, name: str, call: Callable[[int], Any], number: int) -> None:
        if self.seconds[name] and self.seconds[name][-1] < SHORT:
            call(number - 1 if number else 0)  # not counted: the caches are as the others left them
        start = time.perf_counter()
        self.results[name] = call(number)
        self.seconds[name].append(time.perf_counter() - start)

    def summary(self) -> dict[str, dict[str, float]]:
        """By name: median, smallest and largest of the counted seconds, and how many these are."""
        found = {}
        for name, all_seconds in self.seconds.items():
            counted = all_seconds[1:] or all_seconds
            found[name] = {
                "median": statistics.median(counted),
                "min": min(counted),
                "max": max(counted),
                "repetitions": len(counted),
            }
        return found


def _extra_memory(call: Callable[[], Any]) -> int | None:
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    clear.write_text("5")  # the peak is from now on
    before = _kilobytes("VmRSS")
    call()
    return max(0, _kilobytes("VmHWM") - before) * 1024


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
