"""Which cells the suite has."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .problems import FAMILIES, SIZES, Network, Recipe, Source
from .races import OURS, QP_RIVALS, SINGLE, TRIMS, Cell
from .rivals import gaps

# Of trained networks, clean and backdoored.
NETWORKS = (
    Network("digits", "digits-small-preact-resnet-clean-s0"),
    Network("digits", "digits-small-preact-resnet-badnets-0.1-s0"),
    Network("fashion-mnist", "fashion-mnist-preactresnet18-w16-s2-clean-s0"),
    Network("fashion-mnist", "fashion-mnist-preactresnet18-w16-s2-blended-0.1-s0"),
    Network("cifar10", "cifar10-preactresnet18-w24-clean-s0"),
    Network("cifar10", "cifar10-preactresnet18-w24-blended-0.1-s0"),
    Network("gtsrb", "gtsrb-preactresnet18-w24-clean-s0"),
    Network("gtsrb", "gtsrb-preactresnet18-w24-badnets-0.1-s0"),
    Network("tinyimagenet", "tinyimagenet-preactresnet18-w24-s4-clean-s0"),
    Network("tinyimagenet", "tinyimagenet-preactresnet18-w24-s4-badnets-0.1-s0"),
)
# The trained-like problem of every size.
USUAL = tuple(Recipe("trained", classes, *size) for classes, size in SIZES.items())
# Against which tacfast is raced on all problems; the others on the trained-like one of every size but the largest,
# where they would take minutes to hours.
MAIN = ("DAQP reduced", "DAQP dual", "SciPy NNLS", "PIQP", "Moreau", "cvxpy DPP + Clarabel")
LARGEST, AT_LARGEST = 1000, ("DAQP", "DAQP reduced", "SciPy NNLS", "Moreau")
# Of C, d and n when one of them grows and the others stay.
GROWING_CLASSES, GROWING_DIMS = (10, 20, 50, 100, 200, 500), (64, 256, 1024)
GROWING_SAMPLES = (1000, 10_000, 100_000, 1_000_000)
# Of C for the gap matrix, at n = 50 000.
GROWING_GAPS = (100, 200, 500, 1000)
# Samples of the problem as the paper writes it, one row for each and each other class.
AS_WRITTEN = (50, 100, 200, 400)
LARGE = ((200, 100_000, 512), (1000, 50_000, 2048))


def cells() -> Iterator[Cell]:
    """All cells, those of the main comparison first."""
    yield from _qps()
    yield from _gaps()
    for classes, n, dim in LARGE:
        for threads in _threads():
            for entrant in ("tacfast", *(f"tacfast trim {trim}" for trim in TRIMS)):
                yield Cell("whole", Recipe("trained", classes, n, dim), entrant, threads)
    for classes in (10, 43, 200):
        yield Cell("samples", _usual("trained", classes), "DAQP")
    for threads in _threads():
        yield Cell("calls", Recipe("trained", 10, 100, 64), "tacfast", threads)
    for n in AS_WRITTEN:
        for entrant in ("Clarabel", "OSQP"):
            yield Cell("paper", Recipe("trained", 10, n, 512), entrant)


def _qps() -> Iterator[Cell]:
    for recipe in USUAL:
        small = recipe.classes < LARGEST
        for entrant in (OURS, SINGLE, *(QP_RIVALS if small else AT_LARGEST)):
            yield Cell("qps", recipe, entrant)
        for threads in _threads()[1:]:
            several = (name for name, rival in QP_RIVALS.items() if rival.threads and small)
            for entrant in (OURS, SINGLE, *several):
                yield Cell("qps", recipe, entrant, threads)
    others: list[Source] = [
        _usual(family, classes) for family in FAMILIES if family != "noise" for classes in (10, 200)
    ]
    grown = [Recipe("trained", classes, 5000, 512) for classes in GROWING_CLASSES]
    deep = [Recipe("trained", 100, 5000, dim) for dim in GROWING_DIMS]
    for source in (*others, *NETWORKS, *grown, *deep):
        for entrant in (OURS, SINGLE, *MAIN):
            yield Cell("qps", source, entrant)


def _gaps() -> Iterator[Cell]:
    sources = [
        *(_usual("trained", classes) for classes in (10, 43, 200)),
        *(Recipe("trained", 10, n, 64) for n in GROWING_SAMPLES),
        *(Recipe(family, 200, 100_000, 512) for family in ("trained", "collapse", "noise")),
        *(Recipe("trained", classes, 50_000, 512) for classes in GROWING_GAPS),
        Recipe("trained", 200, 100_000, 512, sorted_rows=True),
    ]
    for source in sources:
        for threads in _threads():
            for entrant in ("tacfast", *(f"tacfast trim {trim}" for trim in TRIMS)):
                yield Cell("gaps", source, entrant, threads)
        for entrant in gaps.RIVALS:
            yield Cell("gaps", source, entrant)
    for threads in _threads()[1:]:
        yield Cell("gaps", Recipe("trained", 200, 100_000, 512), "numba, parallel", threads)


def _usual(family: str, classes: int) -> Recipe:
    return Recipe(family, classes, *SIZES[classes])


def _threads() -> tuple[int, ...]:
    return tuple(sorted({1, os.cpu_count() or 1}))
