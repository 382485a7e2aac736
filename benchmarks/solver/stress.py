"""Random problems of every awkward kind; each answer is proven by mathematics that does not call tacfast."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tacfast
from tacfast import Status, TacSolution

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "helpers"))  # what the tests prove solutions with
from independent import constraints, measures, ray_residuals
from problems import FAMILIES, Problem, of_family
from scipy.optimize import linprog

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}
RESIDUALS = ("primal", "dual", "stationarity", "gap")
# So many that are wrong are kept; the others are only counted.
KEPT = 20
SHARPER = 1e6


@dataclass(frozen=True)
class Case:
    """One problem and how it is put to the solver."""

    family: str
    problem: Problem
    dtype: torch.dtype
    margin: float
    trim: float

    @property
    def name(self) -> str:
        """Under which it is counted."""
        return f"{self.family}, {str(self.dtype).removeprefix('torch.')}"


def case_of(seed: int, number: int) -> Case:
    """The problem of this number in the campaign of this seed."""
    rng = np.random.default_rng([seed, number])
    family = list(FAMILIES)[number % len(FAMILIES)]
    large = rng.random() < 0.1
    classes, dim = int(rng.integers(2, 60 if large else 13)), int(rng.integers(1, 80 if large else 15))
    n = int(rng.choice([1, 2, 30, 300]))
    problem = of_family(family, int(rng.integers(2**32)), classes, dim, n, bool(rng.random() < 0.5))
    dtype = list(TOLERANCE)[int(rng.integers(2))]
    return Case(family, problem, dtype, float(rng.choice([0.0, 0.5])), float(rng.choice([0.0, 0.0, 0.25, 0.5])))


@dataclass
class Campaign:
    """What came of the problems so far.

    Attributes
    ----------
    seed, done : of the campaign, and how many of its problems have been solved; `asdict` of it is its state
    classes : by family and dtype, how many classes ended in each status
    worst : by family and dtype, the largest residual of a class called OPTIMAL
    unsolved : classes that ended in no answer: MAX_ITER or INACCURATE
    wrong, wrong_count : what was said and is not so: number of the problem, class, and fault, of the first few; of all
    disputed : classes called INFEASIBLE with a proof of which HiGHS has found a point, up to rounding
    unproven : classes called INFEASIBLE whose duals, rounded to the dtype, prove it no more, but HiGHS agrees
    """

    seed: int
    done: int = 0
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)
    unsolved: int = 0
    wrong: list[dict[str, Any]] = field(default_factory=list)
    wrong_count: int = 0
    disputed: int = 0
    unproven: int = 0

    def run(self, count: int, on_progress: Callable[[int], None]) -> None:
        """Go on until so many problems are solved."""
        for number in range(self.done, count):
            self.add(number, case_of(self.seed, number))
            self.done = number + 1
            on_progress(self.done)

    def add(self, number: int, case: Case) -> None:
        """Solve one problem and check every class of it."""
        solution = tacfast.solve_tac(
            *case.problem.to(case.dtype), margin=case.margin, trim=case.trim, raise_on_failure=False
        )
        seen = case.problem.rounded(case.dtype)
        statuses = Counter(self.classes.get(case.name, {}))
        for r, status in enumerate(solution.statuses):
            statuses[status.name] += 1
            for fault in self._faults(case, seen, solution, r):
                self.wrong_count += 1
                if len(self.wrong) < KEPT:
                    self.wrong.append({"number": number, "class": int(solution.classes[r]), "fault": fault})
        self.classes[case.name] = dict(statuses)

    def _faults(self, case: Case, seen: Problem, solution: TacSolution, r: int) -> Iterator[str]:
        tolerance, eps = TOLERANCE[case.dtype], torch.finfo(case.dtype).eps
        duals = torch.as_tensor(solution.duals[r]).numpy()
        c = constraints(seen.W, seen.b, torch.as_tensor(solution.gaps).numpy(), r, case.margin, eps)
        status = solution.statuses[r]
        if (duals < 0).any():
            yield "a dual variable is negative"
        if status is Status.INFEASIBLE:
            cancelled, gain = ray_residuals(c, duals)
            proven, point = cancelled <= tolerance and gain > 0, has_point(c.A, c.rho)
            if point and not proven:
                yield f"INFEASIBLE, but its ray leaves {cancelled:.1e} and gains {gain:.1e}, and HiGHS has a point"
            self.disputed += point and proven
            self.unproven += not point and not proven
        elif status is Status.OPTIMAL:
            with np.errstate(divide="ignore"):  # a bound is +inf where a constraint is not reached at all
                found = measures(c, torch.as_tensor(solution.perturbations[r]).numpy(), duals)
            residual = max(getattr(found, name) for name in RESIDUALS)
            self.worst[case.name] = max(residual, self.worst.get(case.name, 0.0))
            if not residual <= tolerance:
                yield f"OPTIMAL, but a residual is {residual:.1e}"
        else:
            self.unsolved += 1


def has_point(A: np.ndarray, rho: np.ndarray) -> bool:
    """Whether HiGHS finds an s with A s ≥ rho, rows scaled to length 1 and the largest side to 1.

    It allows each row to miss by 1e-7. That is more than what rounding to float32 takes off some problems, so they are
    put to it a million times as large.
    """
    lengths = np.linalg.norm(A, axis=1)
    kept = lengths > 0
    if (rho[~kept] > 0).any():
        return False
    rows, sides = A[kept] / lengths[kept, None], rho[kept] / lengths[kept]
    sides = sides / max(np.abs(sides).max(initial=0.0), np.finfo(float).tiny)
    if (sides <= 0).all():
        return True
    found = linprog(
        np.zeros(A.shape[1]), A_ub=-rows * SHARPER, b_ub=-sides * SHARPER, bounds=(None, None), method="highs"
    )
    return bool(found.status == 0)
